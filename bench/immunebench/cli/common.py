"""What the commands share: options, the catalogue, plans, columns and JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from immunebench.core.errors import UsageError, shortened, shown

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog
    from immunebench.store.graph import Plan

#: Most characters of a value in a column.
_LONGEST = 500

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StoreDir = Annotated[
    Path | None,
    typer.Option("--store", help="Store; default $IMMUNEBENCH_STORE, else ~/.cache/immunebench/store."),
]
ResultsDir = Annotated[Path, typer.Option("--results", help="Folder of results.")]
TaskName = Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be repeated.")]
DefenseName = Annotated[
    list[str] | None, typer.Option("--defense", help="This defense instead of the suite's; may be repeated.")
]
AttackName = Annotated[list[str] | None, typer.Option("--attack", help="Only this chain; may be repeated.")]
SuiteName = Annotated[str | None, typer.Option("--suite", help="The suite, where several have the cell.")]
Seed = Annotated[list[int] | None, typer.Option("--seed", help="This seed instead of the suite's; may be repeated.")]
ProfileName = Annotated[str | None, typer.Option("--profile", help="This profile instead of the suite's.")]


def the_catalog() -> Catalog:
    from immunebench.catalog.loading import default_catalog

    return default_catalog()


def all_plans(catalog: Catalog) -> list[Plan]:
    """Plans of all suites; one that cannot be planned, for want of weights, is passed over with a line."""
    from immunebench import api

    plans = []
    for name in catalog.suites:
        try:
            plans.append(api.plan_suite(name, catalog=catalog))
        except UsageError as error:
            print(f"suite {name} is passed over: {error}", file=sys.stderr)
    return plans


def say_others(shown: str, others: list[str]) -> None:
    """Tell, beside the output, which other suites have the cell too."""
    if others:
        print(f"of {shown}; the cell is in {', '.join(others)} too (--suite chooses)", file=sys.stderr)


def print_columns(rows: list[list[Any]]) -> None:
    """Print rows in columns, with control and direction characters escaped and very long values shortened."""
    cells = [[shown(shortened(str(value), _LONGEST)) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def print_json(value: object) -> None:
    print(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))
