"""Checks of records beyond the schema: known metrics, ranges, and values that are consistent with each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Literal

from immunebench.board.loading.impossible import impossible
from immunebench.declared import scoring
from immunebench.metrics.table import METRICS
from immunebench.store.graph import comparability_key, task_name

if TYPE_CHECKING:
    from immunebench.records.record import Measured, Record

Complaint = tuple[Literal["field", "metric", "range", "inconsistent", "impossible"], str]

#: Tolerance above 1 for the cosine of equal unit vectors in single precision.
_ROUNDING = 1e-4


def complaint(record: Record) -> Complaint | None:
    """Return a message on the first fault of a record; None if it is valid."""
    for check in (_date, _metrics, _ranges, _agreement):
        for found in check(record):
            return found
    return next((("impossible", said) for said in impossible(record)), None)


def comparability(record: Record) -> str:
    """Return the comparability key computed from a record's names and versions."""
    cell = record.cell
    suite, task = f"{record.suite}@{record.suite_version}", task_name(cell.task, cell.task_version, cell.pictures)
    links = ((link.attack, link.version) for link in cell.links)
    profile = f"{cell.profile}@{cell.profile_version}"
    return comparability_key(suite, task, links, record.metric, profile, cell.setting)


def _date(record: Record) -> Iterator[Complaint]:
    try:
        if record.created:
            datetime.fromisoformat(record.created)
    except ValueError:
        yield "field", f"created: must be a time such as 2026-11-23T18:06:12+00:00, not {record.created!r}"


def _metrics(record: Record) -> Iterator[Complaint]:
    for where, name, _ in _measured(record):
        yield from _known(where, name)
    yield from _known("metric", record.metric)
    target = scoring.TARGET_METRIC.get(record.cell.family)
    allowed = {target} if record.cell.family == "relearn" else {target, scoring.TRAIT_METRIC}
    if target is not None and record.metric.partition("@")[0] not in allowed:
        yield "metric", f"metric: family {record.cell.family!r} is measured by {target!r}, not {record.metric!r}"
    if record.status == "ok" and record.metric not in record.scores:
        yield "inconsistent", f"scores: status is 'ok' and {record.metric!r} is missing"


def _known(where: str, name: str) -> Iterator[Complaint]:
    metric, _, version = name.partition("@")
    known = METRICS.get(metric)
    if known is None:
        yield "metric", f"{where}: unknown metric {name!r} (known: {', '.join(METRICS)})"
    elif not version.isdecimal() or not 1 <= int(version) <= known.version:
        yield "metric", f"{where}: unknown version of {metric!r}: {name!r} (newest: {known.key!r})"


def _ranges(record: Record) -> Iterator[Complaint]:
    for where, name, measured in _measured(record):
        steps = chain.from_iterable(getattr(measured, "curve", {}).values())
        for value in (*measured.values, measured.mean, *steps):
            yield from _within(where, value, *METRICS[name.partition("@")[0]].range)
    bounds = METRICS[record.metric.partition("@")[0]].range
    anchors, use = record.anchors, record.utility
    for name, value in () if anchors is None else (("m_same", anchors.m_same), ("m_other", anchors.m_other)):
        yield from _within(f"anchors.{name}", value, *bounds)
    for name, rate in (("g", use.g), ("g_base", use.g_base), ("g0", use.g0)):
        if rate is not None:
            yield from _within(f"utility.{name}", rate, 0, 1)
    if use.benign is not None:
        # The benign concept of a relearn task belongs to another family and uses that family's target metric.
        span = METRICS["image_similarity"].range if record.cell.family == "relearn" else bounds
        for name in ("s", "floor", "ceiling"):
            yield from _within(f"utility.benign.{name}", getattr(use.benign, name), *span)
    chances = (("utility.collapse", use.collapse), ("utility.collapse_base", use.collapse_base))
    for name, rate in (*chances, ("prompt_chance", record.prompt_chance)):
        if rate is not None:
            yield from _within(name, rate, 0, 1)
    for stage, cost in record.cost.items():
        for name in ("seconds", "peak_reserved_gib", "peak_process_gib"):
            yield from _within(f"cost.{stage}.{name}", getattr(cost, name), 0, None)


def _within(where: str, value: float, least: float | None, most: float | None) -> Iterator[Complaint]:
    if (least is not None and value < least - _ROUNDING) or (most is not None and value > most + _ROUNDING):
        allowed = f"in [{least:g}, {most:g}]" if least is not None and most is not None else f"at least {least:g}"
        yield "range", f"{where}: must be {allowed}, not {value!r}"


def _agreement(record: Record) -> Iterator[Complaint]:
    for where, _, measured in _measured(record):
        if measured.n != len(measured.values):
            yield "inconsistent", f"{where}.n: is {measured.n}, and there are {len(measured.values)} values"
        mean = math.fsum(measured.values) / len(measured.values)
        if not math.isclose(mean, measured.mean, rel_tol=1e-5, abs_tol=1e-5):
            yield "inconsistent", f"{where}.mean: is {measured.mean!r}, and the mean of its values is {mean!r}"
    if (record.status == "ok") != (record.failure is None) and record.status != "skipped":
        yield "inconsistent", f"status: is {record.status!r} {'with' if record.failure else 'without'} a failed stage"
    links = "+".join(link.attack for link in record.cell.links)
    if record.cell.chain != links:
        yield "inconsistent", f"cell.chain: is {record.cell.chain!r}, and its links are {links!r}"
    key = comparability(record)
    if record.comparability != key:
        yield "inconsistent", f"comparability: is {record.comparability!r}, and its names and versions give {key!r}"


def _measured(record: Record) -> Iterator[tuple[str, str, Measured]]:
    """Yield every set of values in a record with its dotted path and its metric."""
    baseline, integrity, erasure = record.baseline, record.integrity, record.erasure
    parts = (
        ("floor", baseline.floor),
        ("defended_floor", baseline.defended_floor),
        ("ceiling", baseline.ceiling),
    )
    groups: list[tuple[str, Mapping[str, Measured]]] = [("scores", record.scores), ("fidelity", record.fidelity or {})]
    groups.append(("unseen", record.unseen or {}))
    if integrity is not None:
        groups += [
            ("integrity.before", integrity.before or {}),
            ("integrity.after_benign", integrity.after_benign or {}),
        ]
    for whose, erased in (("base", erasure and erasure.base), ("released", erasure and erasure.released)):
        groups.append((f"erasure.{whose}", {record.metric: erased} if erased else {}))
    groups += [(f"beside.{whose}", found) for whose, found in record.beside.items()]
    if record.purified is not None:
        cleaned = record.purified
        groups += [("purified.to_clean", cleaned.to_clean or {}), ("purified.to_protected", cleaned.to_protected or {})]
    groups += [(f"baseline.{name}.scores", part.scores) for name, part in parts if part is not None]
    for where, group in groups:
        for name, measured in group.items():
            yield f"{where}.{name}", name, measured
