"""The commands ``run``, ``status``, ``show`` and ``why``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from immunebench.core.errors import UsageError, printable

if TYPE_CHECKING:
    from immunebench.store.artifacts import Spec
    from immunebench.store.graph import Plan
from immunebench.cli import outcome
from immunebench.cli.common import (
    AsJson,
    AttackName,
    DefenseName,
    ProfileName,
    ResultsDir,
    Seed,
    StoreDir,
    SuiteName,
    TaskName,
    all_plans,
    print_columns,
    print_json,
    print_other_suites,
    published,
    the_catalog,
    unfinished,
)
from immunebench.cli.planning import say_absent

#: Exit status of a command that Ctrl-C stopped, as shells have it: 128 and the number of the signal.
INTERRUPTED = 130


def run(
    suite: Annotated[str, typer.Argument(help="Suite: an id of `list suites`, or a TOML file.")],
    task: TaskName = None,
    defense: DefenseName = None,
    attack: AttackName = None,
    seed: Seed = None,
    profile: ProfileName = None,
    results: ResultsDir = Path("results"),
    store: StoreDir = None,
    workers: Annotated[int, typer.Option("--workers", help="Parallel stages, one process and thread each.")] = 1,
    on: Annotated[
        str | None,
        typer.Option("--on", help="Instead of processes: ray, ray:ADDRESS, slurm, slurm:NAME=VALUE,..., slurm:local."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed stages again.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="Time limit per stage in seconds; longer ones fail as timeout.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let a failure replace a better record of the same cell.")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run strangers' entries where this machine has no box (see doctor).")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show cells, stages, time and disk; run nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a suite, or a part of it; artifacts in the store are reused, so a stopped run resumes.

    Example: immunebench run mini-smoke --task style-solano --workers 2
    """
    from immunebench import api
    from immunebench.catalog.outline import Outline
    from immunebench.plan.estimate import estimate

    api.check_limits(workers, timeout)
    catalog = Outline.of(the_catalog()) if dry_run else the_catalog()
    plan = api.plan_suite(suite, catalog=catalog, task=task, defense=defense, attack=attack, seed=seed, profile=profile)
    _say_broken(plan)
    artifacts = api.open_store(store)
    if isinstance(catalog, Outline):
        say_absent(catalog.absent)
        known = api.known_costs(plan, catalog, api.results_folder(results) / plan.suite.id)
        _dry_run(plan, api.planned(plan, artifacts), estimate(plan, artifacts, known), workers, as_json)
        return
    folder = api.results_folder(results) / plan.suite.id
    try:
        records = api.measure(
            plan,
            artifacts,
            folder,
            workers=workers,
            on=on,
            retry_failed=retry_failed,
            timeout=timeout,
            replace=replace,
            trust=trust,
            processes=True,
        )
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json([record.model_dump(mode="json") for record in records])
    else:
        rows = [[r.cell.key, r.status, r.metric, _mean(r.scores.get(r.metric)), r.reason] for r in records]
        print_columns([["cell", "status", "metric", "mean", ""], *rows])
        if table := outcome.score_table(folder, {record.cell.defense for record in records}):
            print()
            print_columns(table)
        print(f"records: {folder}")
        options = "" if results == Path("results") else f" --results {shlex.quote(str(results))}"
        print("\n".join(outcome.advice(records, plan.suite.id, options)))
    if any(record.status != "ok" for record in records):
        raise typer.Exit(1)


def status(
    suite: Annotated[str, typer.Argument(help="Suite: an id or a TOML file.")],
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Show which cells of a suite are done, failed, partly done or planned.

    Example: immunebench status mini-demo
    """
    from immunebench import api

    rows = api.planned(api.plan_suite(suite, catalog=the_catalog()), api.open_store(store))
    if as_json:
        print_json(rows)
        return
    print_columns(
        [
            ["cell", "status", "stages"],
            *([r["cell"], r["status"], f"{r['reused']}/{r['stages']}"] for r in rows),
        ]
    )
    print(f"{sum(r['status'] == 'done' for r in rows)} of {len(rows)} cells done")


def show(
    cell: Annotated[str, typer.Argument(help="task/defense/chain/profile/seed")],
    suite: SuiteName = None,
    results: ResultsDir = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Print a measured cell: scores, cost, environment and the path of its contact sheet.

    Example: immunebench show style-solano/none/lora/cpu/0 --suite mini-lite
    """
    from immunebench.cli import report

    (file, record), *others = report.find_records(cell, published(results, "results"), suite)
    print_other_suites(record.suite, [other.suite for _, other in others])
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        print("\n".join(report.lines(record, file)))


def why(
    digest: Annotated[str, typer.Argument(help="Digest of a stage, or a prefix of it.")],
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Explain why an artifact is not in the store: its traceback if it failed, and what the nearest one has otherwise.

    Example: immunebench why 3fa2
    """
    from immunebench import api
    from immunebench.store.why import explain

    artifacts = api.open_store(store)
    specs: dict[str, Spec] = {d: s for plan in all_plans(the_catalog()) for d, s in plan.stages.items()}
    matches = sorted({d for d in specs if d.startswith(digest)} | set(artifacts.resolve(digest)))
    if len(matches) > 1:
        names = ", ".join(match[:16] for match in matches[:6])
        raise UsageError(f"is a prefix of {len(matches)} digests ({names}):", field="DIGEST", value=digest)
    lines = explain(artifacts, matches[0] if matches else digest, specs)
    if as_json:
        print_json({"digest": matches[0] if matches else digest, "lines": lines})
    else:
        print("\n".join(map(printable, lines)))


def _dry_run(plan: Plan, cells: list[dict[str, object]], estimate: Any, workers: int, as_json: bool) -> None:
    from immunebench.execution.progress import duration, size

    seconds = estimate.with_workers(workers)
    if as_json:
        stages = {name: vars(cost) for name, cost in estimate.stages.items()}
        print_json({"cells": cells, "stages": stages, "seconds": seconds, "bytes": estimate.bytes})
        return
    print_columns(
        [
            ["cell", "status", "stages"],
            *([c["cell"], c["status"], f"{c['reused']}/{c['stages']}"] for c in cells),
        ]
    )
    print()
    head = ["stage", "planned", "reused", "time of one worker", "disk"]
    rows = [
        [name, str(c.planned), str(c.cached), duration(c.seconds), size(c.bytes)] for name, c in estimate.stages.items()
    ]
    print_columns([head, *rows])
    reused = sum(c.cached for c in estimate.stages.values())
    print(
        f"{len(cells)} cells, {len(plan.stages)} stages, {reused} reused: about {duration(seconds)} "
        f"with {workers} worker{'s' * (workers != 1)}, {size(estimate.bytes)}"
    )


def _say_broken(plan: Plan) -> None:
    """Say which entries and tasks of a plan have a broken namesake, which is not measured, and which are unfinished."""
    names = {name for cell in plan.cells for name in (cell.task, *cell.defense.split("+"), *cell.chain.split("+"))}
    for broken in the_catalog().broken:
        if broken.id in names:
            print(f"not used: {broken.reason}", file=sys.stderr)
    for line in unfinished(the_catalog(), sorted(names)):
        print(f"unfinished: {printable(line)}", file=sys.stderr)


def _mean(score: Any) -> str:
    return "" if score is None else f"{score.mean:.3f}"


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(run)
    app.command()(status)
    app.command()(show)
    app.command()(why)
