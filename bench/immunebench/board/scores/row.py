"""Aggregation of one defense's scores to its row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from immunebench.board.scores import scale as scores
from immunebench.board.scores.beside import collapsed, overall
from immunebench.board.scores.enforcement import unbound
from immunebench.board.scores.measurement import Measurement, budget_class
from immunebench.board.scores.model import Power, Row, TaskScore, TaskUtility
from immunebench.board.scores.task_score import score_task, score_utility
from immunebench.declared import scoring

Where = tuple[str, str]

#: Statuses of records that count as missing: not run, or withdrawn after an error was found.
MISSING = frozenset({"skipped", "invalidated"})


def make_row(
    cells: Sequence[Measurement],
    required: Collection[tuple[str, str, int]],
    power: Mapping[Where, Power | None],
    families: Mapping[str, str],
    lost: Sequence[str] = (),
) -> Row:
    """Aggregate one defense to its row.

    Parameters
    ----------
    cells
        All measurements of the defense.
    required
        The (task, chain, seed) that the defense must have.
    power
        Result of the power gate per (task, chain).
    families
        Family of each task.
    lost
        One line per record of the defense that could not be used; a row with any has no headline.
    """
    first = cells[0]
    task_scores = _task_scores(cells, required, power, families)
    change = budget_class(cells)
    # A mean over the remaining records could be higher than the mean over all of them.
    shown = () if lost else task_scores
    counted = [score for score in shown if scoring.role(score.chain) == "headline"]
    utilities = tuple(
        score_utility(task, [cell for cell in cells if cell.task == task])
        for task in sorted({cell.task for cell in cells})
    )
    us = [utility.u for utility in utilities if utility.u is not None]
    u = scores.mean(us) if len(us) == len(utilities) else None
    protect = [cell.seconds["protect"] for cell in cells if "protect" in cell.seconds]
    return Row(
        defense=first.defense,
        version=first.version,
        kind=first.kind,
        p=_over_families(counted, min),
        sgr=_mean_or_none(score.sgr for score in counted),
        sgr_curve=_mean_or_none(score.sgr_curve for score in counted),
        u_gen=_mean_or_none(utility.u_gen for utility in utilities),
        u_ben=_mean_or_none(utility.u_ben for utility in utilities),
        fidelity=_mean_or_none(utility.fidelity for utility in utilities),
        u=u,
        seconds=scores.mean(protect) if protect else None,
        scores=task_scores,
        utilities=utilities,
        incomplete=(*lost, *_incomplete(counted, utilities)),
        flags=_flags(cells, task_scores),
        beside=overall(cells),
        badges=_badges(first, change),
        track=scoring.TRACK.get(first.kind, first.kind),
        budget_class=change,
        changes=_changes(cells),
    )


def _changes(cells: Iterable[Measurement]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        for name, value in cell.changes.items():
            found[name].append(value)
    return {name: max(values) if name == "linf" else scores.mean(values) for name, values in sorted(found.items())}


def _badges(first: Measurement, change: int | str | None) -> tuple[str, ...]:
    badges = []
    if first.kind == "api" or first.enforcement is not None:
        badges.append("needs enforcement")
    if first.kind == "artefact":
        badges.append("artefact")
    if first.changes_images:
        badges.append("no budget class" if change is None else f"Linf {change}" if isinstance(change, int) else change)
    return tuple(badges)


def _task_scores(
    cells: Sequence[Measurement],
    required: Collection[tuple[str, str, int]],
    power: Mapping[Where, Power | None],
    families: Mapping[str, str],
) -> tuple[TaskScore, ...]:
    tried: dict[Where, list[Measurement]] = defaultdict(list)
    for cell in cells:
        if cell.status not in MISSING:
            tried[cell.where].append(cell)
    owed: dict[Where, set[int]] = defaultdict(set)
    for task, chain, seed in required:
        owed[task, chain].add(seed)
    found = []
    for (task, chain), seeds in sorted(owed.items()):
        own = tried.get((task, chain), [])
        complete = seeds <= {cell.seed for cell in own}
        found.append(score_task(power.get((task, chain)), (task, families.get(task, ""), chain), own, complete))
    return tuple(found)


def _incomplete(task_scores: Iterable[TaskScore], utilities: Iterable[TaskUtility]) -> tuple[str, ...]:
    missing = [f"{s.task}/{s.chain}: {s.reason}" for s in task_scores if s.status == "incomplete"]
    return tuple(missing + [f"{utility.task}: U is not measured" for utility in utilities if utility.u is None])


def _flags(cells: Sequence[Measurement], task_scores: Iterable[TaskScore]) -> tuple[str, ...]:
    flags = []
    if any(over_budget(cell) for cell in cells):
        flags.append("over budget")
    if any(score.below_floor for score in task_scores):
        flags.append("below floor")
    if collapsed(cells):
        flags.append("collapsed")
    if free := unbound(cells):
        flags.append(f"mask does not bind {', '.join(free)}")
    failures = sum(score.status in ("defense failed", "attack failed") for score in task_scores)
    return (*flags, f"{failures} failed") if failures else tuple(flags)


def over_budget(cell: Measurement) -> bool:
    """Return whether protected pictures, measured after saving, exceed their declared budget."""
    return cell.linf is not None and cell.budget is not None and cell.linf > cell.budget


def _by_task(task_scores: Iterable[TaskScore]) -> dict[str, list[TaskScore]]:
    """Scores per task, without each (task, chain) that the power gate excludes for all entries."""
    groups: dict[str, list[TaskScore]] = defaultdict(list)
    for score in task_scores:
        if score.status != "uninformative":
            groups[score.task].append(score)
    return dict(groups)


def _families(task_scores: Iterable[TaskScore], over_chains: Callable[[list[float]], float]) -> dict[str, float]:
    """Mean over tasks of P over chains, per family; a family with an incomplete score is left out."""
    groups: dict[str, list[float | None]] = defaultdict(list)
    for group in _by_task(task_scores).values():
        ps = [score.p for score in group if score.p is not None]
        groups[group[0].family].append(over_chains(ps) if len(ps) == len(group) else None)
    complete = {family: [p for p in ps if p is not None] for family, ps in groups.items() if None not in ps}
    return {family: scores.mean(ps) for family, ps in sorted(complete.items())}


def _over_families(task_scores: Sequence[TaskScore], over_chains: Callable[[list[float]], float]) -> float | None:
    families = _families(task_scores, over_chains)
    if not families or any(score.status == "incomplete" for score in task_scores):
        return None
    return scores.mean(list(families.values()))


def _mean_or_none(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return scores.mean(known) if known else None
