"""The score of a single cell: one task, chain and seed of a defense."""

from __future__ import annotations

from dataclasses import dataclass

from immunebench.board.scores import scale as scores
from immunebench.board.scores.measurement import Measurement


@dataclass(frozen=True)
class CellScore:
    """Anchored similarity to the concept of a cell, of both of its ends, and P_raw; None where one is undefined."""

    s: float | None = None
    floor: float | None = None
    ceiling: float | None = None
    p_raw: float | None = None


def cell_score(cell: Measurement) -> CellScore:
    """Score a cell against its own floor and ceiling.

    A board pools the pictures of several seeds first, so its P is not the mean of these.
    """
    if not (cell.anchored and cell.m_same > cell.m_other):
        return CellScore()
    s, floor, ceiling = (
        scores.anchored(scores.mean(values), cell.m_same, cell.m_other) if values else None
        for values in (cell.m_def, cell.m_floor, cell.m_none)
    )
    if cell.defense == "none":
        ceiling = s
    if s is None or floor is None or ceiling is None or ceiling <= floor:
        return CellScore(s, floor, ceiling)
    return CellScore(s, floor, ceiling, scores.protection(s, floor, ceiling))
