"""Intervals, the brittle badge and ranks of the rows of a board."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Final

import numpy as np

from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import Power, Row, TaskScore
from immunebench.board.statistics.bootstrap import (
    Interval,
    Resampled,
    Statistic,
    mean_over_tasks,
    paired,
    resample,
    tie_groups,
)
from immunebench.board.statistics.samples import Met, Shape, met, samples_of, seed_deviation, shape
from immunebench.declared import scoring

Where = tuple[str, str]
Cells = Mapping[str, Sequence[Measurement]]
Place = tuple[Statistic, int]

HEADLINE: Final[tuple[scoring.Role, ...]] = ("headline",)


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Rows with intervals and ranks, the smallest significant difference, and the note that explains both."""

    rows: tuple[Row, ...]
    smallest_difference: float | None
    rule: str


def enough_tasks(task_scores: Iterable[TaskScore]) -> bool:
    """Return whether a row has enough informative tasks for an interval: in total, and in each of its families."""
    tasks: dict[str, set[str]] = defaultdict(set)
    for score in task_scores:
        if score.p is not None and scoring.role(score.chain) == "headline":
            tasks[score.family].add(score.task)
    sizes = [len(names) for names in tasks.values()]
    return sum(sizes) >= scoring.INTERVAL_TASKS and min(sizes) >= scoring.INTERVAL_TASKS_FAMILY


def with_intervals(
    rows: Sequence[Row], cells: Cells, power: Mapping[Where, Power | None], families: Mapping[str, str]
) -> Ranked:
    """Add intervals, the badge `brittle` and ranks to rows.

    Parameters
    ----------
    rows
        One per defense.
    cells
        Measurements by defense.
    power
        Result of the power gate per (task, chain).
    families
        Family of each task.
    """
    deviation = seed_deviation((cell for group in cells.values() for cell in group), power)
    places: dict[str, Place] = {}
    done: dict[str, Row] = {}
    for members in grouped(rows, cells).values():
        names = [row.defense for row, _ in members]
        drawn = resample(samples_of([found for _, found in members], power, families, deviation or 0.0))
        use = _use([row for row, _ in members], families)
        spans = _Spans(drawn, use)
        for number, (row, _) in enumerate(members):
            done[row.defense] = spans.added(row, number)
            places[names[number]] = drawn.headline, number
    for name, row in done.items():
        done[name] = _with_ladder(row, cells[name], power, families, deviation or 0.0)
    merged = [done.get(row.defense, row) for row in rows]
    ranked, widths = _ranks(merged, places)
    rule = interval_rule(ranked, [cell for group in cells.values() for cell in group], deviation)
    return Ranked(tuple(ranked), median(widths) if widths else None, rule)


def headline_intervals(
    rows: Iterable[Row], cells: Cells, power: Mapping[Where, Power | None], families: Mapping[str, str]
) -> dict[str, Interval]:
    """Return the interval of the headline by defense, without other intervals."""
    found: dict[str, Interval] = {}
    deviation = seed_deviation((cell for group in cells.values() for cell in group), power) or 0.0
    for members in grouped(rows, cells).values():
        if not enough_tasks(members[0][0].scores):
            continue
        drawn = resample(samples_of([m for _, m in members], power, families, deviation), detail=False)
        for (row, _), interval in zip(members, drawn.headline.intervals(), strict=True):
            if interval is not None:
                found[row.defense] = interval
    return found


def grouped(rows: Iterable[Row], cells: Cells) -> dict[Shape, list[tuple[Row, Met]]]:
    """Return rows that have a headline, grouped by the tasks, chains and seeds that they were evaluated on."""
    groups: dict[Shape, list[tuple[Row, Met]]] = defaultdict(list)
    for row in rows:
        found = met(row, cells[row.defense], HEADLINE) if row.p is not None else {}
        if found:
            groups[shape(found)].append((row, found))
    return dict(groups)


def interval_rule(rows: Iterable[Row], cells: Sequence[Measurement], deviation: float | None) -> str:
    """Return one sentence that explains which intervals and ranks a board has."""
    small = (
        f"no interval, no ranks (at least {scoring.INTERVAL_TASKS} tasks needed in a track, "
        f"{scoring.INTERVAL_TASKS_FAMILY} in each of its families)"
    )
    if all(row.p_interval is None for row in rows):
        return small
    text = (
        f"{scoring.CONFIDENCE:.0%} intervals: {scoring.DRAWS:,} draws of tasks within families,"
        " then of seeds and pictures,"
        " the minimum over chains anew in each; rows of one track and budget class share a rank where the paired "
        "difference to the group's best holds 0"
    )
    if any(row.p_interval is None for row in rows if row.p is not None):
        text += "; rows of tracks with too few informative tasks have neither"
    if any(row.p_interval is not None and not row.control and _at_a_bound(row.p_interval) for row in rows):
        text += "; an interval that ends at 0 or 1 is conservative, the truth cannot lie beyond that end"
    if len({cell.seed for cell in cells if cell.defense != "none"}) != 1:
        return text
    if deviation is None:
        return text + "; one seed, and none to take its variance from: it shows in the spread over tasks alone"
    return (
        text + f"; one seed: its standard deviation of {deviation:.2f} in similarity is that of further seeds of none"
    )


