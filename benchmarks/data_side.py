"""What the sweeps of the data side say: does P grow with the budget, beyond random pixels, in the published order?

    python benchmarks/data_side.py --drawn docs/data-side/latents/mini-data-more-dreambooth.json --out docs/data-side

Reads records alone. P here is P_raw: unclipped, at the attack's last step, mean over families of the mean over
(task, chain); a failed cell counts as undefended, as on the board. Differences are paired by seed and picture, over the
places that both entries have. An interval draws the pictures of each (task, chain) again and adds the noise of
adaptation seeds. Of several seeds that is what the paired differences scatter by, place by place, with Student's t of
Welch's degrees of freedom. Of one seed it is taken from runs of mini-power without a defense (16 tasks of three seeds,
by chain, beyond what pictures explain), which is more than rows differ by here, for they share their adaptation seed:
those intervals are rather wide. Tasks are held fixed: one a family is too few to draw. Writes `tables.md` and
`measured.json`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.loading.load import load_results
from immunebench.board.loading.reported import figures
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.reading import measurement

Array = NDArray[np.float64]
DRAWS, SEED = 10_000, 0
#: Entries by budget of 255.
BUDGETS = {
    "mist": {4: "mist-4", 8: "mist", 16: "mist-16"},
    "aspl": {4: "aspl-4", 8: "anti-dreambooth", 16: "aspl-16"},
    "noise": {4: "noise-4", 8: "noise", 16: "noise-16"},
}
#: What other studies call the methods of the entries at 8 of 255.
PUBLISHED = {
    "anti-dreambooth": "ASPL", "fsmg": "FSMG", "mist-semantic": "AdvDM", "mist": "Mist",
    "mist-textural": "PhotoGuard", "simac": "SimAC", "metacloak": "MetaCloak",
}  # fmt: skip
STUDY = "DiffAdvPerturbationBench, 2025"


@dataclass(frozen=True)
class Place:
    """One informative (task, chain): P_raw of each picture by defense and seed."""

    task: str
    family: str
    chain: str
    p: Mapping[str, Mapping[int, Array]]


def places(cells: Sequence[Measurement]) -> list[Place]:
    """Turn what every defense met into P_raw a picture; the mean of these is P_raw of the cell."""
    power = {(p.task, p.chain): p for p in aggregate(cells).power if p.informative}
    groups: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for cell in cells:
        if cell.where in power:
            groups[cell.where].append(cell)
    found = []
    for where, group in sorted(groups.items()):
        gate = power[where]
        count = max(len(cell.m_def) for cell in group)
        p: dict[str, dict[int, Array]] = defaultdict(dict)
        for cell in group:
            gone = anchored(cell, cell.m_none).mean() - anchored(cell) if cell.measured else np.zeros(count)
            p[cell.defense][cell.seed] = gone / (gate.ceiling - gate.floor)
        found.append(Place(where[0], gate.family, where[1], p))
    return found


def anchored(cell: Measurement, values: Sequence[float] | None = None) -> Array:
    """Anchored similarity of each picture after the attack, or of what else is given."""
    return (np.asarray(cell.m_def if values is None else values) - cell.m_other) / (cell.m_same - cell.m_other)


def mean(values: Mapping[str, list[Any]]) -> Any:
    """Mean over families of the mean over their (task, chain)."""
    return np.mean([np.mean(own, axis=0) for own in values.values()], axis=0)


def seed_variance(cells: Sequence[Measurement]) -> dict[str, float]:
    """Variance by chain of the difference in P_raw between two adaptation seeds, beyond what pictures explain.

    Parameters
    ----------
    cells
        Of no defense, several seeds a (task, chain). Their pictures are drawn from the same noise: n paired gaps d of
        two seeds have E[mean(d)^2] = variance + var(d) / n.
    """
    power = {(p.task, p.chain): p for p in aggregate(cells).power if p.informative}
    groups: dict[tuple[str, str], list[Array]] = defaultdict(list)
    for cell in cells:
        if cell.where in power and cell.measured:
            gate = power[cell.where]
            groups[cell.where].append(anchored(cell) / (gate.ceiling - gate.floor))
    excess: dict[str, list[float]] = defaultdict(list)
    for (_, chain), runs in groups.items():
        for one, other in combinations(runs, 2):
            gaps = one - other
            excess[chain].append(float(gaps.mean() ** 2 - gaps.var(ddof=1) / len(gaps)))
    return {chain: max(float(np.mean(values)), 0.0) for chain, values in excess.items()}


def contrast(
    found: Sequence[Place], one: str, other: str, variance: Mapping[str, float], family: str = ""
) -> dict[str, Any]:
    """P_raw of one entry less that of the other, with its 95 % interval; of one seed with the given variance."""
    rng = np.random.default_rng(SEED)
    points, draws, spreads = defaultdict(list), defaultdict(list), defaultdict(list)
    seeds: set[int] = set()
    for place in found:
        shared = sorted(place.p.get(one, {}).keys() & place.p.get(other, {}).keys())
        if shared and family in ("", place.family):
            gaps = np.stack([place.p[one][seed] - place.p[other][seed] for seed in shared])
            chosen = rng.integers(gaps.shape[1], size=(DRAWS, gaps.shape[1]))
            points[place.family].append(float(gaps.mean()))
            draws[place.family].append(gaps.mean(0)[chosen].mean(1))
            freedom = len(shared) - 1
            spread = float(gaps.mean(1).var(ddof=1)) / len(shared) if freedom else variance[place.chain]
            spreads[place.family].append((spread, freedom or math.inf))
            seeds |= set(shared)
    if not points:
        return {"one": one, "other": other, "family": family or "all", "difference": None, "interval": None,
                "cells": 0, "seeds": 0}  # fmt: skip
    low, high = np.quantile(mean(draws) + seed_noise(spreads, rng), (0.025, 0.975))
    return {
        "one": one, "other": other, "family": family or "all", "difference": round(float(mean(points)), 3),
        "interval": [round(float(low), 3), round(float(high), 3)], "cells": sum(map(len, points.values())),
        "seeds": len(seeds),
    }  # fmt: skip


def entries(found: Sequence[Place], but: str = "none") -> list[str]:
    """Names of the entries that were measured, without a control."""
    return sorted({name for place in found for name in place.p} - {"none", but})


def by_chain(found: Sequence[Place], name: str) -> list[Place]:
    """Turn one entry's chains, such as ``jpeg50+lora``, into what is compared, by task; cleaning has no seed."""
    tasks: dict[tuple[str, str], dict[str, Mapping[int, Array]]] = defaultdict(dict)
    for place in found:
        if name in place.p:
            tasks[place.task, place.family][place.chain] = place.p[name]
    return [Place(task, family, "lora", chains) for (task, family), chains in tasks.items()]


