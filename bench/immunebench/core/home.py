"""The user's own folders, also for a user who has none: containers run under ids without a home."""

from __future__ import annotations

import os
from pathlib import Path

from immunebench.core.errors import UsageError

#: Where nothing is and nothing can be written, as for a user without a home.
_NOWHERE = Path("/nonexistent")


def expanded(path: Path | str) -> Path:
    """Return a path as absolute, with ``~`` replaced by the home folder.

    Raises
    ------
    UsageError
        It begins with ``~``, and that home folder is not known.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError("no home folder is known for", value=str(path)) from error


def cache(variable: str, name: str) -> Path:
    """Return the folder that a variable of the environment names, else ``~/.cache/immunebench/<name>``.

    Where no home folder is known either, a folder that does not exist: nothing is found there; see `require_cache`.
    """
    given = os.environ.get(variable)
    if given:
        return expanded(given)
    try:
        home = Path.home()
    except RuntimeError:
        home = _NOWHERE
    return home / ".cache" / "immunebench" / name


def require_cache(variable: str, name: str) -> Path:
    """Return the folder of `cache`, to write to.

    Raises
    ------
    UsageError
        No home folder is known, and the variable names no other.
    """
    folder = cache(variable, name)
    if folder.is_relative_to(_NOWHERE):
        raise UsageError("is needed: no home folder is known, so it must name the folder", field=variable)
    return folder
