"""How often intervals of A hold a known truth, and how often a difference is told, in simulated worlds.

    python benchmarks/coverage.py --worlds 4000 --json coverage.json

Each world draws tasks, curves of attacks on them, seeds and pictures, and goes through the board's own functions:
gains, the choice of the strongest attack, A, its interval, simultaneous comparisons. The truth is the mean over
worlds of A without noise of seeds and pictures. In the exact null a defended model is another seed of `none`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from immunebench.board.scores.curves import gains, task_areas
from immunebench.board.scores.measurement import Measurement
from immunebench.board.statistics.paired import mean_difference
from immunebench.board.statistics.stratified import estimate, told_apart

FAMILIES = ("style", "object", "identity", "relearn")
STEPS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Shape:
    """A board: families, tasks in each, chains, seeds of an entry."""

    name: str
    families: int
    tasks: int
    chains: int
    seeds: int = 1


SHAPES = (
    Shape("mini-lite, model side", 4, 4, 4),
    Shape("mini-lite, data side", 3, 4, 5),
    Shape("mini-full", 4, 7, 3, 3),
    Shape("two tasks a family", 4, 2, 3),
)
#: Mean A of an entry, and its standard deviation over tasks in each family (world 1: 0.13 to 0.16 on average).
ENTRIES = {
    "null": (0.0, (0.0, 0.0, 0.0, 0.0)),
    "weak": (0.1, (0.05, 0.10, 0.15, 0.20)),
    "middling": (0.4, (0.05, 0.10, 0.15, 0.20)),
    "strong": (0.8, (0.05, 0.05, 0.10, 0.20)),
    "harmful": (-0.2, (0.05, 0.10, 0.15, 0.20)),
}
#: Standard deviations, in anchored similarity: between adaptation seeds, pictures of one prompt, what prompts share in
#: all arms; of A between chains of a task.
SEED, PICTURE, PROMPT, CHAIN = 0.10, 0.20, 0.20, 0.05


class World:
    """Tasks of one world with the undefended attack's true curves."""

    def __init__(self, rng: np.random.Generator, shape: Shape) -> None:
        self.rng, self.shape = rng, shape
        self.tasks = [(f"{f}-{t}", f) for f in FAMILIES[: shape.families] for t in range(shape.tasks)]
        self.chains = [f"chain-{c}" for c in range(shape.chains)]
        self.floor = {task: rng.normal(-0.2, 0.3) for task, _ in self.tasks}
        strength = rng.uniform(0.7, 1.0, shape.chains)
        self.gain = {
            (t, c): rng.uniform(0.7, 1.3) * strength[i] for t, _ in self.tasks for i, c in enumerate(self.chains)
        }
        self.speed = {t: rng.uniform(15, 60) for t, _ in self.tasks}
        self.prompt = {task: PROMPT * rng.standard_normal(24) for task, _ in self.tasks}

    def cells(self, a: dict[tuple[str, str], float], seeds: Sequence[int], noisy: bool) -> list[Measurement]:
        """Return the cells of an entry that stops these parts of the gain by (task, chain)."""
        made = []
        for task, family in self.tasks:
            for chain in self.chains:
                for seed in seeds:
                    made.append(self._cell(task, family, chain, seed, a[task, chain], noisy))
        return made

    def _cell(self, task: str, family: str, chain: str, seed: int, a: float, noisy: bool) -> Measurement:
        n = np.array(STEPS)
        mean = self.floor[task] + (1 - a) * self.gain[task, chain] * (1 - np.exp(-n / self.speed[task]))
        shift = SEED * self.rng.standard_normal() if noisy else 0.0
        pictures = self.prompt[task] + PICTURE * self.rng.standard_normal((5, 24)) if noisy else np.zeros((5, 24))
        values = mean[:, None] + shift + pictures
        # Twelve pictures at each step, all 24 at the preset's.
        curve = {
            int(step): float(values[i].mean() if step == 128 else values[i, :12].mean()) for i, step in enumerate(n)
        }
        floor = self.floor[task] + (self.prompt[task] if noisy else np.zeros(24))
        return Measurement(
            task=task, family=family, defense="x", chain=chain, seed=seed, final=128, curve=curve,
            m_def=tuple(values[3].tolist()), m_floor=tuple(floor.tolist()),
        )  # fmt: skip


