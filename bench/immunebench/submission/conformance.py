"""A small run of an entry: its own stage on the embedded base with two steps, by the executor that runs suites.

What a stage checks is checked by it: types, names, shapes and the budget. Here only what needs two runs, or a second
look at the artifact, is added: finite values in half precision, a change at all, the same bytes for the same seed.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench import api
from immunebench.box.choice import chosen
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.core.errors import UsageError
from immunebench.declared import scoring
from immunebench.declared.schema import Values
from immunebench.declared.suite import Suite
from immunebench.execution import scheduler
from immunebench.execution.executor import Executor, RunStage
from immunebench.execution.lending import foreign
from immunebench.plan.planning import make_plan
from immunebench.records.attestation import payload_digest
from immunebench.store.artifacts import Store
from immunebench.store.graph import CellGraph, Plan, StageSpec
from immunebench.submission.findings import Finding, finding

if TYPE_CHECKING:
    from pydantic import JsonValue

#: The suite whose tasks are nobody's score, and the control on which it all must work.
_DEV = "mini-dev"
_FEW = 2
_STEPS = re.compile(r"(^|_)(steps|iterations|iters|epochs|rounds|cycles)$")
#: Seconds that a stage of so few steps may take.
TIMEOUT = 300.0
_PLACE = re.compile(r"\(([^()]+\.py), line (\d+)\)$")


def conformance(
    entry: Entry, catalog: Catalog, *, trust: bool = False, run_stage: RunStage | str | None = None
) -> Iterator[Finding]:
    """Run a defense's own stages twice with the same seed, and yield what is wrong with what they release.

    Parameters
    ----------
    entry
        A defense with code.
    catalog
        The default catalogue, in which the stages look the entry up.
    trust
        Run a stranger's entry where this machine has no box, too.
    run_stage
        Function that runs a stage; default that of suites.
    """
    try:
        stages, own, published = _small(entry, catalog)
    except UsageError as error:
        yield finding("manifest", entry.path, str(error))
        return
    if not own:
        return  # A control without hooks.
    if run_stage is None and not trust and chosen() == "none" and any(foreign(stages[digest]) for digest in own):
        yield finding("box", entry.path, "was not run: this machine has no box for a stranger's code", None, "warning")
        return
    with tempfile.TemporaryDirectory(prefix="immunebench-check-") as place:
        store = Store(Path(place) / "store")
        with _executor(store, run_stage) as executor:
            failed = _run(store, stages, executor)
            if failed is not None:
                yield _failure(entry, failed)
                return
            yield from _released(entry, store, own, published)
            if not getattr(entry.manifest, "deterministic", True):
                return
            before = _digests(store, own)
            for digest in own:
                made = store.path(digest)
                if made is not None:
                    shutil.rmtree(made)
            failed = _run(store, stages, executor)
        if failed is not None:
            yield finding("nondeterministic", entry.path, f"failed in a second run of the same seed: {failed}")
            return
        after = _digests(store, own)
        for digest in own:
            if before[digest] != after[digest]:
                hook = stages[digest].key.get("hook")
                yield finding(
                    "nondeterministic", entry.path, f"{hook} released other bytes in a second run of one seed"
                )


def _small(entry: Entry, catalog: Catalog) -> tuple[dict[str, StageSpec], list[str], str]:
    """Return the stages of an entry with few steps, the digests of its own, and that of the published pictures."""
    dev = catalog.suite(_DEV)
    families = scoring.FAMILIES.get(scoring.TRACK.get(entry.kind_of, entry.kind_of))
    tasks = [name for name in dev.names("tasks") if families is None or catalog.task(name).family in families]
    if not tasks:
        raise UsageError("no dev task is of this entry's families", file=entry.path, field="kind", value=entry.kind_of)
    suite = Suite(
        id="check", version="1.0", title="A small run", profile=dev.profile, seeds=(0,), tasks=(tasks[0],),
        defenses=(entry.id,), chains=("lora",), prompts=1, pictures=1, curve_pictures=0,
    )  # fmt: skip
    plan = make_plan(suite, catalog)
    graph = plan.roots[plan.cells[0].key]
    return _shortened(plan, graph, list(graph.protect.values()))


def _shortened(plan: Plan, graph: CellGraph, own: list[str]) -> tuple[dict[str, StageSpec], list[str], str]:
    needed: set[str] = set()
    todo = [*own, graph.published]
    while todo:
        digest = todo.pop()
        if digest not in needed:
            needed.add(digest)
            todo += plan.stages[digest].inputs.values()
    renamed: dict[str, str] = {}
    small: dict[str, StageSpec] = {}
    for digest, spec in plan.stages.items():
        if digest in needed:
            key = {**spec.key, "params": few_steps(spec.key.get("params", {}))} if "params" in spec.key else spec.key
            made = replace(spec, key=key, inputs={name: renamed[of] for name, of in spec.inputs.items()})
            renamed[digest] = made.digest
            small[made.digest] = made
    return small, [renamed[digest] for digest in own], renamed[graph.published]


def few_steps(params: JsonValue) -> Values:
    """Return parameters with at most two of what is counted in steps, epochs or rounds."""
    values: Values = dict(params) if isinstance(params, dict) else {}
    for name, value in values.items():
        if _STEPS.search(name) and isinstance(value, int) and not isinstance(value, bool):
            values[name] = min(value, _FEW)
    return values


class _Kept:
    """An executor that stays open for a second run: its processes import torch once."""

    def __init__(self, executor: Executor) -> None:
        self.slots, self.submit, self.finished = executor.slots, executor.submit, executor.finished

    def close(self) -> None:
        """Leave it open; `_executor` closes it."""


@contextmanager
def _executor(store: Store, run_stage: RunStage | str | None) -> Iterator[Executor]:
    inline = run_stage is not None and not isinstance(run_stage, str)
    executor = api.make_executor(
        store, 1, processes=not inline, run_stage=run_stage, timeout=None if inline else TIMEOUT
    )
    try:
        yield _Kept(executor)
    finally:
        executor.close()


def _run(store: Store, stages: dict[str, StageSpec], executor: Executor) -> str | None:
    """Run stages; return the line of the first failure, None if there is none."""
    outcome = scheduler.execute(stages, store, executor)
    return next(iter(outcome.failed.values()), None)


def _digests(store: Store, own: list[str]) -> dict[str, str | None]:
    """Return one SHA-256 of what each of an entry's stages released."""
    made = {digest: store.manifest(digest) for digest in own}
    return {digest: None if found is None else payload_digest(found["files"]) for digest, found in made.items()}


def _failure(entry: Entry, line: str) -> Finding:
    place = _PLACE.search(line)
    if place is None:
        return finding("run", entry.path, line)
    # The line names the file from the folder of entries on.
    return finding("run", entry.folder.parent / place[1], line[: place.start()].rstrip(), int(place[2]))


def _released(entry: Entry, store: Store, own: list[str], published: str) -> Iterator[Finding]:
    import numpy as np
    from safetensors import safe_open

    from immunebench.core.types import Pictures

    for digest in own:
        folder = store.path(digest)
        assert folder is not None
        weights = folder / "weights.safetensors"
        if weights.is_file():
            with safe_open(weights, "numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118, it is no mapping
                    with np.errstate(over="ignore"):
                        half = tensors.get_tensor(name).astype(np.float16)
                    if not np.isfinite(half).all():
                        yield finding("finite", entry.path, f"{name}: holds values that half precision cannot hold")
                        break
            continue
        if not any(folder.glob("*.png")):
            continue  # A mask, which was checked when it was admitted.
        clean = store.path(published)
        if clean is not None and np.array_equal(Pictures.load(folder).pixels, Pictures.load(clean).pixels):
            yield finding("unchanged", entry.path, "no pixel of any picture is changed", severity="warning")
