"""Heat map of A by defense and chain."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from immunebench.board.plots.style import INK, PALE, label
from immunebench.board.scores.model import Board, Row
from immunebench.board.tables.columns import chains
from immunebench.board.text import number

_CELL, _MAP, _FRAME = 0.34, "cividis", "#c8102e"


def defense_by_chain(board: Board) -> Figure | None:
    """Draw A of each defense against each chain, with the strongest attack framed and the headline as last column.

    None if no row has a value.
    """
    names = chains(board)
    rows = [(row, row.area.chain) for row in board.rows if row.area is not None and row.area.chain]
    if not rows or not names:
        return None
    width, height = 0.82 * (len(names) + 1.25), _CELL * len(rows)
    figure = Figure(figsize=(width + 2.4, height + 1.2))
    axes = figure.add_axes((2.2 / (width + 2.4), 0.2 / (height + 1.2), width / (width + 2.4), height / (height + 1.2)))
    for y, (row, values) in enumerate(rows):
        for x, chain in enumerate(names):
            _cell(axes, x, y, values.get(chain))
        _cell(axes, len(names) + 0.25, y, row.a, bold=True)
        # No frame where the chains have equal rounded values, since it would suggest a difference.
        if len({number(p) for p in values.values()}) > 1:
            worst = min(values, key=lambda chain, values=values: (values[chain], chain))  # type: ignore[misc]
            place = (names.index(worst) + 0.04, y + 0.06)
            axes.add_patch(Rectangle(place, 0.92, 0.88, fill=False, edgecolor=_FRAME, linewidth=2.2, zorder=3))
            axes.plot([names.index(worst) + 0.13], [y + 0.28], marker="v", markersize=4.5, color=_FRAME, zorder=4)
    axes.set_xlim(0, len(names) + 1.25)
    axes.set_ylim(len(rows), 0)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], [_name(row) for row, _ in rows])
    for tick, (row, _) in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(INK if row.passes and not row.control else PALE)
    ticks = [*(x + 0.5 for x in range(len(names))), len(names) + 0.75]
    axes.set_xticks(ticks, [*(label(name, 24) for name in names), "A, strongest"])
    axes.xaxis.tick_top()
    for tick in axes.get_xticklabels():
        tick.set_rotation(28)
        tick.set_horizontalalignment("left")
        tick.set_rotation_mode("anchor")
        tick.set_color(INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    note = "A by attack, mean over tasks; dark 0 and below, light 1."
    axes.text(0, len(rows) + 0.25, note, fontsize=8.5, color=PALE, va="top")
    if len(names) > 1:
        axes.text(0, len(rows) + 0.72, "Red frame: the strongest attack of a row.", fontsize=8.5, color=PALE, va="top")
    return figure


def _cell(axes: matplotlib.axes.Axes, x: float, y: int, value: float | None, *, bold: bool = False) -> None:
    box = (x + 0.02, y + 0.03)
    if value is None:
        axes.add_patch(Rectangle(box, 0.96, 0.94, facecolor="white", edgecolor="#c3c8d0", hatch="////", linewidth=0))
        return
    colour = matplotlib.colormaps[_MAP](0.02 + 0.96 * min(max(value, 0.0), 1.0))
    axes.add_patch(Rectangle(box, 0.96, 0.94, facecolor=colour, linewidth=0))
    axes.text(
        x + 0.5,
        y + 0.52,
        number(value),
        ha="center",
        va="center",
        fontsize=9.5,
        color="white" if _luminance(colour) < 0.36 else INK,
        fontweight="bold" if bold else "normal",
    )


def _luminance(colour: tuple[float, float, float, float]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _name(row: Row) -> str:
    return label(row.defense, 26)
