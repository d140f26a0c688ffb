"""Classifies the exception of a stage as a failure of the entry or of the machine."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from immunebench.box.messages import Failed
from immunebench.core.errors import shortened
from immunebench.core.types import StageErrorKind

#: Errors of a disk, which are no failure of an entry.
_DISK = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full: the quota is used up",
    errno.EROFS: "can only be read",
    errno.EIO: "fails",
}
#: How a library written in Rust words an error of the system, as safetensors does, whose exception is no OSError.
_SYSTEM = re.compile(r"\(os error (\d+)\)")


@dataclass(frozen=True)
class StageFailure:
    """Why a stage failed.

    Attributes
    ----------
    kind
        Status of the cells that need it; ``skipped`` where the machine is to blame, so that nothing was measured.
    message
        One line for a person.
    transient
        Whether the next run tries it again unasked.
    """

    kind: str
    message: str
    transient: bool

    @property
    def line(self) -> str:
        """Return the message, with the kind in front where the failure is the entry's."""
        return self.message if self.transient else f"{self.kind}: {self.message}"


def stage_failure(error: Exception, store: Path) -> StageFailure:
    """Classify the exception that ended a stage.

    A full or read-only disk, an unreadable file and a missing package are no failure of the entry. A full disk is none
    even if it stopped the entry's own code.
    """
    disk = next(_disk_errors(error), None)
    if disk is not None:
        return StageFailure("skipped", _disk_message(*disk, store), transient=True)
    message = str(error) or type(error).__name__
    if isinstance(error, OSError | ImportError):
        return StageFailure("skipped", message, transient=True)
    kind = str(getattr(error, "kind", "oom" if isinstance(error, MemoryError) else "error"))
    return StageFailure(kind, message, transient=False)


def failed_message(error: Exception, place: Path) -> Failed:
    """Return what a process in a box says of the exception that ended its stage."""
    found = stage_failure(error, place)
    kind = found.kind if found.kind in get_args(StageErrorKind) else "error"
    trace = shortened("".join(traceback.format_exception(error)), 20_000)
    return Failed(
        kind=cast(StageErrorKind, kind), message=shortened(found.message, 2_000), trace=trace, transient=found.transient
    )


def _disk_errors(error: BaseException | None) -> Iterator[tuple[int, Path | None]]:
    """Yield number and file of every error of a disk among an exception and those that it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number, file = _system_error(error)
        if number in _DISK:
            yield number, file
        error = error.__cause__ or error.__context__


def _system_error(error: BaseException) -> tuple[int, Path | None]:
    if isinstance(error, OSError) and error.errno is not None:
        named = error.filename if isinstance(error.filename, str | os.PathLike) else None
        return error.errno, None if named is None else Path(named)
    found = _SYSTEM.search(str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else 0, None


def _disk_message(number: int, file: Path | None, store: Path) -> str:
    elsewhere = file is not None and file.is_absolute() and not file.is_relative_to(store)
    where = f"of {file.parent}" if elsewhere and file is not None else "of the store"
    what = {errno.EROFS: "make it writable", errno.EIO: "look at the disk"}.get(number, "make room")
    return f"the disk {where} {_DISK[number]} ({os.strerror(number)}); {what} and start the same command again"
