"""Kills a run at random moments, resumes it, and compares its records with those of an undisturbed run.

Stages leave bookmarks often, so that kills fall between them, and it says how many stages went on in their middle.
Then two runs on one store at once must give the same records too. Everything but cost, environment,
attestation and the time of making has to be equal. Exits 1 where it is not.

Example: python benchmarks/kill_resume.py mini-smoke --kills 20 --workers 2
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FREE = ("cost", "env", "attestation", "created")


def start(suite: str, folder: Path, results: str, workers: int, extra: list[str]) -> subprocess.Popen[bytes]:
    """Begin a run in a process group of its own."""
    command = [sys.executable, "-m", "immunebench", "run", suite, "--workers", str(workers)]
    command += ["--store", str(folder / "store"), "--results", str(folder / results), *extra]
    log = (folder / "log.txt").open("ab")
    often = {"IMMUNEBENCH_BOOKMARK_SECONDS": "1", **os.environ}
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=often)


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by cell, without the fields that may differ."""
    found = {}
    for file in sorted(folder.rglob("*.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            cell = record["cell"]
            key = "/".join(str(cell[name]) for name in ("task", "defense", "chain", "profile", "seed"))
            found[key] = {name: value for name, value in record.items() if name not in FREE}
    return found


def partial(store: Path) -> list[Path]:
    """Folders that are visible as artifacts without being whole."""
    bad = []
    for manifest in store.glob("*/??/*/manifest.json"):
        files = json.loads(manifest.read_text())["files"]
        if any((manifest.parent / name).stat().st_size != entry["size"] for name, entry in files.items()):
            bad.append(manifest.parent)
    return bad


def compare(wanted: dict[str, dict[str, Any]], got: dict[str, dict[str, Any]], what: str) -> int:
    """Print where two sets of records differ; return how many cells do."""
    wrong = 0
    for key in sorted(wanted.keys() | got.keys()):
        one, other = wanted.get(key, {}), got.get(key, {})
        fields = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
        if fields:
            wrong += 1
            print(f"{what}: {key} differs in {', '.join(fields)}")
    print(f"{what}: {len(wanted) - wrong} of {len(wanted)} records equal")
    return wrong


def main() -> int:
    """Run the comparison; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", default="mini-smoke")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--task", help="only this task")
    options = parser.parse_args()
    extra = ["--task", options.task] if options.task else []
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        quiet, killed, shared = (Path(name) / part for part in ("quiet", "killed", "shared"))
        for folder in (quiet, killed, shared):
            folder.mkdir()
        began = time.monotonic()
        if start(options.suite, quiet, "results", options.workers, extra).wait() != 0:
            print((quiet / "log.txt").read_text(), file=sys.stderr)
            return 1
        length = time.monotonic() - began
        wanted = records(quiet / "results")
        print(f"undisturbed: {len(wanted)} records in {length:.0f} s")
        wrong = hit = 0
        for _ in range(options.kills):
            run = start(options.suite, killed, "results", options.workers, extra)
            try:
                # Every attempt pays for start-up again, so a kill falls in twice its share of the run.
                run.wait(timeout=3 + draw.uniform(0, 2 * length / options.kills))
            except subprocess.TimeoutExpired:
                hit += 1
                # The parent alone on every other kill: its workers have to end by themselves.
                target = os.killpg if hit % 2 else os.kill
                target(run.pid, signal.SIGKILL)
                run.wait()
            bad = partial(killed / "store")
            wrong += len(bad)
            for folder in bad:
                print(f"partial artifact: {folder}")
        print(f"killed {hit} times of {options.kills}; in the others the run had ended")
        ended = start(options.suite, killed, "results", options.workers, extra).wait()
        wrong += ended + compare(wanted, records(killed / "results"), "killed and resumed")
        middle = (killed / "log.txt").read_text(errors="replace").count("goes on after step")
        print(f"{middle} times a stage went on from a bookmark")
        pair = [start(options.suite, shared, f"results-{n}", 1, extra) for n in range(2)]
        wrong += sum(run.wait() for run in pair)
        for n in range(2):
            wrong += compare(wanted, records(shared / f"results-{n}"), f"two at once, run {n + 1}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
