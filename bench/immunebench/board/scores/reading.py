"""Conversion of a record to the `Measurement` that the board uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from immunebench.board.scores.integrity import integrity_share
from immunebench.board.scores.measurement import Beside, DataSide, Further, Means, Measurement
from immunebench.declared import scoring

if TYPE_CHECKING:
    from immunebench.records.record import Baseline, Measured, Record, Score


def measurement(record: Record, *, vouched: bool = True) -> Measurement:
    """Return the values of a record that the board uses; `vouched` says whether it is official or reproduced."""
    cell, baseline, utility = record.cell, record.baseline, record.utility
    score = record.scores.get(record.metric)
    anchors, benign, fidelity = record.anchors, utility.benign, record.fidelity or {}
    by_name = {name.partition("@")[0]: measured for name, measured in fidelity.items()}
    agreement, change = by_name.get(scoring.FIDELITY_METRIC), by_name.get("linf")
    return Measurement(
        task=cell.task,
        family=cell.family,
        defense=cell.defense,
        chain=cell.chain,
        seed=cell.seed,
        profile=cell.profile,
        kind=cell.defense_kind,
        version=cell.defense_version,
        key=record.comparability,
        status=record.status,
        failed_part=record.failure.part if record.failure is not None else "",
        m_def=score.values if score is not None else (),
        m_none=_values(_score(baseline.ceiling, record.metric)),
        m_floor=_values(_score(baseline.floor, record.metric)),
        m_floor_defended=_values(_score(baseline.defended_floor, record.metric)),
        final=record.final_step,
        curve=score.means if score is not None else {},
        curve_none=_means_by_step(_score(baseline.ceiling, record.metric)),
        base=cell.base,
        anchored=anchors is not None,
        m_same=anchors.m_same if anchors is not None else 0.0,
        m_other=anchors.m_other if anchors is not None else 0.0,
        g=utility.g,
        g_base=utility.g_base,
        g0=utility.g0,
        benign=benign.s if benign is not None else None,
        benign_floor=benign.floor if benign is not None else None,
        benign_ceiling=benign.ceiling if benign is not None else None,
        fidelity=None if agreement is None else min(1.0, max(0.0, agreement.mean)),
        changes_images="protect_images" in cell.hooks,
        changes_model="protect_images" not in cell.hooks or "protect_model" in cell.hooks,
        linf=None if change is None else max(change.values),
        budget=cell.budget,
        perceptual_budget=cell.perceptual_budget,
        data=data_side(record),
        changes={name: max(m.values) if name == "linf" else m.mean for name, m in sorted(by_name.items())},
        seconds={stage: cost.seconds for stage, cost in record.cost.items()},
        beside=beside(record),
        metric=record.metric,
        further=_further(record),
        against=_against(record),
        suite=f"{record.suite}@{record.suite_version}",
        setting=cell.setting,
        enforcement=record.enforcement,
        vouched=vouched,
    )


def beside(record: Record) -> Beside:
    """Return a record's side measures."""
    attacked, unseen, integrity = record.scores, record.unseen or {}, record.integrity
    erasure = record.erasure
    return Beside(
        prompt_accuracy=_mean(attacked, "prompt_accuracy"),
        prompt_chance=record.prompt_chance if _mean(attacked, "prompt_accuracy") is not None else None,
        nearest=_mean(attacked, "nearest_training"),
        nearest_unseen=_mean(unseen, "nearest_training"),
        collapse=_mean(attacked, "collapse"),
        collapse_unseen=_mean(unseen, "collapse"),
        collapse_unrelated=record.utility.collapse,
        integrity_before=None if integrity is None else _mean(integrity.before or {}, "perceptual"),
        integrity_after=None if integrity is None else _mean(integrity.after_benign or {}, "perceptual"),
        integrity_floor=None if integrity is None else _mean(integrity.floor or {}, "perceptual"),
        integrity_ceiling=None if integrity is None else _mean(integrity.ceiling or {}, "perceptual"),
        integrity_share=None if integrity is None or (share := integrity_share(integrity)) is None else share.value,
        concept_base=None if erasure is None or erasure.base is None else erasure.base.mean,
        concept_released=None if erasure is None or erasure.released is None else erasure.released.mean,
        concept_after_benign=_drift(record),
    )


def _drift(record: Record) -> float | None:
    """Return what honest fine-tuning brings back of an erased concept.

    None where it cannot be told: where real pictures of what was taught are nearer to the concept than to strangers.
    """
    erasure, anchors = record.erasure, record.anchors
    if erasure is None or erasure.after_benign is None or erasure.benign is None or anchors is None:
        return None
    alike = erasure.benign.mean > (anchors.m_same + anchors.m_other) / 2
    return None if alike else erasure.after_benign.mean


def _mean(found: Mapping[str, Measured], metric: str) -> float | None:
    return next((score.mean for name, score in found.items() if name.partition("@")[0] == metric), None)


def data_side(record: Record) -> DataSide:
    """Return a record's measures of protected, purified and generated pictures."""
    cleaned = record.purified
    return DataSide(
        fidelity={name.partition("@")[0]: found.values for name, found in (record.fidelity or {}).items()},
        params={} if cleaned is None else cleaned.params,
        to_clean=_means(None if cleaned is None else cleaned.to_clean),
        to_protected=_means(None if cleaned is None else cleaned.to_protected),
        seconds=None if cleaned is None else cleaned.seconds_per_picture,
        memory=None if cleaned is None else cleaned.peak_reserved_gib or cleaned.peak_process_gib,
        beside={whose: _means(found) for whose, found in record.beside.items()},
    )


def _means(found: Mapping[str, Measured] | None) -> Means:
    return {name.partition("@")[0]: measured.mean for name, measured in (found or {}).items()}


def _further(record: Record) -> dict[str, Further]:
    floor, ceiling = record.baseline.floor, record.baseline.ceiling
    names = set(record.scores) | set(ceiling.scores if ceiling is not None else ())
    return {
        name: Further(_values(record.scores.get(name)), _values(_score(ceiling, name)), _values(_score(floor, name)))
        for name in sorted(names - {record.metric})
    }


def _against(record: Record) -> tuple[str, ...]:
    # The parameters of a layered defense are nested under the id of each layer.
    tables = [record.params, *(part for part in record.params.values() if isinstance(part, dict))]
    named = [table["against"] for table in tables if "against" in table]
    lists = [value if isinstance(value, list | tuple) else [value] for value in named]
    return tuple(dict.fromkeys(str(name) for names in lists for name in names))


def _score(baseline: Baseline | None, metric: str) -> Score | None:
    return None if baseline is None else baseline.scores.get(metric)


def _means_by_step(score: Score | None) -> dict[int, float]:
    return {} if score is None else score.means


def _values(score: Score | None) -> tuple[float, ...]:
    return () if score is None else score.values
