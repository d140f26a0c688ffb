"""Bookmarks in the store and through the executors: who leaves one, who takes it up, and when it goes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from immunebench.core.errors import UsageError
from immunebench.execution.boxed import Boxes
from immunebench.execution.executor import Event, Executor, Inline
from immunebench.execution.process_pool import Processes
from immunebench.execution.scheduler import execute
from immunebench.store import bookmark
from immunebench.store.artifacts import Store
from immunebench.store.bookmark import Bookmark
from toy_loops import STEPS, walk
from toy_stages import Toy, graph

WALK = "toy_loops:walk"


@pytest.fixture(autouse=True)
def after_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bookmark.VARIABLE, "0")


def planned(folder: Path, do: str, **more: Any) -> Toy:
    return Toy("adapt", {"marker": str(folder / "marker"), "do": do, **more})


def files(store: Store, spec: Toy) -> dict[str, bytes]:
    folder = store.get(spec.digest)
    assert folder is not None
    return {name: (folder / name).read_bytes() for name in ("value.json", "log.json")}


def undisturbed(folder: Path) -> dict[str, bytes]:
    store, spec = Store(folder / "quiet"), planned(folder / "nowhere", "nothing")
    (folder / "nowhere").mkdir()
    execute(graph(spec), store, Inline(store, walk))
    return files(store, spec)


def run(store: Store, spec: Toy, executor: Executor | None = None) -> list[Event]:
    events: list[Event] = []
    execute(graph(spec), store, executor or Inline(store, walk), tell=events.append)
    return events


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if event.kind == "noted"]


def test_an_interrupted_stage_goes_on_in_the_next_run_and_its_bookmark_goes(tmp_path: Path) -> None:
    store, spec = Store(tmp_path / "s"), planned(tmp_path, "interrupt")
    with pytest.raises(KeyboardInterrupt):
        run(store, spec)
    assert store.bookmark(spec.digest).is_dir() and store.size()["bookmarks"][0] == 1
    assert notes(run(store, spec)) == [f"continues after step {STEPS // 2} of {STEPS}"]
    assert files(store, spec) == undisturbed(tmp_path)
    assert not store.bookmark(spec.digest).exists() and "bookmarks" not in store.size()
    # What the first attempt took, which said 1000 s, counts in the manifest.
    manifest = store.manifest(spec.digest)
    assert manifest is not None
    cost = manifest["cost"]
    assert cost["seconds"] > 1000 and cost["cpu_seconds"] > 500 and cost["peak_process_gib"] == 77
    assert cost["resumed"] == 1


def test_a_stage_that_nobody_stopped_says_nothing_of_attempts(tmp_path: Path) -> None:
    store, spec = Store(tmp_path / "s"), planned(tmp_path, "nothing")
    (tmp_path / "marker").touch()
    assert notes(run(store, spec)) == []
    manifest = store.manifest(spec.digest)
    assert manifest is not None and set(manifest["cost"]) == {"seconds", "cpu_seconds", "peak_process_gib"}
    assert not store.bookmark(spec.digest).exists()


@pytest.mark.slow
def test_kill_9_of_a_worker_costs_the_steps_since_the_last_bookmark_only(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    spec = planned(tmp_path, "nothing", seconds=0.25)
    (tmp_path / "marker").touch()
    pool, events = Processes(store, 1, WALK), list[Event]()

    def tell(event: Event) -> None:
        if event.kind == "progress" and event.done >= 3 and "again" not in [e.kind for e in events]:
            (worker,) = pool._workers
            assert worker.process.pid is not None
            os.kill(worker.process.pid, signal.SIGKILL)
        events.append(event)

    outcome = execute(graph(spec), store, pool, tell=tell)
    assert outcome.made == {spec.digest}
    again = [event.kind for event in events].index("again")
    (after,) = {event.text for event in events[again:] if event.kind == "noted"}
    assert int(after.split()[3]) >= 2
    assert min(event.done for event in events[again:] if event.kind == "progress") > 2
    assert files(store, spec) == undisturbed(tmp_path)
    assert not store.bookmark(spec.digest).exists()


@pytest.mark.slow
def test_earlier_attempts_count_for_the_time_limit_as_the_parent_measured_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    spec, events = planned(tmp_path, "exit", seconds=0.2), list[Event]()

    def tell(event: Event) -> None:
        events.append(event)
        if event.kind == "again":  # Before the second attempt, whose bookmark says that the first took 1000 s.
            (note,) = (path for path in store.bookmark(spec.digest).glob("*.json") if path.stem.isdecimal())
            found = json.loads(note.read_text())
            assert found["spent"]["seconds"] < 500  # Not what the stage says of itself.
            found["spent"]["seconds"] = 1000.0
            note.write_text(json.dumps(found))

    execute(graph(spec), store, Inline(store, WALK, Boxes(store, "none", WALK, 500)), tell=tell)
    assert events[-1].kind == "failed" and events[-1].text.startswith("timeout: stopped after 10")
    assert not store.bookmark(spec.digest).exists()


@pytest.mark.parametrize(("do", "stays"), [("raise", False), ("disk full", True)])
def test_a_stage_that_failed_begins_anew_unless_the_machine_failed_it(tmp_path: Path, do: str, stays: bool) -> None:
    store, spec = Store(tmp_path / "s"), planned(tmp_path, do)
    assert run(store, spec)[-1].kind == "failed"
    assert store.bookmark(spec.digest).exists() == stays
    events: list[Event] = []
    execute(graph(spec), store, Inline(store, walk), tell=events.append, retry_failed=True)
    assert bool(notes(events)) == stays
    assert files(store, spec) == undisturbed(tmp_path)


def test_collection_spares_the_bookmarks_of_what_is_wanted(tmp_path: Path) -> None:
    store, wanted, other = Store(tmp_path), planned(tmp_path, "interrupt"), planned(tmp_path / "x", "interrupt")
    (tmp_path / "x").mkdir()
    for spec in (wanted, other):
        with pytest.raises(KeyboardInterrupt):
            run(store, spec)
    with store.lock(other.digest):
        pass
    assert store.gc([wanted.digest], dry_run=True)[0] == 1 and store.bookmark(other.digest).exists()
    count, freed = store.gc([wanted.digest])
    assert count == 1 and freed > 100
    assert store.bookmark(wanted.digest).exists() and not store.bookmark(other.digest).exists()


def test_a_disk_that_takes_no_bookmark_does_not_stop_the_stage(tmp_path: Path) -> None:
    store, spec = Store(tmp_path / "s"), planned(tmp_path, "nothing")
    (tmp_path / "marker").touch()
    store.root.mkdir()
    (store.root / "bookmarks").touch()
    said = notes(run(store, spec))
    assert said and all(line.startswith("no bookmark could be written: ") for line in said)
    assert files(store, spec) == undisturbed(tmp_path)


def test_large_tensors_and_files_are_dealt_out_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookmark, "_SHARD", 50)
    monkeypatch.setattr(bookmark, "_LINKED", 10)
    out, again = tmp_path / "out", tmp_path / "again"
    out.mkdir()
    again.mkdir()
    (out / "large.bin").write_bytes(bytes(range(50)))
    (out / "small.bin").write_bytes(b"abc")
    (again / "stray.bin").write_bytes(b"x")
    tensors = {f"t{i}": torch.full((i + 1, 3), i, dtype=torch.bfloat16) for i in range(6)}
    tensors |= {"none": torch.empty(0), "one": torch.tensor(2.5, dtype=torch.float64), "turned": torch.rand(3, 5).T}
    kept = Bookmark(tmp_path / "mark", "d")
    for step in (1, 2):
        kept.write({"step": step}, tensors, out, "cpu")
    (folder,) = (tmp_path / "mark").iterdir()
    assert len(list(folder.glob("tensors-*"))) > 2
    page = Bookmark(tmp_path / "mark", "d").read("cpu")
    assert page is not None and page.state["step"] == 2
    found = page.tensors()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], t) and found[name].dtype == t.dtype for name, t in tensors.items())
    page.restore(again)
    assert {file.name: file.read_bytes() for file in again.iterdir()} == {
        "large.bin": bytes(range(50)), "small.bin": b"abc",
    }  # fmt: skip


def test_an_older_bookmark_serves_where_the_newer_is_damaged(tmp_path: Path) -> None:
    """A kill between the rename of the new one and the removal of the old leaves both."""
    (tmp_path / "out").mkdir()
    kept = Bookmark(tmp_path / "mark", "d")
    kept.write({"step": 1}, {}, tmp_path / "out", "cpu")
    (tmp_path / "mark" / "000000").rename(tmp_path / "mark" / "aside")
    kept.write({"step": 2}, {}, tmp_path / "out", "cpu")
    (tmp_path / "mark" / "000000").rename(tmp_path / "mark" / "000001")
    (tmp_path / "mark" / "aside").rename(tmp_path / "mark" / "000000")
    newest = Bookmark(tmp_path / "mark", "d").read("cpu")
    assert newest is not None and newest.state["step"] == 2
    (tmp_path / "mark" / "000001" / "state.json").write_text("{}")
    older = Bookmark(tmp_path / "mark", "d").read("cpu")
    assert older is not None and older.state["step"] == 1


@pytest.mark.parametrize("text", ["often", "-1", "nan"])
def test_a_time_that_is_none_is_refused_before_anything_runs(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from immunebench.api import make_executor

    monkeypatch.setenv(bookmark.VARIABLE, text)
    with pytest.raises(UsageError, match=f"IMMUNEBENCH_BOOKMARK_SECONDS: must be seconds, .* not '{text}'"):
        make_executor(Store(tmp_path), 1)


def test_inf_seconds_leave_no_bookmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bookmark.VARIABLE, "inf")
    store, spec = Store(tmp_path / "s"), planned(tmp_path, "interrupt")
    with pytest.raises(KeyboardInterrupt):
        run(store, spec)
    assert not store.bookmark(spec.digest).exists()
