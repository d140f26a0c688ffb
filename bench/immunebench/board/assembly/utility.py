"""The interval of U and the utility gate (`leaderboard/rules.md`, section Gates)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from immunebench.board.scores import scale as scores
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import Row
from immunebench.board.statistics.stratified import estimate
from immunebench.declared import scoring


def with_utility(row: Row, cells: Iterable[Measurement]) -> Row:
    """Return a row with the interval of U over its tasks, and the flag ``utility gate`` where U fails the gate.

    A released model fails where the upper end of the interval lies below the gate; without an interval, where U does.
    """
    if row.u is None:
        return row
    values = {utility.task: utility.u for utility in row.utilities if utility.u is not None}
    found = estimate(values, dict.fromkeys(values, ""))
    interval = None if found is None else (scores.clip(found.interval()[0]), scores.clip(found.interval()[1]))
    most = row.u if interval is None else interval[1]
    fails = most < scoring.UTILITY_GATE and any(cell.changes_model for cell in cells)
    return replace(row, u_interval=interval, flags=(*(("utility gate",) if fails else ()), *row.flags))
