"""Agreement between records: what is measured without a defense is the same for all entries of a cell.

An entry that reports a higher undefended score, a lower floor or other anchors of its own would gain protection that no
defense has. What counts is what the best vouched records say; the others of the cell are held to it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from immunebench.declared import scoring

if TYPE_CHECKING:
    from immunebench.board.loading.marks import Mark
    from immunebench.records.record import Baseline, Record

_TRUST: Mapping[str, int] = {"official": 2, "reproduced": 1, "self-reported": 0}
#: Where two records name the same of these, the same code on the same machine made the same numbers.
MACHINE = ("os", "platform", "processor", "instructions", "device", "torch", "diffusers", "python", "gpu")
#: Of one machine by its name, which may stand for several sets of instructions (docs/submitting.md, Tolerances).
_EXACT = 1e-4


@dataclass(frozen=True)
class Placed:
    """A record with the file and line that it stands in, and the mark of the file."""

    file: str
    line: int
    record: Record
    mark: Mark


@dataclass(frozen=True)
class _Claim:
    """What one record says of a number that all records of its cell share."""

    by: Placed
    field: str
    value: float | str

    @property
    def rank(self) -> int:
        return _TRUST[self.by.mark]

    @property
    def machine(self) -> tuple[str | None, ...]:
        return tuple(self.by.record.env.get(name) for name in MACHINE)

    def agrees(self, other: _Claim) -> bool:
        if isinstance(self.value, str) or isinstance(other.value, str):
            return self.value == other.value
        same = self.machine == other.machine and any(self.machine) and self.by.record.code == other.by.record.code
        allowed = _EXACT if same else scoring.ANCHORS_AGREE if "anchors" in self.field else scoring.BASELINES_AGREE
        return math.isclose(self.value, other.value, rel_tol=0.0, abs_tol=allowed)


def disagreements(placed: Iterable[Placed]) -> Iterator[tuple[Placed, str]]:
    """Yield each record that disagrees with the others of its cell, with a message that names the first such field."""
    groups: dict[tuple[object, ...], list[_Claim]] = defaultdict(list)
    for place in placed:
        for key, claim in _claims(place):
            groups[key].append(claim)
    told: set[tuple[str, int]] = set()
    for claims in groups.values():
        for claim, said in _outliers(claims):
            where = claim.by.file, claim.by.line
            if where not in told:
                told.add(where)
                yield claim.by, said


def _outliers(claims: Sequence[_Claim]) -> Iterator[tuple[_Claim, str]]:
    best = max(claim.rank for claim in claims)
    able = [claim for claim in claims if claim.rank == best]
    votes = {id(claim): _support(claim, able) for claim in able}
    most = max(votes.values())
    leaders = [claim for claim in able if votes[id(claim)] == most]
    leader = leaders[0]
    tied = next((other for other in leaders if not other.agrees(leader)), None)
    for claim in claims:
        against = tied if tied is not None and claim.agrees(leader) else leader
        if tied is not None or not claim.agrees(leader):
            other = f"{against.by.file}:{against.by.line} ({against.by.mark}) says {_said(against.value)}"
            yield claim, f"{claim.field}: is {_said(claim.value)}, and {other} of the same cell"


def _said(value: float | str) -> str:
    return f"{value[:12]}..." if isinstance(value, str) else f"{value:.6g}"


def _support(claim: _Claim, claims: Iterable[_Claim]) -> tuple[int, bool]:
    """Return how many files agree with a claim, and whether `none`, which the number belongs to, is among them."""
    files = {other.by.file: other.by.record.cell.defense for other in claims if claim.agrees(other)}
    return len(files), "none" in files.values()


def _claims(place: Placed) -> Iterator[tuple[tuple[object, ...], _Claim]]:
    record, use = place.record, place.record.utility
    cell = record.cell
    measured = (record.comparability, cell.base, cell.base_revision)
    erases = cell.defense_kind == "erasure"

    def claim(kind: str, field: str, value: float | str, *more: object) -> tuple[tuple[object, ...], _Claim]:
        return (*measured, kind, *more), _Claim(place, field, value)

    for name, stage in _attested(record):
        # Equal stages on one kind of machine give equal bytes; of another kind nothing is known.
        machine = tuple(record.env.get(part) for part in MACHINE)
        if any(machine):
            assert record.attestation is not None
            yield claim("made of", f"attestation.files.{name}", record.attestation.files[name], stage, machine)
    if record.anchors is not None:
        yield claim("m_same", "anchors.m_same", record.anchors.m_same)
        yield claim("m_other", "anchors.m_other", record.anchors.m_other)
    for name, part in (("floor", record.baseline.floor), ("ceiling", record.baseline.ceiling)):
        for field, value in _means(f"baseline.{name}", part):
            # The last two parts of a field are metric and step.
            yield claim(name, field, value, cell.seed, field.partition(".scores.")[2])
    if cell.defense == "none":
        undefended = {
            f"{name}.{step}": mean for name, score in record.scores.items() for step, mean in score.means.items()
        }
        for name, mean in undefended.items():
            yield claim("ceiling", f"scores.{name}", mean, cell.seed, name)
    if record.erasure is not None and record.erasure.base is not None:
        yield claim("erasure", "erasure.base.mean", record.erasure.base.mean, cell.seed)
    # An erasure is held against the untouched base, the others against the task's start model.
    if cell.family == "relearn" and "+" in cell.defense:
        return  # Whether a layered entry begins with an erasure is not in its record.
    if use.g_base is not None:
        yield claim("g_base", "utility.g_base", use.g_base, cell.seed, erases)
    if use.benign is not None:
        yield claim("benign floor", "utility.benign.floor", use.benign.floor, cell.seed, erases)
        yield claim("benign ceiling", "utility.benign.ceiling", use.benign.ceiling, cell.seed, erases)


def _attested(record: Record) -> Iterator[tuple[str, str]]:
    """Yield the name of each attested artifact that no defense has touched, with the digest of its stage."""
    made, baseline = record.attestation, record.baseline
    parts = (("floor_scores", baseline.floor), ("ceiling_scores", baseline.ceiling), ("anchors", record.anchors))
    for name, part in parts:
        if made is not None and part is not None and name in made.files:
            yield name, part.digest


def _means(where: str, part: Baseline | None) -> Iterator[tuple[str, float]]:
    """Yield the mean of each metric, by step where the steps were recorded."""
    for name, score in {} if part is None else part.scores.items():
        steps = score.means or {0: score.mean}
        for step, mean in steps.items():
            yield f"{where}.scores.{name}.{step}", mean
