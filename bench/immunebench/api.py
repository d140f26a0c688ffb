"""The Python API for running suites, on which the command line is built."""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from immunebench.box import choice
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import load_catalog
from immunebench.catalog.outline import Outline
from immunebench.core.errors import UsageError
from immunebench.core.home import expanded, require_cache
from immunebench.execution import executor, scheduler
from immunebench.execution.executor import EngineLost, Event, Executor, Inline, RunStage
from immunebench.execution.progress import Progress
from immunebench.execution.scheduler import Outcome
from immunebench.plan.estimate import estimate
from immunebench.plan.planning import make_plan
from immunebench.store import bookmark
from immunebench.store.artifacts import CorruptArtifact, Store, open_at
from immunebench.store.graph import Plan

if TYPE_CHECKING:
    from pandas import DataFrame

    from immunebench.plan.prices import Known
    from immunebench.records.record import Record


def run(
    suite: str | Path,
    *,
    task: str | Sequence[str] | None = None,
    defense: str | Sequence[str] | None = None,
    attack: str | Sequence[str] | None = None,
    seed: int | Sequence[int] | None = None,
    profile: str | None = None,
    results: Path | str | None = None,
    store: Path | str | None = None,
    workers: int = 1,
    on: str | None = None,
    retry_failed: bool = False,
    timeout: float | None = None,
    replace: bool = False,
    trust: bool = False,
    dry_run: bool = False,
) -> DataFrame:
    """Run a suite, or a part of it, and return one row per cell.

    Artifacts in the store are reused. Records are written to ``results/<suite>/<defense>@<version>.jsonl``, where those
    of other cells are retained.

    Parameters
    ----------
    suite
        Id of a suite, or path of a suite's TOML file.
    task, defense, attack, seed, profile
        Restrict the suite to these, one or several; defenses and the profile may be any in the catalogue.
    results, store
        Folders; default ``results`` and ``$IMMUNEBENCH_STORE``, else ``~/.cache/immunebench/store``.
    workers
        Number of parallel stages. With one, stages run in this process but for those of entries, which each have a
        process in a box (see docs/box.md); with more, all run in spawned processes of one thread each, so that scripts
        need the usual ``if __name__ == "__main__"`` guard.
    on
        Run the stages on ``ray``, ``ray:ADDRESS``, ``slurm`` or ``slurm:OPTIONS`` instead of this process; `workers`
        above 1 then limits the stages at a time.
    retry_failed
        Run failed stages again.
    timeout
        Time limit per stage in seconds; needs at least two workers here. The command line has a process for one, too.
        By default 6 hours, or 24 on a GPU, for stages with a process of their own.
    replace
        Let a failure replace a better record of the same cell, which otherwise stays.
    trust
        Run strangers' entries on a machine without a box; needed nowhere else.
    dry_run
        Run nothing; return the planned cells with their numbers of planned and reused stages.

    Returns
    -------
    DataFrame with columns task, defense, chain, profile, seed, status; after a run, the flattened records.

    Raises
    ------
    UsageError
        An unknown name, or a folder that cannot be written; raised before anything is computed.
    """
    import pandas as pd

    with _named_as_arguments():
        check_limits(workers, timeout)
        # What is only counted needs no weights.
        catalog = Outline.of(load_catalog()) if dry_run else load_catalog()
        plan = plan_suite(suite, catalog=catalog, task=task, defense=defense, attack=attack, seed=seed, profile=profile)
        artifacts = open_store(store)
        if dry_run:
            return pd.DataFrame(planned(plan, artifacts))
        folder = results_folder(results) / plan.suite.id
        records = measure(
            plan, artifacts, folder, workers=workers, on=on, retry_failed=retry_failed, timeout=timeout,
            replace=replace, trust=trust,
        )  # fmt: skip
    rows = [record.model_dump(mode="json") for record in records]
    return pd.json_normalize(rows).rename(columns=lambda name: name.removeprefix("cell."))


def scores(suite: str, *, results: Path | str | None = None) -> DataFrame:
    """Return the board of a suite's records, one row per defense, as ``immunebench board`` prints it.

    Parameters
    ----------
    suite
        Id of a suite that was run: a folder of `results`.
    results
        Folder of results; default ``results``.

    Returns
    -------
    DataFrame with columns defense, version, kind, complete, then all of ``board.csv``: rank, p, u, a, ...

    Raises
    ------
    UsageError
        There are no results of the suite.
    BoardError
        No record can be used, or a control fails its check.
    """
    import pandas as pd

    from immunebench.board.assembly.scored import score_folder, suite_folder
    from immunebench.board.tables.columns import columns

    board = score_folder(suite_folder(suite, results_folder(results))).board
    board.require_sound()
    shown = columns(board)
    return pd.DataFrame(
        {"defense": row.defense, "version": row.version, "kind": row.kind, "complete": not row.incomplete}
        | {column.key: column.value(row) for column in shown}
        for row in board.rows
    )