def seed_noise(spreads: Mapping[str, Sequence[tuple[float, float]]], rng: np.random.Generator) -> Array:
    """Draw what seeds add to a mean over families of means over places.

    Parameters
    ----------
    spreads
        By family, the variance of each place's mean and its degrees of freedom.

    Notes
    -----
    The sum of independent estimates has Welch's and Satterthwaite's degrees of freedom, V^2 / sum(v_i^2 / f_i) with
    V = sum(v_i).
    """
    parts = [(v / (len(spreads) * len(own)) ** 2, f) for own in spreads.values() for v, f in own]
    whole, unsure = sum(v for v, _ in parts), sum(v**2 / f for v, f in parts)
    scatter = rng.standard_t(whole**2 / unsure, DRAWS) if unsure else rng.normal(0.0, 1.0, DRAWS)
    return np.asarray(scatter * whole**0.5)


def headline(found: Sequence[Place], name: str, family: str = "") -> float | None:
    """P_raw of an entry, mean over its seeds, or None where it is not there."""
    values = defaultdict(list)
    for place in found:
        if name in place.p and family in ("", place.family):
            values[place.family].append(float(np.mean([p.mean() for p in place.p[name].values()])))
    return round(float(mean(values)), 3) if values else None


def read(folder: Path) -> list[Measurement]:
    """Read the usual cells of a suite's records."""
    records, problems = load_results(folder)
    for problem in problems:
        print(f"{folder}: {problem}")
    return [cell for cell in map(measurement, records) if cell.setting.usual]


