"""The scheduler and its executors: order, failures, crashes, sharing between runs."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from immunebench.api import make_executor
from immunebench.core.errors import UsageError
from immunebench.execution.executor import Event, Executor, Inline
from immunebench.execution.process_pool import Processes
from immunebench.execution.scheduler import Outcome, execute
from immunebench.store.artifacts import CorruptArtifact, Store
from toy_stages import Toy, add, graph, processes_of, two_bases

TOY = "toy_stages:add"


def value(store: Store, spec: Toy) -> int:
    path = store.get(spec.digest)
    assert path is not None
    return int(json.loads((path / "value.json").read_text()))


def diamond(**extra: object) -> tuple[Toy, Toy, Toy, Toy]:
    a = Toy("pictures", {"value": 1, **extra})
    b = Toy("adapt", {"value": 10, **extra}, {"x": a.digest})
    c = Toy("adapt", {"value": 20, **extra}, {"x": a.digest})
    d = Toy("score", {"value": 100, **extra}, {"x": b.digest, "y": c.digest})
    return a, b, c, d


def executor(kind: str, store: Store, workers: int = 2) -> Executor:
    return Inline(store, add) if kind == "inline" else Processes(store, workers, TOY)


def test_stages_of_one_base_go_to_the_worker_that_has_it_loaded(tmp_path: Path) -> None:
    store, log = Store(tmp_path / "s"), tmp_path / "log"
    specs = two_bases(log)
    execute(graph(*specs), store, Processes(store, 2, TOY))
    by_base = processes_of(specs, log)
    assert [len(found) for found in by_base] == [1, 1] and by_base[0] != by_base[1]


def no_drafts(store: Store) -> bool:
    return not list((store.root / "tmp").glob("*"))


@pytest.mark.parametrize("kind", ["inline", "processes"])
def test_graph_is_made_then_reused(tmp_path: Path, kind: str) -> None:
    store, specs = Store(tmp_path / "s"), diamond(log=str(tmp_path / "log"))
    outcome = execute(graph(*reversed(specs)), store, executor(kind, store))
    assert outcome.made == outcome.present == {s.digest for s in specs}
    assert value(store, specs[3]) == 132
    again = execute(graph(*specs), Store(store.root), executor(kind, store))
    assert again.present == outcome.present and not again.made
    assert len((tmp_path / "log").read_text().splitlines()) == 4


def test_workers_have_one_thread_and_report(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {"value": 1})
    events: list[Event] = []
    execute(graph(spec), store, Processes(store, 1, TOY), tell=events.append)
    manifest = store.manifest(spec.digest)
    assert manifest is not None and manifest["meta"]["threads"] == "1" and manifest["cost"]["seconds"] >= 0
    assert [e.kind for e in events] == ["started", "progress", "made"]


@pytest.mark.parametrize("kind", ["inline", "processes"])
def test_failure_takes_dependents_only(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path)
    bad = Toy("protect", {"value": 1, "do": "raise"})
    after = Toy("adapt", {"value": 1}, {"x": bad.digest})
    last = Toy("score", {"value": 1}, {"x": after.digest})
    good = Toy("pictures", {"value": 5})
    outcome = execute(graph(bad, after, last, good), store, executor(kind, store))
    assert outcome.failed == {bad.digest: "error: this stage is broken"}
    assert outcome.blocked == {after.digest: bad.digest, last.digest: bad.digest}
    assert outcome.cause(last.digest) == bad.digest and outcome.present == {good.digest}
    note = store.failure(bad.digest)
    assert note is not None and "ValueError" in note["traceback"] and not store.has(bad.digest)


def test_failed_stage_is_tried_again_only_when_asked(tmp_path: Path) -> None:
    store, log = Store(tmp_path / "s"), tmp_path / "log"
    bad = Toy("protect", {"value": 1, "log": str(log)})
    after = Toy("adapt", {"value": 1}, {"x": bad.digest})
    store.fail(bad, "error", "broken", "")
    outcome = execute(graph(bad, after), store, Inline(store, add))
    assert bad.digest in outcome.failed and after.digest in outcome.blocked and not log.exists()
    outcome = execute(graph(bad, after), store, Inline(store, add), retry_failed=True)
    assert not outcome.failed and value(store, after) == 2


def test_transient_failure_is_tried_again_unasked(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {"value": 1, "do": "disk full"})
    assert execute(graph(spec), store, Inline(store, add)).failed
    events: list[Event] = []
    execute(graph(spec), store, Inline(store, add), tell=events.append)
    assert events[0].kind == "started"


def test_worker_that_dies_once_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    spec = Toy("adapt", {"value": 1, "do": "exit once", "marker": str(tmp_path / "marker")})
    events: list[Event] = []
    outcome = execute(graph(spec), store, Processes(store, 1, TOY), tell=events.append)
    assert outcome.made == {spec.digest} and "again" in [e.kind for e in events]
    assert no_drafts(store)


def test_worker_that_always_dies_fails_its_stage_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    bad, good = Toy("adapt", {"value": 1, "do": "exit"}), Toy("adapt", {"value": 2})
    outcome = execute(graph(bad, good), store, Processes(store, 1, TOY))
    assert "exit code 7, twice" in outcome.failed[bad.digest] and outcome.present == {good.digest}
    note = store.failure(bad.digest)
    assert note is not None and note["transient"] and no_drafts(store)


def test_corrupted_input_is_made_again(tmp_path: Path) -> None:
    a, b, c, d = diamond()
    store = Store(tmp_path)
    execute(graph(a, b, c), store, Inline(store, add))
    broken = store.path(b.digest)
    assert broken is not None
    (broken / "value.json").write_text("99")
    fresh = Store(tmp_path)
    with pytest.warns(CorruptArtifact):
        outcome = execute(graph(a, b, c, d), fresh, Inline(fresh, add))
    assert outcome.made == {b.digest, d.digest} and value(fresh, d) == 132


def test_input_that_a_worker_finds_corrupted_goes_back_to_the_queue(tmp_path: Path) -> None:
    a, b, c, d = diamond()
    store = Store(tmp_path)
    execute(graph(a, b, c), store, Inline(store, add))
    broken = store.path(b.digest)
    assert broken is not None
    (broken / "value.json").write_text("99")
    events: list[Event] = []  # the parent's store has verified the input already, the worker's has not
    outcome = execute(graph(a, b, c, d), store, Processes(store, 1, TOY), tell=events.append)
    assert "lost" in [e.kind for e in events]
    assert b.digest in outcome.made and value(Store(tmp_path), d) == 132


def run_sleepers(root: Path, specs: dict[str, Toy], workers: int) -> None:
    store = Store(root)
    execute(specs, store, Processes(store, workers, TOY))


def test_two_runs_share_one_store(tmp_path: Path) -> None:
    log = tmp_path / "log"
    specs = [Toy("adapt", {"value": i, "do": "sleep", "seconds": 0.2, "log": str(log)}) for i in range(6)]
    other = multiprocessing.get_context("spawn").Process(target=run_sleepers, args=(tmp_path / "s", graph(*specs), 1))
    other.start()
    store = Store(tmp_path / "s")
    outcome = execute(graph(*specs), store, Processes(store, 1, TOY))
    other.join(60)
    assert other.exitcode == 0 and outcome.present == {s.digest for s in specs}
    assert sorted(line.split()[0] for line in log.read_text().splitlines()) == list("012345")


def test_kill_9_leaves_nothing_partial_and_resumes(tmp_path: Path) -> None:
    specs = [Toy("adapt", {"value": i, "do": "sleep", "seconds": 0.3}) for i in range(12)]
    other = multiprocessing.get_context("spawn").Process(target=run_sleepers, args=(tmp_path, graph(*specs), 2))
    other.start()
    store = Store(tmp_path)
    for _ in range(1000):
        if any(store.has(s.digest) for s in specs):
            break
        time.sleep(0.02)
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = {s.digest for s in specs if Store(tmp_path).get(s.digest)}
    assert 0 < len(done) < 12
    outcome = execute(graph(*specs), store, Processes(store, 2, TOY))
    assert outcome.present == {s.digest for s in specs} and not outcome.made & done
    assert no_drafts(store)


def test_interrupt_kills_workers_and_clears_drafts(tmp_path: Path) -> None:
    store, slow = Store(tmp_path), Toy("adapt", {"value": 1, "do": "sleep", "seconds": 600})
    pool = Processes(store, 1, TOY)

    def tell(event: Event) -> None:
        if event.kind == "progress":
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        execute(graph(slow), store, pool, tell=tell)
    assert time.monotonic() - began < 300 and no_drafts(store) and not store.has(slow.digest)
    assert not list((tmp_path / "runs").glob("*.json"))


def test_what_an_entry_changes_in_its_process_reaches_no_sampler_and_no_judge(tmp_path: Path) -> None:
    store = Store(tmp_path)
    hostile = [Toy(stage, {"value": 1, "do": "patch"}) for stage in ("protect", "purify", "adapt")]
    drawn = Toy("generate", {"value": 10}, {spec.stage: spec.digest for spec in hostile})
    score = Toy("score", {"value": 100}, {"x": drawn.digest})
    execute(graph(*hostile, drawn, score), store, Processes(store, 1, TOY))
    # 1000 from each patched process itself, and never again.
    assert value(store, score) == 3 * 1001 + 10 + 100


def test_stage_over_the_time_limit_fails_with_the_limit_and_takes_its_dependents(tmp_path: Path) -> None:
    store = Store(tmp_path)
    slow = Toy("adapt", {"value": 1, "do": "sleep", "seconds": 60})
    after, quick = Toy("score", {"value": 1}, {"x": slow.digest}), Toy("adapt", {"value": 2})
    outcome = execute(graph(slow, after, quick), store, Processes(store, 2, TOY, timeout=3))
    assert outcome.present == {quick.digest} and outcome.blocked == {after.digest: slow.digest}
    note = store.failure(slow.digest)
    assert note is not None and note["kind"] == "timeout" and not note["transient"] and no_drafts(store)
    found = re.fullmatch(r"stopped after (\d+\.\d) s, the limit is 3 s a stage", note["message"])
    assert found is not None and float(found[1]) >= 3
    # The limit is no part of the stage: with more time, and asked to, it is made.
    longer = Toy("adapt", {"value": 1, "do": "sleep", "seconds": 0.1})
    store.fail(longer, "timeout", "stopped", "")
    again = execute(graph(longer), store, Processes(store, 1, TOY, timeout=60), retry_failed=True)
    assert again.made == {longer.digest}


def test_waiting_for_another_run_s_lock_does_not_count_as_time_of_the_stage(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {"value": 1})
    pool = Processes(store, 1, TOY, timeout=2)
    with store.lock(spec.digest):
        pool.submit(spec, wait=True)
        time.sleep(2.5)
    (event,) = pool.finished(lambda event: None)
    pool.close()
    assert event.kind == "made"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 1, "timeout": 5}, "timeout: needs worker processes"),
        ({"workers": 0}, "--workers: must be at least 1, not 0"),
        ({"workers": 2, "timeout": 0}, "--timeout: must be more than 0 seconds, not 0"),
        ({"workers": 2, "timeout": float("nan")}, "--timeout: must be more than 0 seconds, not nan"),
    ],
)
def test_a_limit_that_nobody_could_keep_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_executor(Store(tmp_path), **options)


def test_outcome_is_shown_before_it_is_told(tmp_path: Path) -> None:
    store, spec, outcome = Store(tmp_path), Toy("adapt", {"value": 1}), Outcome()
    seen: list[bool] = []
    execute(
        graph(spec),
        store,
        Inline(store, add),
        outcome=outcome,
        tell=lambda e: seen.append(outcome.settled(e.digest)) if e.kind == "made" else None,
    )
    assert seen == [True]
