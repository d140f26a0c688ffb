"""The commands ``cite``, ``release``, ``diff`` and ``reported``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from immunebench.cli.common import AsJson, print_json, published, require_run, the_catalog, unfinished
from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.board.loading.load import Problem


ResultsDir = Annotated[
    Path, typer.Option("--results", help="Folder of results, one folder per suite, such as --results results.")
]
BoardDir = Annotated[
    Path, typer.Option("--leaderboard", help="Folder of rules.md and releases, such as --leaderboard leaderboard.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to an application."""
    for command in (cite, release, diff, reported):
        app.command()(command)


def cite(
    release: Annotated[
        str | None, typer.Option("--release", help="A frozen release instead of results/, such as --release 2026.1.")
    ] = None,
    defense: Annotated[
        str | None, typer.Option("--defense", help="Only this row, such as --defense imma-lora.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="The suite, if there are several, such as --suite mini-lite.")
    ] = None,
    table: Annotated[str, typer.Option("--table", help="Columns: main, families or chains.")] = "main",
    check: Annotated[
        str | None,
        typer.Option("--check", help='Check a provenance line: --check "immunebench suite=mini-lite@1.0 ...".'),
    ] = None,
    results: ResultsDir = Path("results"),
    leaderboard: BoardDir = Path("leaderboard"),
    as_json: AsJson = False,
) -> None:
    """Print LaTeX, BibTeX and provenance of measured numbers, or check a number that was cited.

    Exits with 1 if a checked number is not confirmed, a board is refused, or lines of the results are left out.

    Example: immunebench cite --suite mini-lite --defense imma-lora
    """
    from immunebench.board.release import source
    from immunebench.board.release.cite import TABLES
    from immunebench.board.release.cite import cite as make

    results, leaderboard = published(results, "results"), published(leaderboard, "leaderboard")
    if check is not None:
        given = {"--release": release, "--defense": defense, "--suite": suite}
        if clash := next((name for name, value in given.items() if value is not None), None):
            raise UsageError("is part of the provenance line already; omit it with --check", field=clash)
        _check(check, results, leaderboard, as_json)
        return
    columns = next((name for name in TABLES if name == table), None)
    if columns is None:
        raise UsageError("unknown table", field="--table", value=table, choices=TABLES)
    catalog = the_catalog()
    if defense is not None:
        defense = catalog.names.get(("defense", defense), defense)
    if defense is not None:
        _require_finished([defense])
    if release is None:
        require_run(suite, results)
    with _refusable():
        found = source.load(results, leaderboard, suite=suite, release=release)
        made = make(
            found.snapshot,
            catalog,
            source.citation_file(leaderboard),
            defense=defense,
            table=columns,
            release=found.release,
        )
    if as_json:
        print_json({"table": made.table, "bibtex": made.bibtex, "provenance": str(made.provenance)})
    else:
        print(made.text(), end="")
    _exit_on_problems(found.problems)


def _check(line: str, results: Path, leaderboard: Path, as_json: bool) -> None:
    from immunebench.board.release import provenance, source

    cited = provenance.parse(line)
    with _refusable():
        found = source.load_cited(cited, results, leaderboard)
    verdict = provenance.check(cited, found.snapshot)
    differences = [*found.differences, *verdict.differences]
    print_problems(found.problems)
    if as_json:
        print_json({"stands": not differences, "differences": differences, "notes": verdict.notes})
    else:
        print("the number does not stand" if differences else "the number stands")
        print("".join(f"  {text}\n" for text in [*differences, *(f"note: {note}" for note in verdict.notes)]), end="")
    if differences:
        raise typer.Exit(1)


def release(
    name: Annotated[str, typer.Argument(metavar="ID", help="Name of the release, such as 2026.1.")],
    created: Annotated[
        str | None,
        typer.Option("--created", help="Its date, such as --created 2026-11-23; default that of the newest record."),
    ] = None,
    add: Annotated[
        list[Path] | None,
        typer.Option("--add", help="An additional file to freeze, such as --add README.md; may be repeated."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", help="Freeze only this suite, such as --suite mini-lite; may be repeated."),
    ] = None,
    results: ResultsDir = Path("results"),
    leaderboard: BoardDir = Path("leaderboard"),
    as_json: AsJson = False,
) -> None:
    """Freeze boards, digests of the records and the rules in leaderboard/releases/ID.

    Nothing is written if a record is broken or a control fails its check.

    Example: immunebench release 2026.1
    """
    from immunebench.board.release import release as releases

    chosen = suite or [path.name for path in sorted(results.glob("*")) if path.is_dir()]
    files = (file for each in chosen for file in sorted((results / each).glob("*@*.jsonl")))
    _require_finished(file.name.rpartition("@")[0] for file in files)
    with _refusable():
        folder, manifest = releases.make(name, results, leaderboard, created=created, add=add or (), suites=suite or ())
    if as_json:
        print_json({"folder": str(folder), **manifest.model_dump(mode="json")})
        return
    print(f"{folder}: {', '.join(f'{suite} {part.version}' for suite, part in manifest.suites.items())}")
    missing = [f"{suite}: {text}" for suite, part in manifest.suites.items() for text in part.missing]
    for text in (*manifest.missing, *missing):
        print(f"  missing: {text}")


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Folder of results, release, suite:defense, or a defense.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same kind as A, such as mini-lite:imma-multi.")],
    suite: Annotated[
        str | None, typer.Option("--suite", help="A and B are defenses of this suite, such as --suite mini-lite.")
    ] = None,
    results: ResultsDir = Path("results"),
    leaderboard: BoardDir = Path("leaderboard"),
    as_json: AsJson = False,
) -> None:
    """Compare two boards, releases or entries: the difference in P per task and chain, with a paired interval.

    Exits with 1 if nothing can be compared, or lines of the results are left out.

    Example: immunebench diff imma-lora imma-multi --suite mini-lite
    """
    from immunebench.board.loading.load import plain
    from immunebench.board.release import diff as diffs
    from immunebench.board.release import diff_text, source

    results, leaderboard = published(results, "results"), published(leaderboard, "leaderboard")
    if suite is not None:
        require_run(suite, results)
        a, b = f"{suite}:{a}", f"{suite}:{b}"
    with _refusable():
        left, right = (source.side(name, results, leaderboard) for name in (a, b))
    if (left.row is None) != (right.row is None):
        raise UsageError("a board cannot be compared with an entry:", value=f"{a} {b}")
    if left.row is not None and right.row is not None:
        entries = [diffs.compare_entries(left.row, right.row)]
        value = [entry.value() for entry in entries]
        lines = [line for entry in entries for line in diff_text.entry_lines(entry)]
    else:
        shared = sorted(left.boards.keys() & right.boards.keys())
        boards = [diffs.compare_boards(left.boards[name], right.boards[name]) for name in shared]
        entries = [entry for board in boards for entry in board.entries]
        value = [board.value() for board in boards]
        lines = [line for board in boards for line in diff_text.board_lines(board, a, b)]
    if as_json:
        print_json(value)
    else:
        # Releases may come from other people, so their text is escaped too.
        print("\n".join(map(plain, lines)))
    if not any(entry.difference is not None for entry in entries):
        print("nothing can be compared", file=sys.stderr)
        raise typer.Exit(1)
    _exit_on_problems([*left.problems, *right.problems])


def reported(
    method: Annotated[
        str | None, typer.Option("--method", help="Only figures of this method, such as --method IMMA.")
    ] = None,
    recalled: Annotated[
        bool, typer.Option("--recalled", help="Include figures that have not been checked against their paper.")
    ] = False,
    leaderboard: BoardDir = Path("leaderboard"),
    as_json: AsJson = False,
) -> None:
    """Print figures reported in papers, with source and certainty; they are never ranked with measured ones.

    Example: immunebench reported --method IMMA
    """
    from immunebench.board.loading import reported as figures

    found = figures.figures(published(leaderboard, "leaderboard") / "reported.toml")
    if method is not None:
        found = figures.of_method(found, method)
    if as_json:
        print_json([dataclasses.asdict(figure) for figure in found if recalled or figure.checked])
    else:
        print(figures.reported_table(found, recalled=recalled).text(), end="")


def _require_finished(names: Iterable[str]) -> None:
    """Check that entries name their authors and papers: what is cited and frozen is read by others.

    Raises
    ------
    UsageError
        One still holds text that `immunebench new` wrote.
    """
    for line in unfinished(the_catalog(), names):
        raise UsageError(f"{line}, which its author is to replace before it is cited or released")


def print_problems(problems: Iterable[Problem]) -> None:
    """Print problems of results to standard error, one per line."""
    for problem in problems:
        print(f"results: {problem}", file=sys.stderr)


def _exit_on_problems(problems: Iterable[Problem]) -> None:
    """Print problems, and exit with 1 if there are any."""
    problems = tuple(problems)
    print_problems(problems)
    if problems:
        raise typer.Exit(1)


@contextmanager
def _refusable() -> Iterator[None]:
    """Print why there is no board, and exit with 2 if no record is usable, with 1 if the records are refused."""
    from immunebench.board.assembly.scored import NothingToShow
    from immunebench.board.scores.model import BoardError

    try:
        yield
    except NothingToShow as error:
        print_problems(error.problems)
        raise typer.Exit(2) from None
    except BoardError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
