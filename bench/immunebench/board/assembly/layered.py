"""Comparison of layered defenses with the better of their layers alone, by A."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from immunebench.board.assembly.areas import by_place, task_values
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import LayerScore, Row
from immunebench.board.statistics.paired import mean_difference
from immunebench.board.statistics.stratified import difference
from immunebench.declared import scoring


def layer_scores(
    rows: Iterable[Row], cells: Mapping[str, Sequence[Measurement]], families: Mapping[str, str]
) -> tuple[LayerScore, ...]:
    """Compare every row of kind ``layered``, whose id joins the ids of its layers by ``+``, with each layer alone.

    Parameters
    ----------
    rows
        All rows of a board.
    cells
        Measurements by defense.
    families
        Family of each task.

    Returns
    -------
    tuple of LayerScore
        By falling difference; those that cannot be compared last, with the reason.
    """
    by_id = {row.defense: row for row in rows}
    found = []
    for name, row in sorted(by_id.items()):
        layers = tuple(name.split("+"))
        if row.kind != "layered" or len(layers) < 2:
            continue
        absent = [layer for layer in layers if layer not in by_id]
        unscored = [part for part in (name, *layers) if part in by_id and by_id[part].a is None]
        if absent or unscored:
            why = f"{absent[0]} is not on this board" if absent else f"{unscored[0]} has no headline"
            found.append(LayerScore(name, layers, reason=why))
        else:
            found.append(_compared(name, layers, cells, families))
    return tuple(sorted(found, key=lambda score: (score.difference is None, -(score.difference or 0.0), score.defense)))


def _compared(
    name: str, layers: tuple[str, ...], cells: Mapping[str, Sequence[Measurement]], families: Mapping[str, str]
) -> LayerScore:
    places = set.intersection(*(set(by_place(cells[part])) for part in (name, *layers)))
    places = {place for place in places if scoring.role(place[1]) == "headline"}
    none = cells.get("none", ())
    values = {part: task_values(cells[part], none, places) for part in (name, *layers)}
    shared = set.intersection(*(set(own) for own in values.values()))
    if not shared:
        return LayerScore(name, layers, reason="no task and chain has all of them")
    values = {part: {task: own[task] for task in sorted(shared)} for part, own in values.items()}
    means = {part: mean_difference(own, families) for part, own in values.items()}
    better = max(layers, key=lambda layer: means[layer])
    paired = difference(values[name], values[better], families)
    return LayerScore(
        defense=name,
        layers=layers,
        a=means[name],
        a_alone={layer: means[layer] for layer in layers},
        better=better,
        difference=means[name] - means[better],
        interval=None if paired is None else paired.interval(),
        tasks=len(shared),
    )
