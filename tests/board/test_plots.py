"""Plots: there where there are numbers, the same bytes twice, no text over another."""

from __future__ import annotations

import dataclasses
import io
import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import made_up
from immunebench.board.plots import curves, matrix, scatter, strips, write_curves, write_plots
from immunebench.board.plots.style import KINDS, label, spread, style
from immunebench.board.scores.model import Board
from immunebench.board.scores.reading import measurement

LARGE = made_up.records(made_up.FIFTEEN, made_up.TASKS[:3], made_up.CHAINS[:2])


def large() -> Board:
    return made_up.with_statistics(made_up.board(LARGE))


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes share more than a hair."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text().strip() and t.get_visible()]
    # Rotated headings are compared by nothing: their boxes overlap where their letters do not.
    boxes = [(t.get_text(), t.get_window_extent().padded(-1.0)) for t in texts if t.get_rotation() == 0]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
    return [(a[0], b[0]) for a, b in pairs if a[1].overlaps(b[1]) and a[0] != b[0]]


@pytest.mark.parametrize("names", [made_up.TWO, made_up.FIFTEEN], ids=["2 entries", "15 entries"])
def test_no_text_lies_over_another(names: tuple[str, ...]) -> None:
    made = made_up.records(names, made_up.TASKS[:3], made_up.CHAINS[:2])
    board = made_up.with_statistics(made_up.board(made))
    with style():
        for figure in (
            scatter.protection_against_utility(board),
            scatter.cost_against_protection(board),
            matrix.defense_by_chain(board),
            strips.tasks_by_defense(board),
            curves.similarity_over_steps(curves.panels(board, map(measurement, made))),
        ):
            assert figure is not None
            assert overlaps(figure) == []


def test_same_board_same_bytes_and_no_date(tmp_path: Path) -> None:
    made = made_up.records(("wall",), made_up.TASKS[:1], made_up.CHAINS[:1])
    board = made_up.board(made)
    for folder in ("a", "b"):
        write_plots(board, map(measurement, made), tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    names = ("chains", "cost", "curves", "power", "protection-utility", "tasks")
    assert files == sorted(f"{name}.{suffix}" for name in names for suffix in ("png", "svg"))
    for name in files:
        data = (tmp_path / "a" / name).read_bytes()
        assert data == (tmp_path / "b" / name).read_bytes(), name
        assert b"<dc:date>" not in data
    with Image.open(tmp_path / "a" / "tasks.png") as picture:
        assert "Software" not in picture.info


def test_interval_and_gate_are_drawn_at_their_values() -> None:
    board = large()
    with style():
        figure = scatter.protection_against_utility(board)
    assert figure is not None
    drawn = {tuple(map(float, line.get_ydata())) for line in figure.axes[0].lines if len(line.get_ydata()) == 2}
    assert all(row.a_interval in drawn for row in board.rows if row.a is not None)
    assert (0.8, 0.8) in {tuple(map(float, line.get_xdata())) for line in figure.axes[0].lines}


def test_curves_are_means_of_anchored_similarity() -> None:
    made = made_up.records(("wall",), made_up.TASKS[:2], ("lora",))
    (panel,) = curves.panels(made_up.board(made), map(measurement, made), defense="wall")
    ends = [r.scores[r.metric].means[120] for r in made if r.cell.defense == "wall"]
    assert panel.lines["wall"][120] == pytest.approx(sum(ends) / 2)
    assert (panel.floor, panel.undefended[120]) == (pytest.approx(0.1), pytest.approx(0.9))


def test_a_defense_of_fewer_tasks_has_its_own_panel_with_the_undefended_curve_of_these() -> None:
    tasks = (made_up.TASKS[0], made_up.TASKS[2])
    made = [made_up.record(name, task, "lora") for name in ("none", "wall") for task in tasks]
    made += [made_up.record("esd-imma", tasks[1], "lora")]
    board = made_up.board(made)
    drawn = {panel.title: panel for panel in curves.panels(board, map(measurement, made))}
    part = f"lora: {tasks[1].partition('-')[0]}"
    assert {title: list(panel.lines) for title, panel in drawn.items()} == {"lora": ["wall"], part: ["esd-imma"]}
    (gate,) = (gate for gate in board.power if gate.task == tasks[1])
    assert drawn[part].undefended == pytest.approx(dict(gate.curve or {}))


def test_the_curves_cross_half_of_the_gain_where_work_is_counted() -> None:
    """Undefended, 0.5 is crossed 1.5 octaves after the first save, defended 3; the axis begins one before it."""
    undefended, slow = (
        {16: 0.0, 32: 0.25, 64: 0.75, 128: 1.0, 256: 1.0},
        {16: 0.0, 32: 0.0, 64: 0.0, 128: 0.5, 256: 0.6},
    )
    figure = curves.similarity_over_steps([curves.Panel("lora", 0.0, undefended, {"wall": slow}, 128)])
    assert figure is not None
    marks = [(*line.get_xdata(), *line.get_ydata()) for line in figure.axes[0].lines if line.get_marker() == "|"]
    assert sum(marks, ()) == pytest.approx((2.5, 0.5, 4.0, 0.5))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["0", "16", "32", "64", "128", "256"]


def test_a_board_of_none_shows_what_the_attack_learns_and_no_more(tmp_path: Path) -> None:
    made = [made_up.record("none", task, "lora") for task in made_up.TASKS]
    assert [plot.name for plot in write_plots(made_up.board(made), map(measurement, made), tmp_path)] == ["power"]
    assert not write_curves(made_up.board(made), [], tmp_path, "x", task="no-such-task")


def test_kinds_differ_in_grey_by_marker_and_are_dark_enough_on_white() -> None:
    # A submission of pictures ranks among the data side's, and looks like them.
    names = {mark.name for mark in KINDS.values()}
    assert len({mark.marker for mark in KINDS.values()}) == len(names) == 6
    for mark in KINDS.values():
        red, green, blue = (int(mark.colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 3.0, f"{mark.name}: WCAG asks for 3:1 of graphics"


def test_hostile_names_are_drawn_as_text() -> None:
    assert label("$\\frac{", 30) == "$\\frac{"
    assert label("x" * 10_000, 12) == "x" * 11 + "…"
    assert label("\u6f22\n\u202ea") == "□ <U+202E>a"
    board = made_up.board([made_up.record(name, "style-a", "lora") for name in ("none", "wall")])
    rows = tuple(dataclasses.replace(row, defense="$\\badmacro{" + row.defense) for row in board.rows)
    with style():
        figure = scatter.protection_against_utility(dataclasses.replace(board, rows=rows))
        assert figure is not None
        figure.savefig(io.BytesIO(), format="svg")


# A busy machine must not fail it: the property has no time in it.
@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.001, 0.2))
def test_labels_keep_their_order_their_distance_and_their_range(wanted: list[float], gap: float) -> None:
    placed = spread(wanted, gap, 0.0, 1.0)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in placed)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    room = min(gap, 1 / max(1, len(wanted) - 1))
    assert all(placed[b] - placed[a] >= room - 1e-9 for a, b in itertools.pairwise(order))
    if all(abs(a - b) >= gap for i, a in enumerate(wanted) for b in wanted[i + 1 :]):
        assert placed == pytest.approx(wanted, abs=1e-9)
