"""Breaks runs and files on purpose, and says what came of it.

First every fault is injected into a run with stages of a few bytes: its outcome, and whether the records are those of
an undisturbed run once the fault is gone. Then seeded mutations of manifests, records, store manifests, pictures and
headers of weights are read: each is accepted or refused in one line, within a time limit and 1 GB. Exits 1 on any
traceback, hang, larger peak or unequal record; an input that does it is kept in a folder that is named.

Example: python benchmarks/faults.py --inputs 20000
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_inputs  # type: ignore[import-not-found]

from immunebench import api
from immunebench.catalog.catalog import Catalog
from immunebench.core.errors import UsageError
from immunebench.store.graph import Plan

SUITE, TASK, DEFENSES = "mini-smoke", "style-solano", ("none", "noise", "destroy")
#: Fields of a record that say when and where it was made.
FREE = ("cost", "env", "attestation", "created")
GUARD = f"import immunebench\nimmunebench.run({SUITE!r}, task={TASK!r}, results='r', store='s', workers=2)\n"


def stage(spec: Any, inputs: dict[str, Path], out: Path, report: Callable[[str, int, int], None]) -> dict[str, object]:
    """Write files of the right names whose values depend on the stage's digest alone."""
    number = int(spec.digest[:8], 16) / 2**32
    if spec.stage in ("pictures", "generate"):
        from PIL import Image

        Image.new("RGB", (8, 8), f"#{spec.digest[:6]}").save(out / "p00-00.png")
    elif spec.stage == "anchor":
        (out / "scores.json").write_text(json.dumps({"m_same": 0.9, "m_other": 0.1}))
    elif spec.stage == "score":
        names = [f"{metric['id']}@{metric['version']}" for metric in spec.key["metrics"]]
        score = {"values": [number], "mean": number}
        (out / "scores.json").write_text(json.dumps({"metrics": dict.fromkeys(names, score)}))
    elif spec.stage == "adapt":
        for step in spec.key["params"]["saves"]:
            (out / f"adapter-{step:05d}.safetensors").write_bytes(bytes.fromhex(spec.digest))
    else:
        (out / "log.json").write_text(json.dumps(number))
    return {}


def failing(error: Callable[[Path], None]) -> Callable[..., dict[str, object]]:
    """Return a stage function that fails in every protection and attack."""

    def run(spec: Any, inputs: dict[str, Path], out: Path, report: Any) -> dict[str, object]:
        if spec.stage in ("protect", "adapt"):
            error(out)
        return stage(spec, inputs, out, report)

    return run


def full_disk(out: Path) -> None:
    """Write to a device that is always full."""
    with open("/dev/full", "wb") as stream:
        stream.write(b"x")


def full_for_weights(out: Path) -> None:
    """Fail as safetensors does on a full disk, whose exception is no OSError."""
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def read_only(out: Path) -> None:
    """Fail as a write does once a file system was remounted."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(out / "x"))


def broken(out: Path) -> None:
    """Fail as an entry does."""
    raise ValueError("the entry is broken")


class Bench:
    """A plan, what an undisturbed run gives, and the faults found so far."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.wrong = folder, 0
        self.plan: Plan = api.plan_suite(SUITE, task=TASK, defense=DEFENSES)
        self.run("undisturbed")
        self.expected = self.records("undisturbed")

    def run(self, name: str, run_stage: Callable[..., dict[str, object]] = stage, store: str | None = None) -> str:
        """Run the plan into folders of a name; return what was printed, or the one line that ended it."""
        log = self.folder / f"{name}.log"
        with log.open("w") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                api.measure(
                    self.plan,
                    api.open_store(self.folder / (store or name) / "store"),
                    self.folder / name / "results",
                    run_stage=run_stage,
                    stream=stream,
                )
            except UsageError as error:
                return str(error)
        return log.read_text()

    def records(self, name: str) -> dict[str, Any]:
        """Return the records of a run by cell, without the fields that may differ."""
        from immunebench.records.files import read_records

        found = {record.cell.key: record.model_dump(mode="json") for record in read_records(self.results(name))}
        return {key: {n: v for n, v in record.items() if n not in FREE} for key, record in found.items()}

    def results(self, name: str) -> Path:
        """Return the folder of a run's records."""
        return self.folder / name / "results"

    def say(self, fault: str, outcome: str, equal: bool) -> None:
        """Print a line, and count it where something is wrong."""
        bad = not equal or "Traceback" in outcome
        self.wrong += bad
        print(f"{fault:<44} {'equal' if equal else 'NOT EQUAL':<10} {' '.join(outcome.split())[:150]}", flush=True)

    def again(self, name: str) -> bool:
        """Run once more without the fault; return whether the records are those of the undisturbed run."""
        self.run(name)
        return self.records(name) == self.expected


def inject(bench: Bench, draw: random.Random) -> None:
    """Inject the faults one by one."""
    for name, error in (
        ("1 the disk is full", full_disk),
        ("1 the same under weights", full_for_weights),
        ("6 the store turns read-only", read_only),
    ):
        said = bench.run(name, failing(error))
        (line,) = {line.partition(": the disk")[2] for line in said.splitlines() if ": the disk" in line} or {"?"}
        statuses = {record["status"] for record in bench.records(name).values()}
        bench.say(name, f"{sorted(statuses)}: the disk{line}", statuses == {"skipped"} and bench.again(name))
    _damage_store(bench, draw)
    _damage_results(bench)
    name = "4 a failure meets a good record"
    shutil.copytree(bench.results("undisturbed"), bench.results(name))
    bench.run(name, failing(broken), store=f"{name} empty")
    kept = sorted(path.name for path in bench.results(name).glob("*.worse"))
    bench.say(name, f"written beside: {', '.join(kept)}", bool(kept) and bench.records(name) == bench.expected)
    _start_wrongly(bench)
    _interrupt(bench, draw)
    _break_entries(bench)


