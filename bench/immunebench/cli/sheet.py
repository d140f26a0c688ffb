"""The command ``sheet``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from immunebench.cli.common import StoreDir


def sheet(
    defense: Annotated[str, typer.Argument(help="A defense that changes pictures, such as noise.")],
    suite: Annotated[str, typer.Argument(help="Suite whose artifacts are shown: an id, or a TOML file.")],
    task: Annotated[
        str | None, typer.Option("--task", help="Task to show, such as --task style-okafor; default the first.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="PNG to write; default sheets/DEFENSE--TASK.png.")] = None,
    store: StoreDir = None,
) -> None:
    """Draw a contact sheet of a defense: clean, protected, difference x10, after each purifier, and after the attacks.

    Example: immunebench sheet noise mini-lite --task style-solano --out noise.png
    """
    from immunebench import api
    from immunebench.records.defense_sheet import defense_sheet

    plan = api.plan_suite(suite, defense=defense, task=task)
    shown = task or next((cell.task for cell in plan.cells), "")
    path = out or Path("sheets") / f"{defense}--{shown}.png"
    if out is None:
        path.parent.mkdir(exist_ok=True)
    size = defense_sheet(plan, api.open_store(store), shown, path)
    print(f"sheet: {path} ({size / 1024:.0f} KB)")


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(sheet)
