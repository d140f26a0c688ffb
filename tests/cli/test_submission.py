"""From an entry to a row, and back: submit, verify and bundle with stages of a few bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from immunebench.authoring import templates
from immunebench.board.assembly.scored import load_suite_results
from immunebench.board.loading.marks import read_marks
from immunebench.catalog import loading, places
from immunebench.catalog.loading import load_catalog
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from immunebench.execution import executor
from immunebench.records.files import read_records, write_records
from immunebench.records.record import Record
from immunebench.submission import submit as submissions
from immunebench.submission import verify as verification
from immunebench.submission import verifying
from toy_stages import every_stage

CELLS = 3


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all submissions of the same entry; a verification has an empty one of its own."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def world(tmp_path: Path, shared_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Entries of one's own beside the checkout's, bases and judges of a few bytes, and an empty current folder."""
    root = tmp_path / "own"
    monkeypatch.setenv("IMMUNEBENCH_ENTRIES", str(root))
    monkeypatch.setenv("IMMUNEBENCH_STORE", str(shared_store))
    models = tmp_path / "models" / "models.toml"
    models.parent.mkdir()
    models.write_text((places.PACKAGE / "models.toml").read_text())
    root.mkdir()
    catalog = load_catalog(models=models)
    for base in filter(None, (base.path for base in catalog.models.bases.values())):
        (models.parent / base / "unet").mkdir(parents=True)
        (models.parent / base / "unet" / "config.json").write_text("{}")
    for named in (catalog.models.judges, catalog.models.upscalers, catalog.models.perceptual):
        for spec in named.values():
            for name in spec.files:
                (models.parent / name).parent.mkdir(parents=True, exist_ok=True)
                (models.parent / name).write_text("judge")
    monkeypatch.setattr(loading.load_catalog, "__kwdefaults__", {"models": models})
    templates.new_defense("mine", "data", catalog, root)
    loading.default_catalog.cache_clear()
    monkeypatch.setattr(executor, "DEFAULT_STAGES", "toy_stages:every_stage")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    loading.default_catalog.cache_clear()


def entry(world: Path) -> Path:
    return world / "own" / "defenses" / "mine"


def submitted(world: Path, run_stage: Any = every_stage) -> Path:
    request = submissions.Request(entry(world), results=world / "results", run_stage=run_stage)
    done = submissions.submit(request)
    assert done.file is not None, [str(one) for one in done.findings]
    return done.file


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def altered(file: Path, change: dict[str, object]) -> None:
    records = read_records(file)
    write_records(file, [record.model_copy(update=change) for record in records])


def verify(file: Path, cells: int = 1) -> verifying.Outcome:
    return verifying.verify_path(file, cells=cells, run_stage=every_stage)


