"""Held-out tasks: an entry that was made for the public tasks does worse on those that nobody has seen."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from immunebench import api
from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.loading.marks import HeldOut
from immunebench.board.scores.model import BoardError
from immunebench.board.scores.reading import measurement
from immunebench.catalog import loading
from immunebench.catalog.catalog import Catalog
from immunebench.core.errors import UsageError
from immunebench.declared.suite import Suite
from immunebench.execution.executor import RunStage
from immunebench.plan.planning import make_plan
from immunebench.records.record import Record


@contextmanager
def gathered(entry: Path | None, tasks: Path | None) -> Iterator[Catalog]:
    """Have the catalogue hold an entry's folder and a folder of tasks that are not in the checkout.

    Copies of both are read through ``IMMUNEBENCH_ENTRIES`` for the length of the block.

    Raises
    ------
    UsageError
        The folder of tasks holds none.
    """
    with tempfile.TemporaryDirectory(prefix="immunebench-entries-") as place:
        root = Path(place)
        before = os.environ.get("IMMUNEBENCH_ENTRIES")
        if before and Path(before).is_dir():
            for kind in ("defenses", "attacks", "tasks", "suites"):
                if (Path(before) / kind).is_dir():
                    shutil.copytree(Path(before) / kind, root / kind)
        if entry is not None:
            target = root / "defenses" / entry.name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(entry, target)
        if tasks is not None:
            files = sorted(tasks.rglob("*.toml"))
            if not files:
                raise UsageError("holds no task (FAMILY/ID.toml)", field="--tasks", value=str(tasks))
            shutil.copytree(tasks, root / "tasks", dirs_exist_ok=True)
        os.environ["IMMUNEBENCH_ENTRIES"] = place
        loading.default_catalog.cache_clear()
        try:
            yield loading.default_catalog()
        finally:
            if before is None:
                os.environ.pop("IMMUNEBENCH_ENTRIES", None)
            else:
                os.environ["IMMUNEBENCH_ENTRIES"] = before
            loading.default_catalog.cache_clear()


def held_out(
    records: list[Record],
    names: list[str],
    catalog: Catalog,
    *,
    workers: int = 1,
    run_stage: RunStage | str | None = None,
) -> list[tuple[str, HeldOut]]:
    """Run an entry on held-out tasks, and return its A there beside that on the public tasks of the same family.

    Parameters
    ----------
    records
        The entry's records of a suite, whose chains, profile and numbers of pictures are used.
    names
        Ids of the tasks, which the catalogue holds.
    """
    first = records[0]
    known = catalog.suite(first.suite)
    numbers = known.model_dump(mode="json", include={"prompts", "pictures", "curve_pictures", "unrelated_pictures"})
    suite = Suite(
        id="held-out", version="1.0", title="Held-out tasks", profile=first.cell.profile, seeds=(first.cell.seed,),
        tasks=tuple(names), defenses=("none", first.cell.defense),
        chains=tuple(dict.fromkeys(record.cell.chain for record in records)), **numbers,
    )  # fmt: skip
    plan = make_plan(suite, catalog)
    found = []
    with tempfile.TemporaryDirectory(prefix="immunebench-held-out-") as place:
        made = api.measure(
            plan, api.open_store(Path(place) / "store"), Path(place) / "results", workers=workers, run_stage=run_stage,
            processes=run_stage is None or isinstance(run_stage, str),
        )  # fmt: skip
    for name in names:
        family = catalog.task(name).family
        public = [record for record in records if record.cell.family == family]
        own = [record for record in made if record.cell.task == name]
        digest = hashlib.sha256(catalog.paths["task", name].read_bytes()).hexdigest()
        a, a_public = (_a(group, first.cell.defense) for group in (own, public))
        found.append((name, HeldOut(task=digest, a=a, a_public=a_public)))
    return found


def _a(records: list[Record], defense: str) -> float | None:
    try:
        row = aggregate(map(measurement, records)).row(defense) if records else None
    except BoardError:
        return None
    return None if row is None else row.a
