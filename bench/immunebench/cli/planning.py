"""The command ``plan``."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from immunebench.cli.common import (
    AsJson,
    AttackName,
    DefenseName,
    ProfileName,
    ResultsDir,
    Seed,
    StoreDir,
    TaskName,
    print_columns,
    print_json,
    the_catalog,
)
from immunebench.core.errors import UsageError, printable

if TYPE_CHECKING:
    from immunebench.plan.forecast import Forecast

#: GPUs that every forecast is made for, and those of them that a user would call few, a machine and a cluster.
USUAL = (1, 8, 64)
MARKS = {
    "store": "measured in this store",
    "records": "measured, from records",
    "capacity": "measured, from leaderboard/capacity.json",
    "stated": "stated by the entry",
    "table": "measured on the embedded base, table",
    "arithmetic": "arithmetic, not measured",
}


def plan(
    suite: Annotated[str, typer.Argument(help="Suite: an id of `list suites`, or a TOML file.")],
    gpus: Annotated[
        list[int] | None, typer.Option("--gpus", help="GPUs to simulate beside 1, 8 and 64; may be repeated.")
    ] = None,
    cores: Annotated[int, typer.Option("--cores", help="Cores beside each GPU, for the stages that need no GPU.")] = 4,
    defenses: Annotated[
        int | None, typer.Option("--defenses", help="Plan a board of so many defenses like the suite's own.")
    ] = None,
    task: TaskName = None,
    defense: DefenseName = None,
    attack: AttackName = None,
    seed: Seed = None,
    profile: ProfileName = None,
    results: ResultsDir = Path("results"),
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Say what a suite takes: GPU-hours, the critical path, and the time on 1, 8, 64 GPUs. Needs no weights.

    Example: immunebench plan sd14-full --gpus 16 --profile a100-40g
    """
    from immunebench import api
    from immunebench.catalog.outline import Outline
    from immunebench.plan.forecast import forecast

    for option, numbers in (("--gpus", gpus or []), ("--cores", [cores]), ("--defenses", [defenses or 1])):
        if wrong := [number for number in numbers if number < 1]:
            raise UsageError("must be at least 1, not", field=option, value=wrong[0])
    if defenses is not None and defenses < 1:
        raise UsageError("must be at least 1, not", field="--defenses", value=defenses)
    catalog = Outline.of(the_catalog())
    made = api.plan_suite(suite, catalog=catalog, task=task, defense=defense, attack=attack, seed=seed, profile=profile)
    artifacts = api.open_store(store)
    known = api.known_costs(made, catalog, api.results_folder(results) / made.suite.id)
    found = forecast(made, catalog, artifacts, known, sorted({*USUAL, *(gpus or ())}), cores, defenses)
    say_absent(catalog.absent)
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found)


def say_absent(absent: list[str]) -> None:
    """Say on standard error what a plan was made without."""
    if absent:
        print(f"planned without: {printable('; '.join(absent))}; a run needs them", file=sys.stderr)


def _print(found: Forecast) -> None:
    from immunebench.execution.progress import duration

    unit = "GPU" if found.on_cards else "core"
    rows: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for part in found.parts:
        rows[part.stage, "GPU" if part.on_card else "core", MARKS[part.source]] = [part.stages, part.seconds]
    print(f"{found.suite} on {found.profile}: {found.cells:,} cells, {found.stages:,} stages")
    print_columns(
        [
            ["stage", "holds", "stages", "hours", "seconds each", "the figure is"],
            *(
                [stage, holds, f"{count:,.0f}", f"{seconds / 3600:.1f}", f"{seconds / count:.3g}", mark]
                for (stage, holds, mark), (count, seconds) in rows.items()
            ),
        ]
    )
    print()
    spent = f"{found.card_seconds / 3600:,.1f} GPU-hours and " if found.on_cards else ""
    print(f"{spent}{found.core_seconds / 3600:,.1f} core-hours; critical path {duration(found.critical_path)}")
    print_columns(
        [
            [f"{unit}s", "time", "at work"],
            *([str(n), duration(run.seconds), f"{run.busy:.0%}"] for n, run in found.runs.items()),
        ]
    )


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(plan)
