"""Executor of a Slurm cluster, through submitit: one job a stage; the queue, pre-emption and requeueing are Slurm's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from immunebench.box.choice import Kind
from immunebench.core.errors import UsageError, shortened
from immunebench.execution.engines.worker import Clock, Order, died, sweep, timed_out
from immunebench.execution.executor import DEFAULT_STAGES, Event, RunStage, Tell
from immunebench.store.artifacts import Spec, Store, open_at

#: Jobs in the queue at a time, unless `--workers` says otherwise.
_JOBS = 64
#: Seconds between two looks at the jobs: of a cluster and of this machine.
_LOOK, _LOOK_HERE = 2.0, 0.1
#: Seconds between two questions to Slurm about its jobs, and those after its end in which a job's result may come: a
#: network file system shows it late.
_ASK, _LATE = 10.0, 30.0
_ALIVE = frozenset({
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING",
    "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT",
})  # fmt: skip
#: Minutes and GiB of a job where the user says nothing else.
_MINUTES, _GIB = 240, 16
_LINE = 500
#: Before Slurm takes a job away it signals each of its processes, within so many seconds; it kills them within these.
_SIGNALS, _GRACE = 1.0, 600.0
#: Seconds that `squeue` may take.
_MOST_SECONDS = 60


@dataclass
class StageJob:
    """What a job runs: a stage, whose progress it appends to a file that the driver reads."""

    order: Order
    mail: Path

    def __call__(self) -> Event:
        """Make the stage."""
        warned: list[int] = []
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            signal.signal(signal.SIGTERM, lambda number, frame: warned.append(number))
        event = self.order.carry_out(self._tell)
        if event.kind == "failed":
            time.sleep(_SIGNALS)
            if warned:  # The processes of the stage ended of that, which is no failure of the stage.
                self._forgive()
                time.sleep(_GRACE)
                raise TimeoutError("Slurm took the job away without ending it")
        return event

    def checkpoint(self) -> Any:
        """Queue the stage again when Slurm pre-empts it; it goes on from its bookmark."""
        import submitit

        self._forgive()
        self._tell(Event("again", self.order.spec.digest, "its job was pre-empted"))
        return submitit.helpers.DelayedSubmission(self)

    def _forgive(self) -> None:
        open_at(self.order.store).clear_failure(self.order.spec.digest)

    def _tell(self, event: Event) -> None:
        line = json.dumps({**asdict(event), "text": shortened(event.text, _LINE)})
        with suppress(OSError), self.mail.open("a", encoding="utf-8") as file:  # Progress is no reason to fail.
            file.write(line + "\n")


@dataclass
class _Running:
    spec: Spec
    job: Any
    mail: Path
    wait: bool
    read: int = field(default=0)
    gone: float | None = None


class SlurmJobs:
    """Stages as jobs of a Slurm cluster, each with one core and, where its profile has one, one GPU.

    Parameters
    ----------
    store
        Where artifacts are; every node must reach it. Job files lie in its folder ``slurm``.
    options
        ``local`` runs the jobs on this machine, without Slurm. Else options of ``sbatch`` as ``name=value``, separated
        by commas; ``time`` is in minutes, ``mem`` in GiB.
    workers
        Jobs at a time; default 64.
    run_stage
        As for `immunebench.execution.executor.perform`; a function must be importable by name.
    timeout
        Seconds that a stage may take.
    box
        The box of entries' code, which every machine must have.

    Raises
    ------
    UsageError
        submitit or Slurm is not installed, or an option has no value.
    """

    def __init__(
        self,
        store: Store,
        options: str | None = None,
        workers: int | None = None,
        run_stage: RunStage | str = DEFAULT_STAGES,
        timeout: float | None = None,
        box: Kind = "none",
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            how = "needs submitit; get it with: pip install 'immunebench[slurm]':"
            raise UsageError(how, field="--on", value="slurm") from error
        self._here = options == "local"
        self._options = {} if self._here else parsed(options)
        self._folder = store.root / "slurm"
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            cluster = "local" if self._here else "slurm"
            self._executor = submitit.AutoExecutor(self._folder / "%j", cluster=cluster)
        except RuntimeError as error:
            why = f"{' '.join(str(error).split())}; `slurm:local` runs the jobs on this machine:"
            raise UsageError(why, field="--on", value="slurm") from error
        self.slots = workers or (1 if self._here else _JOBS)
        self._lost = (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError)
        self._store, self._run_stage, self._clock = store, run_stage, Clock(timeout)
        self._running: dict[str, _Running] = {}
        self._deaths: Counter[str] = Counter()
        self._box = box
        self._asked = time.monotonic()

    def submit(self, spec: Spec, *, wait: bool) -> None:
        """Queue a stage."""
        mail = self._folder / f"{spec.digest}.{time.time_ns()}.jsonl"
        order = Order.of(self._store, spec, self._run_stage, self._box, wait=wait)
        self._executor.update_parameters(**self._parameters(spec))
        job = self._executor.submit(StageJob(order, mail))
        self._running[spec.digest] = _Running(spec, job, mail, wait)

    def finished(self, tell: Tell) -> list[Event]:
        """Block until a stage ended. A stage whose job was lost is queued once more, then fails."""
        while self._running:
            ended: list[Event] = []
            self._ask(tell)
            for digest, running in list(self._running.items()):
                # Not `done`, which asks Slurm's accounting: many clusters have none, and it may be ten minutes late.
                done = running.job.done() if self._here else _has_result(running.job)
                self._read(running, tell)
                if done:
                    event = self._ended(running, tell)
                elif running.gone is not None and time.monotonic() - running.gone > _LATE:
                    event = self._again(running, "its job ended without a result", tell)
                else:
                    event = self._stopped(running)
                if event is not None:
                    self._forget(digest)
                    ended.append(event)
            if ended:
                return ended
            time.sleep(_LOOK_HERE if self._here else _LOOK)
        return []

    def close(self) -> None:
        """Cancel the jobs that are queued or run."""
        for digest, running in list(self._running.items()):
            with suppress(Exception):
                running.job.cancel(check=False)
            self._forget(digest)
            sweep(self._store, digest)

    def _parameters(self, spec: Spec) -> dict[str, Any]:
        numerics = spec.key.get("numerics")
        numerics = numerics if isinstance(numerics, dict) else {}
        here = numerics.get("device") != "cuda"
        memory = float(numerics.get("memory_gib") or _GIB) if here else _GIB
        found: dict[str, Any] = {
            "name": f"immunebench-{spec.stage}",
            "timeout_min": int(self._options.get("time", _MINUTES)),
            "mem_gb": float(self._options.get("mem", memory)),
            "cpus_per_task": int(numerics.get("threads") or 1),
            "gpus_per_node": 0 if here else 1,
        }
        more = {f"slurm_{name}": value for name, value in self._options.items() if name not in ("time", "mem")}
        return {**found, **more}

    def _read(self, running: _Running, tell: Tell) -> None:
        """Pass on the whole lines that a job wrote since the last look."""
        try:
            with running.mail.open("rb") as file:
                file.seek(running.read)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        running.read += len(whole)
        for line in whole.splitlines():
            event = Event(**json.loads(line))
            self._clock.note(event)
            tell(event)

    def _ask(self, tell: Tell) -> None:
        """Ask Slurm which jobs are still there, and which wait once more because they were pre-empted or requeued."""
        if self._here or time.monotonic() - self._asked < _ASK:
            return
        states = queue()
        self._asked = time.monotonic()
        if states is None:
            return
        for digest, running in self._running.items():
            state = states.get(str(running.job.job_id), "")
            if state in _ALIVE:
                running.gone = None
            elif running.gone is None:
                running.gone = self._asked
            if state == "PENDING" and self._clock.runs(digest):
                again = Event("again", digest, "its job is in the queue once more")
                self._clock.note(again)
                tell(again)

    def _ended(self, running: _Running, tell: Tell) -> Event | None:
        try:
            event: Event = running.job.result()
            return event
        except self._lost as error:
            lines = str(error).strip().splitlines()
            how = f"its job ended without a result ({shortened(lines[0] if lines else '', _LINE)})"
        return self._again(running, how, tell)

    def _again(self, running: _Running, how: str, tell: Tell) -> Event | None:
        digest = running.spec.digest
        self._deaths[digest] += 1
        if self._deaths[digest] > 1:
            return died(self._store, running.spec, f"{how}, twice")
        tell(Event("again", digest, how))
        self._forget(digest)
        self.submit(running.spec, wait=running.wait)
        return None

    def _stopped(self, running: _Running) -> Event | None:
        late = self._clock.late(running.spec.digest)
        if late is None:
            return None
        running.job.cancel(check=False)
        return timed_out(self._store, running.spec, late, self._clock.limit)

    def _forget(self, digest: str) -> None:
        running = self._running.pop(digest)
        self._clock.forget(digest)
        running.mail.unlink(missing_ok=True)


def queue() -> dict[str, str] | None:
    """Return the states of this user's jobs by id, None where Slurm does not answer."""
    command = ["squeue", "--me", "--noheader", "--states=all", "--format=%i %T"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_MOST_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split(maxsplit=1) for line in said.stdout.splitlines() if len(line.split()) > 1)


def _has_result(job: Any) -> bool:
    folder = job.paths.folder
    with suppress(OSError):  # Lest a network file system answers from its memory.
        folder.chmod(folder.stat().st_mode)
    return bool(job.paths.result_pickle.exists())


def parsed(options: str | None) -> dict[str, str]:
    """Return options of ``sbatch`` by name.

    Raises
    ------
    UsageError
        One has no value.
    """
    found: dict[str, str] = {}
    for part in filter(None, (options or "").split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise UsageError("must be local, or name=value of sbatch, not", field="--on slurm", value=part)
        found[name.strip().removeprefix("--").replace("-", "_")] = value.strip()
    if wrong := [found[name] for name in ("time", "mem") if name in found and not found[name].isdigit()]:
        raise UsageError("must be whole minutes or GiB, not", field="--on slurm", value=wrong[0])
    return found
