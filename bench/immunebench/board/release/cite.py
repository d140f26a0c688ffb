"""Citation of scores in a paper: a LaTeX table, BibTeX references and a provenance line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from immunebench.board.release import references
from immunebench.board.release.provenance import Provenance, cite_rows
from immunebench.board.release.snapshot import Snapshot, Standing
from immunebench.board.scores.model import BoardError
from immunebench.board.tables.latex_table import figure, tabular
from immunebench.board.text import attacks_text, latex_escape

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog
    from immunebench.catalog.entry import Entry

TableName = Literal["main", "families", "chains"]
TABLES: tuple[TableName, ...] = get_args(TableName)


@dataclass(frozen=True)
class Citation:
    """The three texts of a citation.

    Attributes
    ----------
    table
        A ``tabular`` that needs the LaTeX package booktabs.
    bibtex
        References of the suite, the release if any, and every defense and attack shown.
    provenance
        Provenance line of the scores.
    """

    table: str
    bibtex: str
    provenance: Provenance

    def text(self) -> str:
        """All three, ready to paste into LaTeX: the provenance is a comment of the table."""
        return f"% {self.provenance}\n{self.table}\n\n{self.bibtex}\n"


@dataclass(frozen=True)
class ReleaseName:
    """Identification of a release in citations: its id, creation date, and the digest of its checksums."""

    id: str
    created: str
    digest: str


def cite(
    snapshot: Snapshot,
    catalog: Catalog,
    citation: Path,
    *,
    defense: str | None = None,
    table: TableName = "main",
    release: ReleaseName | None = None,
) -> Citation:
    """Make a citation of a board, or of one of its rows.

    Parameters
    ----------
    snapshot
        The board.
    catalog
        The entries, with their ``cite.bib``.
    citation
        ``CITATION.cff`` of the suite.
    defense
        Cite only this row; all rows by default.
    table
        Columns: headline, per family, or per chain.
    release
        The release that the board belongs to.

    Raises
    ------
    BoardError
        If a control fails its check: scores of such a board must not be cited.
    UsageError
        If the defense is not on the board, or a reference cannot be read.
    """
    if snapshot.refusals:
        raise BoardError("no number of this board can be cited: " + "; ".join(snapshot.refusals))
    rows = snapshot.rows if defense is None else (snapshot.row(defense),)
    shown: list[Entry] = [entry for row in rows for entry in _entries(row.defense, catalog)]
    shown += [catalog.attacks[name] for name in snapshot.attacks if name in catalog.attacks]
    suite = references.suite_work(citation)
    absent = [row.name for row in rows if not _entries(row.defense, catalog)]
    name = None
    if release is not None:
        suite += "\n\n" + references.release_work(citation, release.id, release.created, release.digest)
        name = f"{release.id}@{release.digest[:16]}"
    keys = {row.defense: _keys(row, catalog) for row in rows}
    bibtex = references.collect(shown, suite) + "".join(f"\n\n% no reference of {entry} is here" for entry in absent)
    return Citation(latex(rows, table, keys), bibtex, cite_rows(snapshot, rows, name))


def latex(rows: Sequence[Standing], table: TableName, keys: Mapping[str, Sequence[str]]) -> str:
    """Return rows as a booktabs table, controls below a rule; `keys` are the BibTeX keys of each defense."""
    heads = ["Defense", *_columns(rows, table), *(["Strongest attack"] if table == "main" else [])]
    lines = {row.name: [_named(row, keys.get(row.defense, ())), *_values(row, table, rows)] for row in rows}
    groups = [[lines[row.name] for row in rows if row.control == control] for control in (False, True)]
    return tabular(heads, groups, worded=1 if table == "main" else 0)


def _named(row: Standing, keys: Sequence[str]) -> str:
    return latex_escape(row.name) + (rf"~\cite{{{','.join(keys)}}}" if keys else "")


def _columns(rows: Sequence[Standing], table: TableName) -> list[str]:
    if table == "main":
        return [f"${measure(rows)}$", *(["$W$"] if measure(rows) == "A" else []), "$U$"]
    return [latex_escape(name) for name in _names(rows, table)]


def _names(rows: Sequence[Standing], table: TableName) -> list[str]:
    return sorted({name for row in rows for name in _parts(row, table)})


def _values(row: Standing, table: TableName, rows: Sequence[Standing]) -> list[str]:
    if table == "main":
        named = latex_escape(attacks_text(row.worst.values())) if row.worst else "--"
        work = [latex_escape(row.work)] if measure(rows) == "A" else []
        return [figure(row.headline, row.interval), *work, figure(row.u), named]
    values = _parts(row, table)
    return [figure(values.get(name)) for name in _names(rows, table)]


def measure(rows: Sequence[Standing]) -> str:
    """Return ``A``, or ``P`` for rows of a release of rules 1."""
    return rows[0].measure if rows else "A"


def _parts(row: Standing, table: TableName) -> Mapping[str, float]:
    by_family, by_chain = (row.a_family, row.a_chain) if row.measure == "A" else (row.p_family, row.p_chain)
    return by_family if table == "families" else by_chain


def _entries(defense: str, catalog: Catalog) -> list[Entry]:
    """Return the entry of a row, or those of its layers; empty if one is not in the catalogue."""
    parts = [catalog.defenses.get(name) for name in defense.split("+")]
    return [part for part in parts if part is not None] if None not in parts else []


def _keys(row: Standing, catalog: Catalog) -> list[str]:
    """Return the BibTeX keys cited after the defense's name; none for controls, which are from no paper."""
    found = [] if row.control else _entries(row.defense, catalog)
    return list(
        dict.fromkeys(key for entry in found for key in references.entry_works(entry) if key != references.SUITE_KEY)
    )
