"""Writes the records of a run into the files of a results folder without losing what is there.

``<defense>@<version>.jsonl`` holds one record a cell. Two more files may be in the folder, which no board reads:
``<defense>@<version>.jsonl.damaged`` with lines that were no records, and ``<defense>@<version>.jsonl.worse`` with
outcomes that did not replace a better record of their cell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.core.errors import UsageError, shortened
from immunebench.records.files import BrokenLine, Line, line_of, read_lines, write_lines, write_records

if TYPE_CHECKING:
    from immunebench.records.record import Record, Sheet, Status
    from immunebench.store.artifacts import Store
    from immunebench.store.graph import Plan

#: Ranks of outcomes: one of a lower rank never replaces one of a higher rank.
_RANK: dict[Status, int] = {"ok": 2, "error": 1, "oom": 1, "over_memory": 1, "timeout": 1}
_SHOWN = 200
#: How many files, those written last, are held in memory: a record is some 20 kB.
_KEPT = 32

_Stamp = tuple[int, int, int] | None


@dataclass
class _Content:
    """What a file of records holds: records by cell, and lines that cannot be trusted, each with the reason."""

    records: dict[str, Record] = field(default_factory=dict)
    broken: list[tuple[Line, str]] = field(default_factory=list)
    #: What is written of each record, so that the others need not be put into words for each new one.
    lines: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """The results folder that a run writes to.

    Parameters
    ----------
    folder
        One file a defense and version.
    store
        Holds the lock of a file, which another run may write to at the same time.
    say
        Takes a line for the user.
    replace
        Let an outcome replace a better one of the same cell.
    """

    folder: Path
    store: Store
    say: Callable[[str], None]
    replace: bool = False
    _known: dict[Path, tuple[_Stamp, _Content]] = field(default_factory=dict, init=False, repr=False)

    def check(self, plan: Plan) -> None:
        """Read every file that records of a plan will be written to, and say which lines will be set aside.

        Raises
        ------
        UsageError
            A file cannot be read.
        """
        versions = {(cell.defense, plan.roots[cell.key].facts.defense_version) for cell in plan.cells}
        for file in (self._file(defense, version) for defense, version in sorted(versions)):
            for line, why in _read(file).broken:
                self.say(f"{file}:{line.number}: {shortened(why, _SHOWN)}; set aside in {_damaged(file).name}")

    def save(self, record: Record, sheet: Callable[[], Sheet | None]) -> Record:
        """Put a record into its file, unless a better one of the same cell is there; return the record.

        Parameters
        ----------
        record
            Without its contact sheet.
        sheet
            Draws that; called only if the record is written.

        Raises
        ------
        OSError
            Something cannot be written; what was there stays.
        """
        file = self._file(record.cell.defense, record.cell.defense_version)
        with self.store.lock(f"results-{hashlib.sha256(str(file).encode()).hexdigest()}"):
            there = self._content(file)
            _set_aside(file, there.broken)
            key = record.cell.key
            before = there.records.get(key)
            if before is not None and not self.replace and _is_worse(record, before):
                _write_beside(_worse(file), record)
                stays = f"the record with status {before.status} stays, the new one ({record.status}) is in"
                self.say(f"{record.cell.key}: {stays} {_worse(file).name}; --replace overwrites")
                return record
            whole = record.model_copy(update={"sheet": sheet()})
            self._known.pop(file, None)  # Until it is written.
            lines = there.lines | {key: line_of(whole)}
            write_lines(file, (lines[of] for of in sorted(lines)))
            after = _Content(there.records | {key: whole}, [], lines)
            self._known[file] = (_stamp(file), after)
            if len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
            return whole

    def _content(self, file: Path) -> _Content:
        """Return what a file holds, without reading it again where this run wrote it last."""
        stamp, known = self._known.get(file, (None, None))
        if known is not None and stamp == _stamp(file):
            return known
        found = _read(file)
        found.lines.update({key: line_of(record) for key, record in found.records.items()})
        return found

    def _file(self, defense: str, version: int) -> Path:
        return self.folder / f"{defense}@{version}.jsonl"


def _stamp(file: Path) -> _Stamp:
    """Return what changes with every writing of a file, since each one makes a new file."""
    with suppress(FileNotFoundError):
        status = file.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
    return None


def _is_worse(new: Record, old: Record) -> bool:
    """Return whether an outcome ranks below another one of the same measurement."""
    return new.comparability == old.comparability and _standing(new) < _standing(old)


def _standing(record: Record) -> tuple[int, bool]:
    return _RANK.get(record.status, 0), bool(record.scores)


def _read(file: Path) -> _Content:
    content = _Content()
    found: dict[str, list[tuple[Line, Record]]] = {}
    try:
        for line in read_lines(file) if file.exists() else ():
            try:
                record = line.record()
            except BrokenLine as error:
                content.broken.append((line, error.message))
            else:
                found.setdefault(record.cell.key, []).append((line, record))
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", file=file) from error
    for key, group in found.items():
        if all(record == group[0][1] for _, record in group):
            content.records[key] = group[0][1]
        else:
            # It is not known which of them is right, and the board counts none of them either.
            content.broken += [(line, f"disagrees with another line on {key}") for line, _ in group]
    return content


def _set_aside(file: Path, broken: Iterable[tuple[Line, str]]) -> None:
    """Append lines to the file of damaged ones before they leave their own."""
    lines = [line.text + b"\n" for line, _ in broken]
    if lines:
        with _damaged(file).open("ab") as stream:
            stream.writelines(lines)


def _write_beside(file: Path, record: Record) -> None:
    others = {key: other for key, other in _read(file).records.items() if key != record.cell.key}
    write_records(file, [*others.values(), record])


def _damaged(file: Path) -> Path:
    return file.with_name(f"{file.name}.damaged")


def _worse(file: Path) -> Path:
    return file.with_name(f"{file.name}.worse")
