"""Executor of a Ray cluster: a crew of actors, each on its core or GPU; where they run, is Ray's to know."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from immunebench.box.choice import Kind
from immunebench.core.errors import UsageError, shortened
from immunebench.execution.engines.worker import Clock, Order, died, sweep, timed_out
from immunebench.execution.executor import DEFAULT_STAGES, EngineLost, Event, RunStage, Tell
from immunebench.store.artifacts import Spec, Store

#: How often a stage is handed in again whose worker or machine was lost. Not by Ray itself, which would not say so: the
#: time until another worker is free would count as the stage's own.
_RETRIES = 2
#: Seconds between two looks at the mail of the workers, and those that the cluster has to answer.
_LOOK, _PATIENCE = 0.5, 60.0
#: Seconds that an actor has to find a place and start before an idle one takes its stage.
_PLACE = 30.0
_MAIL = 1_000
#: How often a cluster is joined, or started, before it is given up.
_STARTS = 3
_LINE = 500
#: Bytes of a local cluster's object store, which only events pass through.
_OBJECTS = 100 << 20


class Hand:
    """An actor: a process that makes one stage after the other, with the bases that it loaded."""

    def ready(self) -> bool:
        """Return true, once Ray found a place for it."""
        return True

    def carry_out(self, order: Order, mail: Any) -> Event:
        """Make a stage."""

        def tell(event: Event) -> None:
            with suppress(Exception):  # Progress is no reason to fail.
                mail.put(event)

        return order.carry_out(tell)


@dataclass
class _Worker:
    actor: Any
    kind: dict[str, Any]
    ready: Any
    began: float
    up: bool = False
    base: object = None
    task: Any = None
    spec: Spec | None = None
    wait: bool = False


def _join(ray: Any, options: dict[str, Any]) -> None:
    for left in reversed(range(_STARTS)):
        try:
            ray.init(**options)
        except Exception:  # Its own node has 30 s to start: on a busy machine too few.
            ray.shutdown()
            if not left:
                raise
        else:
            return


class RayActors:
    """Stages in actors of a Ray cluster, each on one core and, where its profile has one, one GPU.

    A stage goes to an idle actor that has its base loaded, else to another idle one of its kind, else to a new one. No
    stage waits for an actor that Ray finds no place for while another one is idle.

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
        own: dict[str, Any] = {
            "num_cpus": workers, "include_dashboard": False, "object_store_memory": _OBJECTS,
            # Ray's workers give way to everything else, by 15; worker processes of this package do not.
            "_system_config": {"worker_niceness": 0},
        }  # fmt: skip
        # Of this program's environment a running cluster knows nothing.
        named = {name: value for name, value in os.environ.items() if name.startswith("IMMUNEBENCH_")}
        joined: dict[str, Any] = {"address": address, "runtime_env": {"env_vars": named}}
        try:
            _join(ray, {**shared, **(own if address is None else joined)})
        except Exception as error:  # Ray raises some of no class of their own.
            why = f"no cluster could be reached ({shortened(' '.join(str(error).split()), _LINE)}):"
            raise UsageError(why, field="--on", value=f"ray:{address}" if address else "ray") from error
        self.slots = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        self._hand = ray.remote(Hand)
        self._box = box
        # It may live on a machine that is lost; what was in it then was only progress.
        self._mail = Queue(actor_options={"num_cpus": 0, "max_restarts": -1})
        self._clock = Clock(timeout)
        self._crew: list[_Worker] = []
        self._deaths: Counter[str] = Counter()

    def submit(self, spec: Spec, *, wait: bool) -> None:
        """Give a stage to an idle actor of its kind; a new one is started where none is idle."""
        kind, base = resources(spec), spec.key.get("base")
        idle = [worker for worker in self._crew if worker.task is None and worker.kind == kind]
        # To the one that has the base loaded, else to one that has none; nobody waits for either.
        idle.sort(key=lambda worker: (worker.base != base, worker.base is not None))
        self._give(idle[0] if idle else self._start(kind), spec, wait=wait)

    def finished(self, tell: Tell) -> list[Event]:
        """Block until a stage ended; a stage whose worker was lost is tried twice more, then fails.

        Raises
        ------
        EngineLost
            The cluster, or this machine's part of it, ended.
        """
        while working := {worker.task: worker for worker in self._crew if worker.task is not None}:
            done, _ = self._ray.wait(list(working), timeout=_LOOK)
            self._read(tell)
            found = [self._ended(working[task], tell) for task in done]
            found += [self._stopped(worker) for worker in list(self._crew) if worker.task is not None]
            self._level()
            if ended := [event for event in found if event is not None]:
                return ended
        return []

    def close(self) -> None:
        """End the actors with what they run and leave the cluster; one that was started here ends."""
        left = [worker.spec for worker in self._crew if worker.spec is not None]
        for worker in list(self._crew):
            self._dismiss(worker)
        self._ray.shutdown()
        for spec in left:
            sweep(self._store, spec.digest)

    def _start(self, kind: dict[str, Any]) -> _Worker:
        actor = self._hand.options(max_restarts=0, **kind).remote()
        worker = _Worker(actor, kind, actor.ready.remote(), time.monotonic())
        self._crew.append(worker)
        return worker

    def _give(self, worker: _Worker, spec: Spec, *, wait: bool) -> None:
        order = Order.of(self._store, spec, self._run_stage, self._box, wait=wait)
        worker.task = worker.actor.carry_out.remote(order, self._mail)
        worker.spec, worker.wait, worker.base = spec, wait, spec.key.get("base") or worker.base

    def _dismiss(self, worker: _Worker) -> None:
        self._crew.remove(worker)
        with suppress(Exception):
            self._ray.kill(worker.actor)

    def _level(self) -> None:
        """Take stages from actors that have no place yet: an idle one takes them over, or makes room for them."""
        for waiting in [worker for worker in self._crew if worker.task is not None and not worker.up]:
            waiting.up = bool(self._ray.wait([waiting.ready], timeout=0)[0])
            idle = sorted((w for w in self._crew if w.task is None), key=lambda w: w.kind != waiting.kind)
            starting = waiting.up or time.monotonic() - waiting.began < _PLACE
            if starting or not idle or waiting.spec is None:
                continue
            if idle[0].kind == waiting.kind:
                self._dismiss(waiting)
                self._give(idle[0], waiting.spec, wait=waiting.wait)
            else:
                self._dismiss(idle[0])

    def _read(self, tell: Tell) -> None:
        """Pass on what the actors told."""
        error: Exception | None = None
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                count = self._ray.get(self._mail.actor.qsize.remote(), timeout=_PATIENCE)
                found = self._mail.get_nowait_batch(min(count, _MAIL)) if count else ()
            except self._ray.exceptions.ActorUnavailableError as unavailable:  # It begins again elsewhere.
                error = unavailable
                time.sleep(_LOOK)
            except (self._ray.exceptions.RayError, ConnectionError) as lost:
                error = lost
                break
            else:
                for event in found:
                    self._clock.note(event)
                    tell(event)
                return
        raise EngineLost(f"the Ray cluster ended ({type(error).__name__})") from error

    def _ended(self, worker: _Worker, tell: Tell) -> Event | None:
        task, spec, wait = worker.task, worker.spec, worker.wait
        assert spec is not None
        worker.task = worker.spec = None
        self._clock.forget(spec.digest)
        try:
            event: Event = self._ray.get(task)
        except self._ray.exceptions.RayTaskError:
            raise  # An error of the engine itself: a stage's own are events.
        except self._ray.exceptions.RayError as error:
            how = f"its worker was lost ({type(error).__name__})"
        else:
            worker.up = True
            return event
        self._dismiss(worker)
        self._read(tell)  # Whose cluster ended has not died of this stage.
        self._deaths[spec.digest] += 1
        if self._deaths[spec.digest] > _RETRIES:
            return died(self._store, spec, f"{how}, {1 + _RETRIES} times")
        tell(Event("again", spec.digest, how))
        self.submit(spec, wait=wait)
        return None

    def _stopped(self, worker: _Worker) -> Event | None:
        assert worker.spec is not None
        late = self._clock.late(worker.spec.digest)
        if late is None:
            return None
        self._dismiss(worker)
        self._clock.forget(worker.spec.digest)
        return timed_out(self._store, worker.spec, late, self._clock.limit)


def resources(spec: Spec) -> dict[str, Any]:
    """Return what a stage needs: a core, and a whole GPU where its profile has one, whose memory the guard caps."""
    numerics = spec.key.get("numerics")
    on_card = isinstance(numerics, dict) and numerics.get("device") == "cuda"
    threads = int(numerics.get("threads") or 1) if isinstance(numerics, dict) else 1
    return {"num_cpus": threads, **({"num_gpus": 1} if on_card else {})}
