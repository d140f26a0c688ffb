"""Checks of the control entries, which validate the benchmark itself. A board on which one fails is not shown."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from immunebench.board.scores import scale as scores
from immunebench.board.scores.curves import gains
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import Row
from immunebench.board.scores.row import over_budget
from immunebench.declared import scoring


def misbehaving(rows: Iterable[Row], cells: Sequence[Measurement]) -> Iterator[str]:
    """Yield one message per control that fails its check.

    `none` has A = 0, since it is what is compared with; `none-replicate` differs from `none` by chance only; every
    `destroy` falls below the utility gate, and the judge does not mistake the pictures of plain `destroy` for the
    concept; `noise` stays within its budget; `blank` exceeds it. Bounds on a mean over tasks are left to `doubts` where
    there are too few tasks for one.
    """
    by_id = {row.defense: row for row in rows}
    for row in by_id.values():
        if _tasks(row) >= scoring.CONTROL_TASKS:
            yield from _means_out_of_bounds(row, cells)
    for name, row in by_id.items():
        own = _absolute(row)
        if name == "none" and any(value > 1e-6 for value in own):
            yield f"none: A is {max(own):.3f} where it must be 0 by definition"
        if _is_destroy(name) and row.u is not None and row.u >= scoring.UTILITY_GATE:
            yield f"{name}: U is {row.u:.3f}, not below the utility gate {scoring.UTILITY_GATE}"
    for cell in cells:
        if cell.defense.startswith("noise") and over_budget(cell):
            yield f"{cell.defense}: {cell.task} is changed by {cell.linf:g} of 255, budget {cell.budget:g}"
        if cell.defense == "blank" and cell.status == "ok" and not over_budget(cell):
            yield f"blank: {cell.task} passes the budget check"


def doubts(rows: Iterable[Row], cells: Sequence[Measurement]) -> Iterator[str]:
    """Yield one note per control whose mean is out of bounds on a board of few tasks, which is no verdict."""
    for row in rows:
        count = _tasks(row)
        if count < scoring.CONTROL_TASKS:
            for reason in _means_out_of_bounds(row, cells):
                over = f"on {count} task{'' if count == 1 else 's'}, which is no verdict"
                yield f"{reason} ({over}: controls are held to it over {scoring.CONTROL_TASKS})"


def replicate_noise(rows: Iterable[Row], entries: Mapping[str, Sequence[Measurement]]) -> float | None:
    """Return the noise of one task's A: the root mean square of A of replicates of `none`, whose true value is 0.

    Replicates are `none-replicate` and each seed of `none` compared with the other seeds.
    """
    own = [area.area for row in rows if row.defense == "none-replicate" and row.area for area in row.area.tasks]
    seeds: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for cell in entries.get("none", ()):
        seeds[cell.where].append(cell)
    for cells in seeds.values():
        if len(cells) > 1:
            pairs = [gains([other for other in cells if other is not cell], [cell]) for cell in cells]
            own += [pair.area for pair in pairs if pair is not None and pair.informative]
    return math.sqrt(scores.mean([value * value for value in own])) if own else None


def _means_out_of_bounds(row: Row, cells: Iterable[Measurement]) -> Iterator[str]:
    own = _absolute(row)
    if row.defense == "none-replicate" and own and scores.mean(own) > scoring.REPLICATE_MOST:
        yield f"none-replicate: mean |A| is {scores.mean(own):.3f}, above {scoring.REPLICATE_MOST}"
    if row.defense == "destroy":
        found = [
            scores.anchored(scores.mean(cell.m_def), cell.m_same, cell.m_other)
            for cell in cells
            if cell.defense == row.defense and cell.measured and cell.anchored and cell.m_same > cell.m_other
        ]
        if found and scores.mean(found) > scoring.DESTROY_MOST:
            mean = f"destroy: the mean similarity after the attack is {scores.mean(found):.3f}"
            yield f"{mean}, above {scoring.DESTROY_MOST}: wreckage passes for the concept"


def _absolute(row: Row) -> list[float]:
    return [] if row.area is None else [abs(area.area) for area in row.area.tasks]


def _tasks(row: Row) -> int:
    return len({score.task for score in row.scores if score.p_raw is not None})


def _is_destroy(name: str) -> bool:
    return name == "destroy" or name.startswith("destroy-")
