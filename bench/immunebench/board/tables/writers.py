"""The board as files for other programs and papers: CSV, JSON and a LaTeX table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from immunebench.board.scores.model import Board, Row
from immunebench.board.tables.columns import Column, chains, columns, families, remarks, strongest_chains
from immunebench.board.tables.json_document import document
from immunebench.board.tables.latex_table import figure, tabular
from immunebench.board.text import attacks_text, latex, visible
from immunebench.declared import scoring

FORMATS = ("csv", "json", "tex")
# Beginnings of a cell that spreadsheets interpret as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_files(board: Board, folder: Path, suite: str = "") -> list[Path]:
    """Write ``board.csv``, ``board.json`` and ``board.tex`` into a folder; equal boards give identical bytes.

    Raises
    ------
    BoardError
        If a control fails its check.
    """
    board.require_sound()
    texts = {"csv": to_csv(board), "json": to_json(board, suite), "tex": to_latex(board, suite)}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix in FORMATS:
        path = folder / f"board.{suffix}"
        path.write_bytes(texts[suffix].encode("utf-8"))
        paths.append(path)
    return paths


def to_json(board: Board, suite: str = "") -> str:
    """Return the whole board, unrounded, as JSON of `immunebench.board.tables.json_document.BoardDocument`."""
    value = document(board, suite).model_dump(mode="json")
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(board: Board) -> str:
    """Return CSV with one line per defense and all columns, unrounded; missing values are empty.

    Lists are joined by ``; ``. Text that a spreadsheet would run as a formula is prefixed with an apostrophe.
    """
    board.require_sound()
    numbers = columns(board)
    spans = {column.key for column in numbers if any(column.interval(row) is not None for row in board.rows)}
    heads = ["defense", "version", "kind", "track"]
    for column in numbers:
        heads += [column.key, *([f"{column.key}.low", f"{column.key}.high"] if column.key in spans else [])]
    heads += ["strongest_attack", "complete", "passes", "control", "remarks"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(heads)
    for row in board.rows:
        writer.writerow(_csv_line(row, numbers, spans))
    return stream.getvalue()


def _csv_line(row: Row, numbers: list[Column], spans: set[str]) -> Iterator[str]:
    yield from (_plain(row.defense), str(row.version), _plain(row.kind), _plain(row.track))
    for column in numbers:
        yield _number(column.value(row))
        if column.key in spans:
            low, high = column.interval(row) or (None, None)
            yield from (_number(low), _number(high))
    yield _plain("; ".join(f"{chain} ({count})" for chain, count in strongest_chains(row)))
    yield from (str(not row.incomplete).lower(), str(row.passes).lower(), str(row.control).lower())
    yield _plain("; ".join(remarks(row)))


def _plain(text: str) -> str:
    shown = visible(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def _number(value: float | int | None) -> str:
    return "" if value is None else repr(value)


def to_latex(board: Board, suite: str = "") -> str:
    """Return two ``booktabs`` tables: A, W and U with intervals and cost; A per family and per chain.

    Tie group 1 is bold. Unranked rows and controls are each separated by a rule.
    """
    board.require_sound()
    name = latex(board.suite or suite, 64)
    there = [column for column in columns(board) if any(column.value(row) is not None for row in board.rows)]
    main = [c for c in there if c.group in ("headline", "cost") or c.key in ("p_at.1", "p_at.2", "matched")]
    parts = [
        column
        for column in there
        if (column.group == "family" and len(families(board)) > 1)
        or (column.group == "attack" and len(chains(board)) > 1)
    ]
    tables = [_latex_table(board, main, _caption(board, name))]
    if parts:
        tables.append(_latex_table(board, parts, f"{name}: A by family and by attack."))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(tables)


def _latex_table(board: Board, shown: list[Column], caption: str) -> str:
    heads = ["defense", *(latex(column.title, 40) for column in shown), "strongest attack"]
    rows = [[_latex_cells(row, shown, board.leads(row)) for row in group] for group in _groups(board)]
    table = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", tabular(heads, rows, worded=1), r"\end{table}"]
    return "\n".join(table) + "\n"


def _groups(board: Board) -> list[list[Row]]:
    ranked = [row for row in board.rows if row.passes and not row.control]
    unranked = [row for row in board.rows if not row.passes and not row.control]
    return [group for group in (ranked, unranked, [row for row in board.rows if row.control]) if group]


def _latex_cells(row: Row, shown: list[Column], first: bool) -> list[str]:
    name = rf"\texttt{{{latex(row.defense, 64)}}}"
    # As on the board, an entry below the utility gate is shown with its scores and without a rank.
    cells = [rf"\textbf{{{name}}}" if first else name]
    for column in shown:
        bold = first and column.key == "a"
        cells.append(figure(column.value(row), column.interval(row), digits=column.digits, bold=bold))
    return [*cells, latex(attacks_text(row.strongest.values()), 40) if row.strongest else "--"]


def _caption(board: Board, name: str) -> str:
    parts = [
        f"{name}: A is the part of the attack's gain that is stopped (mean over its whole curve, strongest attack), "
        "W how many times the steps the attacker needs, "
        f"U the part of the use that is left (a released model below {scoring.UTILITY_GATE:g} is not ranked)."
    ]
    rule = board.interval_rule or (board.notes[0] if board.notes else "")
    if rule:
        parts.append(latex(rule, 200) + ".")
    if any(map(board.leads, board.rows)):
        parts.append("Bold: tie group 1.")
    return " ".join(parts)
