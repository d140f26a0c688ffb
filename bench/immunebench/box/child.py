"""Inside: shuts a freshly forked process into its box, then does what it is told."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from immunebench.box import bubblewrap, landlock, linux, seccomp
from immunebench.box.messages import Channel, Done, Failed, read_line
from immunebench.box.view import View, gpu_devices, readable
from immunebench.core import machine

#: Function of a job (a JSON object) and a channel to the parent; returns what `Done` carries.
Work = Callable[[Mapping[str, Any], Channel], dict[str, Any]]
LONGEST_JOB = 1 << 26
#: Exit codes: the work was done or its failure said; the box could not be made.
SAID, NO_BOX = 0, 70
_JOB, _OUT = 3, 4
_KEPT = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LD_LIBRARY_PATH", "PYTHONHASHSEED")
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run(
    kind: str, view: View, work: str, environment: Mapping[str, str], spaces: dict[str, int], pipes: list[int]
) -> int:
    """Enter a box and carry out one job; return the exit code of the process.

    Parameters
    ----------
    kind
        `bubblewrap`, `landlock` or `none`.
    view
        What it sees.
    work
        ``module:function``, a `Work` of this package.
    environment
        Variables that it gets in addition.
    spaces
        File descriptors of bubblewrap's namespaces.
    pipes
        File descriptors: the job to read, messages and printed text to write.
    """
    _quiet(pipes, spaces)
    try:
        forked = _enter(kind, view, environment, spaces)
        if forked is not None:
            return forked
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        return NO_BOX
    channel = Channel(_OUT, _JOB)
    try:
        job = json.loads(read_line(_JOB, LONGEST_JOB))
        module, _, name = work.partition(":")
        function: Work = getattr(importlib.import_module(module), name)
        channel.say(Done(found=function(job, channel)))
    except WorkFailed as failure:
        channel.say(failure.message)
    return SAID


class WorkFailed(Exception):
    """Raised by a `Work` that failed, with what the parent is told."""

    def __init__(self, message: Failed) -> None:
        super().__init__(message.message)
        self.message = message


def _quiet(pipes: list[int], spaces: dict[str, int]) -> None:
    """Keep no descriptor of the parent's but those of this job, and no signal handler."""
    os.setsid()
    job, out, printed = pipes
    # Lifted above all numbers that are given out below, so that none is overwritten.
    lifted = [os.dup2(d, 200 + i) for i, d in enumerate((job, out, printed))]
    for i, name in enumerate(spaces):
        spaces[name] = os.dup2(spaces[name], 210 + i)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    for target, source in ((1, lifted[2]), (2, lifted[2]), (_JOB, lifted[0]), (_OUT, lifted[1])):
        os.dup2(source, target)
    os.closerange(5, 210)
    os.closerange(210 + len(spaces), 65_536)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def _enter(kind: str, view: View, environment: Mapping[str, str], spaces: dict[str, int]) -> int | None:
    """Shut this process in; return the exit code where a child did the work in its place, else None."""
    machine.reset_process_peak()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (view.bytes, view.bytes))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = 4096 if most == resource.RLIM_INFINITY else min(4096, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, least))
    place = view.write[0] if view.write else "/"
    if kind != "none":
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        linux.wipe_environment()
        os.environ.update({
            **kept, **dict.fromkeys(_ONE_THREAD, "1"), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8",
            "HF_HUB_OFFLINE": "1",
        })  # fmt: skip
    os.environ.update({**environment, "TMPDIR": place, "HOME": place})
    tempfile.tempdir = None
    if kind == "bubblewrap":
        bubblewrap.join(spaces)
        linux.die_with_parent(signal.SIGKILL)  # Forgotten with the change of rights.
        ended = _forked()
        if ended is not None:
            return ended
        linux.drop_capabilities()
    if kind == "landlock":
        read, listed = readable(view)
        devices = [Path("/dev") / name for name in ("null", "zero", "full", "random", "urandom")]
        landlock.restrict(
            read, map(Path, view.write), listed=listed, devices=[*devices, *(gpu_devices() if view.gpu else ())]
        )
        if os.geteuid() == 0:
            linux.drop_capabilities()
    if kind != "none":
        seccomp.install(gpu=view.gpu)
    os.chdir(place)
    return None


def _forked() -> int | None:
    """Fork, as only a new process is in the new namespace of processes; return None in it, in its parent its end."""
    child = os.fork()
    if child == 0:
        linux.die_with_parent(signal.SIGKILL)
        return None
    os.close(_JOB)
    os.close(_OUT)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended < 0:  # As its own: the parent is told the signal.
        if -ended not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-ended, signal.SIG_DFL)
        os.kill(os.getpid(), -ended)
    return ended
