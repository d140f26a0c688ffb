"""Records as lines of JSON in files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from immunebench.core.errors import UsageError
from immunebench.declared.schema import usage_error
from immunebench.records.record import (
    Record,
)
from immunebench.store.graph import canonical_json


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines in the order of their cells' keys, atomically.

    Raises
    ------
    ValueError
        Two records of one cell, or a number that is not finite.
    """
    ordered = sorted(records, key=lambda record: record.cell.key)
    keys = [record.cell.key for record in ordered]
    if len(set(keys)) != len(keys):
        raise ValueError("two records of one cell")
    text = "".join(f"{canonical_json(json_value(record))}\n" for record in ordered)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, path)


def read_records(path: Path) -> list[Record]:
    """Read a file of records, or every ``*.jsonl`` file below a folder.

    Raises
    ------
    UsageError
        A line is no record; file, line and field are named.
    """
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    records = []
    for file in files:
        try:
            lines = file.read_text("utf-8").splitlines()
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror}", file=file) from error
        for number, line in enumerate(lines, 1):
            try:
                records.append(Record.model_validate_json(line))
            except ValidationError as error:
                raise usage_error(Path(f"{file}:{number}"), error, Record) from error
    return records


def json_value(record: Record) -> JsonValue:
    """Return a record as JSON types; a number that is not finite stays one, for the writer to refuse."""
    value: JsonValue = record.model_dump(mode="python")
    return value


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a record."""
    schema = Record.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
