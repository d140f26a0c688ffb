"""The store: what is visible, what is verified, what collection spares."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from filelock import Timeout

from immunebench.store.artifacts import CorruptArtifact, Store
from immunebench.store.why import explain
from toy_stages import Toy


def put(store: Store, spec: Toy, text: str = "hello") -> Path:
    with store.lock(spec.digest), store.stage(spec) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a.txt").write_text(text)
        draft.cost["seconds"] = 1.5
    path = store.get(spec.digest)
    assert path is not None
    return path


def hold(root: Path, digest: str, ready: Path) -> None:
    with Store(root).lock(digest):
        ready.touch()
        time.sleep(30)


def draft_forever(root: Path, spec: Toy, ready: Path) -> None:
    with Store(root).stage(spec) as draft:
        (draft.path / "a.txt").write_text("half")
        ready.touch()
        time.sleep(30)


def need(root: Path, digest: str, ready: Path) -> None:
    with Store(root).using([digest]):
        ready.touch()
        time.sleep(30)


def start(function: object, *args: object) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=function, args=args, daemon=True)  # type: ignore[arg-type]
    process.start()
    ready = next(a for a in reversed(args) if isinstance(a, Path))
    for _ in range(1000):
        if ready.exists():
            return process
        time.sleep(0.02)
    raise AssertionError("the other process did not begin")


def test_published_artifact_has_its_manifest(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {"lr": 0.1}, {"images": "f" * 64})
    assert store.get(spec.digest) is None and not store.has(spec.digest)
    path = put(store, spec)
    assert path == tmp_path / "adapt" / spec.digest[:2] / spec.digest
    manifest = store.manifest(spec.digest)
    assert manifest is not None
    assert manifest["key"] == {"lr": 0.1} and manifest["inputs"] == {"images": "f" * 64}
    assert manifest["files"]["sub/a.txt"]["size"] == 5 and manifest["cost"] == {"seconds": 1.5}
    assert "python" in manifest["versions"]
    assert store.resolve(spec.digest[:6]) == [spec.digest]


def test_exception_leaves_nothing(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {})
    with pytest.raises(RuntimeError), store.stage(spec) as draft:
        (draft.path / "a.txt").write_text("half")
        raise RuntimeError
    assert not store.has(spec.digest)
    assert not list((tmp_path / "tmp").iterdir())


def test_folder_without_manifest_does_not_exist(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {})
    folder = tmp_path / "adapt" / spec.digest[:2] / spec.digest
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("half")
    assert store.get(spec.digest) is None
    assert (put(store, spec) / "sub" / "a.txt").read_text() == "hello"
    assert not (folder / "a.txt").exists()


@pytest.mark.parametrize("harm", ["flip", "shorten", "remove", "manifest"])
def test_corruption_is_said_and_removed(tmp_path: Path, harm: str) -> None:
    spec = Toy("adapt", {})
    path = put(Store(tmp_path), spec)
    match harm:
        case "flip":
            (path / "sub" / "a.txt").write_text("hellO")
        case "shorten":
            (path / "sub" / "a.txt").write_text("h")
        case "remove":
            (path / "sub" / "a.txt").unlink()
        case "manifest":
            (path / "manifest.json").write_text("{")
    store = Store(tmp_path)
    with pytest.warns(CorruptArtifact, match="corrupted"):
        assert store.get(spec.digest) is None
    assert not path.exists()
    assert put(store, spec) == path


def test_lock_excludes_another_process_and_is_freed_by_kill(tmp_path: Path) -> None:
    store, digest = Store(tmp_path), "a" * 64
    other = start(hold, tmp_path, digest, tmp_path / "ready")
    with pytest.raises(Timeout), store.lock(digest, wait=False):
        pass
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with store.lock(digest), store.lock(digest, wait=False):
        pass


def test_killed_draft_is_invisible_and_cleared(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {})
    other = start(draft_forever, tmp_path, spec, tmp_path / "ready")
    other.kill()
    other.join()
    assert not store.has(spec.digest) and len(list((tmp_path / "tmp").iterdir())) == 1
    put(store, spec)
    assert not list((tmp_path / "tmp").iterdir())


def test_failures_are_notes_never_results(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {})
    store.fail(spec, "oom", "9 GiB of 8", "Traceback")
    note = store.failure(spec.digest)
    assert note is not None and note["kind"] == "oom" and note["traceback"] == "Traceback"
    assert store.get(spec.digest) is None and not store.has(spec.digest)
    put(store, spec)
    assert store.failure(spec.digest) is None


def test_gc_keeps_what_is_referenced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pictures, loose = Toy("pictures", {"n": 1}), Toy("pictures", {"n": 2})
    adapt = Toy("adapt", {}, {"images": pictures.digest})
    for spec in (pictures, loose, adapt):
        put(store, spec)
    assert store.gc([adapt.digest], dry_run=True)[0] == 1 and store.has(loose.digest)
    count, size = store.gc([adapt.digest])
    assert count == 1 and size > 5
    assert store.has(adapt.digest) and store.has(pictures.digest) and not store.has(loose.digest)


def test_gc_spares_a_live_run_and_what_is_locked(tmp_path: Path) -> None:
    store, used, locked = Store(tmp_path), Toy("adapt", {"n": 1}), Toy("adapt", {"n": 2})
    put(store, used)
    put(store, locked)
    run = start(need, tmp_path, used.digest, tmp_path / "ready-run")
    lock = start(hold, tmp_path, locked.digest, tmp_path / "ready-lock")
    assert store.gc([]) == (0, 0)
    run.kill()
    lock.kill()
    run.join()
    lock.join()
    assert store.gc([])[0] == 2
    assert not list((tmp_path / "runs").iterdir())


def test_gc_removes_stale_drafts_only(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = start(draft_forever, tmp_path, Toy("adapt", {}), tmp_path / "ready")
    assert store.gc([]) == (0, 0)
    other.kill()
    other.join()
    assert store.gc([])[0] == 1
    assert not list((tmp_path / "tmp").iterdir())


def test_size_by_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.size() == {}
    put(store, Toy("adapt", {"n": 1}))
    put(store, Toy("adapt", {"n": 2}))
    count, size = store.size()["adapt"]
    assert count == 2 and size > 10


def test_why_names_what_differs_down_to_the_cause(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old_protect = Toy("protect", {"params": {"lr": 0.1, "steps": 3}})
    old = Toy("adapt", {"seed": 1}, {"weights": old_protect.digest})
    put(store, old_protect)
    put(store, old)
    new_protect = Toy("protect", {"params": {"lr": 0.2, "steps": 3}})
    new = Toy("adapt", {"seed": 1}, {"weights": new_protect.digest})
    text = "\n".join(explain(store, new.digest, {new.digest: new, new_protect.digest: new_protect}))
    assert "inputs.weights" in text and "params.lr: wanted 0.2, there 0.1" in text
    assert "params.steps" not in text and "seed" not in text
    assert "whole" in explain(store, old.digest)[0]
    assert "neither" in explain(store, "0" * 64)[0]
    store.fail(new, "error", "no luck", "")
    assert "no luck" in explain(store, new.digest)[0]


def test_manifests_hold_no_nan(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("score", {})
    with pytest.raises(ValueError, match="JSON"), store.stage(spec) as draft:
        draft.meta["x"] = float("nan")
    assert not store.has(spec.digest)
    assert json.dumps(store.size()) == "{}"
