"""``immunebench verify``: run cells of somebody's records again from an empty store, and compare every number."""

from __future__ import annotations

import math
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench import api
from immunebench.board.loading.consistency import MACHINE
from immunebench.board.loading.marks import Reproduction, file_digest
from immunebench.core.errors import UsageError
from immunebench.core.version import __version__
from immunebench.declared import scoring
from immunebench.execution.executor import RunStage
from immunebench.records.code_state import source_state
from immunebench.records.files import read_lines
from immunebench.store.artifacts import Store
from immunebench.submission.findings import shown
from immunebench.submission.running import only, records_of

if TYPE_CHECKING:
    from pydantic import JsonValue

    from immunebench.catalog.catalog import Catalog
    from immunebench.records.record import Record
    from immunebench.store.graph import Plan

#: What a run says of itself and not of what it measured: never compared.
_BY_RUN = (
    *("created", "cost", "env", "code.version", "code.commit", "code.dirty", "sheet", "artefacts", "schema_version"),
    *("attestation.boxes", "purified.seconds_per_picture", "purified.peak_", "track", "cell.defense_title"),
)
#: Factor between two times of a stage from which it is told, of stages that take more than so many seconds.
_OTHER_TIME, _SHORT = 5.0, 10.0
#: Of these, only another machine's rounding is allowed for.
_REAL_PICTURES = ("anchors.", "unseen.", "beside.unseen.")


@dataclass(frozen=True)
class Difference:
    """A field in which a record and its repetition differ; `line` is that of the record in its file."""

    cell: str
    field: str
    said: str
    found: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else ""
        return f"{where}{self.cell}: {self.field}: the record says {self.said}, here it is {self.found}"


@dataclass(frozen=True)
class Verified:
    """The outcome of a verification.

    Attributes
    ----------
    cells
        What was run again; nothing where planning alone shows that the records are of another code.
    differences, mark
        A mark only if nothing differs.
    remarks
        What is told and decides nothing.
    """

    cells: tuple[str, ...]
    exact: bool
    differences: tuple[Difference, ...]
    mark: Reproduction | None
    remarks: tuple[str, ...] = ()


def draw(keys: list[str], cells: int, seed: int, digest: str) -> list[str]:
    """Return the keys of the cells to run again, drawn from the seed and the file: nobody can prepare for it."""
    chosen = random.Random(f"{seed} {digest}").sample(sorted(keys), min(cells, len(keys)))
    return sorted(chosen)


def verify(
    file: Path,
    catalog: Catalog,
    *,
    cells: int = 2,
    seed: int = 0,
    workers: int = 1,
    run_stage: RunStage | str | None = None,
    given: Mapping[str, Mapping[str, Path]] | None = None,
) -> Verified:
    """Run some cells of a file of records again and compare them.

    Parameters
    ----------
    file
        The records.
    catalog
        The default catalogue; holds the entry.
    cells, seed
        How many cells, drawn from which seed.
    workers, run_stage
        As in `api.measure`.
    given
        Released artifacts by cell and hook, from a bundle: a closed entry is verified from them on.

    Raises
    ------
    UsageError
        The file has no record that could be run again: of other versions, or of what the catalogue lacks.
    """
    from immunebench.records.building import build_record

    records = {key: record for key, record in records_of(file).items() if record.status == "ok"}
    if not records:
        raise UsageError("holds no record with status ok", file=file)
    chosen = draw(list(records), cells, seed, file_digest(file))
    if stale := list(_stale(records, chosen, catalog, file, closed=bool(given))):
        return Verified((), False, _placed(stale, file), None)
    differences: list[Difference] = []
    remarks: list[str] = []
    artifacts: dict[str, dict[str, str]] = {}
    boxes: set[str] = set()
    same = True
    environment: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="immunebench-verify-") as place:
        store = Store(Path(place) / "store")
        for key in chosen:
            record = records[key]
            plan = only(_plan(record, catalog, file), [key])
            for hook, folder in (given or {}).get(key, {}).items():
                _publish(store, plan, key, hook, folder)
            api.measure(
                plan, store, Path(place) / "results", workers=workers, run_stage=run_stage,
                processes=run_stage is None or isinstance(run_stage, str),
            )  # fmt: skip
            again = build_record(plan.cells[0], plan.roots[key], store)
            alike = same_machine(record.env, again.env)
            same, environment = same and alike, again.env
            # The code of a closed entry is a stub here.
            differences += compare(record, again, exact=alike, skipped=("code.entry_files",) if given else ())
            remarks += _slower(record, again) if alike else []
            if again.attestation is not None:
                artifacts[key] = again.attestation.files
                boxes |= set(again.attestation.boxes.values())
    mark = None
    if not differences:
        mark = Reproduction(
            file=file.name, sha256=file_digest(file), seed=seed, cells=tuple(chosen), exact=same,
            tolerance=0.0 if same else scoring.BASELINES_AGREE, artifacts=artifacts, boxes=tuple(sorted(boxes)),
            environment=environment, version=__version__, commit=source_state()["commit"],
            created=datetime.now(UTC).isoformat(timespec="seconds"), signature="0" * 64,
        ).signed()  # fmt: skip
    return Verified(tuple(chosen), same, _placed(differences, file), mark, tuple(remarks))


