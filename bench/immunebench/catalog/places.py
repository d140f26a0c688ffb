"""The folders in which entries, tasks, suites and profiles are searched.

One *project root* is read (a folder whose ``pyproject.toml`` has a table ``[tool.immunebench]``): the first of the
given folder, ``$IMMUNEBENCH_ENTRIES``, the checkout that contains the current folder, the entries bundled with the
package, and the checkout that contains the package. *Additional* folders are read too: the given folder if it is not a
project root, the package itself, and plug-ins of the entry-point group ``immunebench.entries``.
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
    """Return the folders into which new tasks, suites, defenses and attacks are written, by kind.

    Parameters
    ----------
    out
        The root folder, which need not exist; default ``$IMMUNEBENCH_ENTRIES``, else the checkout that contains the
        current folder.

    Raises
    ------
    UsageError
        No folder is given and the current folder is not in a checkout.
    """
    given = out or os.environ.get("IMMUNEBENCH_ENTRIES")
    root = expanded(given).resolve() if given else checkout(Path.cwd())
    if root is None:
        raise UsageError("is required outside a checkout: the folder to write to", field="--out")
    return {"root": root, **folders(root)}


def roots(entries: Path | str | None) -> Iterator[Path]:
    """Yield the folders to read, see the module; ``entries`` replaces ``$IMMUNEBENCH_ENTRIES``.

    Raises
    ------
    UsageError
        The given folder does not exist.
    """
    given = entries or os.environ.get("IMMUNEBENCH_ENTRIES")
    root = None if not given else expanded(given).resolve()
    if root is not None and not root.is_dir():
        name = "--entries" if entries else "IMMUNEBENCH_ENTRIES"
        raise UsageError("no such folder", field=name, value=str(given))
    if root is not None and _is_project_root(root):
        yield root
    else:
        bundled = PACKAGE / "_entries"
        project = checkout(Path.cwd()) or (bundled if bundled.is_dir() else checkout(PACKAGE))
        yield from (place for place in (project, root) if place is not None)
    # The package has the suites and profiles; another project root only adds its own.
    yield PACKAGE
    for point in importlib.metadata.entry_points(group=GROUP):
        spec = importlib.util.find_spec(point.module)
        yield from (Path(place) for place in (spec.submodule_search_locations or () if spec else ()))


def published(name: str) -> Path | None:
    """Return a folder of published figures, ``results`` or ``leaderboard``; None if there is none.

    It is that of the checkout that contains the current folder, else that of the package or its checkout.
    """
    roots = (checkout(Path.cwd()), PACKAGE / "_entries", checkout(PACKAGE))
    return next((root / name for root in roots if root is not None and (root / name).is_dir()), None)


def checkout(start: Path) -> Path | None:
    """Return the nearest project root at or above a folder, None if there is none."""
    return next((folder for folder in (start, *start.parents) if _is_project_root(folder)), None)


@functools.cache
def _project_table(folder: Path) -> dict[str, Any] | None:
    """Return the table ``[tool.immunebench]`` of a folder's ``pyproject.toml``, None if there is none."""
    try:
        table = tomllib.loads(schema.read_text(folder / "pyproject.toml"))
    except (UsageError, ValueError, RecursionError):
        return None
    found: dict[str, Any] | None = table.get("tool", {}).get("immunebench")
    return found


def _is_project_root(folder: Path) -> bool:
    return _project_table(folder) is not None


def folders(root: Path) -> dict[str, Path]:
    """Return the folders of a root by kind; its ``[tool.immunebench]`` may rename them."""
    named = _project_table(root) or {}
    kinds = ("defenses", "attacks", "tasks", "suites", "profiles", "bases")
    return {kind: root / str(named.get(kind, kind)) for kind in kinds}
