"""Bubblewrap: namespaces with a file system that holds what a view names; a process that has its imports joins them.

A fresh Python would spend seconds on importing torch. So `bwrap` starts a shell that waits, and the stage's process,
forked from one that has the imports, joins the namespaces of that shell, gives up all capabilities and filters its
system calls before it reads what it is to do.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from types import TracebackType

from immunebench.box import linux
from immunebench.box.view import View, gpu_devices, hidden, python

#: Namespaces in the order in which they are joined: that of users gives the right to join the others.
_SPACES = {"user": 1 << 28, "ipc": 1 << 27, "uts": 1 << 26, "net": 1 << 30, "cgroup": 1 << 25, "pid": 1 << 29,
           "mnt": 1 << 17}  # fmt: skip
_OPTIONS = ("--unshare-user", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_WAIT = ("/bin/sh", "-c", "echo ready; read line")


class BubblewrapError(OSError):
    """No box could be made; the message says why."""


class Holder:
    """Namespaces that live as long as this object.

    Parameters
    ----------
    view : View
        What is seen in them; every path is the same inside and outside.
    """

    def __init__(self, view: View) -> None:
        read_info, write_info = os.pipe()
        command = ["bwrap", *_OPTIONS, "--info-fd", str(write_info), *arguments(view), *_WAIT]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(write_info,),
                # bwrap itself is the first process of the box, and what it was started with can be read there.
                env={"PATH": os.environ.get("PATH", os.defpath)},
            )  # fmt: skip
        except OSError as error:
            os.close(read_info)
            raise BubblewrapError(f"bwrap cannot be started: {error.strerror}") from error
        finally:
            os.close(write_info)
        self.spaces: dict[str, int] = {}
        with os.fdopen(read_info, "rb") as info:
            told = info.read()
        assert self._process.stdout is not None and self._process.stderr is not None
        if self._process.stdout.readline() != b"ready\n":
            said = self._process.stderr.read(2_000).decode(errors="replace").strip()
            self.close()
            raise BubblewrapError(said or "bwrap ended without a word")
        pid = json.loads(told)["child-pid"]
        for name in _SPACES:
            if os.path.exists(f"/proc/self/ns/{name}"):
                self.spaces[name] = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Holder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process in the namespaces: the kernel does, when their first one ends."""
        for descriptor in self.spaces.values():
            os.close(descriptor)
        self.spaces.clear()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def join(spaces: dict[str, int]) -> None:
    """Join the namespaces of a holder; a process that is forked next is in that of processes too."""
    for name, kind in _SPACES.items():
        if name in spaces:
            linux.setns(spaces[name], kind)
            os.close(spaces[name])
    os.chdir("/")


def arguments(view: View) -> list[str]:
    """Return bwrap's options for the file system of a view."""
    found: list[str] = []
    for path in sorted(map(str, python())):
        found += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    for each in hidden():
        found += ["--tmpfs", str(each)] if each.is_dir() else ["--ro-bind", "/dev/null", str(each)]
    found += ["--proc", "/proc"]
    for device in [*_DEVICES, *(gpu_devices() if view.gpu else ())]:
        found += ["--dev-bind-try", str(device), str(device)]
    found += ["--ro-bind-try", "/sys/devices/system", "/sys/devices/system"]
    if view.gpu:
        found += ["--ro-bind-try", "/sys", "/sys"]
    for path in view.read:
        found += ["--ro-bind", path, path]
    for path in view.write:
        found += ["--bind", path, path]
    for each in hidden():
        found += ["--remount-ro", str(each)] if each.is_dir() else []
    return [*found, "--remount-ro", "/"]


@cache
def version() -> str | None:
    """Return bubblewrap's version, None where it is not installed."""
    if not linux.ON_LINUX or shutil.which("bwrap") is None:
        return None
    try:
        said = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.split()[-1] if said.split() else None


@cache
def fault() -> str | None:
    """Say why bubblewrap makes no box here, None where it does; tried once a process."""
    if version() is None:
        return "bubblewrap is not installed"
    child = 0
    try:
        with tempfile.NamedTemporaryFile() as outside, Holder(View()) as holder:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    join(holder.spaces)
                    code = 2 if Path(outside.name).exists() else 0
                finally:
                    os._exit(code)
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except OSError as error:
        return f"bubblewrap cannot make namespaces here ({' '.join(str(error).split())})"
    return None if ended == 0 else "the namespaces that bubblewrap makes cannot be joined here"
