"""Strip plots with one dot per task: A of each defense, and floor and ceiling of the undefended attack."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from immunebench.board.plots.style import CYCLE, INK, PALE, SHADE, Mark, grid, label, limits
from immunebench.board.scores.model import Board, Row
from immunebench.board.tables.columns import families
from immunebench.board.text import number
from immunebench.declared import scoring


def tasks_by_defense(board: Board) -> Figure | None:
    """Draw A of each task per defense, with the headline and its interval (a forest plot); None without any A."""
    rows = [row for row in board.rows if row.area is not None]
    if not rows:
        return None
    looks = _looks(board)
    figure = Figure(figsize=(6.4, 0.42 * len(rows) + 1.1))
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        if y % 2 == 0:
            axes.axhspan(y - 0.5, y + 0.5, color="#f7f8fa", linewidth=0, zorder=0)
        _strip(axes, row, y, looks)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(*limits(rows))
    axes.axvline(0.0, color=PALE, linewidth=1.0, zorder=1)
    axes.set_yticks(range(len(rows)), [label(row.defense) for row in rows])
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(INK if row.passes and not row.control else PALE)
    axes.set_xlabel("A of a task  \N{RIGHTWARDS ARROW} better; 0: as undefended, 1: nothing is learned")
    grid(axes, "x")
    axes.spines["left"].set_visible(False)
    headline = Line2D(
        [], [], marker="|", markersize=13, markeredgewidth=2.4, linestyle="", color=INK, label="headline A, 95 %"
    )
    _legend(axes, looks, [headline])
    return figure


def power_of_the_attack(board: Board) -> Figure | None:
    """Draw floor and ceiling of each (task, chain) without a defense; None without any."""
    if not board.power:
        return None
    looks = _looks(board)
    order = sorted(board.power, key=lambda power: (power.family, power.task, power.chain))
    many = len({power.chain for power in order}) > 1
    figure = Figure(figsize=(6.4, 0.25 * len(order) + 1.1))
    axes = figure.add_subplot()
    for y, power in enumerate(order):
        look = looks[power.family]
        colour = look.colour if power.informative else PALE
        dashes = "-" if power.informative else (0, (2, 2))
        axes.plot([power.floor, power.ceiling], [y, y], color=colour, linewidth=2, linestyle=dashes, zorder=2)
        axes.plot([power.floor], [y], marker="|", markersize=9, markeredgewidth=2, color=colour, zorder=3)
        face = colour if power.informative else "white"
        axes.plot([power.ceiling], [y], marker=look.marker, markersize=7, color=colour, markerfacecolor=face, zorder=4)
    names = [f"{power.task} / {power.chain}" if many else power.task for power in order]
    axes.set_yticks(range(len(order)), [label(name, 40) for name in names])
    axes.tick_params(axis="y", labelsize=9, labelcolor=INK)
    axes.set_ylim(len(order) - 0.4, -0.6)
    low = min(0.0, *(power.floor for power in order), *(power.ceiling for power in order))
    high = max(1.0, *(power.ceiling for power in order))
    axes.set_xlim(low - 0.05, high + 0.05)
    axes.axvspan(1.0, high + 0.05, color=SHADE, linewidth=0, zorder=0)
    axes.set_xlabel("similarity to the concept (0: other concepts, 1: real pictures of it)")
    grid(axes, "x")
    axes.spines["left"].set_visible(False)
    more = [
        Line2D([], [], marker="|", markersize=9, markeredgewidth=2, linestyle="", color=PALE, label="floor"),
    ]
    if board.uninformative:
        text = f"uninformative: gain below {scoring.POWER_GATE:g} or too unsure"
        more.append(Line2D([], [], color=PALE, linestyle=(0, (2, 2)), linewidth=2, label=text))
    _legend(axes, looks, more)
    return figure


def _strip(axes: Axes, row: Row, y: int, looks: dict[str, Mark]) -> None:
    dots = [] if row.area is None else sorted(row.area.tasks, key=lambda task: (task.family, task.task))
    for index, task in enumerate(dots):
        look = looks[task.family]
        # Side by side instead of overlapping, in a fixed order.
        lift = 0.0 if len(dots) == 1 else 0.3 * (2 * index / (len(dots) - 1) - 1)
        failed = not task.strongest_defended
        face = "white" if failed else look.colour
        axes.plot(
            [task.area],
            [y + lift],
            marker=look.marker,
            markersize=5.5,
            color=look.colour,
            markerfacecolor=face,
            linestyle="",
            alpha=0.9,
            zorder=3,
            clip_on=False,
        )
    if row.a is None:
        return
    if row.a_interval is not None:
        axes.plot(row.a_interval, [y, y], color=INK, linewidth=2, zorder=2, solid_capstyle="butt")
    axes.plot([row.a], [y], marker="|", markersize=17, markeredgewidth=2.4, color=INK, zorder=4, clip_on=False)
    axes.text(1.01, y, number(row.a), va="center", fontsize=10, fontweight="bold", transform=axes.get_yaxis_transform())


def _looks(board: Board) -> dict[str, Mark]:
    return {name: CYCLE[index % len(CYCLE)] for index, name in enumerate(families(board))}


def _legend(axes: Axes, looks: dict[str, Mark], more: list[Line2D]) -> None:
    handles = [
        Line2D([], [], marker=look.marker, markersize=6, linestyle="", color=look.colour, label=label(name))
        for name, look in looks.items()
    ]
    axes.legend(
        handles=[*handles, *more],
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=5,
        frameon=False,
        fontsize=8.5,
        handletextpad=0.2,
        columnspacing=1.0,
        borderaxespad=0.2,
    )
