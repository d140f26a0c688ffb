"""The commands ``immunebench export ...``: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from immunebench.errors import UsageError


class _CellByDefault(TyperGroup):
    """``export CELL DIR`` is ``export cell CELL DIR``: a cell's key holds slashes, so it is no command's name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["cell", *args])


export_app = typer.Typer(
    cls=_CellByDefault,
    no_args_is_help=True,
    help="Write models and pictures as plain files.\n\n"
    "Example: immunebench export style-solano/imma-lora/lora/cpu/0 exported",
)


@export_app.command("cell")
def export_cell(
    cell: Annotated[str, typer.Argument(help="task/defense/chain/profile/seed")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty folder.")],
    store: Annotated[
        Path | None,
        typer.Option("--store", help="Store; default $IMMUNEBENCH_STORE, else ~/.cache/immunebench/store."),
    ] = None,
) -> None:
    """Write a cell's adapted model as plain diffusers and peft files; `export CELL DIR` for short.

    Example: immunebench export style-solano/imma-lora/lora/cpu/0 exported
    """
    from immunebench import api, cli
    from immunebench.export import export as write

    catalog = cli._catalog()
    plans = cli._plans(catalog)
    plan = next((p for p in plans if cell in p.roots), None)
    if plan is None:
        choices = {key for p in plans for key in p.roots}
        raise UsageError("no suite has the cell", field="CELL", value=cell, choices=choices)
    print(write(cell, plan, catalog, api.open_store(store), folder))


@export_app.command("published")
def export_published(
    task: Annotated[str, typer.Argument(help="Task of `list tasks`.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder.")],
) -> None:
    """Write a task's clean published pictures as PNG, with captions and SHA-256, for a tool outside to cloak.

    Example: immunebench export published style-okafor clean
    """
    from immunebench import published
    from immunebench.entry import default_catalog

    catalog = default_catalog()
    found = published.export_published(catalog.task(task, field="TASK"), catalog, folder)
    print(f"wrote {found}: cloak its pictures, then `immunebench new artefact --help`")
