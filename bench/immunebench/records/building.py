"""Build the record of a cell from its artifacts."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from immunebench.core.version import __version__
from immunebench.records.attestation import attest
from immunebench.records.code_state import source_state
from immunebench.records.record import (
    AnchorValues,
    Baseline,
    Baselines,
    BenignValues,
    CellNames,
    ChainLink,
    Code,
    Cost,
    Enforcement,
    Erasure,
    Failure,
    Integrity,
    Measured,
    Part,
    Purified,
    Record,
    Score,
    Sheet,
    Status,
    Training,
    Utility,
)
from immunebench.store.graph import Cell, CellGraph


class Artifacts(Protocol):
    """The part of a store's interface that building a record needs."""

    def path(self, digest: str) -> Path | None:
        """Return an artifact's folder, None if there is none."""

    def manifest(self, digest: str) -> dict[str, Any] | None:
        """Return an artifact's manifest, None if there is none."""

    def failure(self, digest: str) -> dict[str, Any] | None:
        """Return the description of a stage's failure, None if it did not fail."""


class Reader:
    """Reads the artifacts of one cell's graph; missing ones give None or an empty dict."""

    def __init__(self, graph: CellGraph, store: Artifacts) -> None:
        self.graph = graph
        self.store = store

    def json(self, digest: str | None, name: str) -> Any:
        """Return a JSON file of an artifact."""
        folder = None if digest is None else self.store.path(digest)
        return None if folder is None else json.loads((folder / name).read_text("utf-8"))

    def metrics(self, digest: str | None) -> dict[str, Measured]:
        """Return the scores of one artifact by metric; metrics without a value (ISM without faces) are absent."""
        found = (self.json(digest, "scores.json") or {}).get("metrics", {})
        return {
            name: Measured(values=tuple(s["values"]), n=len(s["values"]), mean=s["mean"])
            for name, s in found.items()
            if s["values"]
        }

    def curve(self, curve: dict[int, str]) -> dict[str, Score]:
        """Return the scores of the final step with the values of all steps; empty if the final step is missing."""
        steps = {step: self.metrics(digest) for step, digest in sorted(curve.items())}
        last = steps[self.graph.final]
        return {
            name: Score(
                **dict(score),
                per_step={step: found[name].values for step, found in steps.items() if name in found},
            )
            for name, score in last.items()
        }

    def mean(self, digest: str, metric: str) -> float | None:
        """Return the mean of a metric, named with its version, in one artifact."""
        score = self.metrics(digest).get(metric)
        return None if score is None else score.mean

    def by_id(self, digest: str, metric: str) -> float | None:
        """Return the mean of a metric, named without its version, in one artifact."""
        return next((s.mean for name, s in self.metrics(digest).items() if name.partition("@")[0] == metric), None)


def build_record(cell: Cell, graph: CellGraph, store: Artifacts, *, sheet: Sheet | None = None) -> Record:
    """Build a cell's record from the artifacts in a store.

    The status is ``ok`` if all stages are in the store. If a stage failed it is the kind of failure, and the record
    has the scores that exist. It is ``skipped`` if stages are missing without a failure, or if the defense has no
    output for this task.
    """
    facts, reader = graph.facts, Reader(graph, store)
    failure, status = find_failure(graph, store)
    anchor = reader.json(graph.anchor, "scores.json")
    ceiling = reader.curve(graph.ceiling)
    last = graph.curve[graph.final]
    made = store.manifest(last) or {}
    return Record(
        suite=facts.suite,
        suite_version=facts.suite_version,
        track=facts.track,
        comparability=facts.comparability(cell),
        cell=_names(cell, graph),
        metric=facts.metric,
        status=status,
        reason="" if status == "ok" else failure.message if failure else "not run",
        # A skipped cell is no failure; it makes the row incomplete.
        failure=None if status == "skipped" else failure,
        scores=reader.curve(graph.curve),
        final_step=graph.final,
        baseline=Baselines(
            floor=_floor(reader, graph.floor),
            defended_floor=_floor(reader, graph.defended_floor),
            ceiling=Baseline(digest=graph.ceiling[graph.final], scores=ceiling) if ceiling else None,
        ),
        anchors=None
        if anchor is None
        else AnchorValues(m_same=anchor["m_same"], m_other=anchor["m_other"], digest=graph.anchor),
        utility=_utility(graph, reader),
        unseen=reader.metrics(graph.unseen) or None,
        prompt_chance=1 / facts.contents if facts.contents else None,
        integrity=_integrity(graph, reader),
        erasure=_erasure(graph, reader),
        fidelity=reader.metrics(graph.fidelity) or None,
        purified=_purified(graph, reader),
        beside={whose: found for whose, digest in graph.beside.items() if (found := reader.metrics(digest))},
        enforcement=_enforcement(graph, store),
        cost=_cost(graph, store),
        artefacts=_artefacts(graph, store),
        env=_environment(graph, store),
        code=Code(version=__version__, **source_state(), entry_files=facts.entry_files),
        params=facts.params,
        created=str(made.get("created", "")),
        sheet=sheet,
        attestation=attest(graph, store),
    )


