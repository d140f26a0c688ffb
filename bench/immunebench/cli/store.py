"""The commands ``immunebench store ...``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    pass
from immunebench.cli.common import AsJson, ResultsDir, StoreDir, all_plans, print_columns, print_json, the_catalog

store_app = typer.Typer(
    help="Look at and clean up the store of artifacts.\n\nExample: immunebench store size", no_args_is_help=True
)


@store_app.command("size")
def store_size(store: StoreDir = None, as_json: AsJson = False) -> None:
    """Show how many artifacts of each stage there are, and how large they are.

    Example: immunebench store size
    """
    from immunebench import api
    from immunebench.execution.progress import size

    kept = api.open_store(store)
    found = kept.size()
    if as_json:
        print_json({stage: {"count": n, "bytes": b} for stage, (n, b) in found.items()})
        return
    total = sum(b for _, b in found.values())
    print_columns([[stage, str(n), size(b)] for stage, (n, b) in found.items()])
    print(f"{size(total)} in {kept.root}")


@store_app.command("gc")
def store_gc(
    store: StoreDir = None,
    results: ResultsDir = Path("results"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove artifacts that no suite, no record and no running measurement refers to.

    Example: immunebench store gc --dry-run
    """
    from immunebench import api
    from immunebench.cli import report
    from immunebench.execution.progress import size

    keep = {digest for plan in all_plans(the_catalog()) for digest in plan.stages} | report.referenced(results)
    count, freed = api.open_store(store).gc(keep, dry_run=dry_run)
    print(f"{'would remove' if dry_run else 'removed'} {count} artifacts, drafts and bookmarks, {size(freed)}")
