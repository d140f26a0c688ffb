"""Carries out the stages of a folder of pictures, and writes the protected copies with their report."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from immunebench import api
from immunebench.box import choice
from immunebench.catalog.catalog import Catalog
from immunebench.core.errors import UsageError
from immunebench.core.types import Pictures
from immunebench.execution.boxed import Boxes
from immunebench.execution.executor import SUITE_STAGES, Executor, Inline, RunStage
from immunebench.execution.progress import Progress
from immunebench.execution.scheduler import Outcome
from immunebench.plan.prices import Price, prices
from immunebench.protecting.copies import Copy, Done, write_copy, write_report
from immunebench.protecting.measuring import measured
from immunebench.protecting.planning import Planned
from immunebench.protecting.request import AT_ONCE, REPORT
from immunebench.store import bookmark
from immunebench.store.artifacts import Store

if TYPE_CHECKING:
    from collections.abc import Sequence


class Unprotected(Exception):
    """Raised when a stage failed, so that there are pictures without a protected copy and none is written."""


def priced(plan: Planned, store: Store) -> dict[str, Price]:
    """Return the expected seconds of every stage that the store lacks, and where each figure comes from.

    Prices are those of sets of `AT_ONCE` pictures; a defense that simulates no attack does the same for every picture,
    so that its price is that of the set's own number.
    """
    share = {part.protect: len(part.photos) / AT_ONCE for part in plan.sets if not plan.entry.against}
    found = prices(plan.plan, store)
    return {
        digest: Price(price.seconds * share.get(digest, 1.0), price.on_card, price.source)
        for digest, price in found.items()
        if not store.has(digest)
    }


def protect(
    plan: Planned,
    catalog: Catalog,
    store: Store,
    *,
    known: Mapping[str, Any],
    trust: bool = False,
    timeout: float | None = None,
    run_stage: RunStage | None = None,
    stream: TextIO | None = None,
) -> Done:
    """Make what the store lacks, then write the copies and the report, all of them or none.

    Parameters
    ----------
    plan
        From `immunebench.protecting.planning.planned`, in whose block this is called.
    catalog
        As there.
    store
        Artifacts of finished sets stay there, and bookmarks of an unfinished one.
    known
        What the report says of how long the protection lasts.
    trust
        Run a stranger's defense where this machine has no box.
    timeout
        Seconds that a set may take; default 24 hours on a GPU.
    run_stage
        A function in the place of the suite's stages, for tests.
    stream
        Output of the progress report; default standard error.

    Raises
    ------
    UsageError
        The machine cannot run the profile, there is no box, or a folder cannot be written.
    Unprotected
        A stage failed; nothing is written.
    KeyboardInterrupt
        It was stopped; the same command goes on.
    """
    assert plan.out is not None
    if run_stage is None:
        api.require_machine(plan.plan, store)
        if not trust:
            api.require_box(plan.plan, store)
    api.check_limits(1, timeout)
    api.require_writable(store.root, "--store")
    outcome = Outcome()
    parts = {part.task.id: part.stages for part in plan.sets}
    expected = {digest: price.seconds for digest, price in priced(plan, store).items()}
    progress = Progress(_names(plan), expected, parts, outcome, stream=stream)
    api.carry_out(
        plan.plan, store, _executor(store, timeout, run_stage), progress, outcome, progress.tell, retry_failed=True,
        folder=plan.out,
    )  # fmt: skip
    failed = [outcome.failed[cause] for part in plan.sets if (cause := outcome.cause(part.protect)) is not None]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise Unprotected(f"nothing is written: {failed[0]}{more}; what was made stays, the same command tries again")
    return _written(plan, catalog, store, known)


def _executor(store: Store, timeout: float | None, run_stage: RunStage | None) -> Executor:
    """Return the executor: stages of this process but for those of entries, each of which has a box."""
    bookmark.seconds()
    if run_stage is not None:
        return Inline(store, run_stage)
    return Inline(store, SUITE_STAGES, Boxes(store, choice.chosen(), SUITE_STAGES, timeout))


def _names(plan: Planned) -> dict[str, str]:
    """Return a label for every stage: what it is, and of which set."""
    last = {part.protect: number for number, part in enumerate(plan.sets, 1)}
    return {
        digest: f"{spec.stage} by {plan.entry.id}, set {last[digest]} of {len(plan.sets)}"
        if digest in last else f"{spec.stage} for {plan.entry.id}"
        for digest, spec in plan.plan.stages.items()
    }  # fmt: skip


def _written(plan: Planned, catalog: Catalog, store: Store, known: Mapping[str, Any]) -> Done:
    """Write everything into a new folder beside the asked one, and put it in place when it is whole."""
    assert plan.out is not None
    out = plan.out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            copies: list[Copy] = []
            for part in plan.sets:
                folder, manifest = store.get(part.protect), store.manifest(part.protect)
                if folder is None or manifest is None:
                    raise Unprotected("an artifact was damaged meanwhile; start the command again")
                seconds = float(manifest["cost"].get("seconds", 0.0)) / len(part.photos)
                for photo, pixels in zip(part.photos, Pictures.load(folder).pixels, strict=True):
                    saved = write_copy(plan, photo, pixels, draft / plan.names[photo.name])
                    copies.append(measured(plan, catalog, photo, pixels, saved, seconds))
            done = Done(tuple(sorted(copies, key=lambda copy: copy.file)), out)
            write_report(plan, catalog, done, known, draft / REPORT)
            _put(draft, out, [*(copy.output for copy in done.copies), REPORT])
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        why = f"cannot be written: {error.strerror or error}; what was made stays, the same command writes it"
        raise UsageError(why, file=error.filename or out) from error
    return done


def _put(draft: Path, out: Path, names: Sequence[str]) -> None:
    """Move a whole folder into place, or into an existing one each file by itself, the report last."""
    umask = os.umask(0)
    os.umask(umask)
    draft.chmod(0o777 & ~umask)
    if not out.exists():
        draft.rename(out)
        return
    for name in names:
        (draft / name).replace(out / name)
