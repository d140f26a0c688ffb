"""Plot of similarity over the steps of the attack: floor, no defense, and each defense.

A line at half of the undefended gain shows W: how far apart the curves cross it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from immunebench.board.plots.style import CYCLE, INK, PALE, ROOMY, grid, label, spread
from immunebench.board.scores import scale as scores
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import Board
from immunebench.board.scores.work import reached

MOST_LINES = len(CYCLE)
_COLUMNS = 3
_LEFT, _NAMES, _BELOW, _PANEL = 0.75, 1.15, 0.9, (1.95, 2.1)  # inches
# Controls that are the line "no defense" itself or would cover it.
_SAME = ("none", "none-replicate")

Curve = Mapping[int, float]


@dataclass(frozen=True)
class Panel:
    """Curves of one panel: mean anchored similarity per step.

    Parameters
    ----------
    title
        What the panel shows: a chain, and the families if not all of its tasks are shown.
    floor
        Similarity before the attack.
    undefended
        The same attack without a defense.
    lines
        One curve per defense, in the order of colours.
    final
        The preset's number of steps, at which W takes the undefended gain; 0 if unknown.
    """

    title: str
    floor: float
    undefended: Curve
    lines: Mapping[str, Curve] = field(default_factory=dict)
    final: int = 0

    @property
    def half(self) -> float | None:
        """Similarity at half of the undefended gain; None if nothing is gained."""
        top = self.undefended.get(self.final)
        return None if top is None or top <= self.floor else (self.floor + top) / 2


def panels(
    board: Board, measurements: Iterable[Measurement], *, task: str | None = None, defense: str | None = None
) -> list[Panel]:
    """Return panels per chain: means over informative tasks, or one task; all rows, or one defense.

    A mean over other tasks is another mean, so that defenses share a panel, and its undefended curve, with those that
    were run on the same tasks. They are in the order of the board, at most `MOST_LINES` in a panel.
    """
    gates = [gate for gate in board.power if gate.informative and task in (None, gate.task)]
    chosen = [row.defense for row in board.rows if defense in (None, row.defense) and row.defense not in _SAME]
    curves: dict[tuple[str, str, str], list[Curve]] = defaultdict(list)
    finals: dict[str, int] = {}
    families: dict[str, str] = {}
    for cell in measurements:
        finals.setdefault(cell.chain, cell.final or max(cell.curve, default=0))
        families[cell.task] = cell.family
        if cell.measured and cell.anchored and cell.m_same > cell.m_other and cell.curve:
            curves[cell.defense, cell.task, cell.chain].append(_anchored(cell))
    found = []
    for chain in sorted({gate.chain for gate in gates}):
        here = {gate.task: gate for gate in gates if gate.chain == chain}
        groups: dict[tuple[str, ...], dict[str, Curve]] = defaultdict(dict)
        for name in chosen:
            own = {place: curves.get((name, place, chain), []) for place in here}
            met = tuple(place for place in here if own[place])
            # Curves without a common step have no mean.
            mean = _mean([curve for those in own.values() for curve in those]) if met else {}
            if mean and len(groups[met]) < MOST_LINES:
                groups[met][name] = mean
        for met, lines in (groups or {tuple(here): {}}).items():
            none = [curve for place in met if (curve := here[place].curve)]
            if none and (undefended := _mean(none)):
                part = "" if met == tuple(here) else f": {', '.join(sorted({families[place] for place in met}))}"
                floor = scores.mean([here[place].floor for place in met])
                found.append(Panel(f"{chain}{part}", floor, undefended, lines, finals.get(chain, 0)))
    return found


def similarity_over_steps(drawn: Sequence[Panel]) -> Figure | None:
    """Draw panels side by side on common axes; None without any."""
    if not drawn:
        return None
    columns = min(_COLUMNS, len(drawn))
    rows = -(-len(drawn) // columns)
    # Fixed positions in inches: the names at the right of each panel need room that layout engines do not reserve.
    width, height = columns * (_PANEL[0] + _NAMES) + _LEFT, rows * (_PANEL[1] + _BELOW)
    figure = Figure(figsize=(width, height), label=ROOMY)
    grids = [
        figure.add_axes(
            (
                (_LEFT + (index % columns) * (_PANEL[0] + _NAMES)) / width,
                1 - (index // columns * (_PANEL[1] + _BELOW) + _PANEL[1] + 0.3) / height,
                _PANEL[0] / width,
                _PANEL[1] / height,
            )
        )
        for index in range(len(drawn))
    ]
    values = [v for panel in drawn for v in (panel.floor, *panel.undefended.values(), *_values(panel.lines.values()))]
    low, high = min(values), max(values)
    room = 0.09 * (high - low or 1.0)
    for index, axes in enumerate(grids):
        axes.set_ylim(low - room, high + room)
        _panel(axes, drawn[index])
        axes.set_xlabel("steps of the attack")
        if index % columns == 0:
            axes.set_ylabel("similarity to the concept")
        else:
            axes.tick_params(labelleft=False)
    return figure


def _panel(axes: Axes, panel: Panel) -> None:
    axes.axhline(panel.floor, color=PALE, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
    saved = sorted({*panel.undefended, *(step for curve in panel.lines.values() for step in curve)} - {0})
    at = {0: 0.0, **{step: 1 + math.log2(step / saved[0]) for step in saved}}
    last = at[saved[-1]]
    ends: list[tuple[str, float, str]] = [("floor", panel.floor, PALE)]
    drawn: list[tuple[str, Curve, str, str, Any]] = [
        ("no defense", {0: panel.floor, **panel.undefended}, INK, "o", (0, (5, 2)))
    ]
    for look, (name, curve) in zip(CYCLE, panel.lines.items(), strict=False):
        drawn.append((label(name, 20), dict(curve), look.colour, look.marker, "-"))
    for name, points, colour, marker, dashes in drawn:
        steps = sorted(points)
        line = [points[step] for step in steps]
        face = "white" if name == "no defense" else colour
        axes.plot(
            [at[step] for step in steps],
            line,
            color=colour,
            marker=marker,
            markersize=5,
            markerfacecolor=face,
            linestyle=dashes,
            linewidth=1.8,
            zorder=3,
        )
        ends.append((name, line[-1], colour))
        half = panel.half
        crossing = None if half is None else reached({n: v for n, v in points.items() if n > 0}, half)
        if half is not None and crossing is not None and crossing[0] == crossing[1]:
            place = 1 + math.log2(crossing[0] / saved[0])
            axes.plot([place], [half], marker="|", markersize=11, markeredgewidth=2, color=colour, zorder=4)
    if panel.half is not None:
        axes.axhline(panel.half, color=PALE, linewidth=0.9, zorder=1)
        ends.append(("half of the gain", panel.half, PALE))
    # With a fixed position matplotlib need not measure all ticks at every draw to keep the title clear of them.
    axes.set_title(label(panel.title, 30), y=1.0)
    axes.set_xlim(0, last + 0.25)
    # Saves double from one to the next, so the axis is logarithmic from the first on.
    axes.set_xticks([at[step] for step in (0, *saved)], [str(step) for step in (0, *saved)])
    axes.tick_params(axis="x", labelsize=8)
    grid(axes, "y")
    low, high = axes.get_ylim()
    places = spread(
        [value for _, value, _ in ends], (high - low) * 0.078, low + 0.02 * (high - low), high - 0.1 * (high - low)
    )
    for (name, _, colour), place in zip(ends, places, strict=True):
        axes.text(last + 0.4, place, name, va="center", fontsize=8.5, color=colour)


def _anchored(cell: Measurement) -> Curve:
    return {step: scores.anchored(value, cell.m_same, cell.m_other) for step, value in cell.curve.items()}


def _mean(curves: Sequence[Curve]) -> Curve:
    shared: Collection[int] = set.intersection(*(set(curve) for curve in curves))
    return {step: scores.mean([curve[step] for curve in curves]) for step in sorted(shared)}


def _values(curves: Iterable[Curve]) -> Iterable[float]:
    return [value for curve in curves for value in curve.values()]
