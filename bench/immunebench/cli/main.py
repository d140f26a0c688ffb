"""The application of the command line."""

from __future__ import annotations

import sys

import typer

from immunebench.cli import (
    board,
    capacity,
    data,
    export,
    listing,
    new,
    planning,
    protect,
    releases,
    running,
    sets,
    sheet,
    store,
    submission,
    weights,
)
from immunebench.core.errors import UsageError

app = typer.Typer(
    name="immunebench",
    help="Benchmark of protections against malicious fine-tuning of text-to-image models.\n\n"
    "Example: immunebench run mini-demo --workers 2",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(store.store_app, name="store")
app.add_typer(weights.weights_app, name="weights")
app.add_typer(data.data_app, name="data")
app.add_typer(new.new_app, name="new")
app.add_typer(export.export_app, name="export")
for group in (listing, running, planning, protect, board, releases, sheet, capacity, sets, submission):
    group.register(app)


def main() -> None:
    """Run the command line; exits with 0 on success, 1 on failure, 2 on usage errors."""
    try:
        app()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
