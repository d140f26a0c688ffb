"""P computed on every similarity metric in the records, not only on the target metric."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from immunebench.board.scores import scale as scores
from immunebench.board.scores.measurement import Further, Measurement
from immunebench.board.scores.model import Power, Row
from immunebench.board.scores.row import make_row
from immunebench.board.scores.task_score import power_of
from immunebench.declared import scoring

Where = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Reading:
    """Measurements, power gate and rows of a board, with one metric in place of the target metric."""

    cells: Mapping[str, Sequence[Measurement]]
    power: Mapping[Where, Power | None]
    rows: Mapping[str, Row]


def metrics_of(cells: Iterable[Measurement]) -> list[str]:
    """Return the names of all metrics in the records that measure similarity to the concept, sorted.

    P is defined for these only.
    """
    names = {name for cell in cells for name in (cell.metric, *cell.further) if name}
    return sorted(name for name in names if name.partition("@")[0] in scoring.LIKENESS)


def read(
    metric: str,
    cells: Mapping[str, Sequence[Measurement]],
    required: Mapping[str, Collection[tuple[str, str, int]]],
    families: Mapping[str, str],
) -> Reading:
    """Score every defense on one metric, on the tasks and chains for which `none` has that metric.

    The metric stays raw, since P does not depend on the anchors. Its sign is flipped where the undefended attack
    lowers it. The power gate requires `POWER_STANDARD_ERRORS` only and no least gain.
    """
    found = {defense: [seen for cell in group if (seen := _through(metric, cell))] for defense, group in cells.items()}
    every = [cell for group in found.values() for cell in group]
    gains = [scores.mean(cell.m_none) - scores.mean(cell.m_floor) for cell in every if cell.m_none and cell.m_floor]
    if gains and scores.mean(gains) < 0.0:
        found = {defense: [_turned(cell) for cell in group] for defense, group in found.items()}
    columns: dict[Where, list[Measurement]] = defaultdict(list)
    for group in found.values():
        for cell in group:
            columns[cell.where].append(cell)
    power = {where: power_of(group, 0.0) for where, group in sorted(columns.items())}
    rows = {}
    for defense, group in found.items():
        owed = {cell for cell in required[defense] if power.get(cell[:2]) is not None}
        if group and owed:
            rows[defense] = make_row(group, owed, power, families)
    return Reading(found, power, rows)


def _through(metric: str, cell: Measurement) -> Measurement | None:
    """Return the cell with `metric` in place of its target metric; None if neither it nor its baselines have it."""
    if cell.metric == metric:
        values = Further(cell.m_def, cell.m_none, cell.m_floor)
    elif metric in cell.further:
        values = cell.further[metric]
    else:
        return None
    if not values.m_def and cell.measured:
        # The cell was scored on the target metric only: for this metric it counts as not run.
        return dataclasses.replace(cell, status="skipped", m_def=(), curve={})
    return dataclasses.replace(
        cell,
        m_def=values.m_def,
        m_none=values.m_none,
        m_floor=values.m_floor,
        curve={},
        m_same=1.0,
        m_other=0.0,
        anchored=True,
    )


def _turned(cell: Measurement) -> Measurement:
    def minus(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(-value for value in values)

    return dataclasses.replace(cell, m_def=minus(cell.m_def), m_none=minus(cell.m_none), m_floor=minus(cell.m_floor))
