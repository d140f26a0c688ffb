"""What every engine's worker does with a stage: the same as a worker process of this machine."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from filelock import Timeout

from immunebench.box import choice
from immunebench.box.choice import Kind
from immunebench.execution.boxed import Boxes
from immunebench.execution.executor import DEFAULT_STAGES, Event, RunStage, Tell, perform
from immunebench.store.artifacts import CorruptArtifact, Spec, Store, open_at

_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
_REPORT_EVERY = 1.0


@dataclass(frozen=True)
class Order:
    """What a worker is told: where the store is, the stage, the function that runs it, and whether to wait for others.

    `run_stage` is "module:function"; an entry's code runs in the `box` that the driver asks for, or not at all.
    """

    store: str
    spec: Spec
    run_stage: str
    wait: bool
    box: Kind = "none"

    @classmethod
    def of(cls, store: Store, spec: Spec, run_stage: RunStage | str, box: Kind, *, wait: bool) -> Order:
        """Return the order for a stage; a function is named, since it is not sent."""
        named = run_stage if isinstance(run_stage, str) else f"{run_stage.__module__}:{run_stage.__qualname__}"
        return cls(store.location, spec, named or DEFAULT_STAGES, wait, box)

    def carry_out(self, tell: Tell) -> Event:
        """Make the stage in this process; `tell` receives progress once a second at most."""
        # Before anything imports torch, which reads them when it is loaded.
        os.environ.update(_ONE_THREAD)
        told = 0.0

        def seldom(event: Event) -> None:
            nonlocal told
            now = time.monotonic()
            if event.kind != "progress" or now - told > _REPORT_EVERY:
                told = now
                tell(event)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CorruptArtifact)  # Reported by the event `lost`.
            store, boxes = _opened(self.store, self.box, self.run_stage)
            why = choice.fault(self.box) if Boxes.takes(self.spec) else None
            if why is not None:
                message = f"{socket.gethostname()} has no box for an entry's code ({self.box}: {why})"
                store.fail(self.spec, "skipped", message, "", transient=True)
                return Event("failed", self.spec.digest, message)
            return perform(store, self.spec, self.run_stage, seldom, wait=self.wait, boxes=boxes)


@cache
def _opened(location: str, kind: Kind, run_stage: str) -> tuple[Store, Boxes]:
    """Return the store and the boxes of this process, whose libraries are loaded once for all its stages."""
    store = open_at(location)
    boxes = Boxes(store, kind, run_stage)
    atexit.register(boxes.close)
    return store, boxes


class Clock:
    """Seconds that each stage has been worked on, for its time limit."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._began: dict[str, float] = {}

    def note(self, event: Event) -> None:
        """Take an event of a worker."""
        if event.kind == "again":
            self.forget(event.digest)  # It waits for a worker now, however long.
        elif event.kind == "started":
            self._began[event.digest] = time.monotonic()
        elif event.kind == "noted" and event.digest in self._began:
            self._began[event.digest] -= event.seconds  # Of earlier attempts, whose bookmark is used.

    def late(self, digest: str) -> float | None:
        """Return the seconds of a stage that is over its limit, else None."""
        began = self._began.get(digest)
        spent = 0.0 if began is None else time.monotonic() - began
        return spent if self.limit is not None and spent > self.limit else None

    def runs(self, digest: str) -> bool:
        """Return whether a worker is at a stage, as far as it is known."""
        return digest in self._began

    def forget(self, digest: str) -> None:
        """Drop a stage that ended."""
        self._began.pop(digest, None)


def timed_out(store: Store, spec: Spec, seconds: float, limit: float | None) -> Event:
    """Note that a stage was stopped at its time limit, and return it as failed."""
    message = f"stopped after {seconds:.1f} s, the limit is {limit:g} s a stage"
    store.fail(spec, "timeout", message, "")
    return Event("failed", spec.digest, f"timeout: {message}", seconds=seconds)


def died(store: Store, spec: Spec, how: str) -> Event:
    """Note that the workers of a stage died, and return it as failed; the next run tries it again."""
    store.fail(spec, "error", how, "", transient=True)
    return Event("failed", spec.digest, f"error: {how}")


def sweep(store: Store, digest: str) -> None:
    """Remove the drafts of a stage whose worker was killed, unless another worker has it now."""
    with suppress(Timeout, OSError), store.lock(digest, wait=False):
        for draft in (store.root / "tmp").glob(f"{digest}.*"):
            shutil.rmtree(draft, ignore_errors=True)
