"""The command line, with stages of a few bytes in place of the real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import synthetic
from immunebench import api
from immunebench.catalog import loading, places
from immunebench.catalog.loading import load_catalog
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from immunebench.execution import executor
from immunebench.store.artifacts import Store

CELL = "style-solano/none/lora/cpu/0"
PART = ("--task", "style-solano")


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue whose bases and judges are a few bytes, toy stages, and an empty current folder."""
    models = tmp_path / "models" / "models.toml"
    models.parent.mkdir()
    models.write_text((places.PACKAGE / "models.toml").read_text())
    catalog = load_catalog(models=models)
    for base in filter(None, (base.path for base in catalog.models.bases.values())):
        (models.parent / base / "unet").mkdir(parents=True)
        (models.parent / base / "unet" / "config.json").write_text("{}")
    for judge in catalog.models.judges.values():
        for name in judge.files:
            (models.parent / name).parent.mkdir(parents=True, exist_ok=True)
            (models.parent / name).write_text("judge")
    monkeypatch.setattr(loading, "default_catalog", lambda: catalog)
    monkeypatch.setattr(executor, "DEFAULT_STAGES", "toy_stages:every_stage")
    monkeypatch.setenv("IMMUNEBENCH_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def done(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_run_writes_records_then_reuses_everything(world: Path) -> None:
    first = json.loads(done("run", "mini-smoke", *PART, "--json"))
    assert [r["status"] for r in first] == ["ok"] * 5
    files = sorted(p.name for p in (world / "results" / "mini-smoke").glob("*.jsonl"))
    assert files == ["destroy@1.jsonl", "imma-lora@2.jsonl", "noise@1.jsonl", "none@1.jsonl"]
    result = call("run", "mini-smoke", *PART, "--json")
    assert json.loads(result.stdout) == first and "stages/min" not in result.stderr


def test_records_of_other_cells_stay(world: Path) -> None:
    done("run", "mini-smoke", *PART, "--defense", "none")
    done("run", "mini-smoke", "--task", "object-mug", "--defense", "none")
    lines = (world / "results" / "mini-smoke" / "none@1.jsonl").read_text().splitlines()
    assert [json.loads(line)["cell"]["task"] for line in lines] == ["object-mug"] * 2 + ["style-solano"] * 2


def test_failed_stage_marks_its_cells_and_exits_1(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_FAIL", "fail")
    result = call("run", "mini-smoke", *PART, "--json")
    assert result.exit_code == 1
    status = {r["cell"]["defense"]: r["status"] for r in json.loads(result.stdout)}
    assert status == {"none": "ok", "noise": "ok", "imma-lora": "ok", "destroy": "error"}
    monkeypatch.delenv("TOY_FAIL")
    assert call("run", "mini-smoke", *PART).exit_code == 1
    assert "failed" in done("status", "mini-smoke")
    done("run", "mini-smoke", *PART, "--retry-failed")


def test_dry_run_shows_cells_stages_time_and_disk_and_runs_nothing(world: Path) -> None:
    text = done("run", "mini-smoke", "--dry-run", "--workers", "2")
    assert CELL in text and "adapt" in text and "0 reused" in text and "with 2 workers" in text
    assert "--workers: must be at least 1" in str(call("run", "mini-smoke", "--dry-run", "--workers", "0").exception)
    assert not (world / "results").exists() and not (world / "store").exists()
    done("run", "mini-smoke", *PART)
    found = json.loads(done("run", "mini-smoke", *PART, "--dry-run", "--json"))
    assert all(cost["planned"] == cost["cached"] for cost in found["stages"].values())
    assert found["seconds"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "mini-smok"], "nearest: 'mini-smoke'"),
        (["run", "mini-smoke", "--task", "style-solan"], "nearest: 'style-solano'"),
        (["run", "mini-smoke", "--defense", "imma-lara"], "nearest: 'imma-lora'"),
        (["run", "mini-smoke", "--workers", "0"], "--workers"),
        (["run", "mini-smoke", "--results", "models/models.toml"], "cannot be written"),
        (["run", "mini-smoke", "--store", "models/models.toml/x"], "cannot be written"),
        (["list", "tsks"], "nearest: 'tasks'"),
        (["show", "style-solano/none/lora/cpu/7"], "no record"),
        (["export", "style-solano/none/lora/cpu/9", "out"], "nearest"),
        (["export", CELL, "out"], "not measured"),
        (["board", "mini-lite"], "no results"),
    ],
)
def test_wrong_use_is_a_usage_error(arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert isinstance(result.exception, UsageError) and said in str(result.exception)


def test_show_and_status(world: Path) -> None:
    done("run", "mini-smoke", *PART, "--defense", "none")
    text = done("show", CELL)
    assert "status       ok" in text and "cost         adapt" in text and f"{world}" not in text
    assert "sheets/style-solano--none--lora--cpu--0.webp" in text
    assert json.loads(done("show", CELL, "--json"))["status"] == "ok"
    rows = json.loads(done("status", "mini-smoke", "--json"))
    assert next(r["status"] for r in rows if r["task"] == "style-solano") == "done"
    # Other tasks share unrelated pictures with it, or nothing.
    assert {r["status"] for r in rows} == {"done", "part", "planned"}


def test_a_cell_of_several_suites_is_chosen_by_suite(world: Path) -> None:
    done("run", "mini-smoke", *PART, "--defense", "none")
    other = world / "results" / "another" / "none@1.jsonl"
    other.parent.mkdir()
    line = (world / "results" / "mini-smoke" / "none@1.jsonl").read_text()
    other.write_text(line.replace('"suite":"mini-smoke"', '"suite":"another"'))
    said = call("show", CELL)
    assert f"{CELL}  (another " in said.stdout
    assert said.stderr.strip() == "from another; the cell is also in mini-smoke (choose with --suite)"
    chosen = call("show", CELL, "--suite", "mini-smoke")
    assert f"{CELL}  (mini-smoke " in chosen.stdout and chosen.stderr == ""
    wrong = call("show", CELL, "--suite", "mini-smok")
    assert isinstance(wrong.exception, UsageError) and "(nearest: 'mini-smoke')" in str(wrong.exception)


def test_mixed_and_transferred_cells_are_run_written_and_read_back(world: Path) -> None:
    from immunebench.board.loading.load import load_results

    arguments = ("--task", "style-solano", "--defense", "none", "--defense", "noise-16", "--attack", "lora", "--json")
    mixed = json.loads(done("run", "mini-mixed", *arguments))
    there = json.loads(done("run", "mini-transfer", *arguments))
    clean = {(r["cell"]["defense"], r["cell"].get("setting", {}).get("clean", 0)) for r in mixed}
    assert clean == {(name, share) for name in ("none", "noise-16") for share in (0, 25, 50, 75, 100)}
    bases = {
        (r["cell"]["defense"], r["cell"].get("setting", {}).get("attacker_base"), r["cell"]["base"]) for r in there
    }
    assert bases == {(n, *base) for n in ("none", "noise-16") for base in ((None, "mini"), ("mini-b", "mini-b"))}
    for suite, records in (("mini-mixed", mixed), ("mini-transfer", there)):
        found, problems = load_results(world / "results" / suite, sheets=True)
        assert len(found) == len(records) and problems == [], "no twins, every key as its names and versions give it"
    key = "style-solano/noise-16/lora/cpu/0/clean-25"
    assert key in done("show", key) and f"sheets/{key.replace('/', '--')}.webp" in done("show", key)
    # Where nothing stays protected both arms are the same pictures.
    whole = next(r for r in mixed if r["cell"].get("setting", {}).get("clean") == 100 and r["cell"]["hooks"])
    assert whole["artefacts"]["pictures"] == whole["artefacts"]["ceiling_pictures"]


def test_why_names_the_parameter(world: Path) -> None:
    plan = api.plan_suite("mini-smoke", catalog=loading.default_catalog())
    missing = next(d for d, s in plan.stages.items() if s.stage == "adapt")
    assert "no artifact of stage adapt" in done("why", missing[:16])
    done("run", "mini-smoke", *PART, "--defense", "none")
    assert "whole" in done("why", missing[:16]) or "nearest is" in done("why", missing[:16])
    assert "neither" in done("why", "zz")


def test_gc_keeps_what_suites_refer_to(world: Path) -> None:
    done("run", "mini-smoke", *PART)
    store = Store(world / "store")
    before = store.size()
    assert "removed 0 artifacts" in done("store", "gc")
    assert store.size() == before and json.loads(done("store", "size", "--json"))["adapt"]["count"] > 0


def test_corrupted_artifact_is_said_and_made_again(world: Path) -> None:
    first = json.loads(done("run", "mini-smoke", *PART, "--json"))
    file = next((world / "store" / "adapt").rglob("*.safetensors"))
    file.write_bytes(b"broken")
    result = call("run", "mini-smoke", *PART, "--json")
    assert "corrupted" in result.stderr
    assert [r["scores"] for r in json.loads(result.stdout)] == [r["scores"] for r in first]


def test_python_run_gives_a_frame(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = loading.default_catalog()
    monkeypatch.setattr(api, "load_catalog", lambda: catalog)
    frame = api.run("mini-smoke", task="style-solano", defense="none")
    assert list(frame["status"]) == ["ok"] * 2 and list(frame["defense"]) == ["none"] * 2
    assert list(frame["seed"]) == [0, 1]
    planned = api.run("mini-smoke", task="style-solano", dry_run=True)
    found = {(row.defense, row.status) for row in planned.itertuples()}
    assert found == {("none", "done"), ("imma-lora", "part"), ("destroy", "part"), ("noise", "part")}


def test_doctor_judges_profiles() -> None:
    result = call("doctor", "--json")
    assert result.exit_code in (0, 1) and "qualifies" in json.loads(result.stdout)["profiles"]["cpu"]


def test_main_prints_one_line_and_exits_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["immunebench", "run", "nothing"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err.startswith("error: suite: unknown suite 'nothing'")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["new", "task", "--help"], ["list", "--json"]])
def test_answers_without_torch(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv[1:] = {arguments!r}\n"
        "from immunebench.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'diffusers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_run_ends_with_its_scores_and_the_next_command(world: Path) -> None:
    text = done("run", "mini-smoke", *PART, "--defense", "none", "--results", "my results")
    table = text.split("\n\n")[-1].splitlines()
    assert table[0].split() == ["defense", "A", "P(1)", "U"]
    assert [line.split()[0] for line in table[1:] if line.startswith("  ")] == ["none"]
    assert table[-1] == "next: immunebench board mini-smoke --results 'my results'"


def test_a_failed_run_names_the_command_that_prints_the_traceback(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_FAIL", "fail")
    result = call("run", "mini-smoke", *PART, "--defense", "none", "--defense", "destroy")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("traceback: ")]
    shown = done(*line.removeprefix("traceback: immunebench ").split())
    assert "Traceback (most recent call last)" in shown


def test_the_board_of_a_run_is_a_table_in_python_and_json(world: Path) -> None:
    synthetic.write(world / "results" / "tiny", [synthetic.record("none"), synthetic.record("shield", 0.5)])
    frame = api.scores("tiny")
    document = json.loads(done("board", "tiny", "--json"))
    assert list(frame["defense"]) == [row["defense"] for row in document["rows"]] == ["shield", "none"]
    assert list(frame["p"]) == [row["p"] for row in document["rows"]] == pytest.approx([0.5, 0.0])
    with pytest.raises(UsageError, match="nearest: 'tiny'"):
        api.scores("tinny")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"workers": "2"}, "workers: must be a whole number, not '2'"),
        ({"timeout": "9"}, "timeout: must be a number of seconds, not '9'"),
        ({"seed": "0"}, "seed: must be a whole number, not '0'"),
        ({"seed": [0, 1.5]}, "seed: must be a whole number, not 1.5"),
        ({"task": "style-solan"}, "mini-smoke.toml: task: is not in the suite"),
    ],
)
def test_a_wrong_argument_in_python_is_named_as_it_is_there(
    world: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError) as error:
        api.run("mini-smoke", dry_run=True, **arguments)  # type: ignore[arg-type]
    assert said in str(error.value) and "--" not in str(error.value)
