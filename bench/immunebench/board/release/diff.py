"""Comparison of two boards, releases or entries, on the cells that are comparable."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from immunebench.board.release.snapshot import CellScore, Snapshot, Standing
from immunebench.board.statistics.paired import mean_difference
from immunebench.board.statistics.stratified import estimate


@dataclass(frozen=True)
class CellDifference:
    """A (or P, of rules 1) of both sides on one (task, chain), and their difference."""

    task: str
    family: str
    chain: str
    a: float
    b: float
    headline: bool = True

    @property
    def difference(self) -> float:
        """Score of side B minus that of side A."""
        return self.b - self.a


@dataclass(frozen=True)
class EntryDifference:
    """Two rows compared on the cells that both have.

    Attributes
    ----------
    a, b
        ``defense@version``.
    difference
        Difference B - A of the headline: mean over families of the mean over tasks that both have with the same chains;
        None if no task is comparable.
    interval
        95 % interval of the difference, paired by task; None with too few tasks.
    cells
        One per shared (task, chain).
    apart
        One line per cell that is not comparable, with the reason.
    measure
        ``A``, or ``P`` (least over shared chains) where one side is a release of rules 1.
    """

    a: str
    b: str
    difference: float | None
    interval: tuple[float, float] | None
    cells: tuple[CellDifference, ...]
    apart: tuple[str, ...]
    measure: str = "A"

    @property
    def verdict(self) -> str:
        """Result for B: ``higher``, ``lower``, ``no difference seen``, ``no interval`` or ``nothing compares``."""
        if self.difference is None:
            return "nothing compares"
        if self.interval is None:
            return "no interval"
        low, high = self.interval
        return "higher" if low > 0 else "lower" if high < 0 else "no difference seen"

    def value(self) -> dict[str, Any]:
        """The comparison as JSON types."""
        return asdict(self) | {"verdict": self.verdict}


@dataclass(frozen=True)
class BoardDifference:
    """Comparison of two boards of one suite: rows on both, rows on one side only, and other differences."""

    suite: str
    entries: tuple[EntryDifference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]

    def value(self) -> dict[str, Any]:
        """The comparison as JSON types."""
        return asdict(self) | {"entries": [entry.value() for entry in self.entries]}


def compare_boards(a: Snapshot, b: Snapshot) -> BoardDifference:
    """Compare all defenses that are on both boards."""
    rows_a, rows_b = ({row.defense: row for row in snapshot.rows} for snapshot in (a, b))
    shared = [row.defense for row in b.rows if row.defense in rows_a]
    return BoardDifference(
        suite=a.suite,
        entries=tuple(compare_entries(rows_a[defense], rows_b[defense]) for defense in shared),
        only_a=tuple(sorted(row.name for row in a.rows if row.defense not in rows_b)),
        only_b=tuple(sorted(row.name for row in b.rows if row.defense not in rows_a)),
        notes=tuple(_notes(a, b)),
    )


def compare_entries(a: Standing, b: Standing) -> EntryDifference:
    """Compare two rows, of one board or of two.

    Cells with different comparability keys, cells on one side only, and cells that the power gate excludes are left
    out and listed.
    """
    cells: list[CellDifference] = []
    apart: list[str] = []
    uneven: set[str] = set()
    measure = "A" if a.tasks is not None and b.tasks is not None else "P"
    ours, theirs = _by_place(a.scores), _by_place(b.scores)
    for place in sorted(ours.keys() | theirs.keys()):
        left, right = ours.get(place), theirs.get(place)
        reason = _apart(left, right)
        if reason:
            apart.append(f"{'/'.join(place)}: {reason}")
            uneven |= {place[0]} if any(side is not None and side.headline for side in (left, right)) else set()
        elif left and right:
            one, two = (left.a, right.a) if measure == "A" else (left.p, right.p)
            if one is not None and two is not None:
                cells.append(CellDifference(left.task, left.family, left.chain, one, two, left.headline))
    by_task, families = _areas(a, b, uneven) if measure == "A" else _worst(cells)
    found = estimate(by_task, families) if by_task else None
    return EntryDifference(
        a=a.name,
        b=b.name,
        difference=mean_difference(by_task, families) if by_task else None,
        interval=None if found is None else found.interval(),
        cells=tuple(cells),
        apart=tuple(apart),
        measure=measure,
    )


def _areas(a: Standing, b: Standing, uneven: Collection[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Return the difference of A by task, where both sides met the same comparable chains, and the families."""
    ours, theirs = ({task.task: task for task in side.tasks or ()} for side in (a, b))
    shared = sorted((ours.keys() & theirs.keys()) - set(uneven))
    return {t: theirs[t].area - ours[t].area for t in shared}, {t: ours[t].family for t in shared}


def _worst(cells: Iterable[CellDifference]) -> tuple[dict[str, float], dict[str, str]]:
    """Return the difference of the least P over chains per task, each side with its own worst chain; and families."""
    groups: dict[str, list[CellDifference]] = defaultdict(list)
    for cell in cells:
        if cell.headline:
            groups[cell.task].append(cell)
    differences = {task: min(c.b for c in group) - min(c.a for c in group) for task, group in groups.items()}
    return differences, {task: group[0].family for task, group in groups.items()}


def _apart(a: CellScore | None, b: CellScore | None) -> str:
    if a is None or b is None:
        return f"only {'B' if a is None else 'A'} has it"
    if a.key != b.key:
        return f"'{a.key}' and '{b.key}' do not compare"
    for side, score in (("A", a), ("B", b)):
        if score.p is None and score.a is None:
            return f"{score.status} in {side}"
    return ""


def _by_place(scores: Iterable[CellScore]) -> dict[tuple[str, str], CellScore]:
    return {(score.task, score.chain): score for score in scores}


def _notes(a: Snapshot, b: Snapshot) -> Iterator[str]:
    if a.name != b.name:
        yield f"{a.name} against {b.name}: cells compare only within one suite version"
    if a.rules and b.rules and a.rules != b.rules:
        yield f"the rules differ: {a.rules[:16]} and {b.rules[:16]}"
    if a.results == b.results:
        yield "both are made of the same records"
    for side, snapshot in (("A", a), ("B", b)):
        yield from (f"{side} is refused as a board: {reason}" for reason in snapshot.refusals)
