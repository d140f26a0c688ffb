"""Load a folder of untrusted records and report its faults by file and line.

Invalid lines are left out; the others stay usable. A lost record cannot improve a score, since
`immunebench.board.assembly.scored` makes the row of its defense incomplete.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from immunebench.board.loading.consistency import Placed, disagreements
from immunebench.board.loading.house import stranger
from immunebench.board.loading.marks import MARKS, Mark, Marks, file_digest
from immunebench.core.errors import UsageError, shortened

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog
    from immunebench.records.files import Line
    from immunebench.records.record import Record

Kind = Literal[
    "empty",
    "unreadable",
    "outside",
    "truncated",
    "not json",
    "not finite",
    "field",
    "misplaced",
    "version",
    "metric",
    "range",
    "inconsistent",
    "duplicate",
    "conflict",
    "sheet",
    "impossible",
    "unknown",
    "disagrees",
    "mark",
]
_HARMLESS = frozenset({"duplicate", "sheet", "mark"})
#: Faults of what a record says, rather than of how its line is written.
FINDINGS = frozenset({"impossible", "unknown", "disagrees", "conflict", "range", "inconsistent", "metric", "misplaced"})
_LONGEST = 400


@dataclass(frozen=True)
class Problem:
    """A fault of a line, a file or a folder of records.

    Attributes
    ----------
    file
        Relative to the folder that was read.
    line
        Line number, from 1; None if the fault concerns the whole file or folder.
    kind
        Machine-readable kind of fault.
    message
        One-line description, safe to print.
    fatal
        Whether no record is left that could be shown.
    """

    file: str
    line: int | None
    kind: Kind
    message: str
    fatal: bool = False

    @property
    def lost(self) -> bool:
        """Whether a record was left out because of it."""
        return self.kind not in _HARMLESS

    @property
    def entry(self) -> tuple[str, int]:
        """Defense and version from the file name ``<defense>@<version>.jsonl``; version 0 if it has none."""
        defense, _, version = Path(self.file).stem.partition("@")
        return defense, int(version) if version.isdecimal() else 0

    @property
    def where(self) -> str:
        """``file:line``."""
        return plain(self.file if self.line is None else f"{self.file}:{self.line}")

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.message}"


def plain(text: str) -> str:
    """Return text without control characters, which could change a reader's terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def load_results(
    folder: Path, *, sheets: bool = False, catalog: Catalog | None = None, marks: Marks | None = None
) -> tuple[list[Record], list[Problem]]:
    """Load the valid records of all ``*.jsonl`` files below a folder.

    Parameters
    ----------
    folder
        Results of one suite.
    sheets
        Whether to check the contact sheets against the SHA-256 in their records too.
    catalog
        What records may name; None checks no names.
    marks
        Who vouches for which file: of records that disagree on what they share, the best vouched ones are right.

    Returns
    -------
    records
        Valid records, one per cell and version of a defense, ordered by file and line. Of two equal records of a cell
        the first is used; of two that differ, neither. Records that disagree with others of their cell on what is
        measured without a defense, and records that name what the catalogue lacks, are left out.
    problems
        Faults, ordered by file and line.

    Raises
    ------
    UsageError
        If there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError("no such folder of results", value=str(folder))
    marks = marks or Marks()
    problems = [Problem(MARKS, None, "mark", plain(shortened(fault, _LONGEST))) for fault in marks.faults]
    found: list[tuple[str, int, Record]] = []
    vouched: dict[str, Mark] = {}
    for path in sorted(folder.rglob("*.jsonl")):
        name = path.relative_to(folder).as_posix()
        if not path.resolve().is_relative_to(folder.resolve()):
            problems.append(Problem(name, None, "outside", "links to a file outside the results"))
            continue
        with suppress(OSError):
            vouched[name] = marks.of(name, file_digest(path))
        for line, outcome in _lines(path, name):
            if isinstance(outcome, Problem):
                problems.append(outcome)
            else:
                found.append((name, line, outcome))
                problems += _sheet(outcome, folder, name, line, compare=sheets)
    outside = {(p.file, p.line) for p in problems if p.kind == "outside"}
    placed = [
        Placed(name, line, record, vouched.get(name, "self-reported"))
        for name, line, record in found
        if (name, line) not in outside
    ]
    placed, repeats = _once(placed)
    placed, findings = _held(placed, catalog)
    records = [place.record for place in placed]
    problems = sorted([*problems, *repeats, *findings], key=lambda p: (p.file, p.line or 0, p.kind))
    if not records:
        problems.append(Problem(".", None, "empty", "there is no usable record", fatal=True))
    return records, problems


def _held(placed: list[Placed], catalog: Catalog | None) -> tuple[list[Placed], list[Problem]]:
    """Leave out records that name what the house lacks, then those that disagree with the others of their cell."""
    problems: list[Problem] = []

    def without(found: Iterator[tuple[Placed, str]], kind: Kind) -> None:
        for place, said in list(found):
            placed.remove(place)
            problems.append(Problem(place.file, place.line, kind, plain(shortened(said, _LONGEST))))

    if catalog is not None:
        strange = ((place, stranger(place.record, catalog)) for place in list(placed))
        without(((place, said) for place, said in strange if said is not None), "unknown")
    without(disagreements(list(placed)), "disagrees")
    return placed, problems


def _lines(path: Path, name: str) -> Iterator[tuple[int, Record | Problem]]:
    from immunebench.records.files import read_lines

    try:
        for line in read_lines(path):
            yield line.number, _record(line, name)
    except OSError as error:
        yield 0, Problem(name, None, "unreadable", f"cannot be read: {error.strerror}")


def _record(line: Line, name: str) -> Record | Problem:
    from immunebench.board.loading.checks import complaint
    from immunebench.records.files import BrokenLine

    def wrong(kind: Kind, message: str) -> Problem:
        return Problem(name, line.number, kind, plain(shortened(message, _LONGEST)))

    try:
        record = line.record()
    except BrokenLine as error:
        return wrong(error.kind, error.message)
    try:
        digest(record)
    except ValueError:
        return wrong("not finite", "params: holds a number beyond all bounds")
    # Lost lines are attributed to the entry in the file's name, so a file must not have records of other entries.
    own = f"{record.cell.defense}@{record.cell.defense_version}"
    if Path(name).stem != own:
        return wrong("misplaced", f"is a record of {own}, which belongs into {own}.jsonl")
    found = complaint(record)
    return record if found is None else wrong(*found)


def digest(record: Record) -> str:
    """Return the SHA-256 of a record's canonical JSON, independent of the formatting of its line."""
    from immunebench.records.files import json_value
    from immunebench.store.graph import canonical_json

    return hashlib.sha256(canonical_json(json_value(record)).encode()).hexdigest()


