"""What each stage of a plan will take: from measurements where there are some, else from a table or from arithmetic."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from immunebench.plan.card import Card, number, on_card, seconds_on
from immunebench.records.record import Record
from immunebench.store.graph import Plan, StageSpec
from immunebench.store.manifest import read_manifest

_SAMPLE = 300
#: Stages of every run whose time is well known from the table, and how many are needed to infer this machine's speed.
_PACERS, _LEAST = ("adapt", "generate"), 3
#: Default number of published pictures of a task.
_PICTURES = 16
#: Where a price comes from, best first: artifacts of this store, records of the suite, `immunebench capacity`, what an
#: entry's manifest states, the table below, or operations counted and divided by an assumed rate.
Source = Literal["store", "records", "capacity", "stated", "table", "arithmetic"]


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
class Price:
    """What one stage takes: seconds, whether it holds a GPU meanwhile, and where the figure comes from."""

    seconds: float
    on_card: bool
    source: Source


@dataclass(frozen=True)
class Known:
    """Measurements besides those of a store.

    Attributes
    ----------
    records
        Records of cells; those of other profiles or bases say nothing.
    steps
        Seconds of one picture's pass through training, by entry, on the plan's profile and base.
    """

    records: Sequence[Record] = ()
    steps: Mapping[str, float] = field(default_factory=dict)


def units(spec: StageSpec) -> float:
    """Return the work of a stage: pictures, their passes through a network, or denoising steps x pictures."""
    key = spec.key
    if spec.stage == "pictures":
        return number(key.get("count"))
    if spec.stage == "generate":
        prompts, numerics = key.get("prompts"), key.get("numerics")
        pictures = len(prompts) * number(key.get("per_prompt")) if isinstance(prompts, list) else 0
        return pictures * (number(numerics.get("sampling_steps")) if isinstance(numerics, dict) else 1)
    params = key.get("params")
    if isinstance(params, dict) and (spec.stage == "purify" or key.get("hook") == "protect_images"):
        return _passes(params)
    if isinstance(params, dict):
        prior = params.get("prior_batch", 0) if params.get("prior_weight") else 0
        return number(params.get("steps", 0)) * (number(params.get("batch", 1)) + number(prior))
    return float(len(spec.inputs)) * 16


def _passes(params: Mapping[str, object]) -> float:
    """Return the number of network passes while pictures are changed, from the common names of parameters."""
    rounds = math.prod(number(params.get(name)) for name in ("rounds", "trials", "states", "unroll"))
    part = number(params.get("strength")) if "sampling_steps" in params and "steps" not in params else 1.0
    moves = next((number(params[name]) for name in ("pgd_steps", "steps", "sampling_steps") if name in params), 0.0)
    # A simulated attacker trains on four pictures and four class pictures, once clean and once changed.
    trained = 2 * 8 * number(params.get("train_steps", 0))
    return rounds * (moves * part * _PICTURES + trained)


def prices(plan: Plan, store: Measured | None = None, known: Known | None = None) -> dict[str, Price]:
    """Return what each stage of a plan will take, by digest.

    If the store has stages of an entry, their median seconds per unit are used. Otherwise the time comes from records
    of the plan's own cells, from measured steps, from the entry's manifest, from the median of all stages of the kind
    that have units, else from the table. Times from the manifest and the table were measured on another machine, so
    they are scaled by the ratio of measured time to table time of adaptations and generated pictures in this store.
    A stage on a GPU that nobody measured is priced by `immunebench.plan.card`.
    """
    known = known or Known()
    card = Card.of(plan.cells[0].profile if plan.cells else "cpu")
    rates: dict[tuple[str, str, str], float] = {}
    paces: list[float] = []
    for name in COSTS if store is not None else ():
        made = list(_made(store.root / name, name))  # type: ignore[union-attr]
        rates |= _rates(name, made)
        paces += [seconds / _by_table(spec) for spec, seconds in made if name in _PACERS and not on_card(spec)]
    pace = statistics.median(paces) if len(paces) >= _LEAST else 1.0
    recorded = _recorded(plan, known.records)
    return {digest: _price(spec, rates, recorded, known.steps, pace, card) for digest, spec in plan.stages.items()}


def _price(
    spec: StageSpec,
    rates: Mapping[tuple[str, str, str], float],
    recorded: Mapping[tuple[str, str], float],
    steps: Mapping[str, float],
    pace: float,
    card: Card,
) -> Price:
    entry, place, work = _entry(spec.key), _place(spec), max(units(spec), 1)
    held = on_card(spec)
    own = rates.get((spec.stage, entry, place))
    if own is not None:
        return Price(own * work, held, "store")
    if (spec.stage, entry) in recorded:
        return Price(recorded[spec.stage, entry] * work, held, "records")
    if held and spec.stage in ("protect", "adapt") and entry in steps:
        return Price(steps[entry] * work, held, "capacity")
    if spec.seconds is not None and not held:
        return Price(spec.seconds * pace, held, "stated")
    rate = rates.get((spec.stage, "", place))
    if rate is not None:
        return Price(rate * work, held, "store")
    if held or card.stands_for_gpu:
        return Price(seconds_on(card, spec, units(spec)), held, "arithmetic")
    return Price(_by_table(spec) * pace, held, "table")


def _recorded(plan: Plan, records: Iterable[Record]) -> dict[tuple[str, str], float]:
    """Return the median seconds per unit of the plan's own cells that have a record, by stage and entry.

    A record has the seconds of all its stages of a kind together, so each of them is counted at the cell's own rate.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        graph = plan.roots.get(record.cell.key)
        if graph is None or record.status != "ok" or record.cell.profile_version != graph.facts.profile_version:
            continue
        for stage, cost in record.cost.items():
            specs = [plan.stages[digest] for digest in graph.stages if plan.stages[digest].stage == stage]
            work = sum(max(units(spec), 1) for spec in specs)
            for entry in {_entry(spec.key) for spec in specs}:
                found[stage, entry].append(cost.seconds / work)
    return {key: statistics.median(rates) for key, rates in found.items()}


