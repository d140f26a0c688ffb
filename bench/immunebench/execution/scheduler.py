"""Runs the stages of a plan: inputs before their users, what the store holds not at all, by any `Executor`."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from immunebench.execution.executor import Event, Executor, Tell
from immunebench.store.artifacts import Spec, Store

_MOST_LOSSES = 3


@dataclass
class Outcome:
    """The outcome of every stage."""

    present: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)

    def settled(self, digest: str) -> bool:
        """Return whether the stage is present, failed, or blocked by a failed one."""
        return digest in self.present or digest in self.failed or digest in self.blocked

    @property
    def count(self) -> int:
        """The number of settled stages."""
        return len(self.present) + len(self.failed) + len(self.blocked)

    def cause(self, digest: str) -> str | None:
        """Return the failed stage that a failed or blocked one goes back to."""
        return digest if digest in self.failed else self.blocked.get(digest)


def execute(
    specs: Mapping[str, Spec],
    store: Store,
    executor: Executor,
    *,
    retry_failed: bool = False,
    tell: Tell = lambda event: None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Make every stage of a graph that the store lacks; after a failure only the stages that need it are left out.

    Parameters
    ----------
    specs
        Planned stages by digest, closed under inputs; among stages that are ready the first comes first.
    store
        Where artifacts are.
    executor
        Carries out stages; closed on return.
    retry_failed
        Try stages again that failed in an earlier run. A stage whose process died is always tried again.
    tell
        Called with every event, after `outcome` was updated.
    outcome
        Updated while running, for callers that read it in `tell`.

    Returns
    -------
    The outcome of every stage.
    """
    state = _Schedule(specs, store, tell, outcome or Outcome())
    try:
        with store.using(specs):
            state.look(retry_failed=retry_failed)
            while True:
                while len(state.running) < executor.slots and (chosen := state.choose()) is not None:
                    state.running.add(chosen.digest)
                    executor.submit(chosen, wait=chosen.digest in state.busy)
                if not state.running:
                    return state.outcome
                for event in executor.finished(tell):
                    state.take(event)
    finally:
        executor.close()


class _Schedule:
    def __init__(self, specs: Mapping[str, Spec], store: Store, tell: Tell, outcome: Outcome) -> None:
        self.specs, self.store, self.tell, self.outcome = specs, store, tell, outcome
        self.running: set[str] = set()
        self.busy: set[str] = set()
        self.losses: Counter[str] = Counter()
        self.pending = dict(specs)
        self.dependents: dict[str, list[str]] = {}
        for digest, spec in specs.items():
            for needed in spec.inputs.values():
                self.dependents.setdefault(needed, []).append(digest)
        # Stages whose inputs are there, first of the plan first, so that no plan is searched for each of its stages.
        self.place = {digest: number for number, digest in enumerate(specs)}
        self.order = list(specs)
        self.ready: tuple[list[int], list[int]] = ([], [])

    def look(self, *, retry_failed: bool) -> None:
        for digest in self.specs:
            self.offer(digest)
            if self.store.holds(digest):
                self.settle(Event("reused", digest))
                continue
            note = self.store.failure(digest)
            if note is None:
                continue
            if retry_failed or note["transient"]:
                self.store.clear_failure(digest)
            elif not self.outcome.settled(digest):
                self.settle(Event("failed", digest, f"{note['kind']}: {note['message']} (failed before)"))

    def choose(self) -> Spec | None:
        # What another run is making right now comes last, so that two runs on one store divide the work.
        for patient, waiting in enumerate(self.ready):
            while waiting:
                digest = self.order[heapq.heappop(waiting)]
                spec = self.pending.get(digest)
                free = spec is not None and digest not in self.running and (digest in self.busy) is bool(patient)
                if spec is not None and free and self.complete(spec):
                    return spec
        return None

    def offer(self, digest: str) -> None:
        """Put a stage among those that may be ready; `choose` looks whether it is."""
        spec = self.pending.get(digest)
        if spec is not None and digest not in self.running and self.complete(spec):
            heapq.heappush(self.ready[digest in self.busy], self.place[digest])

    def complete(self, spec: Spec) -> bool:
        """Return whether all inputs of a stage are there."""
        return all(needed in self.outcome.present for needed in spec.inputs.values())

    def take(self, event: Event) -> None:
        self.running.discard(event.digest)
        if event.kind == "busy":
            self.busy.add(event.digest)
            self.offer(event.digest)
            self.tell(event)
        elif event.kind == "lost":
            self.losses[event.text] += 1
            self.tell(event)
            if self.losses[event.text] >= _MOST_LOSSES or event.text not in self.specs:
                message = f"input {event.text[:12]} is corrupted whenever it is read"
                self.store.fail(self.specs[event.digest], "error", message, "", transient=True)
                self.settle(Event("failed", event.digest, message))
            elif event.text in self.outcome.present:
                self.outcome.present.discard(event.text)
                self.pending[event.text] = self.specs[event.text]
                self.offer(event.text)
        else:
            self.settle(event)

    def settle(self, event: Event) -> None:
        self.pending.pop(event.digest, None)
        if event.kind == "failed":
            self.outcome.failed[event.digest] = event.text
            self.tell(event)
            self.block(event.digest)
            return
        self.outcome.present.add(event.digest)
        if event.kind == "made":
            self.outcome.made.add(event.digest)
        for user in self.dependents.get(event.digest, ()):
            self.offer(user)
        self.tell(event)

    def block(self, cause: str) -> None:
        todo = list(self.dependents.get(cause, ()))
        while todo:
            digest = todo.pop()
            if digest in self.pending and digest not in self.outcome.blocked and not self.store.has(digest):
                self.outcome.blocked[digest] = cause
                self.pending.pop(digest)
                self.tell(Event("blocked", digest, f"needs {cause[:12]}, which failed"))
                todo += self.dependents.get(digest, ())
