"""Shared parts of the ``immunebench new`` commands: ids, TOML output, and writing all files or none."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from immunebench.catalog.places import folders_to_write
from immunebench.core.errors import UsageError
from immunebench.declared.schema import Id

Table = Mapping[str, object]
#: Fills a new folder or writes a new file at a path, and checks what it wrote.
Draft = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Created:
    """The result of a command: the written files, messages, and the suggested next commands."""

    id: str
    files: tuple[Path, ...]
    messages: tuple[str, ...]
    next: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the lines to print."""
        here = Path.cwd()
        files = (file.relative_to(here) if file.is_relative_to(here) else file for file in self.files)
        return [*self.messages, *(f"wrote {file}" for file in files), *(f"next: {command}" for command in self.next)]


def checked_id(name: str, field: str) -> str:
    """Validate an id.

    Raises
    ------
    UsageError
        It is not a valid id.
    """
    try:
        return TypeAdapter(Id).validate_python(name)
    except ValidationError as error:
        message = "must be up to 64 lower-case letters and digits with single hyphens between, not"
        raise UsageError(message, field=field, value=name) from error


def write_all(drafts: Mapping[Path, Draft]) -> None:
    """Create files and folders under temporary names and move them to their targets in order, all of them or none.

    Parameters
    ----------
    drafts
        The function that creates each, by target path. Files through which others are found come last.

    Raises
    ------
    UsageError
        A target exists or cannot be written, or a draft fails its own check.
    """
    for place in reversed(list(drafts)):
        if place.exists() or place.is_symlink():
            raise UsageError("exists already; choose another id", file=place)
    moved: list[Path] = []
    temporary: dict[Path, Path] = {}
    try:
        for place, write in drafts.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary[place] = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
            write(temporary[place] / place.name)
        for place, folder in temporary.items():
            (folder / place.name).rename(place)
            moved.append(place)
    except OSError as error:
        _remove(moved)
        raise UsageError(f"cannot be written: {error.strerror}", file=error.filename) from error
    except BaseException:
        _remove(moved)
        raise
    finally:
        _remove(list(temporary.values()))


def toml(table: Table) -> str:
    """Format strings, numbers, booleans, tables and lists of them as TOML."""
    plain = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    return "".join(f"{_key(name)} = {_value(value)}\n" for name, value in plain.items()) + _tables(table, "")


def command(root: Path, arguments: str) -> str:
    """Return a command line that reads the entries of a root folder, with IMMUNEBENCH_ENTRIES set if needed."""
    try:
        is_default = folders_to_write()["root"] == root
    except UsageError:
        is_default = False
    prefix = "" if is_default else f"IMMUNEBENCH_ENTRIES={shlex.quote(os.fspath(root))} "
    return f"{prefix}immunebench {arguments}"


def _tables(table: Table, above: str) -> str:
    text = ""
    for name, value in table.items():
        if isinstance(value, Mapping):
            inner = {n: v for n, v in value.items() if not isinstance(v, Mapping)}
            text += f"\n[{above}{_key(name)}]\n{toml(inner)}" if inner else ""
            text += _tables(value, f"{above}{_key(name)}.")
    return text


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _value(value: object) -> str:
    # JSON strings are valid basic strings of TOML, as ensure_ascii=False does not write surrogate escapes.
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items()) + " }"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and (len(text) > 100 or any(isinstance(item, Mapping) for item in value)):
        return "[\n" + "".join(f"    {_value(item)},\n" for item in value) + "]"
    return text


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
