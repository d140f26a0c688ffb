"""What is published can be read from any folder, and a suite without results says how to get them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import synthetic
from immunebench.catalog import places
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def test_figures_of_papers_and_a_release_are_read_from_an_empty_folder(here: Path) -> None:
    assert "IMMA" in call("reported").stdout
    cited = call("cite", "--release", "2026.0-world1", "--suite", "mini-lite")
    assert cited.exit_code == 0 and cited.stdout.startswith("% immunebench suite=mini-lite@1.0")
    assert f"leaderboard: {ROOT / 'leaderboard'}" in cited.stderr
    assert not list((here / "empty").iterdir())


def test_the_package_s_own_figures_stand_in_for_the_checkout_s(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.write(here / "package/_entries/results/tiny", [synthetic.record("none"), synthetic.record("shield", 0.5)])
    monkeypatch.setattr(places, "PACKAGE", here / "package")
    result = call("board", "tiny")
    assert result.exit_code == 0 and "shield@1" in result.stdout and "_entries/results" in result.stderr


def test_a_folder_of_results_here_comes_first(here: Path) -> None:
    synthetic.write(here / "empty/results/tiny", [synthetic.record("none")])
    assert call("board", "tiny").stderr == ""


def test_a_suite_that_was_not_run_says_how_to_run_it() -> None:
    for arguments in (["board", "mini-lite"], ["cite", "--suite", "mini-lite"]):
        error = call(*arguments).exception
        assert isinstance(error, UsageError) and "immunebench run mini-lite measures it" in str(error)


def test_a_wheel_holds_entries_rules_and_records_and_no_sheets(here: Path) -> None:
    found = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    for name in ("results/tiny/none@1.jsonl", "results/tiny/sheets/a.webp", "leaderboard/rules.md", "CITATION.cff",
                 "leaderboard/releases/r/SHA256SUMS", "leaderboard/site/index.html", "tasks/style/a.toml"):  # fmt: skip
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("")
    data: dict[str, Any] = {"force_include": {}}
    module.EntriesBuildHook.initialize(SimpleNamespace(root=here), "standard", data)
    inside = {name.removeprefix("immunebench/_entries/") for name in data["force_include"].values()}
    assert inside == {
        "tasks", "results/tiny/none@1.jsonl", "leaderboard/rules.md", "CITATION.cff",
        "leaderboard/releases/r/SHA256SUMS",
    }  # fmt: skip


def test_one_suite_s_site_is_written_alone_and_an_unwritable_folder_is_one_line(here: Path) -> None:
    for name in ("tiny", "other"):
        synthetic.write(here / "results" / name, [synthetic.record("none"), synthetic.record("shield", 0.5)])
    results = ("--results", str(here / "results"))
    done = call("board", "tiny", *results, "--site", "site")
    assert done.exit_code == 0 and done.stderr.startswith("[1/1] tiny\n")
    assert [path.name for path in Path("site/suites").iterdir()] == ["tiny"]
    Path("file").write_text("")
    error = call("board", "tiny", *results, "--site", "file/site").exception
    assert isinstance(error, UsageError) and str(error).startswith("--site: cannot be written (")
