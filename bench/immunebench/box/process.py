"""Outside: starts the template, has it fork one process a job, and watches that process.

Clock, processor time, memory and disk are measured here; nothing that the process says of them is believed.
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from immunebench.box.bubblewrap import Holder
from immunebench.box.choice import Kind
from immunebench.box.folders import fault_of
from immunebench.box.messages import BadMessage, Done, Excerpt, Failed, Lines, Marked, Note, Progress
from immunebench.box.view import View
from immunebench.core.machine import GIB

_TICK = 0.25
#: Seconds from one look at disk and memory to the next, at least; a look takes this share of the time at most.
_LOOK_EVERY, _LOOK_SHARE = 0.5, 0.02
_STARTED_IN = 600.0
_CHUNK = 1 << 16
_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "XDG_CACHE_HOME", "TZ")
_THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
_SERVE = (
    "import sys; from immunebench.box.template import serve; serve(int(sys.argv[1]), sys.argv[3:], int(sys.argv[2]))"
)


OnMark = Callable[[str, float, float, int], None]


class BoxError(Exception):
    """The template cannot be started, or the box not be made."""


@dataclass(frozen=True)
class Ended:
    """How one process ended.

    Attributes
    ----------
    word
        Its last word, None where it ended without one.
    fault
        Why it was stopped, or how it ended without a word; empty otherwise.
    kind
        Status of a fault: ``timeout``, ``over_memory``, ``error`` for what it did, or ``died``.
    printed
        What it wrote to its standard output and error, shortened.
    seconds, cpu_seconds
        Of this process, by this one's clock and by the kernel.
    peak_bytes
        Peak of its resident memory, by the kernel.
    """

    word: Done | Failed | None
    fault: str
    kind: str
    printed: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Asked:
    """One job.

    Attributes
    ----------
    work
        ``module:function``, see `immunebench.box.child.Work`.
    job
        What it is given, as JSON.
    view
        What it sees.
    environment
        Variables that it gets in addition.
    timeout
        Seconds that it may take; None: any.
    earlier
        Seconds of earlier attempts, which count from the moment on that it says that it resumes.
    """

    work: str
    job: Mapping[str, Any]
    view: View
    environment: Mapping[str, str]
    timeout: float | None = None
    earlier: float = 0.0


class Template:
    """The process that jobs are forked from, started with the first one and again after it ended.

    Parameters
    ----------
    kind : Kind
        The box.
    preload : sequence of str
        See `immunebench.box.template.serve`.
    """

    def __init__(self, kind: Kind, preload: Sequence[str]) -> None:
        self.kind, self._preload = kind, list(preload)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._said: IO[bytes] = io.BytesIO()
        self._pid = 0

    def run(
        self,
        asked: Asked,
        tell: Callable[[Progress | Note], None],
        marked: OnMark = lambda page, seconds, cpu, peak: None,
    ) -> Ended:
        """Carry out one job in a process of its own.

        Parameters
        ----------
        asked : Asked
        tell : callable
            Receives progress and notes.
        marked : callable
            Receives the number of a bookmark that was written, and seconds, processor seconds and peak of memory until
            now; the process waits meanwhile.

        Raises
        ------
        BoxError
            No process could be started.
        """
        with ExitStack() as stack:
            try:
                spaces = stack.enter_context(Holder(asked.view)).spaces if self.kind == "bubblewrap" else {}
            except OSError as error:
                raise BoxError(f"the box cannot be made: {error}") from error
            watch = self._forked(asked, spaces, stack)
            try:
                return watch.run(tell, marked)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """End the template and the job that runs."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        assert self._socket is not None
        self._socket.close()
        self._said.close()
        self._process = self._socket = None

    def _forked(self, asked: Asked, spaces: dict[str, int], stack: ExitStack) -> _Watch:
        """Have a process forked, and give it its job."""
        connection = self._started()
        job_out, job_in = _pipe(stack)
        said_out, said_in = _pipe(stack)
        printed_out, printed_in = _pipe(stack)
        request = {
            "box": self.kind, "work": asked.work, "view": asked.view.as_dict(), "environment": dict(asked.environment),
            "spaces": list(spaces),
        }  # fmt: skip
        began = time.monotonic()
        try:
            socket.send_fds(
                connection, [json.dumps(request).encode() + b"\n"], [job_out, said_in, printed_in, *spaces.values()]
            )
            pid = _answer(connection, _STARTED_IN)["pid"]
        except (OSError, ValueError) as error:
            self.close()
            raise BoxError(f"the process that stages are forked from ended: {error}") from error
        for descriptor in (job_out, said_in, printed_in):
            os.close(descriptor)
        return _Watch(connection, pid, asked, (job_in, said_out, printed_out), began)

    def _started(self) -> socket.socket:
        if self._process is not None and self._process.poll() is None and self._pid == os.getpid():
            assert self._socket is not None
            return self._socket
        self.close()
        ours, theirs = socket.socketpair()
        environment = {**_inherited(self.kind), **_THREADS, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno()), str(os.getpid()), *self._preload]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said, env=environment,
                pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        self._socket, self._pid = ours, os.getpid()
        try:
            _answer(ours, _STARTED_IN)
        except (OSError, ValueError) as error:
            self._process.kill()
            self._process.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise BoxError(f"no process for stages can be started: {said[-1] if said else error}") from error
        return ours


