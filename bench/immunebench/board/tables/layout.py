"""The board as a terminal table and as Markdown. Both raise an error if a control fails its check."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.board.scores.beside import HEADS
from immunebench.board.scores.model import Board, Row
from immunebench.board.tables.columns import columns, work_text
from immunebench.board.text import attacks_text, interval_text, number
from immunebench.declared import scoring

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType

COLUMNS = (
    "rank",
    "defense",
    "track",
    "A",
    "95 %",
    "W",
    "P(1)",
    "P(2)",
    "U",
    "U_gen",
    "U_ben",
    "fidelity",
    "SGR",
    "strongest attack",
    "protect s",
    "remarks",
)


#: Columns that a table that is too wide leaves out, the first ones first: parts of others, then what explains them.
_DISPENSABLE = (
    "SGR",
    "U_gen",
    "U_ben",
    "fidelity",
    "P(1)",
    "P(2)",
    "protect s",
    "strongest attack",
    "track",
    "W",
    "95 %",
)
#: Groups of columns of the second table of a Markdown page.
_PARTS = ("family", "attack", "readings")
#: Columns of words, which wrap, and to how many characters.
_WRAPPED = {"defense": 16, "remarks": 14}

#: Width in characters if the output is a file or a pipe, not a terminal.
_WIDTH = 132


def show(board: Board, title: str) -> None:
    """Print the table; if the output is not a terminal it is not cut to 80 characters.

    Raises
    ------
    BoardError
        If a control fails its check.
    """
    from rich.console import Console

    console = Console()
    # Of a terminal or of COLUMNS; rich takes 80 for a pipe.
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console = Console(width=_WIDTH)
    console.print(terminal(board, title, console.width))


def terminal(board: Board, title: str, width: int | None = None) -> RenderableType:
    """Return the table for a terminal, with notes below it.

    If it is wider than `width`, columns are left out, parts of others first, so that no number is cut.

    Raises
    ------
    BoardError
        If a control fails its check.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from immunebench.board.tables.side_tables import side_tables

    board.require_sound()
    lines = [_cells(row) for row in board.rows]
    shown = _shown_columns(lines, width)
    table = Table(title=Text(title), title_justify="left", title_style="bold", header_style="bold", show_edge=False)
    for column in (COLUMNS[at] for at in shown):
        numeric = column not in ("defense", "track", "strongest attack", "remarks")
        justify: JustifyMethod = "right" if numeric else "left"
        table.add_column(column, justify=justify, no_wrap=column not in _WRAPPED, overflow="fold")
    controls = False
    for row, line in zip(board.rows, lines, strict=True):
        if row.control and not controls:
            table.add_section()
            controls = True
        style = "dim" if row.control else ("bold green" if row.passes else "yellow")
        # As text, not as markup: names come from untrusted records.
        table.add_row(*(Text(line[at]) for at in shown), style=style)
    parts: list[RenderableType] = [table]
    for side in side_tables(board):
        small = Table(title=Text(side.title), title_justify="left", header_style="bold", show_edge=False)
        for head in side.heads:
            small.add_column(head)
        for cells in side.rows:
            small.add_row(*map(Text, cells))
        parts += [Text(), small, Text(side.note, style="dim"), Text()]
    return Group(*parts, Text("\n".join(_remarks(board)), style="dim"))


def _shown_columns(lines: list[list[str]], width: int | None) -> list[int]:
    """Return the indices of the columns that fit into a width, so that no number is cut: rank, A and U always."""
    widest = {name: max(map(len, cells)) + 3 for name, *cells in zip(COLUMNS, COLUMNS, *lines, strict=True)}
    widest |= {name: min(widest[name], most + 3) for name, most in _WRAPPED.items()}
    shown = list(COLUMNS)
    for name in _DISPENSABLE:
        if width is None or sum(widest[name] for name in shown) <= width:
            break
        shown.remove(name)
    return [COLUMNS.index(name) for name in shown]


