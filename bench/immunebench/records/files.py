"""Reading and writing of records as JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import JsonValue, ValidationError

from immunebench.core.errors import UsageError
from immunebench.declared.schema import usage_error
from immunebench.records.record import SCHEMA, Record
from immunebench.store.graph import canonical_json

_BOM = b"\xef\xbb\xbf"
_CONFLICT = (b"<<<<<<< ", b"=======", b">>>>>>> ", b"||||||| ")

LineFault = Literal["truncated", "not json", "not finite", "version", "outside", "field"]


class BrokenLine(ValueError):
    """Raised for a line that is not a valid record.

    Attributes
    ----------
    kind
        Kind of fault, one of `LineFault`.
    message
        One-line description without the name of the file.
    """

    def __init__(self, kind: LineFault, message: str) -> None:
        super().__init__(message)
        self.kind: LineFault = kind
        self.message = message


class _NotFinite(ValueError):
    """Raised for NaN and infinities, which JSON does not have."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file of records.

    Attributes
    ----------
    number
        Line number, from 1.
    text
        Bytes of the line without byte order mark and surrounding whitespace.
    last
        Whether it is the last line of the file and has no newline at its end.
    """

    number: int
    text: bytes
    last: bool

    def record(self) -> Record:
        """Parse the line and return its record.

        Raises
        ------
        BrokenLine
            If the line is not a valid record.
        """
        value = self._json()
        version = value.get("schema_version", SCHEMA) if isinstance(value, dict) else SCHEMA
        if version != SCHEMA:
            message = f"schema_version {version!r} is not known here; this release reads {SCHEMA}"
            raise BrokenLine("version", message)
        try:
            return Record.model_validate_json(self.text)
        except ValidationError as error:
            raise _broken(error) from error

    def _json(self) -> Any:
        if self.text.startswith(_CONFLICT):
            raise BrokenLine("not json", "is the mark of a merge conflict, which somebody has to settle")
        try:
            return json.loads(self.text.decode("utf-8"), parse_constant=_refuse)
        except _NotFinite as error:
            raise BrokenLine("not finite", str(error)) from error
        except (ValueError, RecursionError) as error:
            # A writer that was interrupted leaves its last line without a newline.
            if self.last:
                raise BrokenLine("truncated", "the file ends within this line") from error
            what = "is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
            raise BrokenLine("not json", what) from error


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the non-blank lines of a file of records.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    found = path.read_bytes().split(b"\n")
    for number, line in enumerate(found, 1):
        text = line.removeprefix(_BOM).strip()
        if text:
            yield Line(number, text, last=number == len(found))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines in the order of their cells' keys, atomically.

    Raises
    ------
    ValueError
        If two records are of the same cell, or a number is not finite.
    OSError
        If the file cannot be written; an existing file is then left unchanged.
    """
    ordered = sorted(records, key=lambda record: record.cell.key)
    keys = [record.cell.key for record in ordered]
    if len(set(keys)) != len(keys):
        raise ValueError("two records of one cell")
    write_lines(path, map(line_of, ordered))


def line_of(record: Record) -> str:
    """Return a record as one line of JSON, without the newline.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    return canonical_json(json_value(record))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write the lines of records atomically.

    Raises
    ------
    OSError
        If the file cannot be written; an existing file is then left unchanged.
    """
    text = "".join(f"{line}\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def read_records(path: Path) -> list[Record]:
    """Read a file of records, or every ``*.jsonl`` file below a folder.

    Raises
    ------
    UsageError
        If a line is not a valid record; the message names file, line and field.
    """
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    records = []
    for file in files:
        try:
            for line in read_lines(file):
                records.append(_required(line, file))
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror}", file=file) from error
    return records


def _required(line: Line, file: Path) -> Record:
    try:
        return line.record()
    except BrokenLine as error:
        raise UsageError(error.message, file=f"{file}:{line.number}") from error


def json_value(record: Record) -> JsonValue:
    """Return a record as JSON types; numbers that are not finite are left for the writer to reject."""
    value: JsonValue = record.model_dump(mode="python")
    return value


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a record."""
    schema = Record.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _refuse(constant: str) -> NoReturn:
    raise _NotFinite(f"holds {constant}, which is no number")


def _broken(error: ValidationError) -> BrokenLine:
    first = error.errors(include_url=False)[0]
    said = str(usage_error(Path("record"), error, Record)).removeprefix("record: ")
    if first["type"] == "finite_number":
        return BrokenLine("not finite", said)
    names_a_file = first["loc"] == ("sheet", "file") and first["type"] == "string_pattern_mismatch"
    return BrokenLine("outside" if names_a_file else "field", said)
