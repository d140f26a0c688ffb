"""The commands ``immunebench store ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from immunebench.cli.common import AsJson, ResultsDir, StoreDir, all_plans, print_columns, print_json, the_catalog
from immunebench.core.errors import UsageError

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


@store_app.command("share")
def store_share(
    store: StoreDir = None,
    lease: Annotated[
        float, typer.Option("--lease", help="Seconds after which a worker that vanished holds nothing any more.")
    ] = 120.0,
) -> None:
    """Let several machines that mount the store's folder run on it at once; none may be running now.

    Example: immunebench store share --store /mnt/shared/immunebench
    """
    from immunebench import api
    from immunebench.store.sharing import is_url, share

    if store is not None and is_url(store):
        raise UsageError("is shared as it is:", field="--store", value=store)
    artifacts = api.open_store(store)
    share(artifacts.root, lease)
    print(f"shared with leases of {lease:g} s: {artifacts.root}")


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
