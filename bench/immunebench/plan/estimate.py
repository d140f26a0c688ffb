"""Cost estimate of a plan: seconds and bytes by stage, from a small table and from earlier measurements."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from immunebench.core.machine import cores
from immunebench.store.graph import Plan, StageSpec
from immunebench.store.manifest import read_manifest

_SAMPLE = 300
#: Stages of every run whose time is well known from the table, and how many are needed to infer this machine's speed.
_PACERS, _LEAST = ("adapt", "generate"), 3
#: Default number of published pictures of a task.
_PICTURES = 16


class Measured(Protocol):
    """The part of a store's interface that an estimate needs: its folder, and whether an artifact exists."""

    @property
    def root(self) -> Path:
        """The store's folder."""

    def has(self, digest: str) -> bool:
        """Return whether an artifact exists."""


@dataclass(frozen=True)
class Cost:
    """Cost of one stage: ``fixed + each * units`` seconds and ``size * files`` bytes."""

    fixed: float
    each: float
    size: int


# Seconds on one of two busy CPU cores with the embedded base, from the CPU time of `mini-lite` (sampling on an idle
# machine takes half of this); units as returned by `units`.
COSTS = {
    "pictures": Cost(0.05, 0.004, 10_000),
    "protect": Cost(1.0, 0.06, 9_000_000),
    "mix": Cost(0.05, 0.004, 10_000),
    "restore": Cost(0.1, 0.0, 2_000_000),
    "purify": Cost(1.0, 0.1, 10_000),
    "adapt": Cost(0.5, 0.041, 2_000_000),
    "generate": Cost(0.2, 0.027, 10_000),
    "score": Cost(0.05, 0.001, 2_000),
    "anchor": Cost(0.1, 0.002, 2_000),
}


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


def units(spec: StageSpec) -> float:
    """Return the work of a stage: pictures, their passes through a network, or denoising steps x pictures."""
    key = spec.key
    if spec.stage == "pictures":
        return _number(key.get("count"))
    if spec.stage == "generate":
        prompts, numerics = key.get("prompts"), key.get("numerics")
        pictures = len(prompts) * _number(key.get("per_prompt")) if isinstance(prompts, list) else 0
        return pictures * (_number(numerics.get("sampling_steps")) if isinstance(numerics, dict) else 1)
    params = key.get("params")
    if isinstance(params, dict) and (spec.stage == "purify" or key.get("hook") == "protect_images"):
        return _passes(params)
    if isinstance(params, dict):
        prior = params.get("prior_batch", 0) if params.get("prior_weight") else 0
        return _number(params.get("steps", 0)) * (_number(params.get("batch", 1)) + _number(prior))
    return float(len(spec.inputs)) * 16


def _passes(params: Mapping[str, object]) -> float:
    """Return the number of network passes while pictures are changed, from the common names of parameters."""
    rounds = math.prod(_number(params.get(name)) for name in ("rounds", "trials", "states", "unroll"))
    part = _number(params.get("strength")) if "sampling_steps" in params and "steps" not in params else 1.0
    moves = next((_number(params[name]) for name in ("pgd_steps", "steps", "sampling_steps") if name in params), 0.0)
    # A simulated attacker trains on four pictures and four class pictures, once clean and once changed.
    trained = 2 * 8 * _number(params.get("train_steps", 0))
    return rounds * (moves * part * _PICTURES + trained)


def estimate(plan: Plan, store: Measured | None = None) -> Estimate:
    """Return seconds and bytes, by kind of stage, of the plan's stages that are not in ``store``.

    If the store has stages of an entry, their median seconds per unit are used. Otherwise the time comes from the
    entry's manifest, else from the median of all stages of the kind that have units, else from the table. Times from
    the manifest and the table were measured on another machine, so they are scaled by the ratio of measured time to
    table time of adaptations and generated pictures in this store.
    """
    rates: dict[tuple[str, str], float] = {}
    paces: list[float] = []
    for name in COSTS if store is not None else ():
        made = list(_made(store.root / name, name))  # type: ignore[union-attr]
        rates |= _rates(name, made)
        paces += [seconds / _by_table(spec) for spec, seconds in made if name in _PACERS]
    pace = statistics.median(paces) if len(paces) >= _LEAST else 1.0
    stages: dict[str, StageCost] = {}
    for spec in plan.stages.values():
        cost, before = COSTS[spec.stage], stages.get(spec.stage, StageCost(0, 0, 0.0, 0))
        cached = store is not None and store.has(spec.digest)
        seconds = _seconds(spec, rates, pace)
        stages[spec.stage] = StageCost(
            before.planned + 1,
            before.cached + cached,
            before.seconds + (0.0 if cached else seconds),
            before.bytes + (0 if cached else cost.size * _files(spec)),
        )
    return Estimate(stages)


def _seconds(spec: StageSpec, rates: Mapping[tuple[str, str], float], pace: float) -> float:
    own = rates.get((spec.stage, _entry(spec.key)))
    if own is None and spec.seconds is not None:
        return spec.seconds * pace
    rate = rates.get((spec.stage, "")) if own is None else own
    return _by_table(spec) * pace if rate is None else rate * max(units(spec), 1)


def _by_table(spec: StageSpec) -> float:
    cost = COSTS[spec.stage]
    return cost.fixed + cost.each * units(spec)


def _made(folder: Path, stage: str) -> Iterator[tuple[StageSpec, float]]:
    """Yield a sample of the stages in the store, with the seconds that they took."""
    from immunebench.store.graph import StageSpec

    for path in sorted(folder.glob("??/*/manifest.json"))[:_SAMPLE]:
        made = read_manifest(path.parent) or {}
        seconds = made.get("cost", {}).get("seconds")
        if isinstance(seconds, (int, float)):
            yield StageSpec(stage, made["key"], made["inputs"]), float(seconds)


def _rates(stage: str, made: Sequence[tuple[StageSpec, float]]) -> dict[tuple[str, str], float]:
    """Return the median seconds per unit of each entry's stages, and of all that have units under the empty name.

    A stage without units says nothing of another entry's: its seconds are those of loading and saving, which do not
    grow with the steps.
    """
    measured: dict[str, list[float]] = defaultdict(list)
    for spec, seconds in made:
        for name in {_entry(spec.key), ""} if units(spec) > 0 else {_entry(spec.key)} - {""}:
            measured[name].append(seconds / max(units(spec), 1))
    return {(stage, name): statistics.median(found) for name, found in measured.items()}


def _entry(key: Mapping[str, object]) -> str:
    return str(key.get("entry", ""))


def _files(spec: StageSpec) -> int:
    params, prompts = spec.key.get("params"), spec.key.get("prompts")
    if spec.stage == "adapt" and isinstance(params, dict) and isinstance(params.get("saves"), list):
        return len(params["saves"])  # type: ignore[arg-type]
    if spec.stage == "generate" and isinstance(prompts, list):
        return int(len(prompts) * _number(spec.key.get("per_prompt")))
    return int(_number(spec.key.get("count"))) if spec.stage == "pictures" else 1


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 1.0