def markdown(board: Board, title: str) -> str:
    """Return the Markdown page of a board: the headline table, A per family and per chain, gates and remarks.

    Raises
    ------
    BoardError
        If a control fails its check.
    """
    from immunebench.board.tables.side_tables import side_tables

    board.require_sound()
    parts = [f"# {title}", _table([_cells(row) for row in board.rows], COLUMNS)]
    shown = columns(board)
    for title, groups in (("Over the curve", ("curve",)), ("A by family, by attack, and other readings", _PARTS)):
        own = [c for c in shown if c.group in groups and any(c.text(row) != number(None) for row in board.rows)]
        if "curve" in groups and any(row.area is not None and row.area.work is not None for row in board.rows):
            own = [*(c for c in shown if c.key == "work"), *own]
        lines = [[row.defense, *(" ".join(filter(None, (c.text(row), c.text_interval(row)))) for c in own)]
                 for row in board.rows]  # fmt: skip
        if own:
            parts += [f"## {title}", _table(lines, ["defense", *(column.title for column in own)])]
    gates = [
        [
            p.task,
            p.chain,
            number(p.floor),
            number(p.ceiling),
            number(p.standard_error, 3),
            _verdict(p.informative),
        ]
        for p in board.power
    ]
    heads = ["task", "chain", "floor", "ceiling", "standard error", "power gate"]
    for side in side_tables(board):
        parts += [f"## {side.title}", _table([list(cells) for cells in side.rows], side.heads), side.note]
    parts += ["## What the attack learns on no defense", _table(gates, heads)]
    parts += _beside(board)
    for table in board.tables:
        parts += [f"## {table.title}", table.note, _table([list(row) for row in table.rows], table.heads)]
    parts.append("\n".join(f"- {remark}" for remark in _remarks(board)))
    return "\n\n".join(parts) + "\n"


def _beside(board: Board) -> list[str]:
    """Return the table of side measures; empty if no record has any."""
    rows = [[row.defense] + [number(getattr(row.beside, name)) for name in HEADS] for row in board.rows]
    if all(set(cells[1:]) == {"-"} for cells in rows):
        return []
    return ["## Beside the score", _table(rows, ["defense", *HEADS.values()])]


def write_markdown(board: Board, title: str, path: Path) -> None:
    """Write `markdown` to a file; equal records give identical bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(markdown(board, title).encode())


def _cells(row: Row) -> list[str]:
    at = {} if row.area is None else row.area.p
    return [
        "-" if row.rank is None else str(row.rank),
        f"{row.defense}@{row.version}",
        row.league if row.rank is not None else row.track,
        number(row.a),
        interval_text(row.a_interval),
        work_text(row),
        number(at.get(1.0)),
        number(at.get(2.0)),
        *map(number, (row.u, row.u_gen, row.u_ben, row.fidelity, row.sgr)),
        attacks_text(row.strongest.values()),
        number(row.seconds, 1),
        "; ".join(["incomplete"] * bool(row.incomplete) + [*row.badges, *row.flags]),
    ]


def _table(rows: list[list[str]], heads: list[str] | tuple[str, ...]) -> str:
    from tabulate import tabulate

    align = ["left"] + ["right"] * (len(heads) - 1)
    return tabulate(rows, headers=list(heads), tablefmt="github", disable_numparse=True, colalign=align)


def _remarks(board: Board) -> Iterator[str]:
    yield (
        "A: part of the attack's gain that the defense stops, mean over its whole curve, strongest attack; 1: nothing "
        "is learned, 0: as undefended, below 0: the attack is helped. W: times the steps that the attacker needs to "
        "half of the undefended gain. P(n): A at n times the attack's preset length alone. "
        "U: part of the use of what is released that is left; "
        f"a released model below {scoring.UTILITY_GATE:g} is not ranked."
    )
    if any(row.track == "erasure" for row in board.rows):
        yield "rows of the track erasure print E as A: 0 as the untouched base draws the concept, 1 gone"
    yield from board.notes
    for row in board.rows:
        if row.not_apart:
            yield f"{row.defense} is not told apart from {', '.join(row.not_apart)}"
    if board.smallest_difference is not None:
        yield f"smallest difference of A between two rows that is told in 80 %: {board.smallest_difference:.2f}"
    if board.row_noise is not None:
        yield f"noise of one task: {board.row_noise:.2f} (root mean square A of replicates of none)"
    for power in board.uninformative:
        yield (
            f"uninformative, excluded for all entries: {power.task}/{power.chain} "
            f"(ceiling {power.ceiling:.2f}, floor {power.floor:.2f})"
        )
    for row in board.rows:
        for reason in row.incomplete:
            yield f"incomplete: {row.defense}: {reason}"
        for score in row.scores:
            if score.reason and score.status != "incomplete":
                where = f"{row.defense}: {score.task}/{score.chain}"
                yield f"{score.status}, counts as undefended: {where} ({score.reason})"


def _verdict(informative: bool) -> str:
    return "passes" if informative else "uninformative"
