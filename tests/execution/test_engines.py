"""Engines of several machines: the same graph to the same artifacts, crashes, time limits, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from immunebench.core.errors import UsageError
from immunebench.execution.engines import slurm_engine
from immunebench.execution.engines.choosing import on_engine
from immunebench.execution.engines.slurm_engine import parsed
from immunebench.execution.executor import Event, Executor, Inline
from immunebench.execution.scheduler import execute
from immunebench.store.artifacts import Store
from toy_stages import Toy, add, graph, processes_of, two_bases

TOY = "toy_stages:add"
Make = Callable[..., Executor]
SUPPORT = str(Path(__file__).parents[1] / "support")

pytestmark = pytest.mark.filterwarnings("ignore")


def needs(on: str) -> None:
    """Skip a test whose engine is not here."""
    name = on.partition(":")[0]
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[name], reason=f"needs the extra {name}")
    if on == "slurm" and (shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode):
        pytest.skip("needs a Slurm that answers `sinfo`, such as that of benchmarks/slurm_here.sh")


@pytest.fixture(params=["ray", "slurm:local", "slurm"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Starts an engine on this machine; its processes find the toy stages."""
    needs(request.param)
    monkeypatch.setattr(slurm_engine, "_ASK", 1.0)
    monkeypatch.setattr(slurm_engine, "_LATE", 2.0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SUPPORT, *filter(None, sys.path)]))
    monkeypatch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")

    def start(store: Store, timeout: float | None = None, workers: int = 2) -> Executor:
        return on_engine(request.param, store, workers, TOY, timeout)

    yield start


def diamond(**extra: object) -> tuple[Toy, Toy, Toy, Toy]:
    a = Toy("pictures", {"value": 1, **extra})
    b = Toy("adapt", {"value": 10, **extra}, {"x": a.digest})
    c = Toy("adapt", {"value": 20, **extra}, {"x": a.digest})
    return a, b, c, Toy("score", {"value": 100, **extra}, {"x": b.digest, "y": c.digest})


def value(store: Store, spec: Toy) -> int:
    folder = store.get(spec.digest)
    assert folder is not None
    return int(json.loads((folder / "value.json").read_text()))


def test_a_graph_is_what_it_is_inline_and_no_judge_meets_what_an_entry_changed(tmp_path: Path, make: Make) -> None:
    store, here, events = Store(tmp_path / "s"), Store(tmp_path / "h"), list[Event]()
    a, b, c, d = diamond()
    # An attack that tampers with its process; the score would be 1000 too high there.
    hostile = Toy("adapt", {"value": 0, "do": "patch"}, {"x": a.digest})
    judges = [Toy("score", {"value": n}, {"x": hostile.digest}) for n in range(3)]
    specs = graph(a, b, c, d, hostile, *judges)
    outcome = execute(specs, store, make(store), tell=events.append)
    assert outcome.made == set(specs) and value(store, d) == 132
    assert [value(store, judge) for judge in judges] == [1001 + n for n in range(3)]
    execute(graph(a, b, c, d), here, Inline(here, add))
    for digest in (a.digest, b.digest, c.digest, d.digest):
        theirs, ours = store.manifest(digest), here.manifest(digest)
        assert theirs is not None and ours is not None and theirs["files"] == ours["files"]
    assert {event.digest for event in events if event.kind == "started"} == set(specs)
    assert not list((store.root / "tmp").glob("*"))


def test_failures_dead_workers_and_time_limits_are_outcomes(tmp_path: Path, make: Make) -> None:
    store, events = Store(tmp_path / "s"), list[Event]()
    broken = Toy("adapt", {"value": 1, "do": "raise"})
    needs = Toy("score", {"value": 1}, {"x": broken.digest})
    dying = Toy("protect", {"value": 1, "do": "exit"})
    once = Toy("protect", {"value": 7, "do": "kill once", "marker": str(tmp_path / "once")})
    slow = Toy("generate", {"value": 1, "do": "sleep", "seconds": 60})
    outcome = execute(graph(broken, needs, dying, once, slow), store, make(store, 8.0), tell=events.append)
    assert outcome.made == {once.digest} and value(store, once) == 7
    assert outcome.blocked == {needs.digest: broken.digest}
    assert outcome.failed[broken.digest] == "error: this stage is broken"
    assert outcome.failed[slow.digest].startswith("timeout: stopped after")
    note = store.failure(dying.digest)
    assert note is not None and note["transient"] and note["kind"] == "error"
    assert once.digest in {event.digest for event in events if event.kind == "again"}
    assert not list((store.root / "tmp").glob(f"{once.digest}.*"))


def test_on_ray_stages_of_one_base_go_to_the_process_that_has_it_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SUPPORT, *filter(None, sys.path)]))
    store, log = Store(tmp_path / "s"), tmp_path / "log"
    specs = two_bases(log)
    execute(graph(*specs), store, on_engine("ray", store, 2, TOY))
    by_base = processes_of(specs, log)
    assert [len(found) for found in by_base] == [1, 1] and by_base[0] != by_base[1]


