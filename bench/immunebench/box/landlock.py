"""Landlock: restricts which files a process and its threads may open, without root and without namespaces."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from immunebench.box import linux

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
#: Removing, making of folders, files and links, moving and shortening; no devices, sockets and pipes.
_CHANGE = (1 << 4) | (1 << 5) | (1 << 7) | (1 << 8) | (1 << 12) | (1 << 13) | _TRUNCATE
#: Rights of a file rather than of a folder.
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
#: Number of rights on files that each version of the interface knows, from the first on.
_RIGHTS = (13, 14, 15, 15, 16)


def version() -> int:
    """Return the version of the kernel's interface, 0 where it has none or it is switched off."""
    if not linux.ON_LINUX:
        return 0
    try:
        return linux.syscall(_CREATE, 0, 0, 1)
    except OSError:
        return 0


def restrict(
    read: Iterable[Path], write: Iterable[Path], *, listed: Iterable[Path] = (), devices: Iterable[Path] = ()
) -> None:
    """Let this process open only what lies in these folders or is one of these files, from now on and for good.

    Parameters
    ----------
    read, write
        What may be read, and what may be changed as well; paths that do not exist are left out.
    listed
        Folders below which names may be listed, but nothing read.
    devices
        Devices that may be opened, written and controlled.

    Raises
    ------
    OSError
        The kernel has no Landlock.
    """
    found = version()
    if found == 0:
        raise OSError("this kernel has no Landlock")
    known = (1 << _RIGHTS[min(found, len(_RIGHTS)) - 1]) - 1
    # From version 4 on no TCP, from 6 on no signal and no abstract socket to the outside.
    network, scoped = (3 if found >= 4 else 0), (3 if found >= 6 else 0)
    attributes = struct.pack("QQQ", known, network, scoped)[: 8 if found < 4 else 16 if found < 6 else 24]
    rules = linux.syscall(_CREATE, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0)
    try:
        _allow(rules, read, (_READ | _LIST) & known)
        _allow(rules, listed, _LIST & known)
        _allow(rules, write, (_READ | _LIST | _WRITE | _CHANGE) & known)
        _allow(rules, devices, (_READ | _WRITE | _LIST | _IOCTL) & known)
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.syscall(_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, paths: Iterable[Path], rights: int) -> None:
    for path in paths:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            given = rights if path.is_dir() else rights & _OF_FILES
            if given:
                rule = struct.pack("=Qi", given, descriptor)
                linux.syscall(_ADD, rules, 1, ctypes.create_string_buffer(rule, len(rule)), 0)
        finally:
            os.close(descriptor)


def carved(root: Path, hidden: Sequence[Path]) -> list[Path]:
    """Return the files and folders that make up a folder without what is hidden in it."""
    inside = [path for path in hidden if path.is_relative_to(root)]
    if not inside:
        return [root]
    if root in inside:
        return []
    try:
        parts = sorted(root.iterdir())
    except OSError:
        return []
    return [path for part in parts for path in carved(part, inside)]
