"""Where entries, tasks, suites and profiles lie.

Two kinds of places are read. One *house*: the first of the folder given, ``$IMMUNEBENCH_ENTRIES``, the checkout that
holds the current folder, the entries bundled with the package, and the checkout that the package lies in. Beside it
come *extra* folders: one that was given and is no house itself, and plug-ins of the group ``immunebench.entries``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from immunebench.core.errors import UsageError
from immunebench.core.home import expanded
from immunebench.declared import schema

PACKAGE = Path(__file__).resolve().parents[1]
GROUP = "immunebench.entries"


def folders_to_write(out: Path | None = None) -> dict[str, Path]:
    """Return the folders of tasks, suites, defenses and attacks that a new one belongs into, by kind.

    Parameters
    ----------
    out
        Another house, which need not exist; default ``$IMMUNEBENCH_ENTRIES``, else the checkout that holds the
        current folder.

    Raises
    ------
    UsageError
        There is none of them.
    """
    given = out or os.environ.get("IMMUNEBENCH_ENTRIES")
    root = expanded(given).resolve() if given else checkout(Path.cwd())
    if root is None:
        raise UsageError("is needed outside a checkout: the folder that it is written to", field="--out")
    return {"root": root, **folders(root)}


def roots(entries: Path | str | None) -> Iterator[Path]:
    given = entries or os.environ.get("IMMUNEBENCH_ENTRIES")
    root = None if not given else expanded(given).resolve()
    if root is not None and not root.is_dir():
        name = "--entries" if entries else "IMMUNEBENCH_ENTRIES"
        raise UsageError("no such folder", field=name, value=str(given))
    if root is not None and _is_house(root):
        yield root
    else:
        house = checkout(Path.cwd()) or (PACKAGE / "_entries" if (PACKAGE / "_entries").is_dir() else checkout(PACKAGE))
        yield from (place for place in (house, root) if place is not None)
    # Suites and profiles belong to the engine: a checkout that lies elsewhere brings its own entries only.
    yield PACKAGE
    for point in importlib.metadata.entry_points(group=GROUP):
        spec = importlib.util.find_spec(point.module)
        yield from (Path(place) for place in (spec.submodule_search_locations or () if spec else ()))


def checkout(start: Path) -> Path | None:
    return next((folder for folder in (start, *start.parents) if _is_house(folder)), None)


@functools.cache
def _house(folder: Path) -> dict[str, Any] | None:
    try:
        table = tomllib.loads(schema.read_text(folder / "pyproject.toml"))
    except (UsageError, ValueError, RecursionError):
        return None
    found: dict[str, Any] | None = table.get("tool", {}).get("immunebench")
    return found


def _is_house(folder: Path) -> bool:
    return _house(folder) is not None


def folders(root: Path) -> dict[str, Path]:
    named = _house(root) or {}
    kinds = ("defenses", "attacks", "tasks", "suites", "profiles")
    return {kind: root / str(named.get(kind, kind)) for kind in kinds}