def oddness(path: Path) -> dict[str, float]:
    """By defense on persons, how odd another base finds what the attack draws (`latent_shift.py`, drawn)."""
    rows = json.loads(path.read_text())["rows"]
    return {row["defense"]: row["drawn"] for row in rows if row["task"].startswith("identity")}


def order(cells: Sequence[Measurement], published: Path, drawn: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Rank correlation at 8 of 255 with another study, of faces.

    Of P_raw on persons, of the perturbations' size and, where it was measured, of how odd the drawn pictures are.
    `p` is the two-sided probability of such a correlation, or a stronger one, between unrelated orders.
    """
    theirs: dict[str, dict[str, float]] = defaultdict(dict)
    for figure in figures(published):
        if figure.source == STUDY and figure.setting == "budget 8 of 255":
            theirs[figure.method][figure.metric] = figure.value
    found = [place for place in places(cells) if place.family == "identity"]
    size: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        size[cell.defense] += [cell.changes["perceptual"]] if "perceptual" in cell.changes else []
    rows: list[dict[str, Any]] = []
    for name, method in PUBLISHED.items():
        p = headline(found, name)
        if p is not None:
            own = {"entry": name, "method": method, "P_raw": p, "perceptual": round(float(np.mean(size[name])), 3)}
            own |= {"drawn": drawn[name]} if drawn else {}
            rows.append(own | {metric: theirs[method][metric] for metric in sorted(theirs[method])})
    ranks = []
    for ours, metric, sign in (
        ("P_raw", "IMS, VGG-Face", -1.0), ("P_raw", "SDS, face found", -1.0), ("P_raw", "FID", 1.0),
        ("drawn", "CLIP-IQAC", -1.0), ("drawn", "FID", 1.0), ("drawn", "SDS, face found", -1.0),
        ("perceptual", "LPIPS of the perturbation", 1.0),
    ):  # fmt: skip
        if len(rows) > 2 and ours in rows[0]:
            a, b = (np.asarray([float(row[name]) for row in rows]) for name in (ours, metric))
            test = spearmanr(a, sign * b)
            ranks.append({"ours": ours, "theirs": metric, "methods": len(rows),
                          "rho": round(float(test.statistic), 2), "p": round(float(test.pvalue), 2)})  # fmt: skip
    return {"rows": rows, "spearman": ranks}


def text(value: Any) -> str:
    """A cell of a Markdown table."""
    if isinstance(value, list):
        return f"{value[0]:.2f} to {value[1]:.2f}"
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out a Markdown table."""
    lines = [heads, ["---"] * len(heads), *[[text(value) for value in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def contrasts(found: Sequence[Mapping[str, Any]]) -> str:
    """Lay out what `contrast` gives."""
    heads = ["entry", "against", "family", "difference of P_raw", "95 %", "task and chain", "seeds"]
    fields = ("one", "other", "family", "difference", "interval", "cells", "seeds")
    return table(heads, [[c[field] for field in fields] for c in found])


def main() -> None:
    """Read the records and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--reported", type=Path, default=Path("leaderboard/reported.toml"))
    parser.add_argument("--drawn", type=Path, help="what latent_shift.py wrote of mini-data-more")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for suite in ("mini-budget", "mini-power"):
        if not any((options.results / suite).glob("*.jsonl")):
            parser.error(f"no records in {options.results / suite}: run the suite, or name a folder by --results")
    found = places(read(options.results / "mini-budget"))
    families = sorted({place.family for place in found})
    everywhere = [
        place for place in found if {name for own in BUDGETS.values() for name in own.values()} <= place.p.keys()
    ]
    variance = seed_variance(read(options.results / "mini-power"))
    moves = ", ".join(f"{math.sqrt(value):.2f} ({chain})" for chain, value in sorted(variance.items()))
    budget = [
        [method, size, *(headline(everywhere, name, family) for family in ("", *families))]
        for method, names in BUDGETS.items() for size, name in names.items()
    ]  # fmt: skip
    trend = [
        contrast(found, names[high], names[low], variance, family)
        for names in BUDGETS.values() for high, low in ((16, 4), (8, 4), (16, 8)) for family in ("", *families)
    ]  # fmt: skip
    beyond = [
        contrast(found, BUDGETS[method][size], BUDGETS["noise"][size], variance, family)
        for method in ("mist", "aspl") for size in (4, 8, 16) for family in ("", *families)
    ]  # fmt: skip
    parts = [
        f"Another adaptation seed moves a cell's P_raw by (standard deviation, pictures aside): {moves}.",
        f"## P_raw by budget\n\nOver {len(everywhere)} informative (task, chain).",
        table(["method", "of 255", "all", *families], budget),
        "## A larger budget", contrasts(trend),
        "## More than random pixels of the same budget", contrasts(beyond),
    ]  # fmt: skip
    made: dict[str, Any] = {"seed variance": variance, "budget": budget, "trend": trend, "beyond noise": beyond}
    seeds = options.results / "mini-budget-seeds"
    if seeds.is_dir():
        ends = places(read(seeds))
        pairs = [("mist-16", "mist-4"), ("aspl-16", "aspl-4"), ("mist-16", "noise-16"), ("aspl-16", "noise-16")]
        made["seeds"] = [contrast(ends, *pair, variance, family) for pair in pairs for family in ("", *families)]
        made["ends"] = [[name, *(headline(ends, name, family) for family in ("", *families))] for name in entries(ends)]
        parts += [
            "## Three seeds: mini-budget-seeds", table(["entry", "all", *families], made["ends"]),
            contrasts(made["seeds"]),
        ]  # fmt: skip
    purify = options.results / "mini-purify"
    if purify.is_dir():
        met = places(read(purify))
        chains = sorted({place.chain for place in met}, key=lambda chain: (chain != "lora", chain))
        made["cleaned"], rows = [], []
        for name in entries(met):
            own = by_chain(met, name)
            for chain in chains:
                against = contrast(own, chain, "lora", variance)
                by_family = [headline(own, chain, family) for family in ("", *families)]
                made["cleaned"].append({"defense": name, "P_raw": by_family, **against})
                rows.append([name, chain, *by_family, against["difference"], against["interval"], against["cells"]])
        heads = ["entry", "chain", "all", *families, "less that of lora", "95 %", "tasks"]
        parts += ["## After cleaning: P_raw", table(heads, rows)]
    more = options.results / "mini-data-more"
    if more.is_dir():
        cells = read(more)
        others = places(cells)
        names = entries(others, but="noise")
        made["others"] = [contrast(others, name, "noise", variance, f) for name in names for f in ("", *families)]
        made["order"] = order(cells, options.reported, oddness(options.drawn) if options.drawn else None)
        columns = list(made["order"]["rows"][0]) if made["order"]["rows"] else []
        parts += [
            "## Other perturbations at 8 of 255, less random pixels", contrasts(made["others"]),
            "## The published order",
            table(columns, [[row[column] for column in columns] for row in made["order"]["rows"]]),
            "Spearman's rank correlation with the study's order.",
            table(["ours", "theirs", "methods", "rho", "p"], [list(row.values()) for row in made["order"]["spearman"]]),
        ]  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tables.md").write_text("\n\n".join(parts) + "\n")
    (options.out / "measured.json").write_text(json.dumps(made, indent=1) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