def _sheet(record: Record, folder: Path, name: str, line: int, *, compare: bool) -> Iterator[Problem]:
    if record.sheet is None:
        return
    from immunebench.catalog.entry import sha256

    path = (folder / name).parent / record.sheet.file
    if not path.resolve().is_relative_to(folder.resolve()):
        yield Problem(name, line, "outside", f"its contact sheet {record.sheet.file} lies outside the results")
    elif compare and not path.is_file():
        yield Problem(name, line, "sheet", f"its contact sheet {record.sheet.file} is missing")
    elif compare and sha256(path) != record.sheet.sha256:
        yield Problem(name, line, "sheet", f"its contact sheet {record.sheet.file} has another SHA-256")


def _once(found: list[Placed]) -> tuple[list[Placed], list[Problem]]:
    """Return the first of equal records of a cell, and none of records of a cell that differ.

    Where somebody vouches for the records of an entry, others of the same entry and version count nothing.
    """
    problems: list[Problem] = []
    official = {_entry(place.record): place.file for place in found if place.mark != "self-reported"}
    groups: dict[tuple[str, int], list[Placed]] = defaultdict(list)
    for place in found:
        cell, vouched = place.record.cell, official.get(_entry(place.record))
        if place.mark == "self-reported" and vouched is not None:
            said = f"is of {cell.defense}@{cell.defense_version}, whose vouched records are in {vouched}"
            problems.append(Problem(place.file, place.line, "duplicate", said))
        else:
            groups[cell.key, cell.defense_version].append(place)
    records: list[Placed] = []
    for (key, _), group in groups.items():
        first = group[0]
        if all(place.record == first.record for place in group):
            records.append(first)
            problems += [
                Problem(place.file, place.line, "duplicate", f"repeats {first.file}:{first.line} ({key})")
                for place in group[1:]
            ]
            continue
        places = [f"{place.file}:{place.line}" for place in group]
        for number, place in enumerate(group):
            others = ", ".join(other for at, other in enumerate(places) if at != number)
            said = f"disagrees with {others} on {key}; none of them counts"
            problems.append(Problem(place.file, place.line, "conflict", said))
    return records, problems


def _entry(record: Record) -> tuple[str, int]:
    return record.cell.defense, record.cell.defense_version
