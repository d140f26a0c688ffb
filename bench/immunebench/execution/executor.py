"""Executors carry out single stages: `Executor` is what one must offer, `Inline` runs them in this process.

Another one (say, of a cluster) implements `Executor` and calls `perform` where the stage runs;
`api.make_executor` chooses.
"""

from __future__ import annotations

import importlib
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from filelock import Timeout

from immunebench.core.errors import shortened
from immunebench.execution.failures import stage_failure
from immunebench.execution.resume import Resume
from immunebench.methods.loops import running
from immunebench.store.artifacts import Spec, Store
from immunebench.store.bookmark import Bookmark
from immunebench.store.graph import runs_entries

Report = Callable[[str, int, int], None]
RunStage = Callable[[Any, dict[str, Path], Path, Report], dict[str, object]]
SUITE_STAGES = "immunebench.execution.stages:run_stage"
DEFAULT_STAGES = SUITE_STAGES
#: Most characters of a failure's line: an entry may raise an exception of any length.
LONGEST_LINE = 2_000


class EngineLost(Exception):
    """What carries out the stages ended under the run: no stage failed, and the same command resumes."""


@dataclass(frozen=True)
class Event:
    """Something that happened to one stage.

    `made`, `reused`, `failed` and `blocked` are final; `busy` (another run makes it) and `lost` (the input `text` was
    corrupted) send it back to the queue; `started`, `progress`, `again` (its worker died) and `noted` (a line for the
    user, with the `seconds` of earlier attempts that count from now on) only report.
    """

    kind: Literal["started", "progress", "made", "reused", "failed", "blocked", "busy", "lost", "again", "noted"]
    digest: str
    text: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0


Tell = Callable[[Event], None]


class Executor(Protocol):
    """Carries out stages, `slots` at a time."""

    @property
    def slots(self) -> int: ...

    def submit(self, spec: Spec, *, wait: bool) -> None:
        """Start a stage; with `wait`, wait for the run that holds its lock rather than return `busy`."""

    def finished(self, tell: Tell) -> list[Event]:
        """Block until at least one submitted stage ended; report progress to `tell` meanwhile."""

    def close(self) -> None:
        """Stop whatever still runs, at once."""


class Boxed(Protocol):
    """Makes stages that run an entry's code, each in a process of its own; see `immunebench.execution.boxed`."""

    def takes(self, spec: Spec) -> bool:
        """Return whether a stage is one of those."""

    def make(self, spec: Spec, inputs: dict[str, Path], tell: Tell) -> Event:
        """Make a stage whose lock the caller holds."""

    def close(self) -> None:
        """End what runs."""


class Inline:
    """Stages one after the other in this process.

    Without `boxes` this is no box, for tests and notebooks: an entry's code runs in this process and can change
    whatever it likes in it and on the disk.

    Parameters
    ----------
    store
        Where artifacts are.
    run_stage
        As for `perform`.
    boxes
        Makes the stages that run an entry's code, in processes of their own.
    """

    slots = 1

    def __init__(self, store: Store, run_stage: RunStage | str = DEFAULT_STAGES, boxes: Boxed | None = None) -> None:
        self._store = store
        self._run_stage = run_stage
        self._boxes = boxes
        self._next: tuple[Spec, bool] | None = None

    def submit(self, spec: Spec, *, wait: bool) -> None:
        """Remember the stage; `finished` carries it out."""
        self._next = (spec, wait)

    def finished(self, tell: Tell) -> list[Event]:
        """Carry out the submitted stage."""
        if self._next is None:
            return []
        (spec, wait), self._next = self._next, None
        return [perform(self._store, spec, self._run_stage, tell, wait=wait, boxes=self._boxes)]

    def close(self) -> None:
        """End the processes of entries; no other stage runs between two calls."""
        if self._boxes is not None:
            self._boxes.close()


def perform(
    store: Store, spec: Spec, run_stage: RunStage | str, tell: Tell, *, wait: bool, boxes: Boxed | None = None
) -> Event:
    """Make one stage while holding its lock, or find it made; a failure is noted in the store and returned.

    Parameters
    ----------
    store
        Where inputs are read and the artifact is published.
    spec
        The stage.
    run_stage
        Function of (spec, input folders, folder to fill, report) that returns metadata; or "module:function".
    tell
        Called with `started`, `progress` and `noted`.
    wait
        Wait for another run that makes the same stage, rather than return `busy`.
    boxes
        Makes the stages that run an entry's code; without it, this process does.

    Returns
    -------
    One of the events made, reused, failed, busy, lost.
    """
    began = time.perf_counter()
    try:
        with store.lock(spec.digest, wait=wait):
            if store.get(spec.digest) is not None:
                return Event("reused", spec.digest)
            inputs: dict[str, Path] = {}
            for name, digest in spec.inputs.items():
                folder = store.awaited(digest)
                if folder is None:
                    return Event("lost", spec.digest, digest)
                inputs[name] = folder
            tell(Event("started", spec.digest))
            if boxes is not None and boxes.takes(spec):
                return boxes.make(spec, inputs, tell)
            return _make(store, spec, run_stage, inputs, tell)
    except Timeout:
        return Event("busy", spec.digest)
    except OSError as error:  # The store itself cannot be written.
        return _failed(store, spec, error, began)


def _failed(store: Store, spec: Spec, error: Exception, began: float) -> Event:
    """Note a failure in the store, and return it."""
    failure = stage_failure(error, store.root)
    store.fail(spec, failure.kind, failure.message, traceback.format_exc(), transient=failure.transient)
    line = shortened(failure.line, LONGEST_LINE)
    return Event("failed", spec.digest, line, seconds=time.perf_counter() - began)


def _make(store: Store, spec: Spec, run_stage: RunStage | str, inputs: dict[str, Path], tell: Tell) -> Event:
    def report(what: str, done: int, total: int) -> None:
        tell(Event("progress", spec.digest, what, done, total, time.perf_counter() - began))

    def note(line: str, seconds: float) -> None:
        tell(Event("noted", spec.digest, line, seconds=seconds))

    began = time.perf_counter()
    bookmark = Bookmark(store.bookmark(spec.digest), spec.digest, tell=note)
    try:
        with store.stage(spec) as draft, running(Resume(bookmark)):
            draft.meta = resolve(run_stage)(spec, inputs, draft.path, report)
            if runs_entries(spec):
                draft.meta = {**draft.meta, "box": "none"}
            spent = bookmark.spent()
            draft.cost = {
                "seconds": spent.seconds,
                "cpu_seconds": spent.cpu_seconds,
                "peak_process_gib": max(_peak_process_gib(), round(bookmark.earlier.peak_process_gib, 4)),
            }
            if spent.resumed:
                draft.cost["resumed"] = spent.resumed
    except Exception as error:
        return _failed(store, spec, error, began)
    return Event("made", spec.digest, seconds=time.perf_counter() - began)


def resolve(run_stage: RunStage | str) -> RunStage:
    """Return the function that "module:function" names; the module is imported now and no earlier."""
    if not isinstance(run_stage, str):
        return run_stage
    module, _, name = run_stage.partition(":")
    return cast(RunStage, getattr(importlib.import_module(module), name))


def _peak_process_gib() -> float:
    # Linux counts KiB, and over the life of the process: an upper bound of the stage's own peak.
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 4)
