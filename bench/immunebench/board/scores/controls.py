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
    concept; `noise` stays within its budget; `blank` exceeds it.
    """
    by_id = {row.defense: row for row in rows}
    for name, row in by_id.items():
        raw = [abs(score.p_raw) for score in row.scores if score.p_raw is not None]
        if name == "none" and any(value > 1e-6 for value in raw):
            yield f"none: P_raw is {max(raw):.3f} where it must be 0 by definition"
        if name == "none-replicate" and raw and scores.mean(raw) > scoring.REPLICATE_MOST:
            yield f"none-replicate: mean |P_raw| is {scores.mean(raw):.3f}, above {scoring.REPLICATE_MOST}"
        if _is_destroy(name) and row.u is not None and row.u >= scoring.UTILITY_GATE:
            yield f"{name}: U is {row.u:.3f}, not below the utility gate {scoring.UTILITY_GATE}"
        if name == "destroy" and row.p is not None and row.p < scoring.DESTROY_LEAST:
            yield f"destroy: P is {row.p:.3f}, below {scoring.DESTROY_LEAST}: wreckage passes for the concept"
    for cell in cells:
        if cell.defense.startswith("noise") and over_budget(cell):
            yield f"{cell.defense}: {cell.task} is changed by {cell.linf:g} of 255, budget {cell.budget:g}"
        if cell.defense == "blank" and cell.status == "ok" and not over_budget(cell):
            yield f"blank: {cell.task} passes the budget check"


def replicate_noise(rows: Iterable[Row]) -> float | None:
    """Return the noise of a row: the root mean square of P_raw of `none-replicate`, whose true value is 0."""
    for row in rows:
        raw = [score.p_raw for score in row.scores if score.p_raw is not None]
        if row.defense == "none-replicate" and raw:
            return math.sqrt(scores.mean([value * value for value in raw]))
    return None


def _is_destroy(name: str) -> bool:
    return name == "destroy" or name.startswith("destroy-")
