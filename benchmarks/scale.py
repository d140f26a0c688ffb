"""How planning and driving grow: seconds and memory of 100,000 cells, and what an engine adds to each stage.

    python benchmarks/scale.py --cells 100000 --json docs/scale/graph.json
    python benchmarks/scale.py --seeds 285 --json docs/scale/planning.json
    python benchmarks/scale.py --records 1000 --json docs/scale/records.json
    python benchmarks/scale.py --engines processes ray slurm:local --stages 40 --json docs/scale/engines.json

The graph: the plan of `sd14-full` widened to as many cells with copies of its defenses (`immunebench plan --defenses`).
Driving: the scheduler hands every stage of that graph to an executor that makes nothing, on a store that holds nothing,
so that what is measured is the driver alone. Engines: stages that write one small file each, independent of each other,
on two workers; the first ones, which start the workers, are counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from immunebench.api import make_executor, plan_suite
from immunebench.catalog.loading import default_catalog
from immunebench.catalog.outline import Outline
from immunebench.core.machine import cores, process_peak
from immunebench.execution.executor import Event, Executor, Tell
from immunebench.execution.results import Results
from immunebench.execution.scheduler import execute
from immunebench.plan.prices import prices
from immunebench.plan.simulation import critical_path, simulate, widened
from immunebench.records.files import read_records
from immunebench.store.artifacts import Spec, Store
from immunebench.store.graph import StageSpec

Figures = dict[str, Any]


class NoOp:
    """An executor that says that it made what it is given."""

    slots = 64

    def __init__(self) -> None:
        self._given: list[str] = []

    def submit(self, spec: Spec, *, wait: bool) -> None:
        """Remember the stage."""
        self._given.append(spec.digest)

    def finished(self, tell: Tell) -> list[Event]:
        """Return all that was submitted as made."""
        given, self._given = self._given, []
        return [Event("made", digest) for digest in given]

    def close(self) -> None:
        """Do nothing."""


class Empty(Store):
    """A store that holds nothing, without asking the disk a million times."""

    def holds(self, digest: str) -> bool:
        """Return false."""
        return False

    def failure(self, digest: str) -> dict[str, Any] | None:
        """Return None."""
        return None

    @contextmanager
    def using(self, digests: Any) -> Iterator[None]:
        """Note nothing."""
        yield


def write(spec: Any, inputs: Mapping[str, Path], out: Path, report: Any) -> dict[str, object]:
    """Write one small file: a stage without any work."""
    (out / "value.json").write_text(json.dumps(spec.key))
    return {}


@contextmanager
def timed(figures: Figures, name: str) -> Iterator[None]:
    """Add the seconds of a block, by the clock and of the processor, and the memory of the process after it."""
    began, worked = time.perf_counter(), time.process_time()
    yield
    figures[name] = {
        "seconds": round(time.perf_counter() - began, 2),
        "processor seconds": round(time.process_time() - worked, 2),
        "gib": round(psutil.Process().memory_info().rss / 2**30, 2),
    }
    print(name, figures[name], flush=True)


def graph(cells: int) -> Figures:
    """Measure planning, the graph of so many cells, its simulation, and driving it."""
    figures: Figures = {}
    catalog = Outline.of(default_catalog())
    with timed(figures, "plan sd14-full"):
        plan = plan_suite("sd14-full", catalog=catalog)
    figures["plan sd14-full"] |= {"cells": len(plan.cells), "stages": len(plan.stages)}
    names = dict.fromkeys(cell.defense for cell in plan.cells)
    entries = [name for name in names if catalog.defense(name).kind_of != "control"]
    own = {name: sum(cell.defense == name for cell in plan.cells) for name in entries}
    defenses = max(1, round((cells - len(plan.cells) + sum(own.values())) * len(own) / sum(own.values())))
    with timed(figures, "widen"):
        jobs, many = widened(plan, prices(plan), entries, defenses)
    figures["widen"] |= {"defenses": defenses, "cells": many, "stages": len(jobs)}
    with timed(figures, "critical path and 64 GPUs"):
        critical_path(jobs)
        simulate(jobs, 64, 256)
    with timed(figures, "digests"):
        specs: dict[str, Spec] = {}
        digests: list[str] = []
        for number, job in enumerate(jobs):
            spec = StageSpec("adapt", {"n": number}, {str(place): digests[place] for place in job.inputs})
            digests.append(spec.digest)
            specs[spec.digest] = spec
    with TemporaryDirectory() as folder, timed(figures, "drive"):
        outcome = execute(specs, Empty(folder), NoOp())
    assert len(outcome.made) == len(specs)
    figures["drive"]["microseconds a stage"] = round(1e6 * figures["drive"]["processor seconds"] / len(specs), 1)
    figures["peak gib"] = round(process_peak() / 2**30, 2)
    return figures


def planned(seeds: int) -> Figures:
    """Measure planning of `sd14-full` with so many seeds: cells that share pictures and judges, and train anew."""
    figures: Figures = {}
    catalog = Outline.of(default_catalog())
    plan_suite("mini-smoke", catalog=catalog)  # What is read once, whatever is planned.
    with timed(figures, "plan"):
        plan = plan_suite("sd14-full", catalog=catalog, seed=list(range(seeds)))
    figures["plan"] |= {"cells": len(plan.cells), "stages": len(plan.stages)}
    figures["milliseconds a cell"] = round(1e3 * figures["plan"]["processor seconds"] / len(plan.cells), 2)
    figures["peak gib"] = round(process_peak() / 2**30, 2)
    print(figures, flush=True)
    return figures


def recorded(cells: int, records: Path) -> Figures:
    """Measure writing so many records of one defense, one after the other: copies of a record with other seeds."""
    [first, *_] = read_records(records)
    figures: Figures = {"cells": cells, "bytes a record": len(first.model_dump_json())}
    with TemporaryDirectory() as folder:
        results = Results(Path(folder) / "results", Store(Path(folder) / "store"), print)
        began = time.process_time()
        for number in range(cells):
            cell = first.cell.model_copy(update={"seed": number})
            results.save(first.model_copy(update={"cell": cell}), lambda: None)
            if number + 1 in (100, 300, 1_000, cells):
                now = time.process_time()
                figures[f"processor seconds to {number + 1}"] = round(now - began, 1)
        last = time.process_time()
        results.save(first, lambda: None)
        figures["milliseconds of the last"] = round(1e3 * (time.process_time() - last), 1)
    print(figures, flush=True)
    return figures


def engine(name: str, stages: int, workers: int = 2) -> Figures:
    """Measure the seconds that an engine adds to each stage, once its workers run."""
    specs = {s.digest: s for s in (StageSpec("score", {"n": number}) for number in range(stages + 2 * workers))}
    ends: list[float] = []
    with TemporaryDirectory() as folder:
        store = Store(folder)
        began = time.perf_counter()
        kind: dict[str, Any] = {"processes": True} if name == "processes" else {"on": name}
        made: Executor = make_executor(store, workers, run_stage="scale:write", **kind)
        outcome = execute(
            specs, store, made, tell=lambda event: ends.append(time.perf_counter()) if event.kind == "made" else None
        )
        closed = time.perf_counter()
    assert len(outcome.made) == len(specs), outcome.failed
    first = 2 * workers - 1
    found = {
        "workers": workers,
        "seconds to the first stages": round(ends[first] - began, 2),
        "milliseconds a stage": round(1e3 * (ends[-1] - ends[first]) / (len(ends) - 1 - first), 1),
        "seconds to close": round(closed - ends[-1], 2),
    }
    print(name, found, flush=True)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, help="cells of the graph")
    parser.add_argument("--seeds", type=int, help="seeds of sd14-full to plan; 285 are 100,605 cells")
    parser.add_argument("--records", type=int, help="records of one defense to write")
    parser.add_argument("--record", type=Path, default=Path("results/mini-smoke"), help="folder with a record to copy")
    parser.add_argument("--engines", nargs="*", default=[], help="processes, ray, slurm:local, ...")
    parser.add_argument("--stages", type=int, default=100, help="stages of each engine")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, sys.path)])
    figures: Figures = {"cores": cores()}
    if options.cells:
        figures["graph"] = graph(options.cells)
    if options.seeds:
        figures["planning"] = planned(options.seeds)
    if options.records:
        figures["records"] = recorded(options.records, options.record)
    if options.engines:
        figures["engines"] = {name: engine(name, options.stages) for name in options.engines}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
