"""JSON files and folders of the store: written whole or not at all, read without trusting them."""

from __future__ import annotations

import itertools
import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

_counter = itertools.count()
#: Process ids of two machines that share a folder may be equal.
_MACHINE = uuid.uuid4().hex[:8]


def unique() -> str:
    """Return a suffix that no other process and no other call of this one uses at the same time."""
    return f"{os.getpid()}.{next(_counter)}.{_MACHINE}"


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old text or the new one, never a part; a failed write leaves no draft."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{unique()}")
    try:
        draft.write_text(json_text(value) + "\n", encoding="utf-8")
        fsync(draft)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def json_text(value: object) -> str:
    """Return the text of a JSON value as the store writes it.

    Raises
    ------
    ValueError
        A number is not finite.
    """
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None where there is none or it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def files_below(folder: Path) -> list[Path]:
    """Return every file below a folder, sorted."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of every file below a folder."""
    total = 0
    for file in [path] if path.is_file() else files_below(path):
        with suppress(FileNotFoundError):  # A draft may be published while it is counted.
            total += file.stat().st_size
    return total


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
