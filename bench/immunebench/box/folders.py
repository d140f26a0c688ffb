"""Folders that a hostile process filled: measured, copied and removed without trusting anything in them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from immunebench.box.view import View

_DEEPEST = 32


class Untidy(Exception):
    """A folder holds something that it may not hold; the message names it."""


def fault_of(view: View) -> str | None:
    """Say what a process left in its folders that is more than it may, None where all is well."""
    total = count = 0
    for folder in view.write:
        todo = [(folder, 0)]
        while todo:
            place, depth = todo.pop()
            try:
                with os.scandir(place) as entries:
                    for entry in entries:
                        count += 1
                        with suppress(FileNotFoundError):
                            total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            todo.append((entry.path, depth + 1))
                        if count > view.files:
                            return f"made more than {view.files:,} files"
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                return f"made a folder that cannot be read ({error.strerror})"
            if total > view.bytes:
                return f"wrote more than the {view.bytes / 2**30:.2g} GiB that its stage may"
            if depth > _DEEPEST:
                return f"made folders more than {_DEEPEST} deep"
    return None


def regular_files(folder: Path, most: int) -> dict[str, int]:
    """Return the size of every file below a folder by its name, following nothing.

    Raises
    ------
    Untidy
        Something is a link or no regular file, two names are one file, a file is mostly a hole, or there are more than
        `most` files.
    """
    found: dict[str, int] = {}
    todo = [folder]
    while todo:
        place = todo.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                name = os.path.relpath(entry.path, folder)
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    todo.append(Path(entry.path))
                elif not stat.S_ISREG(status.st_mode):
                    raise Untidy(f"left {name!a}, which is {_what(status.st_mode)}")
                elif status.st_size > max(1 << 20, 16 * status.st_blocks * 512):
                    raise Untidy(f"left {name!a}, a file of {status.st_size:,} bytes that is mostly empty")
                else:
                    found[name] = status.st_size
                if len(found) + len(todo) > most:
                    raise Untidy(f"left more than {most} files")
    return dict(sorted(found.items()))


def _what(mode: int) -> str:
    kinds: dict[str, Callable[[int], bool]] = {
        "a symbolic link": stat.S_ISLNK, "a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK,
    }  # fmt: skip
    return next((what for what, test in kinds.items() if test(mode)), "a device")


def read_file(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file, which may have at most `most`; a link is not followed.

    Raises
    ------
    Untidy
        It is larger, or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Untidy(f"{path.name} cannot be read ({error.strerror})") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Untidy(f"{path.name} is no regular file")
        if status.st_size > most:
            raise Untidy(f"{path.name} has {status.st_size:,} bytes, more than {most:,}")
        return file.read(most)


def remove(folder: Path) -> None:
    """Remove a folder that somebody else filled, also where it is very deep or its folders forbid it."""

    def retry(function: Callable[..., Any], path: str, why: object) -> None:
        with suppress(OSError):
            for place in (os.path.dirname(path), path):
                if not os.path.islink(place):
                    os.chmod(place, 0o700)
            function(path)

    handler: dict[str, Any] = {"onexc": retry} if sys.version_info >= (3, 12) else {"onerror": retry}
    try:
        shutil.rmtree(folder, **handler)
    except (RecursionError, OSError):
        subprocess.run(["rm", "-rf", "--", str(folder)], check=False, capture_output=True)
