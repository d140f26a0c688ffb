"""The commands ``check``, ``submit``, ``verify`` and ``bundle``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from immunebench.cli.common import AsJson, print_json

if TYPE_CHECKING:
    from immunebench.submission.findings import Finding


def check(
    path: Annotated[
        list[Path], typer.Argument(help="Folder of an entry, records, folder of a suite's results, or a bundle.")
    ],
    static: Annotated[bool, typer.Option("--static", help="Read only; do not run the entry for two steps.")] = False,
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
        found += checks.check(place, run=not static)
    if as_json:
        print_json([one.as_dict() for one in found])
    else:
        _print_findings(found)
        count = len(errors(found))
        print(f"{count} error{'s' * (count != 1)}, {len(found) - count} warning{'s' * (len(found) - count != 1)}")
    if errors(found):
        raise typer.Exit(1)


def _print_findings(found: Sequence[Finding]) -> None:
    """Print findings, and below them each hint once."""
    for one in found:
        print(one)
    for code in dict.fromkeys(one.code for one in found):
        hint = next(one.hint for one in found if one.code == code)
        print(f"hint [{code}]: {hint}")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(check)
