"""What every ``immunebench new`` shares: names, TOML, and writing all files or none."""

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
    """What was written, in one line or more, and which commands come next."""

    id: str
    files: tuple[Path, ...]
    said: tuple[str, ...]
    next: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return it for a person."""
        here = Path.cwd()
        files = (file.relative_to(here) if file.is_relative_to(here) else file for file in self.files)
        return [*self.said, *(f"wrote {file}" for file in files), *(f"next: {command}" for command in self.next)]


def checked_id(name: str, field: str) -> str:
    """Return a name that may be an id.

    Raises
    ------
    UsageError
        It may not.
    """
    try:
        return TypeAdapter(Id).validate_python(name)
    except ValidationError as error:
        message = "must be up to 64 lower-case letters and digits with single hyphens between, not"
        raise UsageError(message, field=field, value=name) from error


def write_all(drafts: Mapping[Path, Draft]) -> None:
    """Make files and folders beside their places and move them there in the given order; all of them or none.

    Parameters
    ----------
    drafts
        What makes each, by place. Put last what others are found through.

    Raises
    ------
    UsageError
        A place is taken or cannot be written, or a draft fails its own check.
    """
    for place in drafts:
        if place.exists() or place.is_symlink():
            raise UsageError("exists already; choose another id", file=place)
    moved: list[Path] = []
    beside: dict[Path, Path] = {}
    try:
        for place, write in drafts.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            beside[place] = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
            write(beside[place] / place.name)
        for place, folder in beside.items():
            (folder / place.name).rename(place)
            moved.append(place)
    except OSError as error:
        _remove(moved)
        raise UsageError(f"cannot be written: {error.strerror}", file=error.filename) from error
    except BaseException:
        _remove(moved)
        raise
    finally:
        _remove(list(beside.values()))


def toml(table: Table) -> str:
    """Write strings, numbers, truth values, tables and lists of them as TOML."""
    plain = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    return "".join(f"{_key(name)} = {_value(value)}\n" for name, value in plain.items()) + _tables(table, "")


def command(root: Path, arguments: str) -> str:
    """Return a command line that finds a house: it is named unless it is read anyway."""
    try:
        read_anyway = folders_to_write()["root"] == root
    except UsageError:
        read_anyway = False
    prefix = "" if read_anyway else f"IMMUNEBENCH_ENTRIES={shlex.quote(os.fspath(root))} "
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
    # TOML's basic strings are JSON's, as long as no character beyond the first plane is escaped.
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