def plan_suite(
    suite: str | Path,
    *,
    catalog: Catalog | None = None,
    task: str | Sequence[str] | None = None,
    defense: str | Sequence[str] | None = None,
    attack: str | Sequence[str] | None = None,
    seed: int | Sequence[int] | None = None,
    profile: str | None = None,
) -> Plan:
    """Plan a suite of the catalogue, or a part of it; see `run` for the parameters and errors."""
    known = catalog or load_catalog()
    chosen = known.suite(suite)
    return make_plan(chosen, known, task=task, defense=defense, attack=attack, seed=seed, profile=profile)


def open_store(folder: Path | str | None = None) -> Store:
    """Open the store in a folder or at a URL; default ``$IMMUNEBENCH_STORE``, else ``~/.cache/immunebench/store``."""
    return open_at(folder or os.environ.get("IMMUNEBENCH_STORE") or require_cache("IMMUNEBENCH_STORE", "store"))


def results_folder(folder: Path | str | None = None) -> Path:
    """Return the folder of results; default ``results`` in the current one."""
    return expanded(folder or "results")


def known_costs(plan: Plan, catalog: Catalog, folder: Path) -> Known:
    """Return what was measured of a plan's stages elsewhere: the suite's records, and ``leaderboard/capacity.json``.

    Parameters
    ----------
    plan, catalog
        What is planned, and where its entries are.
    folder
        The suite's records; files and lines that cannot be read say nothing.
    """
    from immunebench.board.loading.measured_capacity import read
    from immunebench.plan.prices import Known
    from immunebench.records.files import BrokenLine, read_lines

    records: list[Record] = []
    for file in sorted(folder.glob("*.jsonl")):
        with suppress(OSError):
            for line in read_lines(file):
                with suppress(BrokenLine):
                    records.append(line.record())
    profile, facts = plan.cells[0].profile, plan.roots[plan.cells[0].key].facts
    shape = catalog.models.bases[facts.base].shape
    capacity = read(Path("leaderboard") / "capacity.json")
    rows = [row for row in capacity.rows if row.profile == profile] if capacity is not None else []
    steps = {
        row.entry: row.seconds / max(row.batch, 1)
        for row in rows
        if row.seconds is not None and row.model in (facts.base, f"shape of {shape}")
    }
    return Known(records, steps)


def planned(plan: Plan, store: Store) -> list[dict[str, object]]:
    """Return one row per cell: its key and names, its state, and the number of its stages in the store.

    The state is ``done``, ``failed``, ``part`` or ``planned``.
    """
    rows: list[dict[str, object]] = []
    stored = {digest: store.has(digest) for digest in plan.stages}
    for cell in plan.cells:
        stages = plan.roots[cell.key].stages
        reused = sum(stored[digest] for digest in stages)
        failed = any(not stored[digest] and store.failure(digest) is not None for digest in stages)
        state = "done" if reused == len(stages) else "failed" if failed else "part" if reused else "planned"
        rows.append(
            {
                "cell": cell.key,
                "task": cell.task,
                "defense": cell.defense,
                "chain": cell.chain,
                "profile": cell.profile,
                "seed": cell.seed,
                "status": state,
                "stages": len(stages),
                "reused": reused,
            }
        )
    return rows


