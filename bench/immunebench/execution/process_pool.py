"""Executor of spawned worker processes, one thread each.

Every worker has a pipe of its own: a queue shared by all would stay locked for good when one worker is killed
while it holds the queue's lock. Stages that run an entry's code have workers of their own, which never load that code:
each has a process forked for every stage, see `immunebench.execution.boxed`. So whatever an entry changes in its
process affects no other stage, no sampler and no judge. What workers say is JSON of a bounded length.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from immunebench.box.choice import Kind
from immunebench.core.errors import UsageError
from immunebench.execution.boxed import Boxes, discard, limit
from immunebench.execution.executor import DEFAULT_STAGES, LONGEST_LINE, Event, RunStage, Tell, perform
from immunebench.execution.spawning import require_spawnable, without_interrupts
from immunebench.store.artifacts import CorruptArtifact, Spec, Store

_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
_REPORT_EVERY = 0.2
#: Bytes of a worker's message; the longest has a failure's line.
_LONGEST = 16 * LONGEST_LINE
#: Seconds that a worker has to end a stage of its own accord when its time is up.
_GRACE = 30.0


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    runs_entries: bool
    task: tuple[Spec, bool] | None = None
    began: float | None = None
    started: bool = False
    base: str | None = None


class Processes:
    """Stages in worker processes, each of one thread, so that any number of workers gives the same bytes.

    Parameters
    ----------
    store
        Where artifacts are.
    workers
        How many stages at a time, at least 1. Up to as many processes wait for stages that run an entry's code, and as
        many for the others; they are started when first needed.
    run_stage
        As for `immunebench.execution.executor.perform`; a function must be importable by name in a fresh process.
    timeout
        Seconds that a stage may take, by default 6 hours, or 24 on a GPU; it is stopped then and fails with the kind
        ``timeout``.
    box
        What shuts in the processes of stages that run an entry's code.

    Raises
    ------
    UsageError
        The program that runs cannot start worker processes.
    """

    def __init__(
        self,
        store: Store,
        workers: int,
        run_stage: RunStage | str = DEFAULT_STAGES,
        timeout: float | None = None,
        box: Kind = "none",
    ) -> None:
        require_spawnable()
        self.slots = workers
        self.timeout = timeout
        self._store = store
        named = isinstance(run_stage, str)
        self._run_stage = str(run_stage) if named else f"{run_stage.__module__}:{run_stage.__qualname__}"  # type: ignore[union-attr]
        self._box = box
        self._workers: list[_Worker] = []
        self._deaths: Counter[str] = Counter()

    def submit(self, spec: Spec, *, wait: bool) -> None:
        """Send the stage to an idle worker of its kind; a new one is started where none is idle."""
        entries, base = Boxes.takes(spec), spec.key.get("base")
        while True:
            idle = [w for w in self._workers if w.task is None and w.runs_entries == entries]
            # To the one that has the base loaded, else to one that has none; nobody waits for either.
            idle.sort(key=lambda w: (w.base != base, w.base is not None))
            worker = idle[0] if idle else self._start(entries)
            try:
                worker.pipe.send((spec, wait))
            except OSError:  # it died while idle
                self._bury(worker)
                continue
            worker.task, worker.began, worker.base = (spec, wait), None, base or worker.base
            return

    def finished(self, tell: Tell) -> list[Event]:
        """Block until a worker ends a stage. A stage whose worker died is tried once more, then fails.

        Raises
        ------
        UsageError
            Workers end before they receive their first stage.
        """
        ended: list[Event] = []
        while not ended:
            working = {w.pipe: w for w in self._workers if w.task is not None}
            if not working:
                return []
            for pipe in wait(list(working), self._patience(working.values())):
                worker = working[pipe]  # type: ignore[index]
                try:
                    event = Event(**json.loads(worker.pipe.recv_bytes(_LONGEST)))
                except (EOFError, OSError):
                    ended += self._died(worker, tell)
                    continue
                worker.started = True
                if event.kind in ("started", "progress", "noted", "again"):
                    # Not before: waiting for another run's lock and starting a process are no work on the stage.
                    # The time of earlier attempts whose bookmark is used is.
                    worker.began = (worker.began or time.monotonic()) - event.seconds * (event.kind == "noted")
                    tell(event)
                else:
                    worker.task = None
                    ended.append(event)
            # A stage that ended just now is taken as it ended, in the next round.
            late = [w for w in self._workers if self._left(w) <= 0 and not w.pipe.poll()]
            ended += [self._late(worker) for worker in late]
        return ended

    def close(self) -> None:
        """Kill the workers and remove the drafts of stages in flight."""
        for worker in list(self._workers):
            self._bury(worker)

    def _left(self, worker: _Worker) -> float:
        """Return the seconds that a worker's stage still has."""
        if worker.task is None or worker.began is None:
            return math.inf
        seconds = limit(worker.task[0], self.timeout) + _GRACE * worker.runs_entries
        return worker.began + seconds - time.monotonic()

    def _patience(self, workers: Iterable[_Worker]) -> float | None:
        left = min(map(self._left, workers))
        return None if left == math.inf else max(0.0, left)

    def _late(self, worker: _Worker) -> Event:
        assert worker.task is not None and worker.began is not None
        spec, seconds = worker.task[0], time.monotonic() - worker.began
        self._bury(worker)
        message = f"stopped after {seconds:.1f} s, the limit is {limit(spec, self.timeout):g} s a stage"
        self._store.fail(spec, "timeout", message, "")
        return Event("failed", spec.digest, f"timeout: {message}", seconds=seconds)

    def _start(self, runs_entries: bool) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        boxed = (self._box, self.timeout) if runs_entries else None
        arguments = (theirs, self._store.root, self._run_stage, boxed)
        process = context.Process(target=_work, args=arguments, daemon=True)
        with _environment(), without_interrupts():
            process.start()
        theirs.close()
        worker = _Worker(process, ours, runs_entries)
        self._workers.append(worker)
        return worker

    def _bury(self, worker: _Worker) -> int | None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        if worker.process.pid is not None:
            if worker.task is not None:
                self._store.discard(worker.task[0].digest, worker.process.pid)
            if worker.runs_entries:
                discard(self._store, worker.process.pid)
        return worker.process.exitcode

    def _died(self, worker: _Worker, tell: Tell) -> list[Event]:
        assert worker.task is not None
        spec, wait_for_lock = worker.task
        worker.process.join(5)
        code = self._bury(worker)
        self._deaths[spec.digest] += 1
        end = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        how = f"worker process ended with {end}"
        if not worker.started and self._deaths[spec.digest] > 1:
            message = f"{how} before its first stage, twice; no worker process can start for"
            raise UsageError(message, field="workers", value=self.slots)
        if self._deaths[spec.digest] == 1:
            tell(Event("again", spec.digest, how))
            self.submit(spec, wait=wait_for_lock)
            return []
        self._store.fail(spec, "error", f"{how}, twice", "", transient=True)
        return [Event("failed", spec.digest, f"error: {how}, twice")]


@contextmanager
def _environment() -> Iterator[None]:
    # The libraries read these when they load, which in a spawned process is before this package is imported.
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(pipe: Connection, root: Path, run_stage: str, boxed: tuple[Kind, float | None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides, and kills.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", CorruptArtifact)  # Reported by the event `lost`.
    store = Store(root)
    boxes = None if boxed is None else Boxes(store, boxed[0], run_stage, boxed[1])
    told = 0.0

    def tell(event: Event) -> None:
        nonlocal told
        now = time.monotonic()
        if event.kind != "progress" or now - told > _REPORT_EVERY or event.done == event.total:
            told = now
            pipe.send_bytes(json.dumps(asdict(event)).encode())

    with suppress(EOFError, BrokenPipeError):
        while True:
            spec, wait_for_lock = pipe.recv()
            done = perform(store, spec, run_stage, tell, wait=wait_for_lock, boxes=boxes)
            pipe.send_bytes(json.dumps(asdict(done)).encode())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
