"""Style of all plots, and saving them so that equal numbers give identical bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.transforms import Bbox

from immunebench.board.scores.model import Row
from immunebench.board.text import shorten

INK, PALE, GRID, SHADE = "#1c2028", "#5b6472", "#dfe3e8", "#f1f2f4"


@dataclass(frozen=True)
class Mark:
    """Colour and marker of a group; each alone distinguishes the groups, also in greyscale."""

    name: str
    colour: str
    marker: str


# Okabe and Ito's colours, distinguishable with any colour vision; the light ones are darkened for white background.
KINDS = {
    "model": Mark("model", "#0072b2", "o"),
    "data": Mark("data", "#d55e00", "s"),
    "artefact": Mark("data", "#d55e00", "s"),
    "erasure": Mark("erasure", "#009e73", "^"),
    "api": Mark("api-enforced", "#b3588c", "P"),
    "layered": Mark("layered", "#9a6b00", "D"),
    "control": Mark("control", "#7d8590", "X"),
}
OTHER = Mark("other", "#1c2028", "v")
CYCLE = tuple(
    Mark("", colour, marker)
    for colour, marker in (
        ("#0072b2", "o"),
        ("#d55e00", "s"),
        ("#009e73", "^"),
        ("#b3588c", "P"),
        ("#9a6b00", "D"),
        ("#2b86bf", "v"),
    )
)

_DPI = 144
#: Label of a figure whose margins have room for everything except the names next to its lines.
ROOMY = "roomy"

_STYLE: dict[str, Any] = {
    "svg.hashsalt": "immunebench",
    "svg.fonttype": "path",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "text.color": INK,
    "axes.unicode_minus": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def mark(row: Row) -> Mark:
    """Return the mark of a row's kind."""
    return KINDS.get(row.kind, OTHER)


@contextmanager
def style() -> Iterator[None]:
    """Apply the settings of the plots instead of the user's, as a context manager."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]
        yield


def save(figure: Figure, folder: Path, name: str, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Write a figure as ``<name>.svg`` and ``<name>.png`` (2 pixels a point) without dates or versions."""
    folder.mkdir(parents=True, exist_ok=True)
    # Measured once here, since "tight" would draw the whole figure again for each format.
    figure.set_dpi(_DPI)
    box = _box(figure).padded(0.12)
    paths = []
    for suffix in formats:
        metadata = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=_DPI, metadata=metadata, bbox_inches=box)
        path = folder / f"{name}.{suffix}"
        path.write_bytes(buffer.getvalue())
        paths.append(path)
    return paths


def _box(figure: Figure) -> Bbox:
    """Return the bounding box of a figure in inches: the "tight" box; for `ROOMY` figures without measuring ticks."""
    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    if figure.get_label() != ROOMY:
        return figure.get_tightbbox(renderer)
    # Measuring ticks takes as long as drawing them, and only the names at the side can extend beyond the figure.
    names = [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts]
    return Bbox.union([figure.bbox, *names]).transformed(figure.dpi_scale_trans.inverted())


def label(text: str, most: int = 26) -> str:
    """Return a text for a plot: shortened, on one line, with a box for each character missing in the font."""
    line = " ".join(shorten(text, most).split())
    return "".join(character if _has_glyph(character) else "\N{WHITE SQUARE}" for character in line)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions at least `gap` apart, in the order of `wanted` and as close to it as possible.

    Neighbours that are too close form a block around the mean of their wanted positions; overlapping blocks are
    merged. If there is not enough room between `low` and `high`, positions are spaced evenly.
    """
    if not wanted:
        return []
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    blocks: list[list[float]] = []  # start, then what each member's start would be if it were the first
    for place, index in enumerate(order):
        blocks.append([wanted[index] - gap * place])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    starts = [_mean(block) for block in blocks for _ in block]
    most = high - gap * (len(wanted) - 1)
    placed = [0.0] * len(wanted)
    for place, index in enumerate(order):
        placed[index] = min(max(starts[place], low), most) + gap * place
    return placed


def grid(axes: Axes, axis: str) -> None:
    """Draw thin grid lines along one axis, without tick marks."""
    axes.grid(visible=True, axis=axis, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.tick_params(length=0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@cache
def _has_glyph(character: str) -> bool:
    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    return bool(font.get_char_index(ord(character)))


def limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the range of an axis of A: from a little below 0 to a little above 1, wider where values lie outside."""
    ends = [end for row in rows for end in (row.a, *(row.a_interval or ())) if end is not None]
    ends += [task.area for row in rows if row.area is not None for task in row.area.tasks]
    return min([-0.06, *(end - 0.04 for end in ends)]), max([1.04, *(end + 0.04 for end in ends)])
