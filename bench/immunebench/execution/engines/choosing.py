"""`on_engine`: the executor that ``--on`` names."""

from __future__ import annotations

from immunebench.box.choice import Kind
from immunebench.core.errors import UsageError
from immunebench.execution.executor import DEFAULT_STAGES, Executor, RunStage
from immunebench.store.artifacts import Store

ENGINES = ("ray", "slurm")


def on_engine(
    on: str,
    store: Store,
    workers: int | None = None,
    run_stage: RunStage | str = DEFAULT_STAGES,
    timeout: float | None = None,
    box: Kind = "none",
) -> Executor:
    """Return the executor of an engine.

    Parameters
    ----------
    on
        ``ray``, ``ray:ADDRESS``, ``slurm``, ``slurm:name=value,...`` or ``slurm:local``.
    store, run_stage, timeout, box
        As for the executors.
    workers
        Stages at a time; None: what the engine offers.

    Raises
    ------
    UsageError
        There is no such engine, it is not installed, or it cannot be reached.
    """
    name, _, where = on.partition(":")
    if name == "ray":
        from immunebench.execution.engines.ray_engine import RayActors

        return RayActors(store, where or None, workers, run_stage, timeout, box)
    if name == "slurm":
        from immunebench.execution.engines.slurm_engine import SlurmJobs

        return SlurmJobs(store, where or None, workers, run_stage, timeout, box)
    raise UsageError("unknown engine", field="--on", value=name, choices=ENGINES)
