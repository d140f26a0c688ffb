"""A process that has imported what stages need and has seen nobody's code; it forks one process a job.

It answers on a socket. A request is one line of JSON with file descriptors: the pipes of the job, then the namespaces
that it joins. The answer is the pid, and after the end a line with how it ended and what it used.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from immunebench.box import child, linux
from immunebench.box.view import View

_LONGEST = 1 << 20
_MOST_DESCRIPTORS = 16


def serve(descriptor: int, preload: list[str], parent: int) -> None:
    """Import modules, then carry out requests until the other end is closed.

    Parameters
    ----------
    descriptor
        The socket.
    preload
        Modules to import, or functions ``module:function`` that prepare what stages share.
    parent
        Process that this one must not outlive.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides, and kills.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if linux.ON_LINUX:
        linux.die_with_parent(signal.SIGKILL)
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:
        return
    for name in preload:
        module, _, function = name.partition(":")
        found = importlib.import_module(module)
        if function:
            getattr(found, function)()
    gc.collect()
    gc.freeze()  # Shared pages stay shared while the children collect.
    if linux.ON_LINUX:
        # Its children cannot look into it, nor into each other, through /proc.
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
    with socket.socket(fileno=descriptor) as connection:
        connection.sendall(b'{"ready": true}\n')
        with suppress(BrokenPipeError, ConnectionResetError):
            while request := _received(connection):
                _carry_out(connection, *request)


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    data, descriptors, _, _ = socket.recv_fds(connection, _LONGEST, _MOST_DESCRIPTORS)
    while data and not data.endswith(b"\n"):
        more = connection.recv(_LONGEST)
        if not more:
            return None
        data += more
    return (json.loads(data), list(descriptors)) if data else None


def _carry_out(connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
    pipes, spaces = descriptors[:3], dict(zip(request["spaces"], descriptors[3:], strict=True))
    mine = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = child.NO_BOX
        try:
            gc.unfreeze()
            if linux.ON_LINUX:
                linux.die_with_parent(signal.SIGKILL)
                if request["box"] != "none":
                    # Files of its own under /proc belong to it again.
                    linux.prctl(linux.PR_SET_DUMPABLE, 1)
            if os.getppid() == mine:
                view = View.of(request["view"])
                code = child.run(request["box"], view, request["work"], request["environment"], spaces, pipes)
        finally:
            with suppress(Exception):
                sys.stdout.flush()
            os._exit(code)
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    _, status, used = os.wait4(pid, 0)
    _end_orphans()
    peak = used.ru_maxrss if sys.platform == "darwin" else used.ru_maxrss * 1024
    answer = {"code": os.waitstatus_to_exitcode(status), "cpu": used.ru_utime + used.ru_stime, "peak": peak}
    connection.sendall(json.dumps(answer).encode() + b"\n")


def _end_orphans() -> None:
    """Kill what the ended process left behind, which belongs to this one now, until nothing is left."""
    file = Path(f"/proc/self/task/{os.getpid()}/children")
    while file.exists() and (left := [int(pid) for pid in file.read_text().split()]):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
