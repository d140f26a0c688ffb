"""Marks: who vouches for a file of records. `leaderboard/rules.md`, Marks, says what each means.

``leaderboard/official.json`` lists the files that the repository itself ships, by suite and name, with their SHA-256.
``results/<suite>/marks.json`` lists the files of which `immunebench verify` ran cells again. A mark belongs to the
bytes of a file: one changed character, and the file is self-reported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from immunebench.core.errors import UsageError
from immunebench.declared.schema import M, Model, Sha256, read_text, usage_error
from immunebench.store.files import write_json
from immunebench.store.graph import canonical_json

Mark = Literal["official", "reproduced", "self-reported"]
MARKS, OFFICIAL = "marks.json", "official.json"
FileName = Annotated[str, Field(pattern=r"^[a-z0-9+-]+@\d+\.jsonl$", max_length=320)]


class HeldOut(Model):
    """The outcome on a task that is not public: its digest stands for it."""

    task: Sha256
    a: float | None
    a_public: float | None


class Reproduction(Model):
    """What `immunebench verify` ran again, and with which outcome.

    Attributes
    ----------
    sha256
        Of the file of records that it vouches for.
    cells
        Keys of the cells that were run again, drawn with ``seed``.
    exact
        Whether every number agreed to the last digit; else they agreed within ``tolerance``.
    artifacts
        For every cell, the payload digests of what this run made; see `records.attestation`.
    boxes
        Isolation of the entries' stages of this run.
    signature
        SHA-256 of all other fields. It shows a change; who may add a mark is decided by review.
    """

    file: FileName
    sha256: Sha256
    seed: int
    cells: Annotated[tuple[str, ...], Field(min_length=1, max_length=10_000)]
    exact: bool
    tolerance: Annotated[float, Field(ge=0)]
    artifacts: dict[str, dict[str, str]] = Field(default_factory=dict)
    boxes: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    held_out: tuple[HeldOut, ...] = ()
    version: str
    commit: str | None = None
    created: str
    signature: Sha256

    def signed(self) -> Reproduction:
        """Return the same with its signature."""
        return self.model_copy(update={"signature": self.expected_signature()})

    def expected_signature(self) -> str:
        """Return the SHA-256 of all fields but the signature."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json", exclude={"signature"})).encode()).hexdigest()


class MarksFile(Model):
    """``results/<suite>/marks.json``."""

    schema_version: Literal[1] = 1
    marks: tuple[Reproduction, ...] = ()


class OfficialFile(Model):
    """``leaderboard/official.json``: SHA-256 by suite and file."""

    schema_version: Literal[1] = 1
    suites: dict[str, dict[FileName, Sha256]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Marks:
    """The marks of a suite's files, and what is wrong with the marks themselves."""

    official: dict[str, str] = field(default_factory=dict)
    reproduced: dict[str, Reproduction] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    def of(self, name: str, sha256: str) -> Mark:
        """Return the mark of a file of records by its name and SHA-256."""
        if self.official.get(name) == sha256:
            return "official"
        made = self.reproduced.get(name)
        return "reproduced" if made is not None and made.sha256 == sha256 else "self-reported"


def read_marks(folder: Path, leaderboard: Path | None) -> Marks:
    """Return the marks of a suite's folder of results; files that cannot be used are faults and give no mark.

    Parameters
    ----------
    folder
        Results of one suite; its name is the suite's.
    leaderboard
        Folder with ``official.json``; None for none.
    """
    faults: list[str] = []
    official: dict[str, str] = {}
    if leaderboard is not None and (leaderboard / OFFICIAL).is_file():
        try:
            official = _read(leaderboard / OFFICIAL, OfficialFile).suites.get(folder.name, {})
        except UsageError as error:
            faults.append(str(error))
    reproduced: dict[str, Reproduction] = {}
    try:
        for number, mark in enumerate(read_reproductions(folder)):
            if mark.signature != mark.expected_signature():
                faults.append(f"{MARKS}: marks.{number}.signature: is not that of the other fields; the mark of")
                faults[-1] += f" {mark.file} does not count"
            else:
                reproduced[mark.file] = mark
    except UsageError as error:
        faults.append(str(error).replace(str(folder / MARKS), MARKS))
    return Marks(official, reproduced, tuple(faults))


def read_reproductions(folder: Path) -> tuple[Reproduction, ...]:
    """Return the entries of ``marks.json``, without checking their signatures.

    Raises
    ------
    UsageError
        The file cannot be read or is not valid.
    """
    file = folder / MARKS
    return _read(file, MarksFile).marks if file.exists() or file.is_symlink() else ()


def add_reproduction(folder: Path, mark: Reproduction) -> Path:
    """Write a mark into ``marks.json``, in the place of an earlier one of the same file of records."""
    others = [other for other in read_reproductions(folder) if other.file != mark.file]
    found = sorted([*others, mark.signed()], key=lambda one: one.file)
    write_json(folder / MARKS, MarksFile(marks=tuple(found)).model_dump(mode="json"))
    return folder / MARKS


def add_official(leaderboard: Path, folder: Path, files: Iterable[Path]) -> Path:
    """List files of a suite's results as official, in the place of what was listed of this suite."""
    place = leaderboard / OFFICIAL
    known = _read(place, OfficialFile).suites if place.is_file() else {}
    known = {**known, folder.name: {file.name: file_digest(file) for file in sorted(files)}}
    write_json(place, OfficialFile(suites=known).model_dump(mode="json"))
    return place


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file of records."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read(file: Path, model: type[M]) -> M:
    try:
        text = read_text(file)
        json.loads(text)
        return model.model_validate_json(text)
    except ValidationError as error:
        raise usage_error(file, error, model) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"cannot be read: {error}", file=file) from error