def test_on_ray_no_stage_waits_for_a_card_that_an_idle_process_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("ray")
    import ray

    from immunebench.execution.engines import ray_engine

    monkeypatch.setattr(ray, "init", partial(ray.init, num_gpus=1))  # One card, which nobody looks at.
    monkeypatch.setattr(ray_engine, "_PLACE", 1.0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SUPPORT, *filter(None, sys.path)]))
    store, log = Store(tmp_path / "s"), tmp_path / "log"
    card = {"numerics": {"device": "cuda"}, "log": str(log)}
    # Three that would share the card, at two places for stages; then one that needs two cores and no card.
    specs = [Toy("generate", {"value": n, **card}) for n in range(3)]
    specs.append(Toy("score", {"value": 9, "numerics": {"threads": 2}, "log": str(log)}, {"x": specs[2].digest}))
    outcome = execute(graph(*specs), store, on_engine("ray", store, 2, TOY))
    assert len(outcome.made) == len(specs)
    process = dict(line.split() for line in log.read_text().splitlines())
    assert len({process[str(n)] for n in range(3)}) == 1, "the base stays where it is"


def jobs() -> dict[str, str]:
    """This user's stages that Slurm queues or runs: state by job."""
    command = ["squeue", "--me", "--noheader", "--format=%i %T %j"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in said.splitlines()]
    return {job: state for job, state, name in found if name.startswith("immunebench-") and state != "COMPLETING"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [("scontrol", "requeue"), ("scancel",), ("scancel", "--signal=USR2")])
def test_a_job_that_slurm_takes_away_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...]
) -> None:
    needs("slurm")
    monkeypatch.setattr(slurm_engine, "_ASK", 0.5)
    monkeypatch.setattr(slurm_engine, "_LATE", 1.0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SUPPORT, *filter(None, sys.path)]))
    store, events = Store(tmp_path / "s"), list[Event]()
    spec = Toy("adapt", {"value": 3, "do": "sleep", "seconds": 8.0, "log": str(tmp_path / "log")})

    def tell(event: Event) -> None:
        if event.kind == "started" and not any(before.kind == "started" for before in events):
            running = [job for job, state in jobs().items() if state == "RUNNING"]
            subprocess.run([*how, *running], check=True)
        events.append(event)

    outcome = execute(graph(spec), store, on_engine("slurm", store, 2, TOY, 60.0), tell=tell)
    assert outcome.made == {spec.digest} and value(store, spec) == 3, (outcome, events)
    kinds = [event.kind for event in events]
    assert kinds.count("started") == 2 and kinds.count("again") >= 1, "Slurm and the job may both say it"
    assert len((tmp_path / "log").read_text().splitlines()) == 1, "what was taken away did not go on elsewhere"


DRIVER = """
import sys
from pathlib import Path
from immunebench.execution.engines.choosing import on_engine
from immunebench.execution.scheduler import execute
from immunebench.store.artifacts import Store
from toy_stages import Toy, graph
store, each = Store(sys.argv[1]), {"log": sys.argv[3], "do": "sleep", "seconds": float(sys.argv[4])}
specs = graph(*(Toy("score", {"value": n, **each}) for n in range(6)))
execute(specs, store, on_engine(sys.argv[2], store, 2, "toy_stages:add"),
        tell=lambda event: print(event.kind, flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("on", ["ray", "slurm:local", "slurm"])
def test_a_stopped_driver_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: str, how: signal.Signals
) -> None:
    needs(on)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SUPPORT, *filter(None, sys.path)]))
    command = [sys.executable, "-W", "ignore", "-c", DRIVER, str(tmp_path / "s"), on, str(tmp_path / "log"), "1"]
    driver = started(command)
    driver.send_signal(how)
    driver.communicate(timeout=120)
    assert driver.returncode != 0
    if on == "slurm" and how == signal.SIGINT:
        assert not jobs(), "Ctrl-C cancels what is queued and what runs"
    store = Store(tmp_path / "s")
    before = sum(1 for _ in store.artifacts())
    assert 1 <= before < 6
    resumed(command, before)
    assert sum(1 for _ in store.artifacts()) == 6


@pytest.mark.slow
def test_a_run_whose_raylet_is_killed_ends_and_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SUPPORT, *filter(None, sys.path)]))
    command = [sys.executable, "-W", "ignore", "-c", DRIVER, str(tmp_path / "s"), "ray", str(tmp_path / "log"), "6"]
    driver = started(command)
    [raylet] = [p for p in psutil.Process(driver.pid).children(recursive=True) if p.name() == "raylet"]
    raylet.kill()
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 1 and said.splitlines()[-1].startswith(
        "immunebench.execution.executor.EngineLost: the Ray cluster ended"
    )
    store = Store(tmp_path / "s")
    before = sum(1 for _ in store.artifacts())
    assert 1 <= before < 6 and not any(store.failure(file.stem) for file in (store.root / "failures").glob("*"))
    resumed(command, before)


def started(command: list[str]) -> subprocess.Popen[str]:
    """A driver that made its first stage."""
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A run in the background hands on that it ignores the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert driver.stdout is not None
    for line in driver.stdout:
        if line.strip() == "made":
            break
    return driver


def resumed(command: list[str], before: int) -> None:
    """The same command makes what is left."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kinds = done.stdout.split()
    assert kinds.count("reused") >= before and kinds.count("reused") + kinds.count("made") == 6


def test_what_cannot_be_used_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--on: unknown engine 'rai' .nearest: 'ray'"):
        on_engine("rai", Store(tmp_path))
    with pytest.raises(UsageError, match="--on slurm: must be local, or name=value of sbatch, not 'gpu'"):
        parsed("gpu")
    with pytest.raises(UsageError, match="must be whole minutes or GiB"):
        parsed("time=4h")
    assert parsed("partition=gpu,--time=60,mail-type=END") == {"partition": "gpu", "time": "60", "mail_type": "END"}


@pytest.mark.parametrize(("on", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install 'immunebench\[{on}\]'"):
        on_engine(on, Store(tmp_path))
