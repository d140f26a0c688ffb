"""A folder of records -> a board, and what was wrong with the folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.loading.load import Problem, load_results
from immunebench.board.scores.model import Board, BoardError
from immunebench.board.scores.reading import measurement
from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.records.record import Record


@dataclass(frozen=True)
class Scored:
    """A suite's board with the records that it was made of.

    Attributes
    ----------
    board
        Rows with left-out records are incomplete.
    records
        Those that count, of the newest version of each defense.
    problems
        What was left out or found wrong.
    """

    board: Board
    records: tuple[Record, ...]
    problems: tuple[Problem, ...]

    @property
    def suite(self) -> str:
        """``suite@version`` of the records.

        Raises
        ------
        BoardError
            They are of several.
        """
        names = sorted({f"{record.suite}@{record.suite_version}" for record in self.records})
        if len(names) > 1:
            raise BoardError(f"the folder holds records of several suites: {', '.join(names)}")
        return names[0]


class NothingToShow(BoardError):
    """No record of a folder can be used.

    Parameters
    ----------
    problems
        Why.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


def suite_folder(suite: str, results: Path) -> Path:
    """The folder of a suite's results.

    Raises
    ------
    UsageError
        There is none; the nearest name is said.
    """
    folder = results / suite
    if not folder.is_dir():
        choices = [p.name for p in results.iterdir() if p.is_dir()] if results.is_dir() else []
        raise UsageError(f"no results in {results} of the suite", field="SUITE", value=suite, choices=choices)
    return folder


def score_folder(folder: Path, *, sheets: bool = False) -> Scored:
    """Score what can be used of a folder of records.

    Parameters
    ----------
    folder
        Results of one suite.
    sheets
        Hold contact sheets to their SHA-256 too.

    Raises
    ------
    UsageError
        There is no such folder.
    NothingToShow
        It holds no usable record.
    BoardError
        Its records cannot share a board.
    """
    return score_loaded(*load_results(folder, sheets=sheets))


def score_loaded(records: Iterable[Record], problems: Sequence[Problem]) -> Scored:
    """Score records that are loaded already; see `score_folder`."""
    if any(problem.fatal for problem in problems):
        raise NothingToShow(problems)
    current = newest(records)
    versions = {record.cell.defense: record.cell.defense_version for record in current}
    lost: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        defense, version = problem.entry
        if problem.lost and version >= versions.get(defense, 0):
            lost[defense].append(f"{problem.where} is left out ({problem.kind})")
    return Scored(aggregate(map(measurement, current), lost=lost), tuple(current), tuple(problems))


def newest(records: Iterable[Record]) -> list[Record]:
    """Records of the newest version of each defense; older ones stay in the folder as history."""
    records = list(records)
    last: dict[str, int] = {}
    for record in records:
        cell = record.cell
        last[cell.defense] = max(cell.defense_version, last.get(cell.defense, 0))
    return [record for record in records if record.cell.defense_version == last[record.cell.defense]]
