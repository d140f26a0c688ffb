"""Executor of spawned worker processes, one thread each.

Every worker has a pipe of its own: a queue shared by all would stay locked for good when one worker is killed
while it holds the queue's lock.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from immunebench.execute import DEFAULT_STAGES, Event, RunStage, Tell, perform
from immunebench.store import CorruptArtifact, Spec, Store

_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
_REPORT_EVERY = 0.2


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    task: tuple[Spec, bool] | None = None


class Processes:
    """Stages in worker processes, each of one thread, so that any number of workers gives the same bytes.

    Parameters
    ----------
    store
        Where artifacts are.
    workers
        How many processes, at least 1; they are started when first needed.
    run_stage
        As for `immunebench.execute.perform`; a function must be importable by name in a fresh process.
    """

    def __init__(self, store: Store, workers: int, run_stage: RunStage | str = DEFAULT_STAGES) -> None:
        self.slots = workers
        self._store = store
        self._run_stage = run_stage
        self._workers: list[_Worker] = []
        self._deaths: Counter[str] = Counter()

    def submit(self, spec: Spec, *, wait: bool) -> None:
        """Hand the stage to an idle worker; a new one is started where none is idle."""
        while True:
            worker = next((w for w in self._workers if w.task is None), None) or self._start()
            try:
                worker.pipe.send((spec, wait))
            except OSError:  # it died while idle
                self._bury(worker)
                continue
            worker.task = (spec, wait)
            return

    def finished(self, tell: Tell) -> list[Event]:
        """Block until a worker ends a stage. A stage whose worker died is tried once more, then fails."""
        ended: list[Event] = []
        while not ended:
            working = {w.pipe: w for w in self._workers if w.task is not None}
            if not working:
                return []
            for pipe in wait(list(working)):
                worker = working[pipe]  # type: ignore[index]
                try:
                    event: Event = worker.pipe.recv()
                except (EOFError, OSError):
                    ended += self._died(worker, tell)
                    continue
                if event.kind in ("started", "progress"):
                    tell(event)
                else:
                    worker.task = None
                    ended.append(event)
        return ended

    def close(self) -> None:
        """Kill the workers and remove the drafts of stages in flight."""
        for worker in list(self._workers):
            self._bury(worker)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._store.root, self._run_stage), daemon=True)
        with _environment():
            process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _bury(self, worker: _Worker) -> int | None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        if worker.task is not None and worker.process.pid is not None:
            self._store.discard(worker.task[0].digest, worker.process.pid)
        return worker.process.exitcode

    def _died(self, worker: _Worker, tell: Tell) -> list[Event]:
        assert worker.task is not None
        spec, wait_for_lock = worker.task
        worker.process.join(5)
        code = self._bury(worker)
        self._deaths[spec.digest] += 1
        end = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        how = f"worker process ended with {end}"
        if self._deaths[spec.digest] == 1:
            tell(Event("again", spec.digest, how))
            self.submit(spec, wait=wait_for_lock)
            return []
        self._store.fail(spec, "error", f"{how}, twice", "", transient=True)
        return [Event("failed", spec.digest, f"error: {how}, twice")]


@contextmanager
def _environment() -> Iterator[None]:
    # The libraries read these when they load, which in a spawned process is before any code of ours runs.
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


def _work(pipe: Connection, root: Path, run_stage: RunStage | str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and kills
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", CorruptArtifact)  # told by the event `lost`
    store = Store(root)
    told = 0.0

    def tell(event: Event) -> None:
        nonlocal told
        now = time.monotonic()
        if event.kind != "progress" or now - told > _REPORT_EVERY or event.done == event.total:
            told = now
            pipe.send(event)

    with suppress(EOFError, BrokenPipeError):
        while True:
            spec, wait_for_lock = pipe.recv()
            pipe.send(perform(store, spec, run_stage, tell, wait=wait_for_lock))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
