"""Ranks of the rows of a board by headline A, from simultaneous comparisons."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from immunebench.board.scores.model import Row
from immunebench.board.statistics.stratified import differences, significant
from immunebench.declared import scoring


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Rows with ranks, the smallest difference that is told in 80 %, and the note that explains intervals and ranks."""

    rows: tuple[Row, ...]
    smallest_difference: float | None
    rule: str


def with_ranks(rows: Sequence[Row], seeds: int, deviation: float | None) -> Ranked:
    """Rank rows within their track and budget class.

    In order of falling A the first row opens group 1; each following row joins while it is not significantly different
    from the row that opened the group, and the first that is opens the next group. All pairs of a class are tested
    together, with Holm's correction.

    Parameters
    ----------
    rows
        Rows with `Row.area`.
    seeds
        Number of seeds of the entries.
    deviation
        Standard deviation between seeds of `none`, in anchored similarity; None where it was not measured.
    """
    leagues: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.a_interval is not None and row.passes and not row.control:
            leagues[row.league].append(row)
    done: dict[str, Row] = {}
    widths: list[float] = []
    for members in leagues.values():
        members.sort(key=lambda row: (-(row.a or 0.0), row.defense))
        values = [{task.task: task.area for task in row.area.tasks} for row in members if row.area is not None]
        families = {task.task: task.family for row in members if row.area for task in row.area.tasks}
        pairs = differences(values, families)
        told = significant(pairs)
        leader, number = 0, 1
        for at, row in enumerate(members):
            if at and told[leader, at]:
                leader, number = at, number + 1
            alike = [other.defense for n, other in enumerate(members) if n != at and not told[min(n, at), max(n, at)]]
            done[row.defense] = dataclasses.replace(row, rank=number, not_apart=tuple(alike))
        widths += [paired.power_80 for paired in pairs.values() if paired is not None]
    ranked = tuple(done.get(row.defense, row) for row in rows)
    return Ranked(ranked, median(widths) if widths else None, _rule(ranked, seeds, deviation))


def _rule(rows: Iterable[Row], seeds: int, deviation: float | None) -> str:
    """Return one sentence that explains which intervals and ranks a board has."""
    rows = list(rows)
    if all(row.a_interval is None for row in rows):
        text = (
            f"no interval, no ranks (at least {scoring.INTERVAL_TASKS} tasks needed in a track, "
            f"{scoring.INTERVAL_TASKS_FAMILY} in each of its families)"
        )
    else:
        text = (
            f"{scoring.CONFIDENCE:.0%} intervals of A: Student's t over tasks within families, nothing clipped; rows "
            "of one track and budget class share a rank where they are not told apart from the group's best, all pairs "
            "tested together (Holm)"
        )
        if any(row.a_interval is None for row in rows if row.a is not None):
            text += "; rows of tracks with too few informative tasks have neither"
    if seeds == 1 and deviation is not None:
        text += f"; one seed: another would move the similarity of one task by {deviation:.2f} (seeds of none)"
    return text
