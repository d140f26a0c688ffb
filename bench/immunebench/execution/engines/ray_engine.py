"""Executor of a Ray cluster: one task a stage; where it runs, and what is lost with a machine, is Ray's to know."""

from __future__ import annotations

import logging
import os
from collections import Counter
from contextlib import suppress
from typing import Any

from immunebench.box.choice import Kind
from immunebench.core.errors import UsageError, shortened
from immunebench.execution.engines.worker import Clock, Order, died, sweep, timed_out
from immunebench.execution.executor import DEFAULT_STAGES, Event, RunStage, Tell
from immunebench.store.artifacts import Spec, Store

#: How often a stage is handed in again whose worker or machine was lost. Not by Ray itself, which would not say so: the
#: time until another worker is free would count as the stage's own.
_RETRIES = 2
#: Seconds between two looks at the mail of the workers.
_LOOK = 0.5
_MAIL = 1_000
_LINE = 500
#: Bytes of a local cluster's object store, which only events pass through.
_OBJECTS = 100 << 20


def _stage(order: Order, mail: Any) -> Event:
    return order.carry_out(mail.put)


def _join(ray: Any, options: dict[str, Any]) -> None:
    try:
        ray.init(**options)
    except Exception:  # Its own node has 30 s to start: on a busy machine too few for the first time.
        ray.shutdown()
        ray.init(**options)


class RayTasks:
    """Stages as tasks of a Ray cluster, each on one core and, where its profile has one, one GPU.

    Parameters
    ----------
    store
        Where artifacts are; every machine of the cluster must reach it.
    address
        Of a running cluster, such as ``auto`` or ``ray://head:10001``; None starts one on this machine.
    workers
        Stages at a time; None: as many as the cluster has cores.
    run_stage
        As for `immunebench.execution.executor.perform`; a function must be importable by name.
    timeout
        Seconds that a stage may take.
    box
        The box of entries' code, which every machine must have.

    Raises
    ------
    UsageError
        Ray is not installed, or no cluster answers at the address.
    """

    def __init__(
        self,
        store: Store,
        address: str | None = None,
        workers: int | None = None,
        run_stage: RunStage | str = DEFAULT_STAGES,
        timeout: float | None = None,
        box: Kind = "none",
    ) -> None:
        try:
            import ray
            from ray.util.queue import Queue
        except ImportError as error:
            how = "needs Ray; get it with: pip install 'immunebench[ray]':"
            raise UsageError(how, field="--on", value="ray") from error
        self._ray, self._store, self._run_stage = ray, store, run_stage
        shared: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": _OBJECTS}
        # Of this program's environment a running cluster knows nothing.
        named = {name: value for name, value in os.environ.items() if name.startswith("IMMUNEBENCH_")}
        joined: dict[str, Any] = {"address": address, "runtime_env": {"env_vars": named}}
        try:
            _join(ray, {**shared, **(own if address is None else joined)})
        except Exception as error:  # Ray raises some of no class of their own.
            why = f"no cluster could be reached ({shortened(' '.join(str(error).split()), _LINE)}):"
            raise UsageError(why, field="--on", value=f"ray:{address}" if address else "ray") from error
        self.slots = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        # An entry's code has a process of its own below the worker, which changes nothing in it.
        self._task = ray.remote(max_retries=0)(_stage)
        self._box = box
        self._mail = Queue(actor_options={"num_cpus": 0})
        self._clock = Clock(timeout)
        self._running: dict[Any, tuple[Spec, bool]] = {}
        self._deaths: Counter[str] = Counter()

    def submit(self, spec: Spec, *, wait: bool) -> None:
        """Hand a stage to the cluster."""
        order = Order.of(self._store, spec, self._run_stage, self._box, wait=wait)
        self._running[self._task.options(**resources(spec)).remote(order, self._mail)] = (spec, wait)

    def finished(self, tell: Tell) -> list[Event]:
        """Block until a stage ended; a stage whose worker was lost is tried twice more, then fails."""
        while self._running:
            done, _ = self._ray.wait(list(self._running), timeout=_LOOK)
            self._read(tell)
            found = [self._ended(task, tell) for task in done] + [self._stopped(task) for task in list(self._running)]
            if ended := [event for event in found if event is not None]:
                return ended
        return []

    def close(self) -> None:
        """Cancel what still runs and leave the cluster; one that was started here ends."""
        left, self._running = self._running, {}
        for task in left:
            with suppress(Exception):
                self._ray.cancel(task, force=True)
        self._ray.shutdown()
        for spec, _ in left.values():
            sweep(self._store, spec.digest)

    def _read(self, tell: Tell) -> None:
        count = min(self._mail.qsize(), _MAIL)
        for event in self._mail.get_nowait_batch(count) if count else ():
            self._clock.note(event)
            tell(event)

    def _ended(self, task: Any, tell: Tell) -> Event | None:
        spec, wait = self._running.pop(task)
        self._clock.forget(spec.digest)
        try:
            event: Event = self._ray.get(task)
        except self._ray.exceptions.RayTaskError:
            raise  # An error of the engine itself: a stage's own are events.
        except self._ray.exceptions.RayError as error:
            how = f"its worker was lost ({type(error).__name__})"
        else:
            return event
        self._deaths[spec.digest] += 1
        if self._deaths[spec.digest] > _RETRIES:
            return died(self._store, spec, f"{how}, {1 + _RETRIES} times")
        tell(Event("again", spec.digest, how))
        self.submit(spec, wait=wait)
        return None

    def _stopped(self, task: Any) -> Event | None:
        spec, _ = self._running[task]
        late = self._clock.late(spec.digest)
        if late is None:
            return None
        del self._running[task]
        self._ray.cancel(task, force=True)
        self._clock.forget(spec.digest)
        return timed_out(self._store, spec, late, self._clock.limit)


def resources(spec: Spec) -> dict[str, Any]:
    """Return what a stage needs: a core, and a whole GPU where its profile has one, whose memory the guard caps."""
    numerics = spec.key.get("numerics")
    on_card = isinstance(numerics, dict) and numerics.get("device") == "cuda"
    threads = int(numerics.get("threads") or 1) if isinstance(numerics, dict) else 1
    return {"num_cpus": threads, **({"num_gpus": 1} if on_card else {})}