def _floor(reader: Reader, digest: str) -> Baseline | None:
    found = {name: Score(**dict(score), per_step={}) for name, score in reader.metrics(digest).items()}
    return Baseline(digest=digest, scores=found) if found else None


def find_failure(graph: CellGraph, store: Artifacts) -> tuple[Failure | None, Status]:
    """Return the first failed stage of a cell, with stages of its own attack first, and the cell's status."""
    missing = [digest for digest in own_first(graph) if store.path(digest) is None]
    for digest in missing:
        note = store.failure(digest)
        if note is not None:
            named: tuple[Status, ...] = ("oom", "over_memory", "timeout", "skipped")
            kinds: dict[str, Status] = {kind: kind for kind in named}
            failure = Failure(
                stage=note["stage"], part=part_of(graph, digest), digest=digest, message=str(note["message"])
            )
            return failure, kinds.get(note["kind"], "error")
    return None, "skipped" if missing else "ok"


def own_first(graph: CellGraph) -> list[str]:
    """Return a cell's stages: those of its own attack, inputs first, then the others."""
    own = graph.parts["attack"]
    return [d for d in graph.stages if d in own] + [d for d in graph.stages if d not in own]


def part_of(graph: CellGraph, digest: str) -> Part:
    """Return the part of the evaluation that a stage belongs to; the first one if it belongs to several."""
    if digest in graph.protect.values():
        return "defense"
    # A stage that `none` needs too failed without any defense, so "baseline" comes first.
    order: tuple[Part, ...] = ("baseline", "attack", "fidelity", "utility", "beside")
    return next(part for part in order if digest in graph.parts[part])


def _names(cell: Cell, graph: CellGraph) -> CellNames:
    facts = graph.facts
    return CellNames(
        task=cell.task,
        task_version=facts.task_version,
        pictures=facts.pictures,
        family=facts.family,
        concept=facts.concept,
        concept_kind=facts.concept_kind,
        base=facts.base,
        base_revision=facts.base_revision,
        defense=cell.defense,
        defense_version=facts.defense_version,
        defense_title=facts.defense_title,
        defense_kind=facts.defense_kind,
        hooks=facts.hooks,
        budget=facts.budget,
        perceptual_budget=facts.perceptual_budget,
        chain=cell.chain,
        links=tuple(ChainLink(attack=attack, version=version) for attack, version in facts.chain),
        profile=cell.profile,
        profile_version=facts.profile_version,
        seed=cell.seed,
        setting=cell.setting,
    )


def _utility(graph: CellGraph, reader: Reader) -> Utility:
    use, metric = graph.utility, graph.utility.metric
    s, floor, ceiling = (reader.mean(digest, metric) for digest in (use.s, use.floor, use.ceiling))
    whole = s is not None and floor is not None and ceiling is not None
    return Utility(
        g=reader.by_id(use.g, "caption_accuracy"),
        g_base=reader.by_id(use.g_base, "caption_accuracy"),
        g0=1 / graph.facts.captions,
        benign=BenignValues(s=s, floor=floor, ceiling=ceiling) if whole else None,  # type: ignore[arg-type]
        collapse=reader.by_id(use.g, "collapse"),
        collapse_base=reader.by_id(use.g_base, "collapse"),
    )


def _integrity(graph: CellGraph, reader: Reader) -> Integrity | None:
    found = {when: reader.metrics(digest) or None for when, digest in graph.utility.integrity.items()}
    # Before any fine-tuning a mask changes nothing.
    return Integrity(**{"before": None, "after_benign": None, **found}) if any(found.values()) else None


