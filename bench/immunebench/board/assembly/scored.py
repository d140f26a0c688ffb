"""Scoring of a folder of records: the board, and the problems found in the folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.loading.external import External, read_external
from immunebench.board.loading.load import FINDINGS, Problem, load_results, plain
from immunebench.board.loading.marks import MARKS, file_digest, read_marks
from immunebench.board.scores.model import Board, BoardError
from immunebench.board.scores.reading import measurement
from immunebench.core.errors import UsageError, shortened

if TYPE_CHECKING:
    from immunebench.records.record import Record


@dataclass(frozen=True)
class Scored:
    """A suite's board with the records that it was computed from.

    Attributes
    ----------
    board
        The board; a row is incomplete if a record of its defense was left out.
    records
        The records that were scored: those of the newest version of each defense.
    problems
        Faults found in the folder, and records that were left out because of them.
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
            If the records are of several suites or versions.
        """
        names = sorted({f"{record.suite}@{record.suite_version}" for record in self.records})
        if len(names) > 1:
            raise BoardError(f"the folder holds records of several suites: {', '.join(names)}")
        return names[0]


class NothingToShow(BoardError):
    """Raised when no record of a folder can be used.

    Parameters
    ----------
    problems
        The reasons.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


def suite_folder(suite: str, results: Path) -> Path:
    """Return the folder of a suite's results.

    Raises
    ------
    UsageError
        If there is none; the message suggests the nearest name.
    """
    folder = results / suite
    if not folder.is_dir():
        choices = [p.name for p in results.iterdir() if p.is_dir()] if results.is_dir() else []
        raise UsageError(f"no results in {results} of the suite", field="SUITE", value=suite, choices=choices)
    return folder


def score_folder(folder: Path, *, sheets: bool = False) -> Scored:
    """Score the usable records of a folder.

    Parameters
    ----------
    folder
        Results of one suite.
    sheets
        Whether to check the SHA-256 of contact sheets too.

    Raises
    ------
    UsageError
        If there is no such folder.
    NothingToShow
        If it has no usable record.
    BoardError
        If its records cannot be shown as one board.
    """
    found = load_suite_results(folder, sheets=sheets)
    return score_loaded(found.records, found.problems, vouched=found.vouched, external=found.external)


@dataclass(frozen=True)
class Loaded:
    """The usable records of a suite's folder, its faults, and the entries and versions that somebody vouches for."""

    records: tuple[Record, ...]
    problems: tuple[Problem, ...]
    vouched: frozenset[tuple[str, int]]
    external: tuple[External, ...] = ()


def load_suite_results(folder: Path, *, sheets: bool = False) -> Loaded:
    """Load a suite's records, held to the catalogue and to the marks beside them; see `load_results`.

    Official files are those of ``leaderboard/official.json`` of the checkout or the package, wherever the results lie.
    """
    from immunebench.catalog import loading, places

    marks = read_marks(folder, places.published("leaderboard"))
    records, problems = load_results(folder, sheets=sheets, catalog=loading.default_catalog(), marks=marks)
    entries = {(record.cell.defense, record.cell.defense_version) for record in records}
    vouched = {
        (defense, version)
        for defense, version in entries
        if (file := folder / f"{defense}@{version}.jsonl").is_file()
        and marks.of(file.name, file_digest(file)) != "self-reported"
    }
    outside, broken = read_external(folder.parent)
    problems += [Problem(MARKS, None, "mark", plain(shortened(str(error), 400))) for error in broken]
    external = tuple(found for found in outside if found.suite == folder.name)
    return Loaded(tuple(records), tuple(problems), frozenset(vouched), external)


def score_loaded(
    records: Iterable[Record],
    problems: Sequence[Problem],
    *,
    vouched: Collection[tuple[str, int]] = (),
    external: Sequence[External] = (),
) -> Scored:
    """Score records that have been loaded; see `score_folder`.

    `vouched` names official and reproduced entries; of `external` evaluations those of the shown versions are shown.
    """
    if any(problem.fatal for problem in problems):
        raise NothingToShow(problems)
    current = newest(records)
    versions = {record.cell.defense: record.cell.defense_version for record in current}
    lost: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        defense, version = problem.entry
        own = versions.get(defense, 0)
        # What others write under the name of a vouched entry, or of a version that the house lacks, is not its record.
        foreign = (defense, own) in vouched and problem.file != f"{defense}@{own}.jsonl"
        foreign = foreign or (problem.kind == "unknown" and 0 < own != version)
        if problem.lost and version >= own and not foreign:
            lost[defense].append(f"{problem.where} is left out ({problem.kind})")
    cells = [
        measurement(record, vouched=(record.cell.defense, record.cell.defense_version) in vouched) for record in current
    ]
    findings = tuple((problem.where, problem.message) for problem in problems if problem.kind in FINDINGS)
    shown = tuple(found for found in external if versions.get(found.defense) == found.defense_version)
    board = replace(aggregate(cells, lost=lost), findings=findings, external=shown)
    return Scored(board, tuple(current), tuple(problems))


def newest(records: Iterable[Record]) -> list[Record]:
    """Return the records of the newest version of each defense; older records in the folder are not scored."""
    records = list(records)
    last: dict[str, int] = {}
    for record in records:
        cell = record.cell
        last[cell.defense] = max(cell.defense_version, last.get(cell.defense, 0))
    return [record for record in records if record.cell.defense_version == last[record.cell.defense]]
