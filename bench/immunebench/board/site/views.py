"""The values that templates show, prepared so that no template computes a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from immunebench.board.scores.cell import cell_score
from immunebench.board.scores.model import Board, Row, TaskScore
from immunebench.board.site.suite import CheckedSheet, Suite
from immunebench.board.tables.columns import Column, columns, remarks, strongest_chains
from immunebench.board.tables.finding import winner
from immunebench.board.text import number, slug
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.records.record import Record

GROUPS = {
    "headline": "headline",
    "curve": "along the curve",
    "family": "A by family",
    "attack": "A by attack",
    "utility": "parts of U",
    "changes": "change of pictures",
    "readings": "other readings",
    "beside": "beside the score",
    "cost": "cost",
}
SHOWN_AT_FIRST = ("headline", "curve", "family", "cost")


@dataclass(frozen=True)
class Number:
    """A number in a table: its text, the text of its interval, and its sort value."""

    column: Column
    text: str
    interval: str
    sort: str


@dataclass(frozen=True)
class Line:
    """One defense in the main table."""

    row: Row
    slug: str
    numbers: tuple[Number, ...]
    strongest: tuple[tuple[str, int], ...]
    remarks: tuple[str, ...]
    failed: tuple[TaskScore, ...]
    status: str = ""
    league: str = ""
    first: bool = False

    @property
    def attacks(self) -> str:
        """Slugs of the chains that the defense was evaluated on, for filters."""
        return " ".join(sorted({slug(score.chain) for score in self.row.scores}))

    @property
    def strongest_text(self) -> str:
        """Text with each attack that is the strongest on some task, and the number of these tasks."""
        return ", ".join(f"{chain}: {count}" for chain, count in self.strongest)

    @property
    def families(self) -> str:
        """Slugs of the families that the defense was evaluated on, for filters."""
        return " ".join(sorted({slug(score.family) for score in self.row.scores}))


@dataclass(frozen=True)
class CellView:
    """One cell, with the numbers shown under its picture."""

    record: Record
    slug: str
    sheet: CheckedSheet | None
    s: float | None
    floor: float | None
    ceiling: float | None
    p_raw: float | None
    uninformative: bool = False

    @property
    def p(self) -> str:
        """P(1) of this seed alone as text, unclipped; a dash if it is undefined or the power gate fails."""
        return "\N{EN DASH}" if self.p_raw is None or self.uninformative else number(self.p_raw)


def lines(board: Board, catalog: Catalog | None = None) -> list[Line]:
    """Return the rows of the main table in the order of the board, with the catalogue's information on each entry."""
    heads = columns(board)
    made = {row.defense: entry_of(catalog, "defense", row.defense) for row in board.rows if not row.control}
    return [
        Line(
            row,
            slug(row.defense),
            tuple(Number(c, c.text(row), c.text_interval(row), _sort(c.value(row))) for c in heads),
            tuple(strongest_chains(row)),
            tuple(remarks(row)),
            tuple(score for score in row.scores if score.reason and score.status != "incomplete"),
            entry.manifest.status if (entry := made.get(row.defense)) is not None else "",
            _league(board, row),
            board.leads(row),
        )
        for row in board.rows
    ]


def _league(board: Board, row: Row) -> str:
    """Return text on the number of rows that a row is ranked among, and their group if there are several groups."""
    if row.rank is None:
        return ""
    return f"of {len(board.leagues[row.league])}" + (f" in {row.league}" if len(board.leagues) > 1 else "")


def shown_columns(board: Board) -> list[Column]:
    """Return the columns in which at least one row has a value."""
    return [column for column in columns(board) if any(column.value(row) is not None for row in board.rows)]


def cell_views(suite: Suite) -> dict[str, CellView]:
    """Return all cells of a suite by key."""
    board = suite.board
    excluded = set() if board is None else {(power.task, power.chain) for power in board.uninformative}
    views = {}
    for record, cell in zip(suite.records, suite.measurements, strict=True):
        key, own = record.cell.key, cell_score(cell)
        views[key] = CellView(
            record, slug(key), suite.sheets.get(key), own.s, own.floor, own.ceiling, own.p_raw, cell.where in excluded
        )
    return views


def gallery(suite: Suite, views: Mapping[str, CellView]) -> dict[str, CellView]:
    """Return example cells: the leading entry where P(1) is highest and lowest, under the strongest attack."""
    if suite.board is None:
        return {}
    entries = [row for row in suite.board.rows if not row.control]
    leading = winner(suite.board) or next((r for r in entries if r.passes), (entries or list(suite.board.rows))[0])
    shown = [
        view
        for view in views.values()
        if view.record.cell.defense == leading.defense
        and view.record.cell.setting.usual
        and leading.strongest.get(view.record.cell.task) == view.record.cell.chain
        and view.p_raw is not None
        and view.sheet is not None
        and view.sheet.data
    ]
    if leading.defense == "none" or len(shown) < 2:
        return {"The attack on no defense" if leading.defense == "none" else leading.defense: shown[0]} if shown else {}
    shown.sort(key=lambda view: (view.p_raw or 0.0, view.slug))
    return {f"Where {leading.defense} holds best": shown[-1], f"Where {leading.defense} holds least": shown[0]}


def entry_of(catalog: Catalog | None, kind: str, name: str) -> Entry | None:
    """Return the catalogue's entry of a name, None if there is none."""
    if catalog is None:
        return None
    table = catalog.defenses if kind == "defense" else catalog.attacks
    return table.get(catalog.names.get((kind, name), name))


def layers_of(catalog: Catalog | None, name: str) -> list[tuple[str, Entry | None]]:
    """Return the entries of a defense with their names: the entry itself, or the layers of ``esd+imma-lora``."""
    return [(part, entry_of(catalog, "defense", part)) for part in name.split("+")]


def citation(entry: Entry | None, most: int = 8000) -> str:
    """Return the BibTeX of an entry, at most `most` characters; empty if there is none."""
    if entry is None:
        return ""
    try:
        path = (entry.folder / "cite.bib").resolve(strict=True)
        if not path.is_relative_to(entry.folder.resolve()):
            return ""
        return path.read_text("utf-8", errors="replace")[:most].strip()
    except OSError:
        return ""


def link(url: str | None) -> str:
    """Return a web address if it is safe to link to, else an empty value."""
    return url if url is not None and url.startswith(("https://", "http://")) else ""


def _sort(value: float | int | None) -> str:
    # The sorting script reads plain decimals; missing values come last if the best come first.
    return "-999" if value is None else f"{value:.6f}"
