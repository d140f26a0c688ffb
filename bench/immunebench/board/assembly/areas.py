"""Headline A, its interval and the work factor W of every defense of a suite (`leaderboard/rules.md`, Curves)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from immunebench.board.scores import scale as scores
from immunebench.board.scores.curves import Gains, TaskArea, gains, task_areas
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import AreaScore, Row
from immunebench.board.scores.row import MISSING
from immunebench.board.scores.work import work
from immunebench.board.statistics.paired import mean_difference
from immunebench.board.statistics.stratified import estimate
from immunebench.declared import scoring

Where = tuple[str, str]


def with_areas(rows: Iterable[Row], entries: Mapping[str, Sequence[Measurement]]) -> list[Row]:
    """Return rows with `Row.area` set; None if a row is incomplete or no attack on its tasks learns the concept.

    Parameters
    ----------
    rows
        One for each defense.
    entries
        Measurements by defense, including `none`.
    """
    none = _by_place(entries.get("none", ()))
    return [replace(row, area=_score(row, _by_place(entries.get(row.defense, ())), none)) for row in rows]


def _score(
    row: Row, own: Mapping[Where, Sequence[Measurement]], none: Mapping[Where, Sequence[Measurement]]
) -> AreaScore | None:
    places = [place for place in sorted(own) if scoring.role(place[1]) == "headline"]
    if row.incomplete or not places:
        return None
    pairs = {place: gains(none.get(place, ()), own[place]) for place in places}
    known = [pair for pair in pairs.values() if pair is not None and pair.informative]
    areas = _with_failures(task_areas(known), {place: own[place] for place in places})
    if not areas:
        return None
    families = {area.task: area.family for area in areas}
    values = {area.task: area.area for area in areas}
    found = estimate(values, families)
    strongest = {(area.task, area.strongest_defended) for area in areas}
    return AreaScore(
        a=mean_difference(values, families),
        interval=None if found is None else found.interval(),
        family={name: scores.mean([v for t, v in values.items() if families[t] == name]) for name in families.values()},
        chain={
            chain: mean_difference({g.task: g.area for g in group}, families)
            for chain, group in _by_chain(known).items()
        },
        p={
            part: mean_difference({a.task: a.p[part] for a in areas if part in a.p}, families)
            for part in sorted({part for area in areas for part in area.p})
        },
        work=work(pair for pair in known if (pair.task, pair.chain) in strongest),
        tasks=tuple(areas),
    )


def _with_failures(
    areas: Sequence[TaskArea],
    own: Mapping[Where, Sequence[Measurement]],
) -> list[TaskArea]:
    """Set A of tasks on which the defense or the attack on it failed to the entry's lowest A, and at most 0."""
    failed = sorted({task for (task, _), cells in own.items() if any(not cell.measured for cell in cells)})
    least = min([0.0, *(area.area for area in areas)])
    families = {task: cells[0].family for (task, _), cells in own.items()}
    kept = [area for area in areas if area.task not in failed]
    return kept + [TaskArea(task, families[task], least, "", "", {}) for task in failed]


def _by_place(cells: Iterable[Measurement]) -> dict[Where, list[Measurement]]:
    found: dict[Where, list[Measurement]] = defaultdict(list)
    for cell in cells:
        if cell.status not in MISSING and cell.setting.usual:
            found[cell.where].append(cell)
    return dict(found)


def _by_chain(known: Iterable[Gains]) -> dict[str, list[Gains]]:
    found: dict[str, list[Gains]] = defaultdict(list)
    for pair in known:
        found[pair.chain].append(pair)
    return dict(sorted(found.items()))
