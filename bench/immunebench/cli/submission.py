"""The commands ``check``, ``submit``, ``verify`` and ``bundle``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from immunebench.cli.common import AsJson, ProfileName, ResultsDir, StoreDir, print_json

if TYPE_CHECKING:
    from immunebench.submission.findings import Finding


def check(
    path: Annotated[
        list[Path], typer.Argument(help="Folder of an entry, records, folder of a suite's results, or a bundle.")
    ],
    static: Annotated[bool, typer.Option("--static", help="Read only; do not run the entry for two steps.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run it where this machine has no box, too (see doctor).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check an entry, records or a bundle: what is wrong, where, and what to do about it.

    Exits with 1 if there is an error; warnings do not count.

    Example: immunebench check defenses/my-shield
    """
    from immunebench.submission import check as checks
    from immunebench.submission.findings import errors

    found: list[Finding] = []
    for place in path:
        if not static and (place / "defense.toml").is_file():
            _say(place)
        found += checks.check(place, run=not static, trust=trust)
    if as_json:
        print_json([one.as_dict() for one in found])
    else:
        _print_findings(found)
        count = len(errors(found))
        print(f"{count} error{'s' * (count != 1)}, {len(found) - count} warning{'s' * (len(found) - count != 1)}")
    if errors(found):
        raise typer.Exit(1)


def _say(entry: Path) -> None:
    print(f"{entry}: two steps of it are run twice, about half a minute of one core", file=sys.stderr, flush=True)


def _print_findings(found: Sequence[Finding]) -> None:
    """Print findings, and below them each hint once."""
    for one in found:
        print(one)
    for code in dict.fromkeys(one.code for one in found):
        hint = next(one.hint for one in found if one.code == code)
        print(f"hint [{code}]: {hint}")


def submit(
    path: Annotated[Path, typer.Argument(help="Folder of a defense.")],
    suite: Annotated[str, typer.Option("--suite", help="Suite to run it on.")] = "mini-smoke",
    profile: ProfileName = None,
    results: ResultsDir = Path("results"),
    store: StoreDir = None,
    workers: Annotated[int, typer.Option("--workers", help="Parallel stages.")] = 1,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Time limit per stage in seconds.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read the entry, and say what would be run.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the entry where this machine has no box (see doctor).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a defense, run what is missing, check its records, and preview its row; prints a pull request's text.

    What was measured already is not measured again: a stopped submission goes on.

    Example: immunebench submit defenses/my-shield --suite mini-smoke
    """
    from immunebench.submission import submit as submissions
    from immunebench.submission.findings import errors

    if not dry_run and (path / "defense.toml").is_file():
        _say(path)
    request = submissions.Request(path, suite, profile, results, store, workers, timeout, dry_run, trust)
    done = submissions.submit(request)
    if as_json:
        findings = [one.as_dict() for one in done.findings]
        file = None if done.file is None else str(done.file)
        print_json({"findings": findings, "file": file, "lines": done.lines, "text": done.text})
    else:
        _print_findings(done.findings)
        print("\n".join(done.lines))
        if done.text:
            print(f"\n---- text of the pull request ----\n\n{done.text}")
    if errors(done.findings):
        raise typer.Exit(1)


def verify(
    path: Annotated[Path, typer.Argument(help="File of records (results/SUITE/ID@VERSION.jsonl), or a bundle (.tar).")],
    cells: Annotated[int, typer.Option("--cells", help="How many cells to run again.")] = 2,
    seed: Annotated[int, typer.Option("--seed", help="Seed that the cells are drawn from.")] = 0,
    workers: Annotated[int, typer.Option("--workers", help="Parallel stages.")] = 1,
    tasks: Annotated[
        Path | None, typer.Option("--tasks", help="Folder of held-out tasks (FAMILY/ID.toml) to run the entry on too.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Of a bundle: folder of results whose marks are written.")
    ] = None,
    official: Annotated[
        bool, typer.Option("--official", help="Maintainers: list all files of PATH's folder as official; run nothing.")
    ] = False,
    leaderboard: Annotated[Path, typer.Option("--leaderboard", help="With --official.")] = Path("leaderboard"),
    as_json: AsJson = False,
) -> None:
    """Run randomly drawn cells of records again from an empty store, and mark the records if every number agrees.

    On the same kind of machine with the same versions all numbers must be equal; else means are held to a tolerance.
    Exits with 1 if a field differs; it is named.

    Example: immunebench verify results/mini-smoke/imma-lora@2.jsonl --cells 1
    """
    from immunebench.submission import verifying

    if official:
        print(f"wrote {verifying.make_official(path, leaderboard)}")
        return
    done = verifying.verify_path(path, cells=cells, seed=seed, workers=workers, tasks=tasks, results=results)
    if as_json:
        print_json(done.as_dict())
    else:
        print("\n".join(done.lines()))
    if done.differences:
        raise typer.Exit(1)


def bundle(
    path: Annotated[Path, typer.Argument(help="Folder of a defense.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The tar to write.")],
    suite: Annotated[str, typer.Option("--suite", help="Suite of the records.")] = "mini-smoke",
    closed: Annotated[bool, typer.Option("--closed", help="Leave out the code.")] = False,
    results: ResultsDir = Path("results"),
    store: StoreDir = None,
) -> None:
    """Write an entry, its records, and the weights and pictures that it released into one tar.

    Example: immunebench bundle defenses/my-shield -o my-shield.tar --closed
    """
    from immunebench.submission import verifying

    written, left = verifying.bundle(path, out, suite, results, store, closed=closed)
    for line in left:
        print(f"left out: {line}")
    print(f"wrote {written} ({written.stat().st_size / 2**20:.1f} MiB)")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (check, submit, verify, bundle):
        app.command()(command)
