"""Which box this machine has: bubblewrap, Landlock with a seccomp filter, or none."""

from __future__ import annotations

import os
from typing import Literal

from immunebench.box import bubblewrap, landlock, seccomp
from immunebench.core.errors import UsageError

Kind = Literal["bubblewrap", "landlock", "none"]
KINDS: tuple[Kind, ...] = ("bubblewrap", "landlock", "none")
VARIABLE = "IMMUNEBENCH_BOX"


def fault(kind: Kind) -> str | None:
    """Say why this machine cannot have a box of a kind, None where it can."""
    if kind == "none":
        return None
    if not seccomp.supported():
        return "system calls are filtered on Linux with x86_64 or aarch64 only"
    if kind == "bubblewrap":
        return bubblewrap.fault()
    return None if landlock.version() else "the kernel has no Landlock, or it is switched off"


def chosen() -> Kind:
    """Return the box to use: the one that ``$IMMUNEBENCH_BOX`` names, else the first that works.

    Raises
    ------
    UsageError
        The variable names no box, or one that this machine cannot have.
    """
    named = os.environ.get(VARIABLE, "")
    if not named:
        return next(kind for kind in KINDS if fault(kind) is None)
    if named not in KINDS:
        raise UsageError("no such box", field=VARIABLE, value=named, choices=KINDS)
    kind: Kind = named
    why = fault(kind)
    if why is not None:
        raise UsageError(f"cannot be used here, {why}:", field=VARIABLE, value=named)
    return kind


def described() -> str:
    """Return one line on the box that this machine has, with the reason where a better one is missing."""
    kind = chosen()
    detail = {
        "bubblewrap": f"bubblewrap {bubblewrap.version()}, seccomp",
        "landlock": f"Landlock version {landlock.version()}, seccomp",
        "none": "none: strangers' entries run with --trust only",
    }[kind]
    if os.environ.get(VARIABLE):
        return f"{detail} (by {VARIABLE})"
    better = [why for other in KINDS[: KINDS.index(kind)] if (why := fault(other)) is not None]
    return f"{detail} ({'; '.join(better)})" if better else detail