def _damage_store(bench: Bench, draw: random.Random) -> None:
    name = "2 one bit of every manifest"
    shutil.copytree(bench.folder / "undisturbed", bench.folder / name)
    for file in sorted((bench.folder / name / "store").glob("*/??/*/manifest.json")):
        data = bytearray(file.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
    from immunebench.plan.estimate import estimate

    estimate(bench.plan, api.open_store(bench.folder / name / "store"))
    said = bench.run(name)
    count = said.count("set aside")
    bench.say(name, f"{count} named and made again", count > 0 and bench.records(name) == bench.expected)


def _damage_results(bench: Bench) -> None:
    kinds: dict[str, Callable[[bytes], bytes]] = {
        "blank line": lambda data: b"\n" + data,
        "conflict marker": lambda data: b"<<<<<<< HEAD\n" + data,
        "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
        "not UTF-8": lambda data: b'{"suite": "\xe9"}\n' + data,
        "cut short": lambda data: data[: len(data) // 2],
    }
    for kind, spoil in kinds.items():
        name = f"3 results: {kind}"
        shutil.copytree(bench.folder / "undisturbed", bench.folder / name)
        for file in bench.results(name).glob("*.jsonl"):
            file.write_bytes(spoil(file.read_bytes()))
        said = [line for line in bench.run(name).splitlines() if "damaged" in line or "line" in line]
        bench.say(name, said[0] if said else "read through", bench.records(name) == bench.expected)


def _start_wrongly(bench: Bench) -> None:
    """Ask for workers from standard input and from a script without a guard."""
    for name, arguments, text in (("standard input", ["-"], GUARD), ("script without guard", ["plain.py"], "")):
        place = bench.folder / name
        place.mkdir()
        (place / "plain.py").write_text(GUARD)
        done = subprocess.run(
            [sys.executable, *arguments],
            input=text,
            text=True,
            capture_output=True,
            cwd=place,
            timeout=300,
            check=False,
        )
        left = {path.name for path in place.iterdir()} - {"plain.py", "s"}
        made = list(place.glob("s/*/??/*/manifest.json"))
        last = done.stderr.splitlines()[-1] if done.stderr else ""
        bench.say(f"5 workers from {name}", last, done.returncode == 1 and not left and not made)


def _interrupt(bench: Bench, draw: random.Random) -> None:
    command = [sys.executable, "-m", "immunebench", "run", SUITE, "--task", TASK, "--defense", "none", "--workers", "2"]
    place = bench.folder / "interrupted"
    outcomes, whole = [], True
    for _ in range(3):
        process = subprocess.Popen(
            [*command, "--store", str(place / "store"), "--results", str(place / "results")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        time.sleep(draw.uniform(0.4, 2.0))
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=300)
        whole = whole and "Traceback" not in out and process.returncode != 0
        outcomes.append(str(process.returncode))
    bench.say("6 Ctrl-C within two seconds, three times", f"exit {', '.join(outcomes)}, no traceback", whole)


def _break_entries(bench: Bench) -> None:
    """Add one hostile entry at a time; the others stay as they were."""
    from immunebench.catalog.loading import load_catalog

    before = load_catalog()
    hostile: dict[str, Callable[[Path], object]] = {
        "lists 5,000 deep": lambda file: file.write_text("x = " + "[" * 5000 + "]" * 5000),
        "an integer of 4,301 digits": lambda file: file.write_text("x = " + "9" * 4301),
        "a named pipe": os.mkfifo,
        "a sum of 20,000 terms": lambda file: _copy_noise(file, before, code="x = " + "+".join(["1"] * 20_000)),
        "another's alias": lambda file: _copy_noise(file, before, more='aliases = ["none"]'),
    }
    for name, write in hostile.items():
        root = bench.folder / f"entries {name}"
        (root / "defenses/bad").mkdir(parents=True)
        write(root / "defenses/bad/defense.toml")
        started = time.monotonic()
        found = load_catalog(root)
        took = time.monotonic() - started
        reasons = [broken.reason for broken in found.broken if broken.id == "bad"]
        equal = before.defenses.keys() == found.defenses.keys() - {"bad"} and took < 60
        bench.say(f"6 an entry: {name}", reasons[0].rpartition("/")[2] if reasons else "?", equal and bool(reasons))


def _copy_noise(file: Path, catalog: Catalog, *, code: str = "", more: str = "") -> None:
    """Write a defense like `noise` into a manifest's folder, with more code or fields."""
    noise = catalog.defenses["noise"].folder
    file.write_text((noise / "defense.toml").read_text().replace('id = "noise"', f'id = "bad"\n{more}'))
    own = "\n".join([(noise / "defense.py").read_text(), code])
    (file.parent / "defense.py").write_text(own)


def main() -> int:
    """Run both parts; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="mutated inputs, of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        inject(bench, random.Random(options.seed))
    print(f"injected in {time.monotonic() - started:.0f} s")
    wrong = fuzz_inputs.fuzz(options.inputs, options.seed)
    print(f"all in {time.monotonic() - started:.0f} s; {bench.wrong + wrong} wrong")
    return int(bench.wrong + wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
