"""Plots of a board as PNG and SVG, without a display; equal numbers give identical bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from immunebench.board.scores.measurement import Measurement
    from immunebench.board.scores.model import Board


@dataclass(frozen=True)
class Plot:
    """A plot that was written: ``<name>.svg`` and ``<name>.png``.

    `layout` is ``broad`` if it needs the full width of a page, ``keep`` if its shades encode values and must not be
    changed, else empty.
    """

    name: str
    title: str
    text: str

    @property
    def layout(self) -> str:
        """Layout hint for pages; see the class."""
        return {"curves": "broad", "chains": "keep"}.get(self.name, "")


_PLOTS = {
    "protection-utility": ("Protection against use", "A over U of every entry with intervals and the utility gate."),
    "chains": ("Which attack gets through", "A of each defense against each attack, the strongest framed."),
    "curves": (
        "What the attack learns, step by step",
        "Similarity over steps: floor, no defense, the first six defenses of these tasks; ticks show W.",
    ),
    "tasks": ("Task by task", "A of every task per defense, with the headline and its interval."),
    "cost": ("What protection costs", "A over the seconds of protecting one task."),
    "power": ("What there is to protect", "Floor and ceiling of every task and chain without a defense."),
}


def write_plots(board: Board, measurements: Iterable[Measurement], folder: Path) -> list[Plot]:
    """Draw all plots for which the board has numbers, the default plot first.

    Raises
    ------
    BoardError
        If a control fails its check.
    """
    from immunebench.board.plots import curves, matrix, scatter, strips
    from immunebench.board.plots.style import save, style

    board.require_sound()
    cells = list(measurements)
    draw: dict[str, Callable[[], Figure | None]] = {
        "protection-utility": lambda: scatter.protection_against_utility(board),
        "chains": lambda: matrix.defense_by_chain(board),
        "curves": lambda: curves.similarity_over_steps(curves.panels(board, cells)),
        "tasks": lambda: strips.tasks_by_defense(board),
        "cost": lambda: scatter.cost_against_protection(board),
        "power": lambda: strips.power_of_the_attack(board),
    }
    # If only `none` was measured, the undefended attack is all there is to show.
    names = _PLOTS if any(row.defense != "none" for row in board.rows) else {"power": _PLOTS["power"]}
    written = []
    with style():
        for name, (title, text) in names.items():
            figure = draw[name]()
            if figure is not None:
                save(figure, folder, name)
                written.append(Plot(name, title, text))
    return written


def write_curves(
    board: Board,
    measurements: Iterable[Measurement],
    folder: Path,
    name: str,
    *,
    task: str | None = None,
    defense: str | None = None,
) -> bool:
    """Draw similarity over steps for one task or one defense as ``<name>.svg``; False if there is nothing to draw."""
    from immunebench.board.plots import curves
    from immunebench.board.plots.style import save, style

    with style():
        figure = curves.similarity_over_steps(curves.panels(board, measurements, task=task, defense=defense))
        if figure is not None:
            save(figure, folder, name, ["svg"])
    return figure is not None
