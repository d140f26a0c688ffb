"""Conversion of measurements to the arrays that the bootstrap resamples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from immunebench.board.scores import scale as scores
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import Power, Row
from immunebench.board.scores.row import MISSING
from immunebench.board.statistics.bootstrap import Array, TaskSample
from immunebench.declared import scoring

Where = tuple[str, str]
Met = dict[Where, dict[int, Measurement]]
Shape = tuple[tuple[Where, tuple[int, ...]], ...]


def seed_deviation(cells: Iterable[Measurement], power: Mapping[Where, Power | None]) -> float | None:
    """Return the standard deviation between adaptation seeds of `none`, in anchored similarity.

    It comes from the variance between the means of the seeds minus the part due to the finite number of pictures,
    averaged over every informative (task, chain) with several seeds; None where there is none.
    """
    groups: dict[Where, list[Array]] = defaultdict(list)
    for cell in cells:
        gate = power.get(cell.where)
        if cell.defense == "none" and cell.measured and gate is not None and gate.informative:
            groups[cell.where].append(anchored(cell, cell.m_def))
    excess = []
    for values in groups.values():
        if len(values) < 2 or min(map(len, values)) < 2:
            continue
        between = float(np.var([part.mean() for part in values], ddof=1))
        excess.append(between - scores.mean([float(part.var(ddof=1)) / len(part) for part in values]))
    return max(scores.mean(excess), 0.0) ** 0.5 if excess else None


def met(row: Row, cells: Iterable[Measurement], roles: Collection[scoring.Role]) -> Met:
    """Return the cells behind a row's scores on chains of the given roles, by (task, chain) and seed."""
    counted = {(s.task, s.chain) for s in row.scores if s.p is not None and scoring.role(s.chain) in roles}
    found: Met = defaultdict(dict)
    for cell in cells:
        if cell.where in counted and cell.status not in MISSING:
            found[cell.where][cell.seed] = cell
    return dict(found)


def shape(met: Met) -> Shape:
    """Return the tasks, chains and seeds of some cells; rows for which they are equal share their draws."""
    return tuple((where, tuple(sorted(met[where]))) for where in sorted(met))


def samples_of(
    members: Sequence[Met],
    power: Mapping[Where, Power | None],
    families: Mapping[str, str],
    seed_sd: float,
) -> list[TaskSample]:
    """Return one sample per task, for rows that share tasks, chains and seeds."""
    chains: dict[str, list[str]] = defaultdict(list)
    for task, chain in sorted(members[0]):
        chains[task].append(chain)
    return [
        _sample(task, families[task], names, members, {name: power[task, name] for name in names}, seed_sd)
        for task, names in chains.items()
    ]


def anchored(cell: Measurement, values: Collection[float]) -> Array:
    """Return the anchored similarity of raw values."""
    return (np.asarray(values, dtype=np.float64) - cell.m_other) / (cell.m_same - cell.m_other)


def _sample(
    task: str,
    family: str,
    chains: Sequence[str],
    members: Sequence[Met],
    power: Mapping[str, Power | None],
    seed_sd: float,
) -> TaskSample:
    first = [members[0][task, chain] for chain in chains]
    shared = sorted(set.intersection(*(set(cells) for cells in first)))
    floors, ceilings, defended = [], [], []
    units: list[list[int] | None] = [[seed] for seed in shared]
    for seeds in units or [None]:
        picked = [_pick(member[task, chain], seeds) for member in members for chain in chains]
        gates = [power[chain] for _ in members for chain in chains]
        floor = [_floor(cells, gate) for cells, gate in zip(picked, gates, strict=True)]
        ceiling = [_ceiling(cells, gate) for cells, gate in zip(picked, gates, strict=True)]
        values = [_defended(cells, top) for cells, top in zip(picked, ceiling, strict=True)]
        floors.append(floor[0])
        ceilings.append(ceiling[: len(chains)])
        defended.append(values)
    rows = [[seed[r * len(chains) : (r + 1) * len(chains)] for seed in defended] for r in range(len(members))]
    sizes = {len(part) for part in floors}
    sizes |= {len(part) for group in (*ceilings, *defended) for part in group}
    if len(sizes) > 1:
        # Pictures can be paired only if their numbers are equal; otherwise each set is replaced by its mean.
        floors = [_collapse(part) for part in floors]
        ceilings = [[_collapse(part) for part in group] for group in ceilings]
        rows = [[[_collapse(part) for part in group] for group in seed] for seed in rows]
    return TaskSample(
        task=task,
        family=family,
        chains=tuple(chains),
        floor=np.array(floors),
        ceiling=np.array(ceilings),
        defended=np.array(rows),
        seed_sd=seed_sd,
    )


def _pick(cells: Mapping[int, Measurement], seeds: Sequence[int] | None) -> list[Measurement]:
    """Return the cells of the given seeds, in order; of all seeds where the chains have no seed in common."""
    return [cells[seed] for seed in (sorted(cells) if seeds is None else seeds)]


def _floor(cells: Sequence[Measurement], power: Power | None) -> Array:
    found = [anchored(cell, cell.m_floor) for cell in cells if cell.m_floor]
    return _pool(found) if found else np.array([power.floor if power is not None else 0.0])


def _ceiling(cells: Sequence[Measurement], power: Power | None) -> Array:
    found = [anchored(cell, cell.m_none) for cell in cells if cell.m_none]
    return _pool(found) if found else np.array([power.ceiling if power is not None else 1.0])


def _defended(cells: Sequence[Measurement], ceiling: Array) -> Array:
    # A failed cell counts as undefended.
    return _pool([anchored(cell, cell.m_def) if cell.measured else ceiling for cell in cells])


def _pool(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.array([scores.mean([float(part.mean()) for part in parts])])


def _collapse(values: Array) -> Array:
    return np.array([values.mean()])
