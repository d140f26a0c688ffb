"""What a paper needs to cite measured numbers: a LaTeX table, references, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from immunebench.board import references
from immunebench.board.model import BoardError
from immunebench.board.provenance import Provenance, cite_rows
from immunebench.board.snapshot import Interval, Snapshot, Standing
from immunebench.board.tables import number
from immunebench.board.text import latex_escape

if TYPE_CHECKING:
    from immunebench.entry import Catalog, Entry

TableName = Literal["main", "families", "chains"]
TABLES: tuple[TableName, ...] = get_args(TableName)


@dataclass(frozen=True)
class Citation:
    """Three texts that belong together.

    Attributes
    ----------
    table
        A ``tabular`` that needs the LaTeX package booktabs.
    bibtex
        The suite, the release if any, and every defense and attack shown.
    provenance
        Where the scores come from.
    """

    table: str
    bibtex: str
    provenance: Provenance

    def text(self) -> str:
        """All of it, ready to paste: the provenance is a comment of the table."""
        return f"% {self.provenance}\n{self.table}\n\n{self.bibtex}\n"


@dataclass(frozen=True)
class ReleaseName:
    """A release as citations name it: its id, when it was made, and the digest of its checksums."""

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
        Where the entries' ``cite.bib`` lie.
    citation
        ``CITATION.cff`` of the suite.
    defense
        Only this row; default all.
    table
        Columns: headline, per family, or per chain.
    release
        The release that the board is of.

    Raises
    ------
    BoardError
        A control misbehaves: such a board has no number to cite.
    UsageError
        The defense is not on the board, or a reference cannot be read.
    """
    if snapshot.refusals:
        raise BoardError("no number of this board can be cited: " + "; ".join(snapshot.refusals))
    rows = snapshot.rows if defense is None else (snapshot.row(defense),)
    shown: list[Entry] = [catalog.defenses[row.defense] for row in rows if row.defense in catalog.defenses]
    shown += [catalog.attacks[name] for name in snapshot.attacks if name in catalog.attacks]
    suite = references.suite_work(citation)
    absent = [row.name for row in rows if row.defense not in catalog.defenses]
    name = None
    if release is not None:
        suite += "\n\n" + references.release_work(citation, release.id, release.created, release.digest)
        name = f"{release.id}@{release.digest[:16]}"
    keys = {row.defense: _keys(row, catalog) for row in rows}
    bibtex = references.collect(shown, suite) + "".join(f"\n\n% no reference of {entry} is here" for entry in absent)
    return Citation(latex(rows, table, keys), bibtex, cite_rows(snapshot, rows, name))


def latex(rows: Sequence[Standing], table: TableName, keys: Mapping[str, Sequence[str]]) -> str:
    """Rows as a booktabs table, controls below a rule; `keys` are the BibTeX keys of each defense."""
    columns = _columns(rows, table)
    heads = ["Defense", *columns, *(["Worst chain"] if table == "main" else [])]
    body = [r"\begin{tabular}{l" + "r" * len(columns) + ("l" if table == "main" else "") + "}", r"\toprule"]
    body += [" & ".join(heads) + r" \\", r"\midrule"]
    for at, row in enumerate(rows):
        if at and row.control and not rows[at - 1].control:
            body.append(r"\midrule")
        cite = rf"~\cite{{{','.join(keys[row.defense])}}}" if keys.get(row.defense) else ""
        cells = [latex_escape(row.name) + cite, *_values(row, table, rows)]
        body.append(" & ".join(cells) + r" \\")
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}"])


def _columns(rows: Sequence[Standing], table: TableName) -> list[str]:
    if table == "main":
        return ["$P$", "$U$"]
    return [latex_escape(name) for name in _names(rows, table)]


def _names(rows: Sequence[Standing], table: TableName) -> list[str]:
    return sorted({name for row in rows for name in (row.p_family if table == "families" else row.p_chain)})


def _values(row: Standing, table: TableName, rows: Sequence[Standing]) -> list[str]:
    if table == "main":
        worst = sorted(set(row.worst.values()))
        named = latex_escape(worst[0]) if len(worst) == 1 else f"{len(worst)} chains" if worst else "--"
        return [_number(row.p, row.interval), _number(row.u), named]
    values = row.p_family if table == "families" else row.p_chain
    return [_number(values.get(name)) for name in _names(rows, table)]


def _number(value: float | None, interval: Interval | None = None) -> str:
    if value is None:
        return "--"
    span = "" if interval is None else f" [{number(interval[0])}, {number(interval[1])}]"
    return f"${number(value)}{span}$"


def _keys(row: Standing, catalog: Catalog) -> list[str]:
    """Keys that the defense's name is followed by; a control stands for no paper."""
    entry = catalog.defenses.get(row.defense)
    if entry is None or row.control:
        return []
    return [key for key in references.entry_works(entry) if key != references.SUITE_KEY]
