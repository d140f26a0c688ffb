"""The command ``board``: tables, files, plots and the website."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from immunebench.cli import releases
from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    pass
from immunebench.cli.common import AsJson, ResultsDir, published, require_run, the_catalog


def board(
    suite: Annotated[
        str | None, typer.Argument(help="Folder of results to print; default: write all boards and the website.")
    ] = None,
    results: ResultsDir = Path("results"),
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the printed page to this file too.")
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            "--site",
            help="Folder of the website, replaced completely; default leaderboard/site. With SUITE: of it alone.",
        ),
    ] = None,
    leaderboard: releases.BoardDir = Path("leaderboard"),
    as_json: AsJson = False,
) -> None:
    """Print the scores of a suite's results; without SUITE, write every board, its files, plots and the website.

    With SUITE and --site, the website of that suite is written too.

    Exits with 1 if lines of the results are left out or the board is refused, with 2 if nothing can be shown. A folder
    without any records is not an error; the command and the website state it.

    Example: immunebench board mini-smoke
    """
    from immunebench.board.assembly import scored
    from immunebench.board.scores.model import BoardError
    from immunebench.board.tables import layout
    from immunebench.board.tables.writers import to_json

    if suite is None:
        if as_json:
            raise UsageError("needs a SUITE", field="--json")
        if markdown is not None:
            raise UsageError("needs a SUITE", field="--markdown")
        _write_boards(results, site or Path("leaderboard/site"), leaderboard)
        return
    results = published(results, "results") if site is None else results
    require_run(suite, results)
    if site is not None:
        _write_boards(results, site, leaderboard, suite)
    try:
        found = scored.score_folder(scored.suite_folder(suite, results))
        if as_json:
            print(to_json(found.board, suite), end="")
        else:
            layout.show(found.board, suite)
    except scored.NothingToShow as error:
        releases.print_problems(error.problems)
        raise typer.Exit(2) from None
    except BoardError as error:
        print(f"no board: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if markdown is not None:
        layout.write_markdown(found.board, suite, markdown)
    releases.print_problems(found.problems)
    if found.problems:
        raise typer.Exit(1)


def _write_boards(results: Path, site: Path, leaderboard: Path, suite: str | None = None) -> None:
    """Write ``board.md`` next to the records of every suite or of one, and the website with all other formats."""
    from immunebench.board.assembly.scored import suite_folder
    from immunebench.board.loading import measured_capacity, reported
    from immunebench.board.site import load_suite, suite_folders, write_site
    from immunebench.board.tables import layout

    folders = suite_folders(results) if suite is None else [suite_folder(suite, results)]
    if not results.is_dir():
        raise UsageError("no such folder", field="--results", value=str(results))
    suites = []
    for number, folder in enumerate(folders, 1):
        # Intervals of a large suite take ten seconds and more.
        print(f"[{number}/{len(folders)}] {folder.name}", file=sys.stderr, flush=True)
        suites.append(load_suite(folder))
    print(f"writing {site}", file=sys.stderr, flush=True)
    papers = leaderboard / "reported.toml"
    figures = reported.figures(papers) if papers.is_file() else []
    capacity = measured_capacity.read(leaderboard / "capacity.json")
    files = write_site(suites, site, the_catalog(), reported=figures, capacity=capacity)
    for folder, scored in zip(folders, suites, strict=True):
        if scored.board is None or scored.refusals:
            print(f"no board: {scored.name}: {'; '.join(scored.refusals)}", file=sys.stderr)
        else:
            layout.write_markdown(scored.board, scored.name, folder / "board.md")
        for problem in scored.problems:
            print(f"left out: {scored.name}: {problem}", file=sys.stderr)
        for key, sheet in scored.sheets.items():
            if sheet.problem:
                print(f"no picture: {key}: the contact sheet {sheet.problem}", file=sys.stderr)
    if not suites:
        print(f"nothing yet: no folder of {results} has records")
    print(f"suites: {len(suites)}, files: {len(files)}, site: {site / 'index.html'}")
    if any(scored.refusals or scored.problems for scored in suites):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(board)
