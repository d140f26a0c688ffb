"""Comparison of layered defenses with the better of their layers alone, by P."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from immunebench.board.scores.model import LayerScore, Power, Row
from immunebench.board.statistics.bootstrap import paired, resample
from immunebench.board.statistics.fixed import fixed_tasks
from immunebench.board.statistics.intervals import HEADLINE, Cells
from immunebench.board.statistics.samples import Met, Where, met, samples_of, seed_deviation
from immunebench.declared import scoring


def layer_scores(
    rows: Iterable[Row], cells: Cells, power: Mapping[Where, Power | None], families: Mapping[str, str]
) -> tuple[LayerScore, ...]:
    """Compare every row of kind ``layered``, whose id joins the ids of its layers by ``+``, with each layer alone.

    Parameters
    ----------
    rows
        All rows of a board.
    cells
        Measurements by defense.
    power
        Result of the power gate per (task, chain).
    families
        Family of each task.

    Returns
    -------
    tuple of LayerScore
        By falling difference; those that cannot be compared last, with the reason.
    """
    by_id = {row.defense: row for row in rows}
    deviation = seed_deviation((cell for group in cells.values() for cell in group), power) or 0.0
    found = []
    for name, row in sorted(by_id.items()):
        layers = tuple(name.split("+"))
        if row.kind != "layered" or len(layers) < 2:
            continue
        absent = [layer for layer in layers if layer not in by_id]
        unscored = [part for part in (name, *layers) if part in by_id and by_id[part].p is None]
        if absent or unscored:
            why = f"{absent[0]} is not on this board" if absent else f"{unscored[0]} has no headline"
            found.append(LayerScore(name, layers, reason=why))
            continue
        members = _shared([met(by_id[part], cells[part], HEADLINE) for part in (name, *layers)])
        if not members[0]:
            found.append(LayerScore(name, layers, reason="no task and chain has all of them"))
            continue
        found.append(_compared(name, layers, members, power, families, deviation))
    return tuple(sorted(found, key=lambda score: (score.difference is None, -(score.difference or 0.0), score.defense)))


def _compared(
    name: str,
    layers: tuple[str, ...],
    members: Sequence[Met],
    power: Mapping[Where, Power | None],
    families: Mapping[str, str],
    deviation: float,
) -> LayerScore:
    samples = samples_of(members, power, families, deviation)
    held = fixed_tasks(samples)
    alone = [float(p) for p in held.estimate[1:]]
    better = 1 + alone.index(max(alone))
    wide = _enough(families[sample.task] for sample in samples)
    if wide:
        drawn = resample(samples, detail=False).headline
        interval = paired(drawn, drawn, 0, better)
    else:
        interval = held.difference(0, better)
    return LayerScore(
        defense=name,
        layers=layers,
        p=float(held.estimate[0]),
        p_alone=dict(zip(layers, alone, strict=True)),
        better=layers[better - 1],
        difference=float(held.estimate[0]) - alone[better - 1],
        interval=interval,
        tasks=len(samples),
        tasks_fixed=not wide,
    )


def _shared(members: Sequence[Met]) -> list[Met]:
    """Return each row's cells, restricted to the tasks, chains and seeds that all rows have."""
    common = set.intersection(*({(where, seed) for where, of in met.items() for seed in of} for met in members))
    kept: list[Met] = []
    for member in members:
        own: Met = defaultdict(dict)
        for where, seed in sorted(common):
            own[where][seed] = member[where][seed]
        kept.append(dict(own))
    return kept


def _enough(families: Iterable[str]) -> bool:
    """Return whether there are enough tasks, in total and in each family, to estimate the variance between tasks."""
    counts: dict[str, int] = defaultdict(int)
    for family in families:
        counts[family] += 1
    return sum(counts.values()) >= scoring.INTERVAL_TASKS and min(counts.values()) >= scoring.INTERVAL_TASKS_FAMILY