def _inherited(kind: Kind) -> dict[str, str]:
    """Return the variables that the template gets: within a box those alone that Python and a GPU's driver read."""
    return {
        name: value for name, value in os.environ.items()
        if kind == "none" or name in _INHERITED or name.startswith(("CUDA_", "NVIDIA_", "LC_", "PYTHON"))
    }  # fmt: skip


class _Watch:
    """One running process."""

    def __init__(
        self, connection: socket.socket, pid: int, asked: Asked, pipes: tuple[int, int, int], began: float
    ) -> None:
        self._connection, self._pid, self._asked, self._began = connection, pid, asked, began
        self._limit_from = began
        self._job, self._said, self._printed = pipes
        self._rest = json.dumps(asked.job, allow_nan=False).encode() + b"\n"
        self._lines, self._excerpt = Lines(), Excerpt()
        self._open = [self._said, self._printed]
        self._word: Done | Failed | None = None
        self._fault, self._kind = "", "error"
        self._looked, self._look_took = time.monotonic(), 0.0
        for descriptor in pipes:
            os.set_blocking(descriptor, False)

    def run(self, tell: Callable[[Progress | Note], None], marked: OnMark) -> Ended:
        """Serve it until it has ended."""
        while True:
            write = [self._job] if self._rest else []
            ready, writable, _ = select.select([self._connection.fileno(), *self._open], write, [], _TICK)
            if writable:
                self._give()
            if self._printed in ready:
                self._excerpt.feed(self._taken(self._printed) or b"")
            if self._said in ready:
                self._hear(tell, marked)
            if self._connection.fileno() in ready:
                return self._end(tell)
            self._look()

    def _taken(self, descriptor: int) -> bytes | None:
        data = _taken(descriptor)
        if data == b"":  # Closed at the other end, and readable for ever.
            self._open.remove(descriptor)
        return data

    def _give(self) -> None:
        try:
            self._rest = self._rest[os.write(self._job, self._rest[:_CHUNK]) :]
        except BlockingIOError:
            pass
        except OSError:  # It does not want to hear more.
            self._rest = b""

    def _hear(self, tell: Callable[[Progress | Note], None], marked: OnMark) -> None:
        data = self._taken(self._said)
        if not data or self._fault:
            return
        try:
            messages = self._lines.feed(data)
        except BadMessage as error:
            self._stop(f"said {error}", "error")
            return
        for message in messages:
            if self._word is not None:
                return self._stop("went on after its last word", "error")
            match message:
                case Done() | Failed():
                    self._word = message
                case Marked(page=page):
                    marked(page, time.monotonic() - self._began, *_used(self._pid))
                    self._rest += b"\n"
                case _:
                    if isinstance(message, Note) and message.resumes:
                        self._limit_from -= self._asked.earlier
                    tell(message)

    def _look(self) -> None:
        """Stop the process where it takes more time, disk or memory than it may."""
        now, asked = time.monotonic(), self._asked
        if self._fault:
            return
        if asked.timeout is not None and now - self._limit_from > asked.timeout:
            limit = f"the limit is {asked.timeout:g} s a stage"
            self._stop(f"stopped after {now - self._limit_from:.1f} s, {limit}", "timeout")
        elif now - self._looked > max(_LOOK_EVERY, self._look_took / _LOOK_SHARE):
            fault, kind = fault_of(asked.view), "error"
            if fault is None and asked.view.memory is not None:
                fault, kind = _over_memory(asked.view, _used(self._pid)[1]), "over_memory"
            self._looked, self._look_took = time.monotonic(), time.monotonic() - now
            if fault is not None:
                self._stop(fault, kind)

    def _stop(self, fault: str, kind: str) -> None:
        self._fault, self._kind, self._word = fault, kind, None
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def _end(self, tell: Callable[[Progress | Note], None]) -> Ended:
        """Take what is left in the pipes, and say how the process ended."""
        answer = _answer(self._connection, _STARTED_IN)
        seconds = time.monotonic() - self._began
        while select.select([self._printed], [], [], 0)[0] and (data := _taken(self._printed)):
            self._excerpt.feed(data)
        while not self._fault and select.select([self._said], [], [], 0)[0] and (data := _taken(self._said)):
            with suppress(OSError):
                self._heard(data, tell)
        code = int(answer["code"])
        if not self._fault and (self._word is None or code != 0):
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._fault, self._kind, self._word = f"process ended with {how}", "died", None
        over = _over_memory(self._asked.view, int(answer["peak"]))
        if over and not self._fault and isinstance(self._word, Done):  # Between two looks, or at its very end.
            self._fault, self._kind, self._word = over, "over_memory", None
        return Ended(
            self._word,
            self._fault,
            self._kind,
            self._excerpt.text(),
            seconds,
            float(answer["cpu"]),
            int(answer["peak"]),
        )

    def _heard(self, data: bytes, tell: Callable[[Progress | Note], None]) -> None:
        """Take the last messages of a process that has ended."""
        try:
            messages = self._lines.feed(data)
        except BadMessage as error:
            self._fault, self._word = f"said {error}", None
            return
        for message in messages:
            if self._word is not None:
                self._fault, self._word = "went on after its last word", None
                return
            if isinstance(message, Done | Failed):
                self._word = message
            elif not isinstance(message, Marked):
                tell(message)