def _placed(differences: list[Difference], file: Path) -> tuple[Difference, ...]:
    """Name file and line of the records that differ."""
    numbers = {line.record().cell.key: line.number for line in read_lines(file)}
    return tuple(replace(one, file=shown(file), line=numbers[one.cell]) for one in differences)


def _stale(
    records: Mapping[str, Record], chosen: list[str], catalog: Catalog, file: Path, *, closed: bool
) -> Iterator[Difference]:
    """Yield what planning shows already: parameters and files of an entry's code that are not those of here."""
    for key, record in records.items():
        try:
            facts = _plan(record, catalog, file).roots[key].facts
        except UsageError:
            if key in chosen:
                raise
            continue  # Of other versions: nothing of it can be run.
        pairs: list[tuple[str, JsonValue, JsonValue]] = [("params", dict(record.params), dict(facts.params))]
        if not closed:
            pairs.append(("code.entry_files", dict(record.code.entry_files), dict(facts.entry_files)))
        for where, said, found in pairs:
            theirs, ours = dict(_leaves(said, where)), dict(_leaves(found, where))
            for name in sorted({*theirs, *ours}):
                if theirs.get(name) != ours.get(name):
                    yield Difference(key, name, _text(theirs.get(name)), _text(ours.get(name)))


def _slower(record: Record, again: Record) -> Iterator[str]:
    """Yield stages whose time differs by more than a busy machine explains: it is nobody's score, and is only told."""
    for stage, cost in sorted(record.cost.items()):
        took = again.cost[stage].seconds if stage in again.cost else cost.seconds
        if max(cost.seconds, took) > _OTHER_TIME * min(cost.seconds, took) and max(cost.seconds, took) > _SHORT:
            times = f"the record says {cost.seconds:.0f}, this run took {took:.0f}"
            yield f"{record.cell.key}: cost.{stage}.seconds: {times}"


def _plan(record: Record, catalog: Catalog, file: Path) -> Plan:
    cell = record.cell
    if record.suite not in catalog.suites:
        raise UsageError("unknown suite", file=file, field="suite", value=record.suite, choices=catalog.suites)
    plan = api.plan_suite(
        record.suite, catalog=catalog, task=cell.task, defense=cell.defense, attack=cell.chain, seed=cell.seed,
        profile=cell.profile,
    )  # fmt: skip
    if cell.key not in plan.roots:
        raise UsageError("is no cell of the suite", file=file, field="cell", value=cell.key)
    ours = plan.roots[cell.key].facts.comparability(plan.roots[cell.key].cell)
    if ours != record.comparability:
        raise UsageError(f"is of other versions than those here ({ours}):", file=file, value=record.comparability)
    return plan


def _publish(store: Store, plan: Plan, key: str, hook: str, folder: Path) -> None:
    """Put a released artifact into the store in the place of the stage that made it."""
    digest = plan.roots[key].protect.get(hook)
    if digest is None or store.has(digest):
        return
    with store.stage(plan.stages[digest]) as made:
        for file in sorted(folder.iterdir()):
            shutil.copyfile(file, made.path / file.name)
        made.meta = {"given": True}


def same_machine(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Return whether two environments are of the same kind of machine with the same versions."""
    return all(one.get(name) == other.get(name) for name in MACHINE)


def compare(record: Record, again: Record, *, exact: bool, skipped: tuple[str, ...] = ()) -> Iterator[Difference]:
    """Yield every field in which a repetition differs from a record.

    On the same kind of machine all values must be equal. On another one means are held to the tolerance, the numbers
    of single pictures and the hashes of artifacts to nothing, and everything else must be equal.
    """
    said, found = (_leaves(one.model_dump(mode="json"), "") for one in (record, again))
    theirs, ours = dict(said), dict(found)
    # Older records have no hashes.
    if record.attestation is None:
        ours = {name: value for name, value in ours.items() if not name.startswith("attestation")}
    for name in sorted({*theirs, *ours}):
        if name.startswith((*_BY_RUN, *skipped)) or name == "attestation":
            continue
        one, other = theirs.get(name), ours.get(name)
        if not (_equal(one, other) if exact else _alike(name, one, other)):
            yield Difference(record.cell.key, name, _text(one), _text(other))


def _leaves(value: JsonValue, where: str) -> Iterator[tuple[str, JsonValue]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{where}.{name}" if where else name)
    else:
        yield where, value


def _equal(one: JsonValue, other: JsonValue) -> bool:
    return one == other


def _alike(name: str, one: JsonValue, other: JsonValue) -> bool:
    if name.endswith(".digest") or name.startswith(("attestation.files", "code.entry_files")):
        return name.startswith("attestation") or name.endswith(".digest") or one == other
    if isinstance(one, list) and isinstance(other, list) and one and isinstance(one[0], float | int):
        numbers = [[v for v in part if isinstance(v, int | float)] for part in (one, other)]
        if len(numbers[0]) != len(numbers[1]):
            return False
        means = [math.fsum(part) / len(part) for part in numbers]
        return abs(means[0] - means[1]) <= _allowed(name, means[0])
    if isinstance(one, float) and isinstance(other, float | int):
        return abs(one - other) <= _allowed(name, one)
    return one == other


def _allowed(name: str, value: float) -> float:
    most = scoring.ANCHORS_AGREE if name.startswith(_REAL_PICTURES) else scoring.BASELINES_AGREE
    # Measures without an upper bound, such as PSNR, are held to their own size.
    return most * max(1.0, abs(value))


def _text(value: JsonValue) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
