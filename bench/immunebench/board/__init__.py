"""The board: results in, scores and tables out. Pure functions, no torch."""

from __future__ import annotations

from immunebench.board.aggregate import aggregate
from immunebench.board.measurement import Measurement, measurement
from immunebench.board.model import Board, BoardError, Power, Row, TaskScore, TaskUtility

__all__ = [
    "Board",
    "BoardError",
    "Measurement",
    "Power",
    "Row",
    "TaskScore",
    "TaskUtility",
    "aggregate",
    "measurement",
]
