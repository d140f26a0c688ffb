"""Shared parts of the commands: options, the catalogue, plans, tables and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from immunebench.core.errors import UsageError, printable, shortened

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog
    from immunebench.store.graph import Plan

#: Most characters of a value in a column.
_LONGEST = 500

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StoreDir = Annotated[
    # No Path: that would join the two slashes of a URL.
    str | None,
    typer.Option(
        "--store",
        metavar="FOLDER|URL",
        help="Store, or s3://bucket/prefix; default $IMMUNEBENCH_STORE, else ~/.cache/immunebench/store.",
    ),
]
ResultsDir = Annotated[Path, typer.Option("--results", help="Folder of results.")]
TaskName = Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be repeated.")]
DefenseName = Annotated[
    list[str] | None, typer.Option("--defense", help="This defense instead of the suite's; may be repeated.")
]
AttackName = Annotated[list[str] | None, typer.Option("--attack", help="Only this chain; may be repeated.")]
SuiteName = Annotated[str | None, typer.Option("--suite", help="The suite, if several have the cell.")]
Seed = Annotated[list[int] | None, typer.Option("--seed", help="This seed instead of the suite's; may be repeated.")]
ProfileName = Annotated[str | None, typer.Option("--profile", help="This profile instead of the suite's.")]


def the_catalog() -> Catalog:
    """Return the default catalogue."""
    from immunebench.catalog.loading import default_catalog

    return default_catalog()


def all_plans(catalog: Catalog) -> list[Plan]:
    """Return the plans of all suites; those that cannot be planned, such as for missing weights, are skipped."""
    from immunebench import api

    plans = []
    for name in catalog.suites:
        try:
            plans.append(api.plan_suite(name, catalog=catalog))
        except UsageError as error:
            print(f"suite {name} is skipped: {error}", file=sys.stderr)
    return plans


def published(folder: Path, name: str) -> Path:
    """Return the folder to read for an option: the given one, or where its default is not here, the published one."""
    from immunebench.catalog import places

    if folder != Path(name) or folder.is_dir():
        return folder
    found = places.published(name)
    if found is not None:
        print(f"{name}: {found}", file=sys.stderr)
    return found or folder


def require_run(suite: str | None, results: Path) -> None:
    """Check that a suite of the catalogue has results.

    Raises
    ------
    UsageError
        It has none; the message has the command that makes them. Other names are left to the caller.
    """
    if suite is not None and not (results / suite).is_dir() and suite in the_catalog().suites:
        how = f"is not run yet (no results in {results}; immunebench run {suite} measures it):"
        raise UsageError(how, field="SUITE", value=suite)


def unfinished(catalog: Catalog, names: Iterable[str]) -> list[str]:
    """Return what the entries of defenses and chains still hold of the text that `immunebench new` wrote."""
    from immunebench.catalog.placeholders import leftovers

    known = {**catalog.attacks, **catalog.defenses}
    parts = dict.fromkeys(part for name in names for part in name.split("+") if part in known)
    return [line for part in parts for line in leftovers(known[part])]


def print_other_suites(shown: str, others: list[str]) -> None:
    """Print to standard error which other suites have the cell too."""
    if others:
        print(f"from {shown}; the cell is also in {', '.join(others)} (choose with --suite)", file=sys.stderr)


def print_columns(rows: list[list[Any]]) -> None:
    """Print a table with aligned columns; control characters are escaped and very long values shortened."""
    cells = [[printable(shortened(str(value), _LONGEST)) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def print_json(value: object) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))
