"""Scatter plots of protection against its cost: lost utility, and seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from immunebench.board.plots.style import GRID, INK, PALE, SHADE, grid, label, limits, mark, spread
from immunebench.board.scores.model import Board, Row
from immunebench.board.text import number
from immunebench.declared import scoring


def protection_against_utility(board: Board) -> Figure | None:
    """Draw A over U with intervals and the utility gate; None if no row has both."""
    rows = [row for row in board.rows if row.a is not None and row.u is not None]
    if not rows:
        return None
    figure, axes = _axes(rows)
    axes.axvspan(-0.04, scoring.UTILITY_GATE, color=SHADE, linewidth=0, zorder=0)
    axes.axvline(scoring.UTILITY_GATE, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    gate = f"models with U\nbelow {scoring.UTILITY_GATE:g}: not ranked"
    axes.text(0.0, axes.get_ylim()[0] + 0.06, gate, va="bottom", color=PALE, fontsize=9)
    axes.set_xlim(-0.04, 1.04)
    axes.set_xlabel("U: part of the use that is left  \N{RIGHTWARDS ARROW} better")
    _draw(axes, board, rows, lambda row: row.u or 0.0)
    for row in rows:
        if row.u_interval is not None:
            axes.plot(row.u_interval, [row.a or 0.0] * 2, color=mark(row).colour, linewidth=1.3, alpha=0.75, zorder=2)
    return figure


def cost_against_protection(board: Board) -> Figure | None:
    """Draw A over the seconds of `protect` on a logarithmic axis; None if no row has both."""
    rows = [row for row in board.rows if row.a is not None and row.seconds is not None and row.seconds > 0]
    if not rows:
        return None
    figure, axes = _axes(rows)
    seconds = [row.seconds or 0.0 for row in rows]
    axes.set_xscale("log")
    axes.set_xlim(min(1.0, min(seconds) / 2), max(100.0, max(seconds) * 2))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.set_xlabel("seconds to protect one task  \N{LEFTWARDS ARROW} better")
    _draw(axes, board, rows, lambda row: row.seconds or 0.0)
    return figure


def _axes(rows: Sequence[Row]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, max(3.7, 0.235 * len(rows) + 0.8)))
    axes = figure.add_axes((0.1, 0.14, 0.6, 0.8))
    axes.set_ylim(*limits(rows))
    axes.set_ylabel("A: part of the attack's gain that is stopped")
    grid(axes, "both")
    return figure, axes


def _draw(axes: Axes, board: Board, rows: Sequence[Row], x: Callable[[Row], float]) -> None:
    """Draw points with vertical intervals, a legend of kinds, and names in a column at the right without overlap."""
    height = axes.get_figure().get_size_inches()[1] * axes.get_position().height * 72  # type: ignore[union-attr]
    bottom, top = axes.get_ylim()
    gap = (top - bottom) * 14.5 / height
    places = spread([row.a or 0.0 for row in rows], gap, bottom + 0.01, top - 0.02)
    right = axes.get_yaxis_transform()
    leading = {row.defense for row in rows if board.leads(row)}
    for row, place in sorted(zip(rows, places, strict=True), key=lambda item: not item[0].control):
        look, a = mark(row), row.a or 0.0
        hollow = row.control or not row.passes
        if row.a_interval is not None:
            axes.plot([x(row)] * 2, row.a_interval, color=look.colour, linewidth=1.6, alpha=0.75, zorder=2)
        axes.plot(
            [x(row)],
            [a],
            marker=look.marker,
            markersize=8,
            color=look.colour,
            markerfacecolor="white" if hollow else look.colour,
            markeredgewidth=1.5,
            zorder=4,
            clip_on=False,
        )
        axes.annotate(
            "",
            xy=(x(row), a),
            xytext=(1.045, place),
            textcoords=right,
            arrowprops={"arrowstyle": "-", "color": "#b6bcc6", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 5},
            zorder=1.5,
            annotation_clip=False,
        )
        axes.text(
            1.055,
            place,
            f"{number(row.a)}  {label(row.defense, 22)}",
            transform=right,
            va="center",
            fontsize=9.5,
            color=PALE if hollow else INK,
            fontweight="bold" if row.defense in leading else "normal",
        )
    _legend(axes, rows)


def _legend(axes: Axes, rows: Sequence[Row]) -> None:
    looks = {mark(row).name: mark(row) for row in rows}
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=look.marker,
            markersize=7,
            color=look.colour,
            markerfacecolor="white" if name == "control" else look.colour,
            label=name,
        )
        for name, look in looks.items()
    ]
    if any(not row.passes and not row.control for row in rows):
        hollow = {"marker": "o", "markersize": 7, "color": PALE, "markerfacecolor": "white"}
        handles.append(Line2D([], [], linestyle="", label="hollow: not ranked", **hollow))  # type: ignore[arg-type]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=3,
        frameon=False,
        fontsize=8.5,
        handletextpad=0.2,
        columnspacing=1.0,
        borderaxespad=0.0,
    )
    axes.spines["left"].set_color(GRID)
