"""Cost estimate of a plan: seconds and bytes by kind of stage, of what the store lacks."""

from __future__ import annotations

from dataclasses import dataclass

from immunebench.core.machine import cores
from immunebench.plan.card import number
from immunebench.plan.prices import COSTS, Known, Measured, prices
from immunebench.store.graph import Plan, StageSpec


@dataclass(frozen=True)
class StageCost:
    """All stages of one kind in a plan: number planned, number in the store, and the cost of the remaining ones."""

    planned: int
    cached: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """Costs by kind of stage; seconds are those of one worker."""

    stages: dict[str, StageCost]

    @property
    def seconds(self) -> float:
        """Total seconds of one worker."""
        return sum(cost.seconds for cost in self.stages.values())

    def with_workers(self, workers: int) -> float:
        """Return the seconds of several workers; more of them than cores take each other's time."""
        return self.seconds / max(min(workers, cores()), 1)

    @property
    def bytes(self) -> int:
        """Total bytes that the store will grow by."""
        return sum(cost.bytes for cost in self.stages.values())


def estimate(plan: Plan, store: Measured | None = None, known: Known | None = None) -> Estimate:
    """Return seconds and bytes, by kind of stage, of the plan's stages that are not in ``store``; see `prices`."""
    stages: dict[str, StageCost] = {}
    priced = prices(plan, store, known)
    for digest, spec in plan.stages.items():
        before = stages.get(spec.stage, StageCost(0, 0, 0.0, 0))
        cached = store is not None and store.has(digest)
        stages[spec.stage] = StageCost(
            before.planned + 1,
            before.cached + cached,
            before.seconds + (0.0 if cached else priced[digest].seconds),
            before.bytes + (0 if cached else COSTS[spec.stage].size * _files(spec)),
        )
    return Estimate(stages)


def _files(spec: StageSpec) -> int:
    params, prompts = spec.key.get("params"), spec.key.get("prompts")
    if spec.stage == "adapt" and isinstance(params, dict) and isinstance(params.get("saves"), list):
        return len(params["saves"])  # type: ignore[arg-type]
    if spec.stage == "generate" and isinstance(prompts, list):
        return int(len(prompts) * number(spec.key.get("per_prompt")))
    return int(number(spec.key.get("count"))) if spec.stage == "pictures" else 1