def measure(
    plan: Plan,
    store: Store,
    folder: Path,
    *,
    workers: int = 1,
    on: str | None = None,
    retry_failed: bool = False,
    timeout: float | None = None,
    replace: bool = False,
    trust: bool = False,
    processes: bool | None = None,
    run_stage: RunStage | str | None = None,
    stream: TextIO | None = None,
) -> list[Record]:
    """Run the stages of a plan that the store lacks, and write the record of every cell as soon as it is complete.

    Parameters
    ----------
    plan
        The cells to measure.
    store
        Artifact store.
    folder
        Folder for records (one file per defense) and contact sheets.
    workers
        Number of parallel stages.
    on
        Engine that carries them out; see `immunebench.execution.engines.choosing`.
    retry_failed
        Run failed stages again.
    timeout
        Time limit per stage in seconds, after which it fails with the status ``timeout``. Needs worker processes.
    replace
        Let a failure replace a better record of the same cell.
    trust
        Run entries that are not the suite's own where this machine has no box.
    processes
        Use worker processes; default: with more than one worker.
    run_stage
        Function that runs a stage; default `immunebench.execution.stages.run_stage`.
    stream
        Output of the progress report; default standard error.

    Returns
    -------
    The records in the order of the plan's cells, including failed ones.

    Raises
    ------
    UsageError
        Before anything is computed: a folder cannot be written, a file of records cannot be read, `workers` is below 1,
        `timeout` is not positive or there are no worker processes, or there is no box for a stranger's entry. Later: a
        folder can no longer be written.
    KeyboardInterrupt
        The run was interrupted; finished artifacts and records remain.
    """
    from immunebench.execution.results import Results
    from immunebench.records.building import build_record
    from immunebench.records.contact_sheet import cell_sheet

    if run_stage is None and on is None:
        require_machine(plan, store)
    # Of an engine's machines nothing is known here but that they are of this one's kind.
    if run_stage is None and not trust:
        require_box(plan, store)
    require_writable(store.root, "--store")
    require_writable(folder, "--results")
    executor = make_executor(store, workers, on=on, processes=processes, run_stage=run_stage, timeout=timeout)
    outcome = Outcome()
    stages = {cell.key: plan.roots[cell.key].stages for cell in plan.cells}
    cost = estimate(plan, store).stages
    seconds = {
        digest: cost[spec.stage].seconds / max(1, cost[spec.stage].planned - cost[spec.stage].cached)
        for digest, spec in plan.stages.items()
    }
    progress = Progress(stage_names(plan), seconds, stages, outcome, workers=executor.slots, stream=stream)
    results = Results(folder, store, progress.say, replace=replace)
    try:
        results.check(plan)
    except BaseException:
        executor.close()
        raise
    open_cells = {cell.key: cell for cell in plan.cells}
    users: dict[str, list[str]] = {}
    for key, of in stages.items():
        for digest in of:
            users.setdefault(digest, []).append(key)
    records: dict[str, Record] = {}

    def tell(event: Event) -> None:
        progress.tell(event)
        if event.kind not in ("made", "reused", "failed", "blocked"):
            return
        for key in users[event.digest]:
            if key in open_cells and all(map(outcome.settled, stages[key])):
                cell, graph = open_cells.pop(key), plan.roots[key]
                records[key] = results.save(build_record(cell, graph, store), partial(cell_sheet, graph, store, folder))

    carry_out(plan, store, executor, progress, outcome, tell, retry_failed=retry_failed, folder=folder)
    return [records[cell.key] for cell in plan.cells]


def carry_out(
    plan: Plan,
    store: Store,
    executor: Executor,
    progress: Progress,
    outcome: Outcome,
    tell: Callable[[Event], None],
    *,
    retry_failed: bool,
    folder: Path,
) -> None:
    """Make the stages of a plan that the store lacks, with a progress report; a signal stops it where it can resume.

    Parameters
    ----------
    plan, store, executor, retry_failed
        As for `immunebench.execution.scheduler.execute`.
    progress, outcome, tell
        The report, what it reads, and what hears every event.
    folder
        Named where the disk fails without saying at which file.

    Raises
    ------
    UsageError
        A folder can no longer be written, or the engine that carried out the stages ended.
    KeyboardInterrupt
        It was interrupted; finished artifacts remain.
    """
    with progress, _report_corruption(progress), _stoppable():
        try:
            scheduler.execute(plan.stages, store, executor, retry_failed=retry_failed, tell=tell, outcome=outcome)
        except KeyboardInterrupt:
            stored = len(outcome.present)
            progress.say(f"stopped: {stored} of {len(plan.stages)} stages are in the store; the same command resumes")
            raise
        except EngineLost as error:
            why = f"{error}; what was measured stays, the same command continues"
            raise UsageError(f"the run stopped: {why}", field="--on") from error
        except OSError as error:
            why = f"{error.strerror or error}; what was measured stays, the same command continues"
            raise UsageError(f"the run stopped: {why}", file=error.filename or folder) from error
        progress.say(progress.summary())


def require_machine(plan: Plan, store: Store) -> None:
    """Check that this machine has or can emulate the profile's GPU, and that the profile's optimiser is installed.

    Stages that are already in the store need neither.

    Raises
    ------
    UsageError
        Something is missing; the message says what.
    """
    missing = (spec.key.get("numerics") for digest, spec in plan.stages.items() if not store.has(digest))
    numerics = next((of for of in missing if isinstance(of, dict)), {})
    profile = plan.cells[0].profile
    if numerics.get("device") == "cuda":
        from immunebench.hardware.doctor import cuda_devices, shortfall

        for reason in shortfall(cuda_devices(), float(numerics["memory_gib"])):  # type: ignore[arg-type]
            why = f"cannot be run here, {reason} (see: immunebench doctor):"
            raise UsageError(why, field="profile", value=profile)
    if numerics.get("optimiser_state") == "8bit" and importlib.util.find_spec("bitsandbytes") is None:
        how = "needs bitsandbytes; get it with: pip install 'immunebench[low-memory]':"
        raise UsageError(how, field="profile", value=profile)