def areas(none: list[Measurement], own: list[Measurement]) -> dict[str, float]:
    """Return A by task, as the board computes it."""
    places: dict[tuple[str, str], tuple[list[Measurement], list[Measurement]]] = {}
    for side, cells in enumerate((none, own)):
        for cell in cells:
            places.setdefault(cell.where, ([], []))[side].append(cell)
    found = [gains(*pair) for pair in places.values()]
    return {area.task: area.area for area in task_areas(g for g in found if g is not None)}


def simulate(shape: Shape, worlds: int, seed: int) -> list[dict[str, Any]]:
    """Return one row per entry of a shape, and one for the pairs."""
    rng = np.random.default_rng(seed)
    seeds = tuple(range(shape.seeds))
    held: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ENTRIES}
    truths: dict[str, list[float]] = {name: [] for name in ENTRIES}
    false, told, powers = 0, 0, 0.0
    for _ in range(worlds):
        world = World(rng, shape)
        families = dict(world.tasks)
        zero = {(task, chain): 0.0 for task, _ in world.tasks for chain in world.chains}
        none, true_none = world.cells(zero, (0, 1, 2), True), world.cells(zero, (0,), False)
        rows: dict[str, dict[str, float]] = {}
        for name, (mean, spreads) in ENTRIES.items():
            chain_spread = CHAIN if any(spreads) else 0.0
            by_task = {t: rng.normal(mean, spreads[FAMILIES.index(f)]) for t, f in world.tasks}
            a = {(t, c): by_task[t] + chain_spread * rng.standard_normal() for t, c in zero}
            rows[name] = areas(none, world.cells(a, seeds, True))
            truths[name].append(mean_difference(areas(true_none, world.cells(a, (0,), False)), families))
            found = estimate(rows[name], families)
            if found is not None:
                held[name].append((found.mean, *found.interval()))
        # Three rows without a difference, against which nothing should be told; one that is 0.1 better on average.
        nulls = [areas(none, world.cells(zero, seeds, True)) for _ in range(2)] + [rows["null"]]
        false += any(told_apart(nulls, families).values())
        better = {t: rng.normal(0.1, 0.13) for t, _ in world.tasks}
        middle = {(t, c): 0.3 for t, c in zero}
        up = {(t, c): 0.3 + better[t] for t, c in zero}
        pair = [areas(none, world.cells(part, seeds, True)) for part in (middle, up)]
        told += told_apart(pair, families)[0, 1]
        apart = estimate({t: pair[1][t] - pair[0][t] for t in pair[0].keys() & pair[1].keys()}, families)
        powers += 0 if apart is None else apart.power_80
    made: list[dict[str, Any]] = []
    for name, intervals in held.items():
        truth = float(np.mean(truths[name]))
        bounds = np.array(intervals)
        inside = (bounds[:, 1] <= truth) & (truth <= bounds[:, 2])
        zero_out = (bounds[:, 1] > 0) | (bounds[:, 2] < 0)
        made.append({
            "shape": shape.name, "entry": name, "worlds": len(intervals), "truth": round(truth, 3),
            "bias": round(float(bounds[:, 0].mean()) - truth, 4), "coverage": round(float(inside.mean()), 4),
            "told from 0": round(float(zero_out.mean()), 4),
            "width": round(float((bounds[:, 2] - bounds[:, 1]).mean()), 3),
        })  # fmt: skip
    made.append({
        "shape": shape.name, "entry": "pairs", "worlds": worlds,
        "any of 3 nulls told apart": round(false / worlds, 4), "0.1 apart told": round(told / worlds, 4),
        "told in 80 %": round(powers / worlds, 3),
    })  # fmt: skip
    return made


def main() -> None:
    """Simulate the shapes and print one line a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shapes", type=int, nargs="*", default=list(range(len(SHAPES))))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for at in options.shapes:
        for row in simulate(SHAPES[at], options.worlds, options.seed):
            print(json.dumps(row), flush=True)
            rows.append(row)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
