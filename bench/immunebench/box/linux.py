"""Calls of the Linux kernel that Python has no function for."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import sys
from functools import cache

ON_LINUX = sys.platform.startswith("linux")
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 22, 36, 38
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_LAST_CAP = 63
_CAPABILITY_VERSION_3 = 0x20080522


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """Return the result of a call; an OSError where it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: object) -> int:
    """Make a system call by its number; its arguments are integers, pointers and structures of ctypes."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return checked(int(_libc().syscall(ctypes.c_long(number), *wide)), f"system call {number}")


def prctl(option: int, *arguments: object) -> int:
    """Call prctl(2) with up to four further arguments."""
    wide = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    wide += [ctypes.c_ulong(0)] * (4 - len(wide))
    return checked(int(_libc().prctl(ctypes.c_int(option), *wide)), f"prctl {option}")


def setns(descriptor: int, kind: int) -> None:
    """Join a namespace."""
    checked(int(_libc().setns(ctypes.c_int(descriptor), ctypes.c_int(kind))), "setns")


def die_with_parent(signal_number: int) -> None:
    """Let the kernel send this process a signal when its parent ends."""
    prctl(PR_SET_PDEATHSIG, signal_number)


def drop_capabilities() -> None:
    """Give up every capability, for good."""
    for number in range(_LAST_CAP + 1):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError:  # The kernel has no capability of that number, or this process may drop none.
            continue
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    syscall(SYS_CAPSET[platform.machine()], ctypes.byref(header), ctypes.byref(nothing))


def wipe_environment() -> None:
    """Clear the environment, and its text in this process's memory, which ``/proc/self/environ`` shows."""
    os.environ.clear()
    _libc().clearenv()
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    begin, end = int(fields[47]), int(fields[48])
    if 0 < begin < end:
        ctypes.memset(begin, 0, end - begin)
