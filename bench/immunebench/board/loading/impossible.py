"""Values in a record that no run of the benchmark can give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from immunebench.records.record import Measured, Record

#: Least pictures from which equal values mean anything.
_FEWEST = 4
#: Difference of two means that no other kind of processor explains.
_MOVED = 0.1


def impossible(record: Record) -> Iterator[str]:
    """Yield one message, with the field, for each group of values that no run can give."""
    yield from _target(record)
    yield from _curve(record)
    yield from _pictures(record)
    yield from _counts(record)


def _target(record: Record) -> Iterator[str]:
    score, where = record.scores.get(record.metric), f"scores.{record.metric}.values"
    if score is None or len(score.values) < _FEWEST:
        return
    values = score.values
    floor = record.baseline.floor
    start = floor.scores.get(record.metric) if floor is not None else None
    untouched = () if start is None else start.values
    # A judge that reads nothing in a picture gives the same chance value each time; the floor then has it too.
    chance = {0.0, 1.0, *untouched}
    if len(set(values)) == 1 and values[0] not in chance and not _shows_nothing(record):
        yield f"{where}: are all {values[0]!r}, and no two pictures have the same score"
    # A defense that freezes all that could be trained leaves the start model as it is.
    if values == untouched and len(set(values)) > 1 and "freeze" not in record.cell.hooks:
        yield f"{where}: equal the floor's one by one, so that no attack has trained"


def _shows_nothing(record: Record) -> bool:
    """Return whether the pictures are wrecked, or all without a face: those share a score."""
    by_name = {name.partition("@")[0]: score.mean for name, score in record.scores.items()}
    faces = {name.partition("@")[0]: found.mean for name, found in record.beside.get("attacked", {}).items()}
    return by_name.get("collapse", 0.0) >= 1.0 or faces.get("fdfr", 0.0) >= 1.0


def _curve(record: Record) -> Iterator[str]:
    for name, score in record.scores.items():
        last = score.curve.get(record.final_step) if record.final_step else None
        if last is not None and len(last) > 1 and last != score.values:
            yield f"scores.{name}.per_step.{record.final_step}: differs from values, which are those of this step"


def _pictures(record: Record) -> Iterator[str]:
    if "protect_images" not in record.cell.hooks or record.fidelity is None:
        return
    by_name = {name.partition("@")[0]: (name, measured) for name, measured in record.fidelity.items()}
    change = by_name.get("linf")
    if change is None:
        return
    linf = change[1].values
    if max(linf) > 0:
        yield from _too_faithful(by_name, linf)
    elif record.cell.hooks == ("protect_images",) and _moved(record):
        yield f"fidelity.{change[0]}: no picture is changed, and the attack's scores are not those without a defense"


def _too_faithful(by_name: dict[str, tuple[str, Measured]], linf: tuple[float, ...]) -> Iterator[str]:
    for metric, perfect in (("ssim", 1.0), ("perceptual", 0.0)):
        name, measured = by_name.get(metric, ("", None))
        if measured is not None and len(measured.values) == len(linf):
            changed = [value for change, value in zip(linf, measured.values, strict=True) if change > 0]
            if all(value == perfect for value in changed):
                yield f"fidelity.{name}.values: are exactly {perfect} of pictures that are changed"


def _moved(record: Record) -> bool:
    score, ceiling = record.scores.get(record.metric), record.baseline.ceiling
    undefended = None if ceiling is None else ceiling.scores.get(record.metric)
    return score is not None and undefended is not None and abs(score.mean - undefended.mean) > _MOVED


def _counts(record: Record) -> Iterator[str]:
    made, score = record.attestation, record.scores.get(record.metric)
    if made is None or score is None:
        return
    if made.pictures % made.prompts:
        yield f"attestation.pictures: {made.pictures} are no multiple of {made.prompts} prompts"
    if len(score.values) != made.pictures:
        yield f"scores.{record.metric}.n: is {len(score.values)}, and the record rests on {made.pictures} pictures"
    for name, part in (("floor", record.baseline.floor), ("ceiling", record.baseline.ceiling)):
        found = None if part is None else part.scores.get(record.metric)
        if found is not None and len(found.values) != made.pictures:
            where = f"baseline.{name}.scores.{record.metric}.n"
            yield f"{where}: is {len(found.values)}, and the record rests on {made.pictures} pictures"
