"""What a template asks its author to fill in is found as long as it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import synthetic
from immunebench.authoring import templates
from immunebench.catalog import loading
from immunebench.catalog.loading import load_catalog
from immunebench.catalog.placeholders import leftovers
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError


@pytest.mark.parametrize(
    ("kind", "hook", "fields"),
    [
        ("defense", "model", ["authors", "description", "threat_model", "the docstring", "title", "author"]),
        ("defense", "data", ["authors", "description", "threat_model", "the docstring", "title", "author"]),
        ("attack", "adapt", ["authors", "description", "the docstring", "title", "author"]),
        ("attack", "purify", ["authors", "description", "the docstring", "title", "author"]),
    ],
)
def test_every_placeholder_of_a_new_entry_is_named_with_its_file(
    tmp_path: Path, kind: str, hook: str, fields: list[str]
) -> None:
    make = templates.new_defense if kind == "defense" else templates.new_attack
    make("mine", hook, load_catalog(), tmp_path)
    found = load_catalog(tmp_path)
    lines = leftovers((found.defenses if kind == "defense" else found.attacks)["mine"])
    assert [line.split(": ")[1].removesuffix(" still says 'Your Name'").split(" still")[0] for line in lines] == fields
    assert all(line.startswith(str(tmp_path / f"{kind}s/mine")) for line in lines)


def test_the_entries_of_the_benchmark_are_finished() -> None:
    catalog = load_catalog()
    assert [
        line for entry in (*catalog.defenses.values(), *catalog.attacks.values()) for line in leftovers(entry)
    ] == []


def test_an_unfinished_entry_is_listed_and_neither_cited_nor_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates.new_defense("mine", "data", load_catalog(), tmp_path)
    catalog = load_catalog(tmp_path)
    assert catalog.suites["mine"].names("defenses") == ("none", "noise", "mine")
    monkeypatch.setattr(loading, "default_catalog", lambda: catalog)
    monkeypatch.chdir(tmp_path)
    synthetic.write(tmp_path / "results" / "tiny", [synthetic.record("none"), synthetic.record("mine", 0.5)])
    (tmp_path / "leaderboard").mkdir()
    (tmp_path / "leaderboard/rules.md").write_text("the rules\n")
    listed = CliRunner().invoke(cli.app, ["list"]).stdout
    assert "unfinished:\n  defense mine" in listed and "broken:" not in listed
    for arguments in (["cite", "--suite", "tiny", "--defense", "mine"], ["release", "2026.1"]):
        error = CliRunner().invoke(cli.app, arguments).exception
        assert isinstance(error, UsageError) and "defense.toml: authors still says 'Your Name'" in str(error)
