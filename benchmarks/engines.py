"""Whether every engine measures the same: a part of a suite by each, from an empty store, compared field by field.

    python benchmarks/engines.py --on inline ray slurm:local slurm
    python benchmarks/engines.py --on ray --against results/mini-smoke --kill none worker driver raylet

Each engine runs `immunebench run` with two workers; `inline` is one process. The records are held against those of the
first engine, or of the folder `--against`. Each engine runs once for each word after `--kill`: as soon as ten
artifacts are there, that process is killed with SIGKILL, and the same command is given again until it ends well.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from immunebench.core.machine import cores
from immunebench.records.files import json_value, read_records
from immunebench.store.artifacts import Store

#: What may differ: times, the machine, who attests to what; and of another commit, where records are older.
FREE = ("cost", "env", "attestation", "created", "code")
_ARTIFACTS = 10
_TRIES = 5
Records = Mapping[str, dict[str, Any]]


def records_of(folder: Path) -> Records:
    """Return records by cell."""
    found: Records = {record.cell.key: json_value(record) for record in read_records(folder)}  # type: ignore[misc]
    return found


def fields(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Yield the leaves of a record with their places."""
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from fields(part, f"{place}.{name}" if place else str(name))
    else:
        yield place, value


def differences(mine: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[list[str], list[str], int]:
    """Return the places that differ where they may and where they may not, and the number that were compared."""
    a, b = dict(fields(mine)), dict(fields(other))
    differ = sorted(place for place in a.keys() | b.keys() if a.get(place, "absent") != b.get(place, "absent"))
    free = [place for place in differ if place.split(".")[0] in FREE]
    return free, [place for place in differ if place not in free], len(a.keys() | b.keys())


def target(driver: psutil.Process, what: str) -> psutil.Process | None:
    """Return the process to kill: the driver, its raylet, or one of Ray's workers that runs a stage."""
    if what == "driver":
        return driver
    for process in driver.children(recursive=True):
        title = " ".join(process.cmdline()) or process.name()
        if (what == "raylet" and process.name() == "raylet") or (what == "worker" and "carry_out" in title):
            return process
    return None


def run(command: list[str], store: Path, kill: str | None) -> list[str]:
    """Run a command, again after a kill, until it ends well; return what happened."""
    told: list[str] = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        driver = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        if kill is not None and driver.poll() is None:
            told.append(kill_one(psutil.Process(driver.pid), store, kill))
            kill = None
        said = (driver.communicate()[1] or "").strip().splitlines()
        told.append(f"exit {driver.returncode} after {time.perf_counter() - began:.0f} s: {said[-1] if said else ''}")
        if driver.returncode == 0:
            return told
    raise SystemExit("\n".join(told))


def kill_one(driver: psutil.Process, store: Path, what: str) -> str:
    """Kill a process of a run once some artifacts are there."""
    while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
        made = sum(1 for _ in Store(store).artifacts()) if store.exists() else 0
        found = target(driver, what) if made >= _ARTIFACTS else None
        if found is not None:
            found.send_signal(signal.SIGKILL)
            return f"killed {what} {found.pid} at {made} artifacts"
        time.sleep(0.2)
    return f"no {what} to kill"


def main() -> None:
    """Run, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="mini-smoke")
    parser.add_argument("--task", default="style-solano")
    parser.add_argument("--defense", nargs="+", default=["none", "noise"])
    parser.add_argument("--seed", default="0")
    parser.add_argument("--on", nargs="+", default=["inline", "ray", "slurm:local"])
    parser.add_argument("--against", type=Path, help="folder of records, in the place of the first engine's")
    parser.add_argument("--kill", nargs="+", default=["none"], choices=["none", "worker", "driver", "raylet"])
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    part = ["--task", options.task, "--seed", options.seed]
    part += [word for name in options.defense for word in ("--defense", name)]
    reference = None if options.against is None else records_of(options.against)
    figures: dict[str, Any] = {"cores": cores(), "part": [options.suite, *part], "runs": []}
    wrong = 0
    for name in options.on:
        for kill in options.kill if name != "inline" else ["none"]:
            engine = [] if name == "inline" else ["--on", name, "--workers", "2"]
            with TemporaryDirectory() as folder:
                store, results = Path(folder) / "store", Path(folder) / "results"
                where = ["--store", str(store), "--results", str(results)]
                command = [sys.executable, "-m", "immunebench", "run", options.suite, *part, *where, *engine]
                began = time.perf_counter()
                told = run(command, store, None if kill == "none" else kill)
                seconds = round(time.perf_counter() - began)
                mine = records_of(results)
            reference = mine if reference is None else reference
            free, differ, compared = [], [], 0
            for key, record in mine.items():
                a, b, count = differences(record, reference[key])
                free += [place.split(".")[0] for place in a]
                differ += [f"{key}: {place}" for place in b]
                compared += count
            wrong += len(differ)
            found = {"engine": name, "killed": kill, "seconds": seconds, "cells": len(mine), "fields": compared,
                     "differ and may": sorted(set(free)), "differ": differ, "told": told}  # fmt: skip
            figures["runs"].append(found)
            print(json.dumps(found, indent=1), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
