"""Verification of whatever lies at a path: a file of records, or a bundle with or without code."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from immunebench import api
from immunebench.board.loading.marks import HeldOut, Reproduction, add_official, add_reproduction
from immunebench.catalog import loading
from immunebench.core.errors import UsageError
from immunebench.declared import schema
from immunebench.declared.manifest import DefenseManifest
from immunebench.execution.executor import RunStage
from immunebench.submission.bundles import Bundle, check_bundle, unpacked
from immunebench.submission.check import check_records, entries_at
from immunebench.submission.findings import errors
from immunebench.submission.held_out import gathered, held_out
from immunebench.submission.packing import pack
from immunebench.submission.running import records_of, the_file
from immunebench.submission.verify import Difference, verify

#: Of a bundle whose code is closed: the hooks are defined so that it is planned, and none of them is ever called.
_STUB = '"""The code of this entry is closed; what it released is given."""\n'


@dataclass(frozen=True)
class Outcome:
    """What a verification found, and the file of marks that it wrote."""

    cells: tuple[str, ...]
    exact: bool
    differences: tuple[Difference, ...]
    held_out: tuple[tuple[str, HeldOut], ...] = ()
    marks: Path | None = None
    closed: bool = False
    remarks: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the lines to print."""
        how = "exactly" if self.exact else "within the tolerance: another kind of machine or other versions"
        if not self.cells:
            lines = ["nothing was run: these records are not of the code and parameters that are here"]
            return [*lines, *self._differences()]
        ran = f"ran again: {', '.join(self.cells)}"
        lines = [ran + (", from the released artifacts on" if self.closed else "")]
        lines += self._differences()
        lines += [f"not compared: {one}" for one in self.remarks]
        if not self.differences:
            lines.append(f"every number agrees, {how}")
        for name, one in self.held_out:
            lines.append(f"held out: {name}: A {_number(one.a)}, on public tasks of its family {_number(one.a_public)}")
        return [*lines, *([f"wrote {self.marks}"] if self.marks is not None else [])]

    def _differences(self) -> list[str]:
        lines = [f"differs: {one}" for one in self.differences[:20]]
        if len(self.differences) > 20:
            lines.append(f"and {len(self.differences) - 20} fields more")
        return lines

    def as_dict(self) -> dict[str, object]:
        """Return the outcome as JSON types."""
        return {
            "cells": list(self.cells),
            "exact": self.exact,
            "closed": self.closed,
            "differences": [vars(one) for one in self.differences],
            "remarks": list(self.remarks),
            "held_out": {name: one.model_dump() for name, one in self.held_out},
            "marks": None if self.marks is None else str(self.marks),
        }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def verify_path(
    path: Path,
    *,
    cells: int = 2,
    seed: int = 0,
    workers: int = 1,
    tasks: Path | None = None,
    results: Path | None = None,
    run_stage: RunStage | str | None = None,
) -> Outcome:
    """Verify records or a bundle, and write a mark beside the records if every number agrees.

    Raises
    ------
    UsageError
        There is nothing to verify, it has findings already, or the entry is not here.
    """
    if cells < 1:
        raise UsageError("must be at least 1, not", field="--cells", value=cells)
    if path.suffix != ".tar":
        return _verify(the_file(path), path.parent, None, cells, seed, workers, tasks, run_stage)
    if found := errors(check_bundle(path)):
        raise UsageError(f"has findings, the first: {found[0]}", file=path)
    with unpacked(path) as bundle:
        place = bundle.records.parent if results is None else results / bundle.table.suite
        return _verify(bundle.records, place, bundle, cells, seed, workers, tasks, run_stage)


def _verify(
    file: Path,
    marks: Path,
    bundle: Bundle | None,
    cells: int,
    seed: int,
    workers: int,
    tasks: Path | None,
    run_stage: RunStage | str | None,
) -> Outcome:
    entry = None if bundle is None else _entry(bundle)
    around = (
        gathered(entry, tasks) if entry is not None or tasks is not None else nullcontext(loading.default_catalog())
    )
    closed = bundle is not None and bundle.table.closed
    with around as catalog:
        if bundle is None and (found := errors(check_records(file.parent, file.name))):
            raise UsageError(f"has findings, the first: {found[0]}", file=file)
        records = list(records_of(file).values())
        given = _given(bundle, [record.cell.key for record in records]) if bundle is not None and closed else None
        done = verify(file, catalog, cells=cells, seed=seed, workers=workers, run_stage=run_stage, given=given)
        hidden: list[tuple[str, HeldOut]] = []
        if tasks is not None and not closed and not done.differences:
            names = sorted(path.stem for path in tasks.rglob("*.toml"))
            hidden = held_out(records, names, catalog, workers=workers, run_stage=run_stage)
    written = None
    # A mark inside an unpacked bundle would vanish with it.
    if done.mark is not None and (bundle is None or marks != bundle.records.parent):
        mark: Reproduction = done.mark.model_copy(update={"held_out": tuple(one for _, one in hidden)})
        written = add_reproduction(marks, mark)
    return Outcome(done.cells, done.exact, done.differences, tuple(hidden), written, closed, done.remarks)


def _entry(bundle: Bundle) -> Path:
    """Return the bundled entry in a folder of its id, with stubs in the place of closed code."""
    manifest = schema.load(bundle.entry / "defense.toml", DefenseManifest)
    folder = bundle.folder / "named" / manifest.id
    shutil.copytree(bundle.entry, folder)
    if bundle.table.closed and manifest.artefact is None:
        hooks = [f"\n\ndef {hook}(*given):\n    raise RuntimeError('closed')\n" for hook in manifest.hooks]
        (folder / "defense.py").write_text(_STUB + "".join(hooks), "utf-8")
    return folder


def _given(bundle: Bundle, keys: list[str]) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    for key in keys:
        for hook in ("protect_model", "protect_images"):
            if bundle.artifact(key, hook).is_dir():
                found.setdefault(key, {})[hook] = bundle.artifact(key, hook)
    return found


def make_official(path: Path, leaderboard: Path) -> Path:
    """List the files of a suite's results as official; without findings only.

    Raises
    ------
    UsageError
        There is no such folder, or a record has a finding.
    """
    folder = path if path.is_dir() else path.parent
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UsageError("holds no records:", field="PATH", value=str(path))
    if found := errors(check_records(folder)):
        raise UsageError(f"has findings, the first: {found[0]}", file=folder)
    return add_official(leaderboard, folder, files)


def bundle(
    path: Path, out: Path, suite: str, results: Path, store: str | None, *, closed: bool = False
) -> tuple[Path, list[str]]:
    """Write the bundle of an entry; see `packing.pack`."""
    folder = path.resolve()
    if not (folder / "defense.toml").is_file():
        raise UsageError("is no folder of a defense (it has no defense.toml):", field="PATH", value=str(path))
    with entries_at(folder) as catalog:
        entry = catalog.defense(folder.name)
    file = results / suite / f"{entry.id}@{entry.version}.jsonl"
    return pack(folder, file, api.open_store(store), out, closed=closed)