def _at_a_bound(interval: Interval) -> bool:
    return interval[0] <= 0.0 or interval[1] >= 1.0


@dataclasses.dataclass(frozen=True)
class _Spans:
    """Intervals of the rows of one group."""

    drawn: Resampled
    use: Statistic | None

    def added(self, row: Row, number: int) -> Row:
        """Return a copy of the row with its intervals."""
        scores = tuple(self._fixed(score, number) for score in row.scores)
        if not enough_tasks(row.scores):
            return dataclasses.replace(row, scores=scores)
        tasks: dict[str, set[str]] = defaultdict(set)
        for score in scores:
            if score.p is not None:
                tasks[score.family].add(score.task)
        wide = {name: s for name, s in self.drawn.families.items() if len(tasks[name]) >= scoring.FAMILY_TASKS}
        return dataclasses.replace(
            row,
            scores=scores,
            p_interval=_around(self.drawn.headline, number, row.p),
            u_interval=None if self.use is None else _around(self.use, number, row.u),
            p_family_interval=_known({n: _around(s, number, row.p_family.get(n)) for n, s in wide.items()}),
            p_chain_interval=_known({n: _around(s, number, row.p_chain.get(n)) for n, s in self.drawn.chains.items()}),
        )

    def _fixed(self, score: TaskScore, number: int) -> TaskScore:
        ends = self.drawn.tasks.get((score.task, score.chain))
        if ends is None or score.p is None:
            return score
        low, high = (float(end) for end in ends[number])
        return dataclasses.replace(score, interval=(min(low, score.p), max(high, score.p)))


def _around(statistic: Statistic, number: int, value: float | None) -> Interval | None:
    """Return the interval of a row, widened where rounding errors would exclude the value itself."""
    interval = statistic.interval(number)
    return None if interval is None or value is None else (min(interval[0], value), max(interval[1], value))


def _known(intervals: Mapping[str, Interval | None]) -> dict[str, Interval]:
    return {name: interval for name, interval in intervals.items() if interval is not None}


def _use(rows: Sequence[Row], families: Mapping[str, str]) -> Statistic | None:
    """Bootstrap U, which has one value per task, over tasks; None where rows were evaluated on different tasks."""
    tasks = [utility.task for utility in rows[0].utilities]
    values = [[utility.u for utility in row.utilities] for row in rows]
    if any([u.task for u in row.utilities] != tasks for row in rows):
        return None
    # A row without U must not remove the intervals of the other rows.
    known = np.array([[np.nan if u is None else u for u in row] for row in values], dtype=np.float64)
    return mean_over_tasks(known, [families[task] for task in tasks])


def _with_ladder(
    row: Row,
    cells: Sequence[Measurement],
    power: Mapping[Where, Power | None],
    families: Mapping[str, str],
    deviation: float,
) -> Row:
    """Add the badge `brittle` to a row whose best response is significantly below its headline."""
    if row.p_best_response is None or not enough_tasks(row.scores):
        return row
    found = met(row, cells, ("headline", "ladder"))
    ladder = frozenset(chain for _, chain in found if scoring.role(chain) == "ladder")
    drawn = resample(samples_of([found], power, families, deviation), ladder=ladder)
    chains = {chain: _around(drawn.chains[chain], 0, row.p_chain.get(chain)) for chain in sorted(ladder)}
    row = dataclasses.replace(row, p_chain_interval={**row.p_chain_interval, **_known(chains)})
    return dataclasses.replace(row, badges=(*row.badges, "brittle")) if drawn.gap_to_best(0)[0] > 0.0 else row


def _ranks(rows: Sequence[Row], places: Mapping[str, Place]) -> tuple[list[Row], list[float]]:
    """Return rows with ranks by track and budget class, and each ranked pair's smallest significant difference."""
    classes: dict[tuple[str, int | str | None], list[Row]] = defaultdict(list)
    for row in rows:
        if row.p_interval is not None and row.passes and not row.control:
            classes[row.track, row.budget_class].append(row)
    ranks: dict[str, int] = {}
    widths: list[float] = []
    for members in classes.values():
        members.sort(key=lambda row: (-(row.p or 0.0), row.defense))
        found = _differences([places[row.defense] for row in members])
        ranks |= {members[i].defense: rank for i, rank in _groups(found, len(members)).items()}
        widths += [
            (members[one].p or 0.0) - (members[other].p or 0.0) - low for (one, other), (low, _) in found.items()
        ]
    return [dataclasses.replace(row, rank=ranks.get(row.defense)) for row in rows], widths


def _groups(found: Mapping[tuple[int, int], Interval], rows: int) -> dict[int, int]:
    return tie_groups(range(rows), lambda one, other: found[one, other])


def _differences(places: Sequence[Place]) -> dict[tuple[int, int], Interval]:
    return {
        (one, other): paired(places[one][0], places[other][0], places[one][1], places[other][1])
        for one in range(len(places))
        for other in range(one + 1, len(places))
    }
