"""Checks of the control entries, which validate the benchmark itself. A board on which one fails is not shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from immunebench.board.scores import scale as scores
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import Row
from immunebench.board.scores.row import over_budget
from immunebench.declared import scoring


def misbehaving(rows: Iterable[Row], cells: Iterable[Measurement]) -> Iterator[str]:
    """Yield one message per control that fails its check.

    `none` has P_raw = 0, since it is its own ceiling; `none-replicate` differs from `none` by chance only; every
    `destroy` falls below the utility gate, and the judge does not mistake the pictures of plain `destroy` for the
    concept; `noise` stays within its budget; `blank` exceeds it. Bounds on a mean over tasks are left to `doubts` where
    there are too few tasks for one.
    """
    by_id = {row.defense: row for row in rows}
    for row in by_id.values():
        if _tasks(row) >= scoring.CONTROL_TASKS:
            yield from _means_out_of_bounds(row)
    for name, row in by_id.items():
        raw = _absolute(row)
        if name == "none" and any(value > 1e-6 for value in raw):
            yield f"none: P_raw is {max(raw):.3f} where it must be 0 by definition"
        if _is_destroy(name) and row.u is not None and row.u >= scoring.UTILITY_GATE:
            yield f"{name}: U is {row.u:.3f}, not below the utility gate {scoring.UTILITY_GATE}"
    for cell in cells:
        if cell.defense.startswith("noise") and over_budget(cell):
            yield f"{cell.defense}: {cell.task} is changed by {cell.linf:g} of 255, budget {cell.budget:g}"
        if cell.defense == "blank" and cell.status == "ok" and not over_budget(cell):
            yield f"blank: {cell.task} passes the budget check"


def doubts(rows: Iterable[Row]) -> Iterator[str]:
    """Yield one note per control whose mean is out of bounds on a board of few tasks, which is no verdict."""
    for row in rows:
        count = _tasks(row)
        if count < scoring.CONTROL_TASKS:
            for reason in _means_out_of_bounds(row):
                over = f"on {count} task{'' if count == 1 else 's'}, which is no verdict"
                yield f"{reason} ({over}: controls are held to it over {scoring.CONTROL_TASKS})"


def _means_out_of_bounds(row: Row) -> Iterator[str]:
    raw = _absolute(row)
    if row.defense == "none-replicate" and raw and scores.mean(raw) > scoring.REPLICATE_MOST:
        yield f"none-replicate: mean |P_raw| is {scores.mean(raw):.3f}, above {scoring.REPLICATE_MOST}"
    if row.defense == "destroy" and row.p is not None and row.p < scoring.DESTROY_LEAST:
        yield f"destroy: P is {row.p:.3f}, below {scoring.DESTROY_LEAST}: wreckage passes for the concept"


def _absolute(row: Row) -> list[float]:
    return [abs(score.p_raw) for score in row.scores if score.p_raw is not None]


def _tasks(row: Row) -> int:
    return len({score.task for score in row.scores if score.p_raw is not None})


def replicate_noise(rows: Iterable[Row]) -> float | None:
    """Return the noise of a row: the root mean square of P_raw of `none-replicate`, whose true value is 0."""
    for row in rows:
        raw = [score.p_raw for score in row.scores if score.p_raw is not None]
        if row.defense == "none-replicate" and raw:
            return math.sqrt(scores.mean([value * value for value in raw]))
    return None


def _is_destroy(name: str) -> bool:
    return name == "destroy" or name.startswith("destroy-")
