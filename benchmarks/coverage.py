"""How often the headline's interval holds the truth, and how biased the headline is, in worlds with known truth.

    python benchmarks/coverage.py --worlds 200 --draws 400

Each world draws tasks from a population, then seeds and pictures of them, and asks `board.statistics` for the
interval. The truth is the population's mean of the least P over chains, without noise of seeds and pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from immunebench.board.statistics import TaskSample, resample

FAMILIES = ("style", "object", "identity", "relearn")
#: families, tasks a family, seeds, pictures, chains
SHAPES = ((4, 2, 1, 24, 3), (4, 4, 3, 24, 7), (4, 4, 3, 16, 7), (3, 2, 1, 24, 4), (4, 2, 1, 16, 3))
#: mean P a family, its spread over tasks and over chains of a task
WORLDS = {
    "middling": ((0.5,) * 4, 0.2, 0.1),
    "weak": ((0.1,) * 4, 0.15, 0.05),
    "uneven": ((0.1, 0.3, 0.6, 0.9), 0.2, 0.1),
}
# close to the records of mini-power: gain of the attack, spread of pictures, their correlation, spread of seeds
GAIN, PICTURES, SHARED, SEEDS = 0.75, 0.22, 0.4, 0.06


def true_p(rng: np.random.Generator, mean: float, tasks: int, chains: int, spread: tuple[float, float]) -> np.ndarray:
    """P_raw of tasks of one family, shape (tasks, chains)."""
    task = mean + spread[0] * rng.standard_normal((tasks, 1))
    return task + spread[1] * rng.standard_normal((tasks, chains))


def observe(rng: np.random.Generator, p: np.ndarray, family: str, name: str, seeds: int, pictures: int) -> TaskSample:
    """What one run shows of a task whose P_raw by chain is `p`."""
    common = rng.standard_normal((seeds, 1, pictures))
    chains = len(p)

    def noise(many: int) -> np.ndarray:
        own = rng.standard_normal((seeds, many, pictures))
        return np.asarray(PICTURES * (np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own))

    def of_seed() -> np.ndarray:
        return SEEDS * rng.standard_normal((seeds, chains, 1))

    defended = GAIN * (1 - p)[None, :, None] + of_seed() + noise(chains)
    ceiling = GAIN + of_seed() + noise(chains)
    names = tuple(f"chain-{c}" for c in range(chains))
    return TaskSample(name, family, names, noise(1)[:, 0], ceiling, defended[None], SEEDS)


def measure(
    shape: Sequence[int], means: Sequence[float], spread: tuple[float, float], worlds: int, draws: int
) -> tuple[float, float, float, float]:
    """Truth, bias of the headline, coverage and mean width of its interval."""
    families, tasks, seeds, pictures, chains = shape
    rng = np.random.default_rng(7)
    many = [true_p(rng, mean, 100_000, chains, spread) for mean in means[:families]]
    truth = float(np.mean([np.clip(p, 0.0, 1.0).min(1).mean() for p in many]))
    held, widths, estimates = 0, [], []
    for _ in range(worlds):
        samples = [
            observe(rng, p, family, f"{family}-{t}", seeds, pictures)
            for family, mean in zip(FAMILIES, means[:families], strict=False)
            for t, p in enumerate(true_p(rng, mean, tasks, chains, spread))
        ]
        headline = resample(samples, draws=draws, detail=False).headline
        interval = headline.interval(0)
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
        widths.append(interval[1] - interval[0])
        estimates.append(float(headline.estimate[0]))
    return truth, float(np.mean(estimates)) - truth, held / worlds, float(np.mean(widths))


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=200, help="worlds a row")
    parser.add_argument("--draws", type=int, default=400, help="draws of the bootstrap a world")
    numbers = range(len(SHAPES))
    parser.add_argument("--shapes", type=int, nargs="+", default=[*numbers], choices=numbers, help="which of SHAPES")
    arguments = parser.parse_args()
    print("| families x tasks x seeds, pictures, chains | world | true P | bias | coverage | width |")
    print("|---|---|---|---|---|---|")
    for shape in [SHAPES[number] for number in arguments.shapes]:
        for name, (means, *spread) in WORLDS.items():
            truth, bias, held, width = measure(shape, means, (spread[0], spread[1]), arguments.worlds, arguments.draws)
            label = f"{shape[0]} x {shape[1]} x {shape[2]}, {shape[3]}, {shape[4]}"
            print(f"| {label} | {name} | {truth:.2f} | {bias:+.3f} | {held:.1%} | {width:.2f} |", flush=True)


if __name__ == "__main__":
    main()
