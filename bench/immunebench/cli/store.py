"""The commands ``immunebench store ...``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    pass
from immunebench.cli.common import AsJson, ResultsDir, StoreDir, all_plans, print_columns, print_json, the_catalog

store_app = typer.Typer(
    help="Inspect and clean up the artifact store.\n\nExample: immunebench store size", no_args_is_help=True
)


@store_app.command("size")
def store_size(store: StoreDir = None, as_json: AsJson = False) -> None:
    """Show the number and size of the artifacts of each stage.

    Example: immunebench store size
    """
    from immunebench import api
    from immunebench.execution.progress import size

    artifacts = api.open_store(store)
    found = artifacts.size()
    if as_json:
        print_json({stage: {"count": n, "bytes": b} for stage, (n, b) in found.items()})
        return
    total = sum(b for _, b in found.values())
    print_columns([[stage, str(n), size(b)] for stage, (n, b) in found.items()])
    print(f"{size(total)} in {artifacts.root}")


@store_app.command("gc")
def store_gc(
    store: StoreDir = None,
    results: ResultsDir = Path("results"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
) -> None:
    """Remove artifacts that no suite, no record and no current run refers to.

    Example: immunebench store gc --dry-run
    """
    from immunebench import api
    from immunebench.cli import report
    from immunebench.execution.progress import size

    needed = {digest for plan in all_plans(the_catalog()) for digest in plan.stages} | report.referenced(results)
    count, freed = api.open_store(store).gc(needed, dry_run=dry_run)
    print(f"{'would remove' if dry_run else 'removed'} {count} artifacts, drafts and bookmarks, {size(freed)}")