def _by_table(spec: StageSpec) -> float:
    cost = COSTS[spec.stage]
    return cost.fixed + cost.each * units(spec)


def _made(folder: Path, stage: str) -> Iterator[tuple[StageSpec, float]]:
    """Yield a sample of the stages in the store, with the seconds that they took."""
    for path in sorted(folder.glob("??/*/manifest.json"))[:_SAMPLE]:
        made = read_manifest(path.parent) or {}
        seconds = made.get("cost", {}).get("seconds")
        if isinstance(seconds, (int, float)):
            yield StageSpec(stage, made["key"], made["inputs"]), float(seconds)


def _rates(stage: str, made: Sequence[tuple[StageSpec, float]]) -> dict[tuple[str, str, str], float]:
    """Return the median seconds per unit of each entry's stages, and of all that have units under the empty name.

    Those of one GPU profile or base say nothing of another, so the third part of a key is where they ran.

    A stage without units says nothing of another entry's: its seconds are those of loading and saving, which do not
    grow with the steps.
    """
    measured: dict[tuple[str, str], list[float]] = defaultdict(list)
    for spec, seconds in made:
        for name in {_entry(spec.key), ""} if units(spec) > 0 else {_entry(spec.key)} - {""}:
            measured[name, _place(spec)].append(seconds / max(units(spec), 1))
    return {(stage, *key): statistics.median(found) for key, found in measured.items()}


def _entry(key: Mapping[str, object]) -> str:
    return str(key.get("entry", ""))


def _place(spec: StageSpec) -> str:
    """Return what a time depends on besides the work: base and profile on a GPU, nothing on a CPU."""
    numerics = spec.key.get("numerics")
    if not on_card(spec) or not isinstance(numerics, dict):
        return ""
    fixed = {name: value for name, value in numerics.items() if name not in ("sampler", "sampling_steps", "guidance")}
    return json.dumps([spec.key.get("base"), fixed], sort_keys=True)
