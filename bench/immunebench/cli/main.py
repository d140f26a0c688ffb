"""The command line: parse, call, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from immunebench.cli import board as cli_board
from immunebench.cli import capacity as cli_capacity
from immunebench.cli import sets as cli_sets
from immunebench.cli import sheet as cli_sheet
from immunebench.cli.data import data_app
from immunebench.cli.export import export_app
from immunebench.cli.new import new_app
from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog
    from immunebench.store.artifacts import Spec
    from immunebench.store.graph import Plan

app = typer.Typer(
    name="immunebench",
    help="How well does a protection stop the fine-tuning of a text-to-image model on a concept?\n\n"
    "Example: immunebench run mini-demo --workers 2",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
store_app = typer.Typer(
    help="Look at and clean up the store of artifacts.\n\nExample: immunebench store size", no_args_is_help=True
)
weights_app = typer.Typer()
app.add_typer(store_app, name="store")
app.add_typer(weights_app, name="weights")
app.add_typer(data_app, name="data")
app.add_typer(new_app, name="new")
app.add_typer(export_app, name="export")

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


def main() -> None:
    """Run the command line; exits 0 when done, 1 when something failed, 2 on wrong use."""
    try:
        app()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="suites, tasks, defenses, attacks, profiles or bases.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what there is to measure.

    Example: immunebench list defenses
    """
    found = _inventory(_catalog())
    if kind is not None and kind not in found:
        raise UsageError("unknown kind", field="KIND", value=kind, choices=found)
    chosen = found if kind is None else {kind: found[kind]}
    if as_json:
        _print_json(chosen)
        return
    for name, rows in chosen.items():
        print(f"{name}:")
        _columns([[row["id"], row["title"]] for row in rows])


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="Suite: an id of `list suites`, or a TOML file.")],
    task: TaskName = None,
    defense: DefenseName = None,
    attack: AttackName = None,
    seed: Seed = None,
    profile: ProfileName = None,
    results: ResultsDir = Path("results"),
    store: StoreDir = None,
    workers: Annotated[int, typer.Option("--workers", help="Stages at a time, one process and thread each.")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed stages again.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="Seconds that a stage may take; a longer one fails as timeout.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show cells, stages, time and disk; run nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a suite, or a part of it; what the store has is reused, so a stopped run goes on where it was.

    Example: immunebench run mini-smoke --task style-solano --workers 2
    """
    from immunebench import api
    from immunebench.plan.estimate import estimate

    api.check_limits(workers, timeout)
    plan = api.plan_suite(
        suite, catalog=_catalog(), task=task, defense=defense, attack=attack, seed=seed, profile=profile
    )
    kept = api.open_store(store)
    if dry_run:
        _dry_run(plan, api.planned(plan, kept), estimate(plan, kept), workers, as_json)
        return
    folder = api.results_folder(results) / plan.suite.id
    try:
        records = api.measure(
            plan, kept, folder, workers=workers, retry_failed=retry_failed, timeout=timeout, processes=True
        )
    except KeyboardInterrupt:
        raise typer.Exit(1) from None
    if as_json:
        _print_json([record.model_dump(mode="json") for record in records])
    else:
        rows = [[r.cell.key, r.status, r.metric, _mean(r.scores.get(r.metric)), r.reason] for r in records]
        _columns([["cell", "status", "metric", "mean", ""], *rows])
        print(f"records: {folder}")
    if any(record.status != "ok" for record in records):
        raise typer.Exit(1)


@app.command()
def status(
    suite: Annotated[str, typer.Argument(help="Suite: an id or a TOML file.")],
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Show which cells of a suite are done, failed, begun or still planned.

    Example: immunebench status mini-demo
    """
    from immunebench import api

    rows = api.planned(api.plan_suite(suite, catalog=_catalog()), api.open_store(store))
    if as_json:
        _print_json(rows)
        return
    _columns(
        [
            ["cell", "status", "stages"],
            *([r["cell"], r["status"], f"{r['reused']}/{r['stages']}"] for r in rows),
        ]
    )
    print(f"{sum(r['status'] == 'done' for r in rows)} of {len(rows)} cells done")


@app.command()
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

    (file, record), *others = report.find_records(cell, results, suite)
    _say_others(record.suite, [other.suite for _, other in others])
    if as_json:
        _print_json(record.model_dump(mode="json"))
    else:
        print("\n".join(report.lines(record, file)))


@app.command()
def why(
    digest: Annotated[str, typer.Argument(help="Digest of a stage, or its beginning.")],
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Explain why an artifact is not in the store, by what differs from the nearest one that is.

    Example: immunebench why 3fa2
    """
    from immunebench import api
    from immunebench.store.why import explain

    kept = api.open_store(store)
    specs: dict[str, Spec] = {d: s for plan in _plans(_catalog()) for d, s in plan.stages.items()}
    matches = sorted({d for d in specs if d.startswith(digest)} | set(kept.resolve(digest)))
    if len(matches) > 1:
        names = ", ".join(match[:16] for match in matches[:6])
        raise UsageError(f"begins {len(matches)} digests ({names}):", field="DIGEST", value=digest)
    lines = explain(kept, matches[0] if matches else digest, specs)
    if as_json:
        _print_json({"digest": matches[0] if matches else digest, "lines": lines})
    else:
        print("\n".join(lines))


@app.command()
def doctor(store: StoreDir = None, as_json: AsJson = False) -> None:
    """Look at this machine: what is installed, and which profiles it qualifies for.

    Example: immunebench doctor --json
    """
    from immunebench import api
    from immunebench.cli import report
    from immunebench.hardware.doctor import examine

    machine, verdicts = examine(_catalog(), api.open_store(store).root)
    if as_json:
        _print_json(machine.as_dict(verdicts))
    else:
        print("\n".join(report.machine_lines(machine, verdicts)))
    if not any(verdict.qualifies for verdict in verdicts):
        raise typer.Exit(1)


@app.command()
def board(
    suite: Annotated[
        str | None, typer.Argument(help="Folder of results that is printed; default: write all boards and the site.")
    ] = None,
    results: ResultsDir = Path("results"),
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the printed page to this file too.")
    ] = None,
    site: Annotated[Path, typer.Option("--site", help="Folder of the site; replaced as a whole.")] = Path(
        "leaderboard/site"
    ),
    leaderboard: cli_board.BoardDir = Path("leaderboard"),
) -> None:
    """Print the scored table of a suite's results; without SUITE write every board, its files, plots and the site.

    Exits with 1 where lines of the results are left out or the board is refused, with 2 where nothing can be shown. A
    folder without any records is no failure: that is said, and the site says it too.

    Example: immunebench board mini-smoke
    """
    from immunebench.board.scores import scored
    from immunebench.board.scores.model import BoardError
    from immunebench.board.tables import layout

    if suite is None:
        if markdown is not None:
            raise UsageError("needs a SUITE", field="--markdown")
        _write_boards(results, site, leaderboard)
        return
    try:
        found = scored.score_folder(scored.suite_folder(suite, results))
        layout.show(found.board, suite)
    except scored.NothingToShow as error:
        cli_board.tell_problems(error.problems)
        raise typer.Exit(2) from None
    except BoardError as error:
        print(f"no board: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if markdown is not None:
        layout.write_markdown(found.board, suite, markdown)
    cli_board.tell_problems(found.problems)
    if found.problems:
        raise typer.Exit(1)


cli_board.register(app)
cli_sheet.register(app)
cli_capacity.register(app)
cli_sets.register(app)


def _write_boards(results: Path, site: Path, leaderboard: Path) -> None:
    """Write ``board.md`` beside the records of every suite, and the site with every other format."""
    from immunebench.board.loading import measured_capacity, reported
    from immunebench.board.site import load_suite, suite_folders, write_site
    from immunebench.board.tables import layout

    folders = suite_folders(results)
    if not results.is_dir():
        raise UsageError("no such folder", field="--results", value=str(results))
    suites = [load_suite(folder) for folder in folders]
    published = leaderboard / "reported.toml"
    figures = reported.figures(published) if published.is_file() else []
    capacity = measured_capacity.read(leaderboard / "capacity.json")
    files = write_site(suites, site, _catalog(), reported=figures, capacity=capacity)
    for folder, scored in zip(folders, suites, strict=True):
        if scored.board is None or scored.refusals:
            print(f"no board: {scored.name}: {'; '.join(scored.refusals)}", file=sys.stderr)
        else:
            layout.write_markdown(scored.board, scored.name, folder / "board.md")
        for problem in scored.problems:
            print(f"left out: {scored.name}: {problem}", file=sys.stderr)
        for key, sheet in scored.sheets.items():
            if sheet.problem:
                print(f"no picture: {key}: the contact sheet {sheet.problem}", file=sys.stderr)
    if not suites:
        print(f"nothing yet: no folder of {results} has records; the site says so")
    print(f"suites: {len(suites)}, files: {len(files)}, site: {site / 'index.html'}")
    if any(scored.refusals or scored.problems for scored in suites):
        raise typer.Exit(1)


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
        _print_json({stage: {"count": n, "bytes": b} for stage, (n, b) in found.items()})
        return
    total = sum(b for _, b in found.values())
    _columns([[stage, str(n), size(b)] for stage, (n, b) in found.items()])
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

    keep = {digest for plan in _plans(_catalog()) for digest in plan.stages} | report.referenced(results)
    count, freed = api.open_store(store).gc(keep, dry_run=dry_run)
    print(f"{'would remove' if dry_run else 'removed'} {count} artifacts, drafts and bookmarks, {size(freed)}")


@weights_app.callback(invoke_without_command=True)
def weights_list(context: typer.Context, as_json: AsJson = False) -> None:
    """List the weights that metrics and bases need, and fetch those that are not embedded.

    Example: immunebench weights fetch lpips-alex
    """
    if context.invoked_subcommand is not None:
        return
    from immunebench.bases import base_folder, weights

    rows = weights.available()
    catalog = _catalog()
    for name, spec in catalog.models.bases.items():
        if spec.hub:
            state: weights.State = "fetched" if base_folder.there(name, spec, catalog.models_path) else "missing"
            purpose = f"base, {spec.size_gb:g} GB, {spec.licence}"
            rows.append(weights.Listed(name, purpose, state, base_folder.home(name)))
    if as_json:
        _print_json([{"name": r.name, "purpose": r.purpose, "state": r.state, "file": str(r.file)} for r in rows])
    else:
        _columns([["weights", "state", "for"], *([r.name, r.state, r.purpose] for r in rows)])


@weights_app.command("fetch")
def weights_fetch(
    name: Annotated[str, typer.Argument(help="Weights of a metric or a base: lpips-alex, sd14.")],
) -> None:
    """Fetch weights once, checked by SHA-256: of a metric into the cache, of a base into the model hub's cache.

    Example: immunebench weights fetch lpips-alex
    """
    from immunebench.bases import weights

    spec = _catalog().models.bases.get(name)
    if spec is not None:
        from immunebench.bases import intake

        intake.fetch(name, spec)
    elif name not in weights.FETCHABLE:
        hubs = [base for base, spec in _catalog().models.bases.items() if spec.hub]
        raise UsageError("unknown weights", field="NAME", value=name, choices=[*weights.FETCHABLE, *hubs])
    else:
        weights.fetch(name)


@weights_app.command("add")
def weights_add(
    name: Annotated[str, typer.Argument(help="A base that comes from a model hub: sd14.")],
    path: Annotated[Path, typer.Argument(help="Its diffusers folder, or its single-file checkpoint.")],
) -> None:
    """Use a copy of a base that is here already: a folder as it lies, a checkpoint converted once; checked by SHA-256.

    Example: immunebench weights add sd14 models/stable-diffusion-v1-4
    """
    from immunebench.bases import intake

    catalog = _catalog()
    spec = catalog.find("base", catalog.models.bases, name, field="NAME")
    intake.add(name, spec, path)


def _say_others(shown: str, others: list[str]) -> None:
    """Tell, beside the output, which other suites have the cell too."""
    if others:
        print(f"of {shown}; the cell is in {', '.join(others)} too (--suite chooses)", file=sys.stderr)


def _catalog() -> Catalog:
    from immunebench.catalog.loading import default_catalog

    return default_catalog()


def _plans(catalog: Catalog) -> list[Plan]:
    """Plans of all suites; one that cannot be planned, for want of weights, is passed over with a line."""
    from immunebench import api

    plans = []
    for name in catalog.suites:
        try:
            plans.append(api.plan_suite(name, catalog=catalog))
        except UsageError as error:
            print(f"suite {name} is passed over: {error}", file=sys.stderr)
    return plans


def _inventory(catalog: Catalog) -> dict[str, list[dict[str, Any]]]:
    entries = {"defenses": catalog.defenses, "attacks": catalog.attacks}
    found: dict[str, list[dict[str, Any]]] = {
        "suites": [{"id": s.id, "title": s.title, "version": s.version} for s in catalog.suites.values()],
        "tasks": [
            {"id": t.id, "title": t.title, "version": t.version, "family": t.family, "split": t.split}
            for t in catalog.tasks.values()
        ],
    }
    for kind, table in entries.items():
        found[kind] = [
            {
                "id": e.id,
                "title": e.title,
                "version": e.version,
                "hooks": list(e.hooks),
                "aliases": list(e.aliases),
            }
            for e in table.values()
        ]
    found["profiles"] = [{"id": p.id, "title": p.title, "version": p.version} for p in catalog.profiles.values()]
    found["bases"] = [
        {"id": n, "title": b.path or b.hub[0].repo, "revision": b.revision} for n, b in catalog.models.bases.items()
    ]
    found["broken"] = [{"id": f"{b.kind} {b.id}", "title": b.reason} for b in catalog.broken]
    return found


def _dry_run(plan: Plan, cells: list[dict[str, object]], estimate: Any, workers: int, as_json: bool) -> None:
    from immunebench.execution.progress import duration, size

    seconds = estimate.seconds / max(workers, 1)
    if as_json:
        stages = {name: vars(cost) for name, cost in estimate.stages.items()}
        _print_json({"cells": cells, "stages": stages, "seconds": seconds, "bytes": estimate.bytes})
        return
    _columns(
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
    _columns([head, *rows])
    reused = sum(c.cached for c in estimate.stages.values())
    print(
        f"{len(cells)} cells, {len(plan.stages)} stages, {reused} reused: about {duration(seconds)} "
        f"with {workers} worker{'s' * (workers != 1)}, {size(estimate.bytes)}"
    )


def _mean(score: Any) -> str:
    return "" if score is None else f"{score.mean:.3f}"


def _columns(rows: list[list[Any]]) -> None:
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))
