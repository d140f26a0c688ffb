"""What a plan will cost: seconds and bytes by stage, from a small table and from what was measured before."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from immunebench.store.graph import Plan, StageSpec
from immunebench.store.manifest import read_manifest

_SAMPLE = 300
#: Stages that every run makes, whose time the table knows well: what they took says how fast this machine is.
_PACERS, _LEAST = ("adapt", "generate"), 3
#: How many pictures a task publishes unless it says otherwise.
_PICTURES = 16


class Measured(Protocol):
    """A store: where artifacts and their manifests lie, and which are there."""

    @property
    def root(self) -> Path:
        """The store's folder."""

    def has(self, digest: str) -> bool:
        """Whether an artifact is published."""


@dataclass(frozen=True)
class Cost:
    """A stage takes ``fixed + each * units`` seconds and leaves ``size * files`` bytes."""

    fixed: float
    each: float
    size: int


# Seconds of one of two busy CPU cores on the embedded base, from the processor time of `mini-lite` (sampling alone on
# the machine takes half of this); a unit is what `units` counts.
COSTS = {
    "pictures": Cost(0.05, 0.004, 10_000),
    "protect": Cost(1.0, 0.06, 9_000_000),
    "mix": Cost(0.05, 0.004, 10_000),
    "purify": Cost(1.0, 0.1, 10_000),
    "adapt": Cost(0.5, 0.041, 2_000_000),
    "generate": Cost(0.2, 0.027, 10_000),
    "score": Cost(0.05, 0.001, 2_000),
    "anchor": Cost(0.1, 0.002, 2_000),
}


@dataclass(frozen=True)
class StageCost:
    """One stage of a plan: how many there are, how many the store has, and what the rest costs."""

    planned: int
    cached: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """Costs by stage; seconds are those of one worker."""

    stages: dict[str, StageCost]

    @property
    def seconds(self) -> float:
        """Total seconds of one worker."""
        return sum(cost.seconds for cost in self.stages.values())

    @property
    def bytes(self) -> int:
        """Total bytes that the store will grow by."""
        return sum(cost.bytes for cost in self.stages.values())


def units(spec: StageSpec) -> float:
    """Return how much work a stage is: pictures, their passes through a network, or denoising steps x pictures."""
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
    """Return how often a picture passes a network while pictures are changed, by the names that such entries use."""
    rounds = math.prod(_number(params.get(name)) for name in ("rounds", "trials", "states", "unroll"))
    part = _number(params.get("strength")) if "sampling_steps" in params and "steps" not in params else 1.0
    moves = next((_number(params[name]) for name in ("pgd_steps", "steps", "sampling_steps") if name in params), 0.0)
    # The attacker in training is shown four pictures and four of the class, on clean and on changed pictures.
    trained = 2 * 8 * _number(params.get("train_steps", 0))
    return rounds * (moves * part * _PICTURES + trained)


def estimate(plan: Plan, store: Measured | None = None) -> Estimate:
    """Return seconds and bytes by stage of the plan's stages that ``store`` lacks.

    Where the store holds stages of an entry, their median seconds per unit are taken. Else it is what the entry's
    manifest says, then the median of all stages of the kind, then the table's; the manifest and the table speak of
    another machine, so they are stretched by what adaptations and drawn pictures took here against the table.
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
    """Yield some stages that the store has, with the seconds that they took."""
    from immunebench.store.graph import StageSpec

    for path in sorted(folder.glob("??/*/manifest.json"))[:_SAMPLE]:
        made = read_manifest(path.parent) or {}
        seconds = made.get("cost", {}).get("seconds")
        if isinstance(seconds, (int, float)):
            yield StageSpec(stage, made["key"], made["inputs"]), float(seconds)


def _rates(stage: str, made: Sequence[tuple[StageSpec, float]]) -> dict[tuple[str, str], float]:
    """Return the median seconds per unit of each entry's stages, and of all under the empty name."""
    measured: dict[str, list[float]] = defaultdict(list)
    for spec, seconds in made:
        for name in {_entry(spec.key), ""}:
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
