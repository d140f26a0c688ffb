"""Plans of single cells, and what of them is missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from immunebench.core.errors import UsageError
from immunebench.records.files import read_records
from immunebench.records.record import Record
from immunebench.store.graph import Plan


def only(plan: Plan, keys: Collection[str]) -> Plan:
    """Return the part of a plan that some of its cells need."""
    needed = {digest for key in keys for digest in plan.roots[key].stages}
    return replace(
        plan,
        cells=tuple(cell for cell in plan.cells if cell.key in keys),
        stages={digest: spec for digest, spec in plan.stages.items() if digest in needed},
        roots={key: graph for key, graph in plan.roots.items() if key in keys},
    )


def records_of(file: Path) -> dict[str, Record]:
    """Return the records of a file by their cell's key; empty where there is no file.

    Raises
    ------
    UsageError
        A line is no record.
    """
    return {record.cell.key: record for record in read_records(file)} if file.is_file() else {}


def missing(plan: Plan, there: Mapping[str, Record]) -> list[str]:
    """Return the keys of a plan's cells that have no record of the same code, parameters and versions yet."""
    return [cell.key for cell in plan.cells if not _is_of(plan, cell.key, there.get(cell.key))]


def _is_of(plan: Plan, key: str, record: Record | None) -> bool:
    graph = plan.roots[key]
    return (
        record is not None
        and record.status == "ok"
        and record.comparability == graph.facts.comparability(graph.cell)
        and record.code.entry_files == graph.facts.entry_files
        and record.params == graph.facts.params
    )


def the_file(path: Path) -> Path:
    """Return a path if it is a file of records.

    Raises
    ------
    UsageError
        It is none.
    """
    if path.suffix != ".jsonl" or not path.is_file():
        raise UsageError("is no file of records (results/SUITE/ID@VERSION.jsonl):", field="PATH", value=str(path))
    return path
