"""What a plan takes on a number of GPUs, from the prices of its stages: hours, critical path, simulated time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from immunebench.catalog.catalog import Catalog
from immunebench.core.errors import UsageError
from immunebench.plan.prices import Known, Measured, Price, Source, prices
from immunebench.plan.simulation import Job, Simulated, critical_path, jobs_of, simulate, widened
from immunebench.store.graph import Plan


@dataclass(frozen=True)
class Part:
    """Stages of one kind whose figures have one source: their number and all their seconds."""

    stage: str
    on_card: bool
    source: Source
    stages: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """What a plan takes.

    Attributes
    ----------
    parts
        By kind of stage and source, of the suite as planned; a wider board repeats them.
    card_seconds, core_seconds
        Of all stages that hold a GPU, and of the others.
    critical_path
        Seconds of the longest chain of stages.
    runs
        The simulated run by number of GPUs; of cores on a profile without.
    """

    suite: str
    profile: str
    cells: int
    stages: int
    parts: tuple[Part, ...]
    card_seconds: float
    core_seconds: float
    critical_path: float
    runs: Mapping[int, Simulated]

    @property
    def on_cards(self) -> bool:
        """Whether any stage holds a GPU."""
        return self.card_seconds > 0

    def as_dict(self) -> dict[str, Any]:
        """Return the forecast as JSON has it; times in seconds."""
        return asdict(self)


def forecast(
    plan: Plan,
    catalog: Catalog,
    store: Measured | None,
    known: Known,
    gpus: Sequence[int],
    cores: int,
    defenses: int | None = None,
) -> Forecast:
    """Forecast a whole plan, nothing of it made before.

    Parameters
    ----------
    plan, catalog
        What is planned, and what says which defenses are controls.
    store, known
        Where stages were measured.
    gpus
        Numbers of GPUs to simulate; of cores on a profile without.
    cores
        Cores beside each GPU.
    defenses
        Forecast a board of so many defenses instead; see `widened`.

    Raises
    ------
    UsageError
        A wider board is asked for, and the plan has controls alone.
    """
    priced = prices(plan, store, known)
    jobs, cells = (
        (jobs_of(plan, priced), len(plan.cells)) if defenses is None else _wider(plan, catalog, priced, defenses)
    )
    cards = any(job.on_card for job in jobs)
    work = {kind: sum(job.seconds for job in jobs if job.on_card is kind) for kind in (True, False)}
    # Without a GPU the stages share the cores, each on one.
    runs = {n: simulate(jobs, n, n * cores) if cards else simulate(_as_cards(jobs), n, 1) for n in gpus}
    return Forecast(
        plan.suite.id, plan.cells[0].profile, cells, len(jobs), _parts(plan, priced), work[True], work[False],
        critical_path(jobs), runs,
    )  # fmt: skip


def _wider(plan: Plan, catalog: Catalog, priced: Mapping[str, Price], defenses: int) -> tuple[list[Job], int]:
    names = dict.fromkeys(cell.defense for cell in plan.cells)
    entries = [name for name in names if catalog.defense(name).kind_of != "control"]
    if not entries:
        raise UsageError("needs a defense that is no control, to plan others like it", field="--defenses")
    return widened(plan, priced, entries, defenses)


def _as_cards(jobs: Sequence[Job]) -> list[Job]:
    return [Job(job.seconds, True, job.inputs) for job in jobs]


def _parts(plan: Plan, priced: Mapping[str, Price]) -> tuple[Part, ...]:
    found: dict[tuple[str, bool, Source], tuple[int, float]] = {}
    for digest, spec in plan.stages.items():
        price = priced[digest]
        key = spec.stage, price.on_card, price.source
        count, seconds = found.get(key, (0, 0.0))
        found[key] = count + 1, seconds + price.seconds
    return tuple(Part(*key, *sums) for key, sums in sorted(found.items()))