def require_box(plan: Plan, store: Store) -> None:
    """Check that every stage that is still to be made and runs a stranger's code can run in a box.

    Raises
    ------
    UsageError
        This machine has no box; the message names the entry and the reason.
    """
    from immunebench.execution.lending import foreign

    if choice.chosen() != "none":
        return
    names = {name for digest, spec in plan.stages.items() if not store.has(digest) for name in foreign(spec)}
    for name in sorted(names):
        asked = os.environ.get(choice.VARIABLE)
        why = f"{choice.VARIABLE} is none" if asked else "; ".join(filter(None, map(choice.fault, choice.KINDS)))
        how = f"there is no box for its code here ({why}); read it, then allow it with --trust:"
        raise UsageError(how, field="entry", value=name)


def check_limits(workers: int, timeout: float | None) -> None:
    """Validate the number of workers and the time limit.

    Raises
    ------
    UsageError
        Fewer than one worker, a timeout that is not positive, or no number.
    """
    if not isinstance(workers, int) or isinstance(workers, bool):
        raise UsageError("must be a whole number, not", field="--workers", value=workers)
    if timeout is not None and (not isinstance(timeout, int | float) or isinstance(timeout, bool)):
        raise UsageError("must be a number of seconds, not", field="--timeout", value=timeout)
    if workers < 1:
        raise UsageError("must be at least 1, not", field="--workers", value=workers)
    if timeout is not None and not timeout > 0:  # Not a number compares false.
        raise UsageError("must be more than 0 seconds, not", field="--timeout", value=timeout)


def make_executor(
    store: Store,
    workers: int,
    *,
    on: str | None = None,
    processes: bool | None = None,
    run_stage: RunStage | str | None = None,
    timeout: float | None = None,
) -> Executor:
    """Return the executor for a number of workers: in this process, in spawned processes, or on an engine.

    Either way a stage that runs an entry's code has a process of its own, in the box that this machine has.

    Raises
    ------
    UsageError
        The timeout is not positive or there is no worker process that could be stopped; or the interval of bookmarks is
        not a number of seconds; or the environment names a box that this machine cannot have.
    """
    function = executor.DEFAULT_STAGES if run_stage is None else run_stage
    check_limits(workers, timeout)
    bookmark.seconds()  # Validated here, as in a worker a wrong value would fail every stage.
    # A box shows what the suite's own stages need, and nothing that another function might look for.
    box = choice.chosen() if function == executor.SUITE_STAGES else "none"
    if on is not None:
        from immunebench.execution.engines.choosing import on_engine

        return on_engine(on, store, workers if workers > 1 else None, function, timeout, box)
    if not (workers > 1 if processes is None else processes):
        if timeout is not None:
            raise UsageError("needs worker processes, which can be stopped: workers=2 or more", field="timeout")
        if not isinstance(function, str):
            return Inline(store, function)
        from immunebench.execution.boxed import Boxes

        return Inline(store, function, Boxes(store, box, function))
    from immunebench.execution.process_pool import Processes

    return Processes(store, workers, function, timeout, box)


def stage_names(plan: Plan) -> dict[str, str]:
    """Return a label for every stage: its name and the first cell that needs it."""
    names: dict[str, str] = {}
    for cell in plan.cells:
        for digest in plan.roots[cell.key].stages:
            names.setdefault(digest, f"{plan.stages[digest].stage} for {cell.task}/{cell.defense}/{cell.chain}")
    return names


def require_writable(folder: Path, field: str) -> None:
    """Create a folder and check that files can be written in it.

    Raises
    ------
    UsageError
        They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-"):
            pass
    except OSError as error:
        raise UsageError(f"cannot be written ({error.strerror}):", field=field, value=str(folder)) from error


@contextmanager
def _named_as_arguments() -> Iterator[None]:
    """Name the arguments of a function in errors, not the options of the command line."""
    try:
        yield
    except UsageError as error:
        if error.field is not None and error.field.startswith("--"):
            error.field = error.field.removeprefix("--").replace("-", "_")
        raise


@contextmanager
def _report_corruption(progress: Progress) -> Iterator[None]:
    """Show warnings about corrupt artifacts in the progress report."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CorruptArtifact)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: object) -> None:
            if issubclass(category, CorruptArtifact):
                progress.say(f"corrupted: {message}")
            else:
                usual(message, category, *rest)  # type: ignore[arg-type]

        warnings.showwarning = show  # type: ignore[assignment]
        yield


@contextmanager
def _stoppable() -> Iterator[None]:
    """Handle SIGTERM inside the block like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