def _over_memory(view: View, peak: int) -> str | None:
    """Say that a process with this peak, in bytes, took more memory than it may; None where it did not."""
    if view.memory is None or peak <= view.memory:
        return None
    return f"memory exceeded the cap of {view.memory / GIB:g} GiB: process peak {peak / GIB:.2f} GiB"


def _used(pid: int) -> tuple[float, int]:
    """Return processor seconds and peak memory until now of a process and of those that it forked."""
    cpu, peak = 0.0, 0
    with suppress(psutil.Error, OSError, ValueError):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            cpu += times.user + times.system
            peak = max(peak, one.memory_info().rss, *_high_water(one.pid))
    return cpu, peak


def _high_water(pid: int) -> list[int]:
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]


def _pipe(stack: ExitStack) -> tuple[int, int]:
    """Make a pipe whose ends are closed with the stack, where they are not closed before."""
    ends = os.pipe()
    for end in ends:
        stack.callback(_close, end, os.fstat(end).st_ino)
    return ends


def _close(descriptor: int, node: int) -> None:
    with suppress(OSError):
        if os.fstat(descriptor).st_ino == node:
            os.close(descriptor)


def _taken(descriptor: int) -> bytes | None:
    """Return what a pipe holds; empty where its other end is closed, None where there is nothing yet."""
    try:
        return os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return None


def _answer(connection: socket.socket, patience: float) -> dict[str, Any]:
    """Read one line of the template.

    Raises
    ------
    OSError, ValueError
        It has ended, or it takes too long.
    """
    connection.settimeout(patience)
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(1)
        if not more:
            raise OSError("it ended")
        data += more
    found: dict[str, Any] = json.loads(data)
    return found
