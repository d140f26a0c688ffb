"""How often the headline's interval holds the truth, and how biased the headline is, in worlds with known truth.

    python benchmarks/coverage.py --worlds 1000 --draws 300
    python benchmarks/coverage.py --worlds 1000 --draws 300 --pairs

Each world draws tasks from a population, then seeds and pictures of them, and asks `board.statistics` for the
interval. The truth is the population's mean of the least P over chains, without noise of seeds and pictures. With
`--pairs` two rows meet the same tasks, and their paired difference is judged: how often its interval holds the truth,
and how often it tells the rows apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from immunebench.board.statistics.bootstrap import TaskSample, resample

FAMILIES = ("style", "object", "identity", "relearn")
#: families, tasks a family, seeds, pictures, chains
SHAPES = (
    (4, 2, 1, 24, 3),
    (4, 4, 3, 24, 7),
    (4, 4, 3, 16, 7),
    (3, 2, 1, 24, 4),
    (4, 2, 1, 16, 3),
    (3, 2, 1, 24, 7),
    (2, 3, 1, 24, 3),
    (1, 5, 1, 24, 3),
)
#: mean P a family, its spread over tasks and over chains of a task
WORLDS = {
    "middling": ((0.5,) * 4, 0.2, 0.1),
    "weak": ((0.1,) * 4, 0.15, 0.05),
    "uneven": ((0.1, 0.3, 0.6, 0.9), 0.2, 0.1),
    "strong": ((0.95,) * 4, 0.15, 0.05),
    "alike": ((0.5,) * 4, 0.03, 0.05),
    "no effect": ((0.0,) * 4, 0.1, 0.05),
}
#: mean P of the first row, how much less the second has, spread over tasks, over chains, of the difference over tasks
PAIRS = {
    "equal": (0.5, 0.0, 0.2, 0.1, 0.05),
    "0.1 apart": (0.5, 0.1, 0.2, 0.1, 0.05),
    "0.2 apart": (0.5, 0.2, 0.2, 0.1, 0.1),
    "weak, 0.05 apart": (0.1, 0.05, 0.15, 0.05, 0.03),
    "equal, tasks alike": (0.5, 0.0, 0.03, 0.05, 0.0),
}
# close to the records of mini-power: gain of the attack, spread of pictures, their correlation, spread of seeds
GAIN, PICTURES, SHARED, SEEDS = 0.75, 0.22, 0.4, 0.06


def true_p(rng: np.random.Generator, mean: float, tasks: int, chains: int, spread: tuple[float, float]) -> np.ndarray:
    """P_raw of tasks of one family, shape (tasks, chains)."""
    task = mean + spread[0] * rng.standard_normal((tasks, 1))
    return task + spread[1] * rng.standard_normal((tasks, chains))


def observe(rng: np.random.Generator, p: np.ndarray, family: str, name: str, seeds: int, pictures: int) -> TaskSample:
    """What one run shows of a task whose P_raw by row and chain is `p`."""
    common = rng.standard_normal((seeds, 1, pictures))
    chains = p.shape[1]

    def noise(many: int) -> np.ndarray:
        own = rng.standard_normal((seeds, many, pictures))
        return np.asarray(PICTURES * (np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own))

    def of_seed() -> np.ndarray:
        return SEEDS * rng.standard_normal((seeds, chains, 1))

    defended = np.stack([GAIN * (1 - row)[None, :, None] + of_seed() + noise(chains) for row in p])
    ceiling = GAIN + of_seed() + noise(chains)
    names = tuple(f"chain-{c}" for c in range(chains))
    return TaskSample(name, family, names, noise(1)[:, 0], ceiling, defended, SEEDS)


def measure(
    shape: Sequence[int], means: Sequence[float], spread: tuple[float, float], worlds: int, draws: int
) -> list[str]:
    """Truth, bias of the headline, coverage, how often the truth lies below and above, mean width."""
    families, tasks, seeds, pictures, chains = shape
    rng = np.random.default_rng(7)
    many = [true_p(rng, mean, 100_000, chains, spread) for mean in means[:families]]
    truth = float(np.mean([np.clip(p, 0.0, 1.0).min(1).mean() for p in many]))
    ends, estimates = [], []
    for _ in range(worlds):
        samples = [
            observe(rng, p[None], family, f"{family}-{t}", seeds, pictures)
            for family, mean in zip(FAMILIES, means[:families], strict=False)
            for t, p in enumerate(true_p(rng, mean, tasks, chains, spread))
        ]
        headline = resample(samples, draws=draws, detail=False).headline
        ends.append(headline.interval(0))
        estimates.append(float(headline.estimate[0]))
    low, high = np.array(ends, dtype=np.float64).T
    below, above = float(np.mean(truth < low)), float(np.mean(truth > high))
    return [
        f"{truth:.2f}",
        f"{np.mean(estimates) - truth:+.3f}",
        f"{1 - below - above:.1%}",
        f"{below:.1%}",
        f"{above:.1%}",
        f"{np.mean(high - low):.2f}",
    ]


def biases(shape: Sequence[int], means: Sequence[float], spread: tuple[float, float], worlds: int) -> list[str]:
    """Bias of the mean over tasks of the least P_raw over chains, and of the least P, which is clipped."""
    families, tasks, seeds, pictures, chains = shape
    rng = np.random.default_rng(7)
    many = [true_p(rng, mean, 100_000, chains, spread) for mean in means[:families]]
    raw, clipped = [], []
    for _ in range(worlds):
        for family, mean in zip(FAMILIES, means[:families], strict=False):
            for p in true_p(rng, mean, tasks, chains, spread):
                sample = observe(rng, p[None], family, "task", seeds, pictures)
                floor, ceiling = sample.floor.mean(), sample.ceiling.mean((0, 2))
                seen = (ceiling - sample.defended[0].mean((0, 2))) / (ceiling - floor)
                raw.append(seen.min())
                clipped.append(np.clip(seen, 0.0, 1.0).min())
    true_raw = float(np.mean([p.min(1).mean() for p in many]))
    true_clipped = float(np.mean([np.clip(p, 0.0, 1.0).min(1).mean() for p in many]))
    return [f"{np.mean(raw) - true_raw:+.3f}", f"{np.mean(clipped) - true_clipped:+.3f}"]


def compare(shape: Sequence[int], pair: Sequence[float], worlds: int, draws: int) -> list[str]:
    """True difference, coverage of its paired interval, how often 0 lies below it, mean width."""
    families, tasks, seeds, pictures, chains = shape
    mean, less, over_tasks, over_chains, own = pair
    rng = np.random.default_rng(11)

    def rows(many: int) -> np.ndarray:
        first = true_p(rng, mean, many, chains, (over_tasks, over_chains))
        return np.stack([first, first - less + own * rng.standard_normal((many, 1))], axis=1)

    headlines = np.clip(rows(400_000), 0.0, 1.0).min(2).mean(0)
    truth = float(headlines[0] - headlines[1])
    ends = []
    for _ in range(worlds):
        samples = [
            observe(rng, p, family, f"{family}-{t}", seeds, pictures)
            for family in FAMILIES[:families]
            for t, p in enumerate(rows(tasks))
        ]
        ends.append(resample(samples, draws=draws, detail=False).difference(0, 1))
    low, high = np.array(ends).T
    covered = float(np.mean((low <= truth) & (truth <= high)))
    return [f"{truth:.2f}", f"{covered:.1%}", f"{np.mean(low > 0.0):.1%}", f"{np.mean(high - low):.2f}"]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=200, help="worlds a row")
    parser.add_argument("--draws", type=int, default=400, help="draws of the bootstrap a world")
    parser.add_argument("--pairs", action="store_true", help="paired differences instead of the headline")
    parser.add_argument("--bias", action="store_true", help="bias of the minimum, and with clipping, without intervals")
    numbers = range(len(SHAPES))
    parser.add_argument("--shapes", type=int, nargs="+", default=[*numbers], choices=numbers, help="which of SHAPES")
    arguments = parser.parse_args()
    heads = ["families x tasks x seeds, pictures, chains", "world"]
    if arguments.bias:
        heads += ["bias of the minimum", "bias after clipping"]
    elif arguments.pairs:
        heads += ["true difference", "coverage", "told apart", "width"]
    else:
        heads += ["true P", "bias of P", "coverage", "truth below", "truth above", "width"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for shape in [SHAPES[number] for number in arguments.shapes]:
        label = f"{shape[0]} x {shape[1]} x {shape[2]}, {shape[3]}, {shape[4]}"
        for name in PAIRS if arguments.pairs else WORLDS:
            if arguments.pairs:
                cells = compare(shape, PAIRS[name], arguments.worlds, arguments.draws)
            else:
                means, *spread = WORLDS[name]
                both = spread[0], spread[1]
                cells = (
                    biases(shape, means, both, arguments.worlds)
                    if arguments.bias
                    else measure(shape, means, both, arguments.worlds, arguments.draws)
                )
            print("| " + " | ".join([label, name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
