"""Damaged files of the store: a manifest, a note or an artifact that cannot be trusted stops nothing else."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from immunebench.core.errors import UsageError
from immunebench.plan.estimate import estimate
from immunebench.store.artifacts import CorruptArtifact, Store
from immunebench.store.graph import Plan
from immunebench.store.manifest import read_manifest
from immunebench.store.why import explain
from toy_stages import Toy


def put(store: Store, spec: Toy) -> Path:
    with store.stage(spec) as draft:
        (draft.path / "a.txt").write_text("hello")
        draft.cost["seconds"] = 1.5
    path = store.get(spec.digest)
    assert path is not None
    return path


def rewritten(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def test_a_flipped_bit_of_a_manifest_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = put(Store(tmp_path), Toy("adapt", {"lr": 0.1, "prompts": ["a", "b"]}, {"images": "f" * 64}))
    file = path / "manifest.json"
    sound = file.read_bytes()
    whole = read_manifest(path)
    draw = random.Random(0)
    for _ in range(2000):
        damaged = bytearray(sound)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        found = read_manifest(path)
        # A bit of the seal's own name leaves everything else as it was written.
        same = found is None or {k: found[k] for k in whole or {} if k in found} | {"seal": ""} == {
            **(whole or {}),
            "seal": "",
        }
        assert same


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(created="2020-01-01T00:00:00+00:00"),
        lambda m: m["cost"].update(seconds=9.5),
        lambda m: m["key"].update(lr=0.2),
        lambda m: m.update(files=[]),
        lambda m: m.pop("cost"),
        lambda m: m.update(cost={"seconds": float("inf")}),
        lambda m: m.update(stage="score"),
    ],
)
def test_a_damaged_manifest_is_named_set_aside_and_made_again(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    spec = Toy("adapt", {"lr": 0.1})
    path = put(Store(tmp_path), spec)
    rewritten(path / "manifest.json", change)
    store = Store(tmp_path)
    with pytest.warns(CorruptArtifact, match=rf"adapt {spec.digest[:12]} is corrupted \(manifest.json.*set aside"):
        assert store.get(spec.digest) is None
    assert (tmp_path / "damaged" / f"adapt-{spec.digest}" / "a.txt").read_text() == "hello"
    assert put(store, spec) == path and Store(tmp_path).get(spec.digest) == path
    assert store.size()["damaged"][0] == 1
    assert store.gc([spec.digest])[0] == 1 and "damaged" not in store.size()


def test_a_manifest_in_another_artifact_s_folder_is_not_believed(tmp_path: Path) -> None:
    one, two = (put(Store(tmp_path), Toy("adapt", {"n": n})) for n in (1, 2))
    (one / "manifest.json").write_bytes((two / "manifest.json").read_bytes())
    assert read_manifest(one) is None and read_manifest(two) is not None


def test_a_manifest_from_before_there_was_a_seal_is_read(tmp_path: Path) -> None:
    spec = Toy("adapt", {})
    path = put(Store(tmp_path), spec)
    rewritten(path / "manifest.json", lambda m: m.pop("seal"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Store(tmp_path).get(spec.digest) == path


@pytest.mark.parametrize("content", [b"z", b"{", b"[1]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_estimates_and_explanations_pass_over_a_damaged_manifest(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    (put(store, Toy("adapt", {})) / "manifest.json").write_bytes(content)
    put(store, Toy("score", {"judge": "j"}))
    assert estimate(Plan(None, (), {}, {}), store).seconds == 0  # type: ignore[arg-type]
    wanted = Toy("adapt", {"n": 2})
    assert "not in the store" in explain(store, wanted.digest, {wanted.digest: wanted})[0]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"kind": 1}', '{"kind": "error", "message": "x"}'])
def test_a_damaged_note_of_a_failure_is_no_failure(tmp_path: Path, content: str) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {})
    store.fail(spec, "error", "why", "")
    (tmp_path / "failures" / f"{spec.digest}.json").write_text(content)
    assert store.failure(spec.digest) is None


def test_a_failure_s_message_and_traceback_are_kept_short(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {})
    store.fail(spec, "error", "x" * 20_000_000, "y" * 20_000_000)
    note = store.failure(spec.digest)
    assert note is not None and "characters left out" in note["message"]
    assert (tmp_path / "failures" / f"{spec.digest}.json").stat().st_size < 50_000


def test_collection_refuses_to_guess_what_a_running_process_needs(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {})
    put(store, spec)
    with store.using([spec.digest]):
        (note,) = (tmp_path / "runs").glob("*.json")
        note.write_text("{")
        with pytest.raises(UsageError, match="is damaged"):
            Store(tmp_path).gc([])
    assert store.has(spec.digest)
