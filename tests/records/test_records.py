from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import house
from immunebench.board.scores.measurement import Beside
from immunebench.board.scores.reading import beside, measurement
from immunebench.catalog.loading import load_catalog
from immunebench.cli.report import lines
from immunebench.core.errors import UsageError
from immunebench.plan.planning import make_plan
from immunebench.records.attestation import attest
from immunebench.records.building import build_record
from immunebench.records.files import json_schema, read_records, write_records
from immunebench.records.record import Record
from immunebench.store.graph import Plan

KEY = "style-a/shield/lora/cpu/0"


class FakeStore:
    """Artifacts whose scores are what the test says."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.folder = folder
        self.scores: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, dict[str, Any]] = {}
        self.present = set(plan.stages)
        self.stages = plan.stages

    def path(self, digest: str) -> Path | None:
        if digest not in self.present:
            return None
        path = self.folder / digest
        path.mkdir(exist_ok=True)
        (path / "scores.json").write_text(json.dumps(self.scores.get(digest, {"metrics": {}})))
        return path

    def manifest(self, digest: str) -> dict[str, Any] | None:
        if digest not in self.present:
            return None
        stage = self.stages[digest].stage
        # The stage's own guard knows its peak; the worker's is that of its whole life.
        cost = {"seconds": 2.0, "peak_process_gib": 0.5}
        meta = {"peak_process_gib": 0.25, "peak_reserved_gib": 0.125}
        return {"stage": stage, "cost": cost, "meta": meta, "versions": {"torch": "2"}, "created": "2026-01-01"}

    def failure(self, digest: str) -> dict[str, Any] | None:
        return self.failures.get(digest)


def values(*numbers: float) -> dict[str, Any]:
    mean = sum(numbers) / len(numbers)
    return {"metrics": {"image_similarity@1": {"values": list(numbers), "mean": mean}}}


@pytest.fixture
def made(tmp_path: Path) -> Plan:
    root = tmp_path / "house"
    house.house(root)
    catalog = load_catalog(root, models=root / "models.toml")
    return make_plan(catalog.suite("tiny"), catalog, defense="shield")


@pytest.fixture
def store(made: Plan, tmp_path: Path) -> FakeStore:
    (tmp_path / "store").mkdir()
    fake = FakeStore(made, tmp_path / "store")
    graph = made.roots[KEY]
    fake.scores = {
        graph.curve[1]: values(0.25),
        graph.curve[2]: values(0.25, 0.75),
        graph.ceiling[2]: values(1.0, 0.5),
        graph.floor: values(0.125),
        graph.anchor: {"m_same": 0.9, "m_other": 0.1},
        graph.utility.g: {"metrics": {"caption_accuracy@1": {"values": [1, 0], "mean": 0.5}}},
        graph.utility.g_base: {"metrics": {"caption_accuracy@1": {"values": [1, 1], "mean": 1.0}}},
        graph.utility.s: values(0.5),
        graph.utility.floor: values(0.25),
        graph.utility.ceiling: values(0.75),
    }
    return fake


def record(made: Plan, store: FakeStore) -> Record:
    (cell,) = made.cells
    return build_record(cell, made.roots[KEY], store)


def test_a_record_reads_every_number_from_its_own_artifact(made: Plan, store: FakeStore) -> None:
    got = record(made, store)
    assert (got.status, got.reason, got.failure) == ("ok", "", None)
    score = got.scores["image_similarity@1"]
    assert (score.values, score.n, score.mean, score.per_step) == ((0.25, 0.75), 2, 0.5, {1: (0.25,), 2: (0.25, 0.75)})
    assert got.baseline.floor is not None and got.baseline.ceiling is not None
    assert got.baseline.floor.scores["image_similarity@1"].mean == 0.125
    assert got.baseline.ceiling.scores["image_similarity@1"].values == (1.0, 0.5)
    assert got.anchors is not None
    assert (got.anchors.m_same, got.anchors.m_other) == (0.9, 0.1)
    assert (got.utility.g, got.utility.g_base, got.utility.g0) == (0.5, 1.0, 0.25)
    assert got.utility.benign is not None
    assert got.utility.benign.model_dump() == {"s": 0.5, "floor": 0.25, "ceiling": 0.75}
    assert got.fidelity is None
    assert got.params["steps"] == 5
    assert got.comparability == "tiny@1.0/style-a@1/lora@3/image_similarity@1/cpu@2"
    # One protection and one adaptation, two steps and the floor drawn and scored; the rest is not its own.
    assert {(c.peak_process_gib, c.peak_reserved_gib) for c in got.cost.values()} == {(0.25, 0.125)}
    seconds = {stage: cost.seconds for stage, cost in got.cost.items()}
    assert seconds == {"pictures": 8.0, "protect": 2.0, "adapt": 2.0, "generate": 6.0, "score": 6.0}


@pytest.mark.parametrize(("defense", "protecting"), [("none", None), ("shield", 2.0), ("gone", 2.0)])
def test_what_a_task_begins_from_is_nobody_s_protection(tmp_path: Path, defense: str, protecting: float | None) -> None:
    root = tmp_path / "house"
    house.house(root)
    house.defense(root, "gone", "protect_model", kind="erasure")
    task = root / "tasks/style/style-a.toml"
    text = task.read_text("utf-8").replace('family = "style"', 'family = "relearn"\nstart_from = "gone"')
    text = text.replace("[benign]", '[benign]\nfamily = "style"')
    (root / "tasks/relearn").mkdir()
    (root / "tasks/relearn/style-a.toml").write_text(text, "utf-8")
    task.unlink()
    catalog = load_catalog(root, models=root / "models.toml")
    made = make_plan(catalog.suite("tiny"), catalog, defense=defense)
    (tmp_path / "store").mkdir()
    (cell,) = made.cells
    store = FakeStore(made, tmp_path / "store")
    store.scores[made.roots[cell.key].anchor] = {"m_same": 0.9, "m_other": 0.1}
    graph = made.roots[cell.key]
    store.scores |= {
        graph.erasure[whose]: scored(**{graph.facts.metric.partition("@")[0]: mean})
        for whose, mean in {"base": 0.875, "released": 0.125, "after_benign": 0.375, "benign": 0.5}.items()
    }
    got = build_record(cell, graph, store)
    assert (got.cost["protect"].seconds if "protect" in got.cost else None) == protecting
    seen = beside(got)
    # With nothing released, base and released model draw the same pictures only where nothing is erased.
    assert (seen.concept_base, seen.concept_released, seen.concept_after_benign) == (0.875, 0.125, 0.375)
    # The anchors are 0.9 and 0.1: an honest user who teaches what looks like the concept brings nothing back.
    store.scores[graph.erasure["benign"]] = scored(**{graph.facts.metric.partition("@")[0]: 0.5625})
    assert beside(build_record(cell, graph, store)).concept_after_benign is None


def scored(**means: float) -> dict[str, Any]:
    return {"metrics": {f"{name}@1": {"values": [mean], "mean": mean} for name, mean in means.items()}}


def test_measures_beside_the_score_are_read_from_their_own_artifacts(made: Plan, store: FakeStore) -> None:
    graph = made.roots[KEY]
    assert graph.unseen is not None
    store.scores |= {
        graph.curve[1]: scored(image_similarity=0.25, prompt_accuracy=0.5, collapse=0.0),
        graph.curve[2]: scored(image_similarity=0.5, prompt_accuracy=0.75, collapse=0.125, nearest_training=0.25),
        graph.unseen: scored(collapse=0.0625, nearest_training=0.375),
        graph.utility.g: scored(caption_accuracy=0.5, collapse=0.25),
        graph.utility.g_base: scored(collapse=0.0, caption_accuracy=1.0),
        graph.utility.integrity["before"]: scored(perceptual=0.375),
        graph.utility.integrity["after_benign"]: scored(perceptual=0.625),
        graph.utility.integrity["floor"]: scored(perceptual=0.125),
        graph.utility.integrity["ceiling"]: scored(perceptual=0.625),
    }
    got = record(made, store)
    assert got.scores["prompt_accuracy@1"].means == {1: 0.5, 2: 0.75}
    assert got.scores["nearest_training@1"].means == {2: 0.25}
    assert got.prompt_chance == 0.5, "a house or a tree"
    assert got.unseen is not None
    assert {name: score.mean for name, score in got.unseen.items()} == {
        "collapse@1": 0.0625,
        "nearest_training@1": 0.375,
    }
    assert (got.utility.g, got.utility.g_base) == (0.5, 1.0)
    assert (got.utility.collapse, got.utility.collapse_base) == (0.25, 0.0)
    assert got.integrity is not None and got.integrity.before is not None and got.integrity.after_benign is not None
    assert got.integrity.before["perceptual@1"].mean == 0.375
    assert got.integrity.after_benign["perceptual@1"].mean == 0.625
    assert beside(got) == Beside(
        0.75, 0.5, 0.25, 0.375, 0.125, 0.0625, 0.25, 0.375, 0.625, None, None, 0.125, 0.625, 0.5
    )
    assert Record.model_validate_json(got.model_dump_json()) == got
    shown = "\n".join(lines(got, Path("results/x.jsonl")))
    for wanted in ("prompt_accuracy@1 0.750", "a guess 0.500", "nearest_training@1 0.375 over 1 real pictures",
                   "unrelated pictures 0.250, base 0.000", "perceptual@1 0.625 after a benign one",
                   "perceptual@1 0.125 of the same model by another kernel",
                   "0.50 (0.50 to 0.50) of another noise's"):  # fmt: skip
        assert wanted in shown


def test_a_failure_beside_the_score_costs_no_score(made: Plan, store: FakeStore) -> None:
    digest = made.roots[KEY].utility.integrity["before"]
    store.present -= {digest}
    store.failures[digest] = {"kind": "error", "message": "why", "stage": "score"}
    got = record(made, store)
    assert got.failure is not None and got.failure.part == "beside"
    assert measurement(got).measured
    assert got.integrity is None
    assert got.utility.g == 0.5


def test_records_from_before_these_measures_still_load(made: Plan, store: FakeStore) -> None:
    value = json.loads(record(made, store).model_dump_json())
    for field in ("integrity", "unseen", "prompt_chance"):
        del value[field]
    for field in ("collapse", "collapse_base"):
        del value["utility"][field]
    old = Record.model_validate_json(json.dumps(value))
    assert measurement(old).beside == Beside()
    assert read_records(Path(__file__).parents[1] / "fixtures" / "world1")


def test_records_survive_the_file_and_two_writes_are_equal(made: Plan, store: FakeStore, tmp_path: Path) -> None:
    got = record(made, store)
    path = tmp_path / "results/tiny/shield@1.jsonl"
    write_records(path, [got])
    first = path.read_bytes()
    write_records(path, read_records(path))
    assert path.read_bytes() == first
    assert read_records(path.parent) == [got]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="two records"):
        write_records(path, [got, got])


def test_a_number_that_is_not_finite_is_never_written(made: Plan, store: FakeStore, tmp_path: Path) -> None:
    store.scores[made.roots[KEY].anchor] = {"m_same": float("inf"), "m_other": 0.1}
    with pytest.raises(ValueError, match="finite"):
        write_records(tmp_path / "x.jsonl", [record(made, store)])
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize(("where", "part", "status"), [("protect", "defense", "oom"), ("adapt", "attack", "timeout")])
def test_a_failure_names_its_stage_and_part(made: Plan, store: FakeStore, where: str, part: str, status: str) -> None:
    graph = made.roots[KEY]
    last = graph.curve[2]
    adapt = made.stages[made.stages[last].inputs["generated"]].inputs["adapter"]
    digest = graph.protect["protect_model"] if where == "protect" else adapt
    store.present -= {digest, *graph.curve.values()}
    store.failures[digest] = {"kind": status, "message": "why", "stage": where}
    got = record(made, store)
    assert got.failure is not None
    assert (got.status, got.failure.stage, got.failure.part, got.reason) == (status, where, part, "why")
    assert got.scores == {}
    assert got.baseline.ceiling is not None


def test_a_cell_that_never_ran_is_skipped(made: Plan, store: FakeStore) -> None:
    store.present = set()
    got = record(made, store)
    assert (got.status, got.reason) == ("skipped", "not run")


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = house.write(tmp_path / "x.jsonl", "{}\n")
    with pytest.raises(UsageError, match=r"x.jsonl:1: \w+: is required and missing"):
        read_records(path)


def test_the_schema_describes_every_field() -> None:
    schema = json_schema()
    assert {"cell", "scores", "baseline", "anchors", "utility", "cost", "code"} <= schema["properties"].keys()
    json.dumps(schema, allow_nan=False)


def test_a_record_carries_the_hashes_of_what_it_rests_on(tmp_path: Path) -> None:
    """The digest of a folder is what sha256sum prints of its sums; a stage says itself in which box it ran."""
    root = tmp_path / "house"
    house.house(root)
    catalog = load_catalog(root, models=root / "models.toml")
    plan = make_plan(catalog.suite("tiny"), catalog, defense="shield")
    (cell,) = plan.cells
    graph = plan.roots[cell.key]
    (protected,) = graph.protect.values()

    class Manifests:
        def manifest(self, digest: str) -> dict[str, Any] | None:
            spec = plan.stages[digest]
            names = {"generate": ["p00-00.png", "p01-00.png", "captions.json"], "score": ["scores.json"]}
            files = {
                name: {"sha256": name.encode().hex().ljust(64, "0"), "size": 1} for name in names.get(spec.stage, [])
            }
            meta = {"box": "bubblewrap"} if digest == protected else {}
            return {"stage": spec.stage, "inputs": spec.inputs, "files": files, "meta": meta}

    made = attest(graph, Manifests())
    assert made is not None and (made.prompts, made.pictures) == (2, 2)
    sums = [f"{name.encode().hex().ljust(64, '0')}  {name}\n" for name in ("p00-00.png", "p01-00.png")]
    assert made.files["pictures"] == hashlib.sha256("".join(sums).encode()).hexdigest()
    assert {"scores", "ceiling_scores", "floor_scores", "anchors", "protect_model", "adapter"} <= made.files.keys()
    assert made.boxes[f"protect-{protected[:12]}"] == "bubblewrap"
    assert [box for stage, box in made.boxes.items() if stage.startswith("adapt-")] == ["none"]
