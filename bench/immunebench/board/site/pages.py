"""The pages of one suite."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from immunebench.board.plots import write_curves, write_plots
from immunebench.board.scores.model import Board
from immunebench.board.site import views
from immunebench.board.site.suite import Suite
from immunebench.board.site.views import CellView
from immunebench.board.tables import layout
from immunebench.board.tables.columns import remarks
from immunebench.board.tables.finding import finding, tied, winner
from immunebench.board.tables.side_tables import side_tables
from immunebench.board.tables.writers import write_files
from immunebench.board.text import slug
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.param_notes import param_notes
from immunebench.records.record import Cost, Record


@dataclass(frozen=True)
class Pages:
    """Data that all pages of a suite share.

    Parameters
    ----------
    env, suite, folder, catalog
        Templates, results, output folder, and source of descriptions.
    board
        None if it must not be shown.
    cells
        All cells by key.
    """

    env: Environment
    suite: Suite
    folder: Path
    catalog: Catalog | None
    board: Board | None
    cells: dict[str, CellView]

    def write(self, path: str, template: str, **values: Any) -> None:
        """Render a page; relative links go up as many folders as its path has."""
        depth = path.count("/")
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        html = self.env.get_template(f"{template}.html.j2").render(
            root="../" * (2 + depth), here="../" * depth, suite=self.suite, board=self.board, **values
        )
        target.write_text(html, "utf-8", newline="\n")

    def of(self, **names: str) -> list[CellView]:
        """Return the cells with these names, such as ``task="style-weave"``."""
        return [self.cells[record.cell.key] for record in self.suite.of(**names)]


def suite_pages(env: Environment, suite: Suite, folder: Path, title: str, catalog: Catalog | None) -> None:
    """Write the pages, plots, pictures and downloads of a suite to its folder."""
    board = None if suite.refusals else suite.board
    pages = Pages(env, suite, folder, catalog, board, views.cell_views(suite))
    folder.mkdir(parents=True)
    _sheets(pages)
    _index(pages, title)
    _all_cells(pages)
    for name in _names(record.cell.defense for record in suite.records):
        _defense(pages, name)
    for name in _names(record.cell.chain for record in suite.records):
        _attack(pages, name)
    for name in _names(record.cell.task for record in suite.records):
        _task(pages, name)
    for view in pages.cells.values():
        pages.write(f"cells/{view.slug}.html", "cell", view=view)


def _sheets(pages: Pages) -> None:
    shown = [sheet for sheet in pages.suite.sheets.values() if sheet.data]
    if shown:
        (pages.folder / "sheets").mkdir()
    for sheet in shown:
        (pages.folder / "sheets" / sheet.name).write_bytes(sheet.data)


def _index(pages: Pages, title: str) -> None:
    board, suite = pages.board, pages.suite
    if board is None:
        pages.write("index.html", "suite", title=title)
        return
    write_files(board, pages.folder, suite.name)
    layout.write_markdown(board, suite.name, pages.folder / "board.md")
    lines, columns, best = views.lines(board, pages.catalog), views.shown_columns(board), winner(board)
    groups = {column.group for column in columns}
    pages.write(
        "index.html",
        "suite",
        title=title,
        finding=finding(board),
        best=best,
        ties=0 if best is None else len(tied(board, best)),
        plots=write_plots(board, suite.usual, pages.folder / "plots"),
        gallery=views.gallery(suite, pages.cells),
        lines=lines,
        parts={
            "entries": [line for line in lines if not line.row.control],
            "controls": [line for line in lines if line.row.control],
        },
        columns=columns,
        keys={column.key for column in columns},
        groups={name: label for name, label in views.GROUPS.items() if name in groups and name != "headline"},
        shown_at_first=views.SHOWN_AT_FIRST,
        side_tables=tuple(side_tables(board)),
        tracks=_names(row.track or row.kind for row in board.rows),
        families=_names(record.cell.family for record in suite.records),
        chains=_names(record.cell.chain for record in suite.records),
        tasks=_names(record.cell.task for record in suite.records),
    )


def _all_cells(pages: Pages) -> None:
    records = pages.suite.records
    pages.write(
        "cells.html",
        "cells",
        views=list(pages.cells.values()),
        kinds=_names(record.cell.defense_kind for record in records),
        families=_names(record.cell.family for record in records),
        chains=_names(record.cell.chain for record in records),
        statuses=_names(record.status for record in records),
    )


def _defense(pages: Pages, name: str) -> None:
    records, board = pages.suite.of(defense=name), pages.board
    row = None if board is None else board.row(name)
    layers = views.layers_of(pages.catalog, name)
    by_task: dict[str, dict[str, Any]] = defaultdict(dict)
    for score in () if row is None else row.scores:
        by_task[score.task][score.chain] = score
    first = records[0].cell
    pages.write(
        f"defenses/{slug(name)}.html",
        "defense",
        name=name,
        kind=first.defense_kind,
        version=first.defense_version,
        title=first.defense_title,
        row=row,
        remarks=() if row is None else remarks(row),
        layers=layers,
        params=records[0].params,
        notes={k: note for _, entry in layers if entry for k, note in param_notes(entry.path).items()},
        citation="\n\n".join(filter(None, (views.citation(entry) for _, entry in layers))),
        curves=_curves(pages, f"defense-{slug(name)}", defense=name) if name != "none" else "",
        chains=_names(record.cell.chain for record in records),
        scores=by_task,
        utilities={} if row is None else {utility.task: utility.u for utility in row.utilities},
        side_tables=() if board is None else tuple(side_tables(board, name)),
        cost=_cost(records),
        views=pages.of(defense=name),
    )


def _attack(pages: Pages, name: str) -> None:
    board, suite = pages.board, pages.suite
    records = suite.of(chain=name)
    entries = [(part.attack, views.entry_of(pages.catalog, "attack", part.attack)) for part in records[0].cell.links]
    rows = [] if board is None else [row for row in board.rows if any(score.chain == name for score in row.scores)]
    pages.write(
        f"attacks/{slug(name)}.html",
        "attack",
        name=name,
        links=entries,
        citations=[views.citation(entry) for _, entry in entries],
        power=() if board is None else [power for power in board.power if power.chain == name],
        rows=rows,
        tasks=_names(record.cell.task for record in records),
        by_task={(row.defense, s.task): s.a for row in rows for s in row.scores if s.chain == name},
        views=pages.of(chain=name),
    )


def _task(pages: Pages, name: str) -> None:
    records, board = pages.suite.of(task=name), pages.board
    pages.write(
        f"tasks/{slug(name)}.html",
        "task",
        name=name,
        task=None if pages.catalog is None else pages.catalog.tasks.get(name),
        cell=records[0].cell,
        metrics=_names(record.metric for record in records),
        power=() if board is None else [power for power in board.power if power.task == name],
        curves=_curves(pages, f"task-{slug(name)}", task=name),
        views=pages.of(task=name),
    )


def _curves(pages: Pages, file: str, *, task: str | None = None, defense: str | None = None) -> str:
    """Draw the curves of one page and return the plot's name, empty if attacks were scored at one step only."""
    if pages.board is None:
        return ""
    cells = [
        cell
        for cell in pages.suite.usual
        if task in (None, cell.task) and defense in (None, cell.defense) and len(cell.curve) > 1
    ]
    drawn = bool(cells) and write_curves(pages.board, cells, pages.folder / "plots", file, task=task, defense=defense)
    return file if drawn else ""


def _cost(records: Sequence[Record]) -> dict[str, tuple[float, float, float]]:
    """Return mean seconds and maximum memory peaks of each stage over a defense's cells."""
    groups: dict[str, list[Cost]] = defaultdict(list)
    for record in records:
        for stage, cost in record.cost.items():
            groups[stage].append(cost)
    return {
        stage: (
            sum(cost.seconds for cost in costs) / len(costs),
            max(cost.peak_reserved_gib for cost in costs),
            max(cost.peak_process_gib for cost in costs),
        )
        for stage, costs in sorted(groups.items())
    }


def _names(values: Iterable[str]) -> list[str]:
    return sorted(set(values))
