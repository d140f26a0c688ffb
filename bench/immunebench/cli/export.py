"""The commands ``immunebench export ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from immunebench.cli.common import StoreDir, all_plans, print_other_suites, the_catalog
from immunebench.core.errors import UsageError


class _CellByDefault(TyperGroup):
    """Makes ``export CELL DIR`` short for ``export cell CELL DIR``; cell keys have slashes and are never commands."""

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
    store: StoreDir = None,
    suite: Annotated[str | None, typer.Option("--suite", help="The suite, if several have the cell.")] = None,
    names: Annotated[
        str, typer.Option("--format", help="Key names of a LoRA: diffusers, or kohya for ComfyUI and other tools.")
    ] = "diffusers",
) -> None:
    """Write a cell's attacked model as plain diffusers and peft files; `export CELL DIR` for short.

    Example: immunebench export style-solano/imma-lora/lora/cpu/0 exported
    """
    from immunebench import api
    from immunebench.authoring.export import FORMATS
    from immunebench.authoring.export import export as write

    form = next((form for form in FORMATS if form == names), None)
    if form is None:
        raise UsageError("unknown format", field="--format", value=names, choices=FORMATS)
    catalog = the_catalog()
    plans = {plan.suite.id: plan for plan in all_plans(catalog)}
    having = [name for name, plan in plans.items() if cell in plan.roots]
    if not having:
        choices = {key for plan in plans.values() for key in plan.roots}
        raise UsageError("no suite has the cell", field="CELL", value=cell, choices=choices)
    if suite is not None and suite not in having:
        raise UsageError("does not have the cell:", field="--suite", value=suite, choices=having)
    chosen = suite or having[0]
    if suite is None:
        print_other_suites(chosen, having[1:])
    print(write(cell, plans[chosen], catalog, api.open_store(store), folder, form))


@export_app.command("published")
def export_published(
    task: Annotated[str, typer.Argument(help="Task of `list tasks`.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder.")],
) -> None:
    """Write a task's clean published pictures as PNG, with captions and SHA-256, to cloak them by an external tool.

    Example: immunebench export published style-okafor clean
    """
    from immunebench.authoring import published

    catalog = the_catalog()
    found = published.export_published(catalog.task(task, field="TASK"), catalog, folder)
    print(f"wrote {found}: cloak its pictures, then `immunebench new artefact --help`")