def _erasure(graph: CellGraph, reader: Reader) -> Erasure | None:
    found = {whose: reader.metrics(digest).get(graph.facts.metric) for whose, digest in graph.erasure.items()}
    return Erasure(**found) if any(found.values()) else None


def _purified(graph: CellGraph, reader: Reader) -> Purified | None:
    made = [reader.store.manifest(digest) for digest in graph.given[1:]]
    if not made:
        return None
    figures = [{**m.get("cost", {}), **m.get("meta", {})} for m in made if m is not None]
    pictures = int(figures[-1].get("pictures", 0)) if figures else 0
    if len(figures) < len(made) or not pictures:
        return Purified(params=graph.facts.purifiers)
    found = {what: reader.metrics(digest) or None for what, digest in graph.purified.items()}
    return Purified(
        params=graph.facts.purifiers,
        to_clean=found.get("clean"),
        to_protected=found.get("protected"),
        seconds_per_picture=round(sum(float(f.get("seconds", 0)) for f in figures) / pictures, 4),
        peak_reserved_gib=max(float(f.get("peak_reserved_gib", 0)) for f in figures),
        peak_process_gib=max(float(f.get("peak_process_gib", 0)) for f in figures),
    )


def _enforcement(graph: CellGraph, store: Artifacts) -> Enforcement | None:
    made = None if "freeze" not in graph.protect else store.manifest(graph.protect["freeze"])
    drawn, undefended = (store.manifest(of[graph.final]) for of in (graph.pictures, graph.ceiling_pictures))
    if made is None or drawn is None or undefended is None:
        return None
    own, free = (store.manifest(of["inputs"]["adapter"]) or {} for of in (drawn, undefended))
    ratio = {name: made["meta"][name] for name in ("tensors", "frozen_tensors", "parameters", "frozen_parameters")}
    return Enforcement(
        **ratio,
        binds="mask" in own.get("inputs", {}),
        enforced=_training(own),
        free=_training(free),
        ignored=graph.ceiling[graph.final],
    )


def _training(made: Mapping[str, Any]) -> Training | None:
    figures = {**made.get("cost", {}), **made.get("meta", {})}
    if "trained_parameters" not in figures:
        return None
    return Training(
        parameters=figures["trained_parameters"],
        optimiser_bytes=figures["optimiser_bytes"],
        seconds=round(float(figures.get("seconds", 0)), 3),
        peak_reserved_gib=float(figures.get("peak_reserved_gib", 0)),
        peak_process_gib=float(figures.get("peak_process_gib", 0)),
    )


def _cost(graph: CellGraph, store: Artifacts) -> dict[str, Cost]:
    costs: dict[str, Cost] = {}
    for digest in graph.stages:
        made = store.manifest(digest)
        if made is None or digest not in graph.parts["attack"]:
            continue
        # What every arm of a task begins from is no work of the defense.
        if made["stage"] == "protect" and digest in graph.start:
            continue
        figures = {**made.get("cost", {}), **made.get("meta", {})}
        before = costs.get(made["stage"], Cost(seconds=0, peak_reserved_gib=0, peak_process_gib=0))
        costs[made["stage"]] = Cost(
            seconds=round(before.seconds + float(figures.get("seconds", 0)), 3),
            peak_reserved_gib=max(before.peak_reserved_gib, float(figures.get("peak_reserved_gib", 0))),
            peak_process_gib=max(
                before.peak_process_gib,
                float(figures.get("peak_process_gib", 0)),
            ),
        )
    return costs


def _artefacts(graph: CellGraph, store: Artifacts) -> dict[str, str]:
    last = graph.final
    named = {
        **graph.protect,
        **({"purified": graph.given[-1]} if len(graph.given) > 1 else {}),
        "pictures": graph.pictures[last],
        "scores": graph.curve[last],
        "ceiling_pictures": graph.ceiling_pictures[last],
        "floor_pictures": graph.floor_pictures,
        "reference": graph.reference,
    }
    return {name: digest for name, digest in named.items() if store.path(digest) is not None}


def _environment(graph: CellGraph, store: Artifacts) -> dict[str, str]:
    made = store.manifest(graph.pictures[graph.final]) or {}
    found = {**made.get("versions", {}), **made.get("meta", {}).get("environment", {})}
    flat = {name: str(value) for name, value in found.items() if isinstance(value, (str, int, float))}
    return {"os": platform.system(), **flat}