def test_a_submission_runs_what_is_missing_and_previews_the_row(world: Path) -> None:
    planned = call("submit", str(entry(world)), "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert f"{CELLS} of {CELLS} cells to run: about " in planned.stdout and not (world / "results").exists()
    request = submissions.Request(entry(world), results=world / "results", run_stage=every_stage)
    done = submissions.submit(request)
    assert done.file == world / "results" / "mini-smoke" / "mine@1.jsonl"
    assert len(read_records(done.file)) == CELLS
    assert done.lines[0] == "row on mini-smoke, if it is reproduced:" and done.lines[1].startswith("  A ")
    assert "immunebench verify" in done.text and "- Box: none." in done.text
    assert all(one.code == "unfinished" for one in done.findings) and "- [ ] authors still says" in done.text
    before = done.file.stat().st_mtime_ns
    again = submissions.submit(request)
    assert again.lines == done.lines and done.file.stat().st_mtime_ns == before, "nothing is run twice"


def test_only_cells_whose_code_changed_are_run_again(world: Path) -> None:
    file = submitted(world)
    code = entry(world) / "defense.py"
    code.write_text(code.read_text() + "\n# changed\n")
    loading.default_catalog.cache_clear()
    planned = call("submit", str(entry(world)), "--dry-run")
    assert f"{CELLS} of {CELLS} cells to run" in planned.stdout
    assert file.is_file()


def test_an_entry_with_an_error_is_not_run(world: Path) -> None:
    (entry(world) / "defense.py").write_text("import os\n\n\ndef protect_images(*given):\n    return os\n")
    loading.default_catalog.cache_clear()
    result = call("submit", str(entry(world)), "--json")
    assert result.exit_code == 1 and not (world / "results").exists()
    assert {one["code"] for one in json.loads(result.stdout)["findings"] if one["severity"] == "error"} == {"import"}


def test_an_honest_record_is_reproduced_exactly_and_marked(world: Path) -> None:
    file = submitted(world)
    done = verify(file, cells=CELLS)
    assert (done.differences, done.exact, len(done.cells)) == ((), True, CELLS)
    marks = read_marks(file.parent, None)
    assert marks.faults == () and marks.reproduced[file.name].cells == done.cells
    assert ("mine", 1) in load_suite_results(file.parent).vouched
    altered(file, {"created": "2026-01-01T00:00:00+00:00"})
    assert load_suite_results(file.parent).vouched == frozenset(), "a mark belongs to bytes"


def raised(record: Record) -> dict[str, object]:
    score = record.scores[record.metric]
    values = tuple(value * 0.5 for value in score.values)
    steps = {**score.curve, record.final_step: values}
    new = score.model_copy(update={"values": values, "mean": sum(values) / len(values), "per_step": steps})
    return {"scores": {**record.scores, record.metric: new}}


def test_each_tampered_field_is_named(world: Path) -> None:
    file = submitted(world)
    sound = read_records(file)
    record, attested = sound[0], sound[0].attestation
    assert attested is not None
    changes: dict[str, dict[str, object]] = {
        "utility.g": {"utility": record.utility.model_copy(update={"g": 0.123})},
        "params.strength": {"params": {**record.params, "strength": 0.5}},
        "anchors.m_same": {"anchors": record.anchors.model_copy(update={"m_same": 0.91})} if record.anchors else {},
        "attestation.files.protect_images": {
            "attestation": attested.model_copy(update={"files": {**attested.files, "protect_images": "0" * 64}})
        },
        "code.entry_files.defense.py": {
            "code": record.code.model_copy(update={"entry_files": {"defense.py": "0" * 64}})
        },
    }
    for field, change in changes.items():
        (found,) = verification.compare(record.model_copy(update=change), record, exact=True)
        assert found.field == field and "the record says" in str(found)
    write_records(file, [one.model_copy(update=raised(one)) for one in sound])
    done = verify(file)
    assert done.differences and all(one.field.startswith("scores.") for one in done.differences)
    assert all((one.file, one.cell) == ("results/mini-smoke/mine@1.jsonl", done.cells[0]) for one in done.differences)
    assert {one.line for one in done.differences} == {[one.cell.key for one in sound].index(done.cells[0]) + 1}
    assert done.marks is None and not (file.parent / "marks.json").exists()


def test_a_record_of_other_code_is_named_by_file_line_and_field_before_anything_runs(world: Path) -> None:
    file = submitted(world)
    records = read_records(file)
    records[1] = records[1].model_copy(
        update={"code": records[1].code.model_copy(update={"entry_files": {"defense.py": "0" * 64}})}
    )
    write_records(file, records)

    def runs(*given: object) -> dict[str, object]:
        raise AssertionError("it was run")

    done = verifying.verify_path(file, cells=1, run_stage=runs)
    assert done.cells == () and done.lines()[0].startswith("nothing was run: ")
    fields = [one.field for one in done.differences]
    assert "code.entry_files.defense.py" in fields and set(fields) == {f for f in fields if f.startswith("code.")}
    told = f"differs: results/mini-smoke/mine@1.jsonl:2: {records[1].cell.key}: code.entry_files.defense.py: the record"
    assert any(line.startswith(told) for line in done.lines())
    assert not (file.parent / "marks.json").exists()


def test_a_time_that_another_run_does_not_take_is_told_and_decides_nothing(world: Path) -> None:
    file = submitted(world)
    slow = {"adapt": read_records(file)[0].cost["adapt"].model_copy(update={"seconds": 9_000.0})}
    write_records(file, [one.model_copy(update={"cost": {**one.cost, **slow}}) for one in read_records(file)])
    done = verify(file)
    assert done.differences == () and done.marks is not None
    (line,) = [line for line in done.lines() if line.startswith("not compared: ")]
    assert "cost.adapt.seconds: the record says 9000, this run took 0" in line


def test_on_another_machine_means_are_held_to_the_tolerance(world: Path) -> None:
    record = read_records(submitted(world))[0]
    score = record.scores[record.metric]

    def moved(by: float) -> Record:
        values = tuple(value + by for value in score.values)
        new = score.model_copy(update={"values": values, "mean": score.mean + by})
        return record.model_copy(update={"scores": {**record.scores, record.metric: new}})

    assert list(verification.compare(record, moved(0.006), exact=False)) == []
    far = list(verification.compare(record, moved(0.02), exact=False))
    assert {one.field.rpartition(".")[2] for one in far} == {"values", "mean"}
    assert len(list(verification.compare(record, moved(1e-12), exact=True))) == 2


def test_cells_are_drawn_from_seed_and_file() -> None:
    keys = [f"t{n}/d/lora/cpu/0" for n in range(40)]
    first = verification.draw(keys, 3, 0, "a")
    assert first == verification.draw(keys[::-1], 3, 0, "a") and len(set(first)) == 3
    assert first != verification.draw(keys, 3, 1, "a") and first != verification.draw(keys, 3, 0, "b")
    assert verification.draw(keys[:2], 9, 0, "a") == keys[:2]


def test_records_of_other_versions_cannot_be_verified(world: Path) -> None:
    file = submitted(world)
    with pytest.raises(UsageError, match="is no file of records"):
        verify(file.parent / "gone@1.jsonl")
    (entry(world) / "defense.toml").unlink()
    loading.default_catalog.cache_clear()
    with pytest.raises(UsageError, match=r"has findings, the first: .*unknown defense 'mine'"):
        verify(file)


def by_content(spec: Any, inputs: dict[str, Path], out: Path, report: Any) -> dict[str, object]:
    """A toy stage whose numbers follow from what it reads, as the real ones' do, and not from the entry's files."""
    key = {name: value for name, value in spec.key.items() if name != "entry_files"}
    read = [
        (name, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        for name, folder in sorted(inputs.items())
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    ]
    digest = hashlib.sha256(json.dumps([spec.stage, key, read], sort_keys=True, default=str).encode()).hexdigest()
    made = every_stage(types.SimpleNamespace(stage=spec.stage, key=spec.key, digest=digest), inputs, out, report)
    if spec.stage == "protect":
        (out / "log.json").unlink()
        Image.new("RGB", (8, 8), f"#{digest[:6]}").save(out / "000.png")
    return made


@pytest.mark.parametrize("closed", [False, True])
def test_a_bundle_is_verified_with_its_code_or_from_what_it_released(
    world: Path, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMMUNEBENCH_STORE", str(world / "store"))
    file = submitted(world, by_content)
    out = world / "mine.tar"
    made = call("bundle", str(entry(world)), "-o", str(out), *(["--closed"] if closed else []))
    assert made.exit_code == 0 and "left out" not in made.stdout, made.output
    assert call("check", str(out)).exit_code == 0
    # Elsewhere, where the entry is not known.
    results = world / "elsewhere"
    (results / "mini-smoke").mkdir(parents=True)
    shutil.copy(file, results / "mini-smoke")
    shutil.rmtree(entry(world))
    loading.default_catalog.cache_clear()
    done = verifying.verify_path(out, cells=1, results=results, run_stage=by_content)
    assert done.differences == () and done.closed == closed
    assert read_marks(results / "mini-smoke", None).reproduced[file.name].sha256


def test_official_files_are_listed_by_their_bytes(world: Path) -> None:
    file = submitted(world)
    listed = call("verify", str(file), "--official", "--leaderboard", str(world / "leaderboard"))
    assert listed.exit_code == 0, listed.output
    assert read_marks(file.parent, world / "leaderboard").official.keys() == {file.name}
