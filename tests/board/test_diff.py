"""Comparisons against differences computed by hand, and their interval against scipy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import synthetic
from immunebench.board.assembly.scored import score_folder
from immunebench.board.release.diff import compare_entries
from immunebench.board.release.diff_text import entry_lines
from immunebench.board.release.snapshot import CellScore, Standing, take
from immunebench.board.statistics.paired import mean_difference
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from immunebench.records.record import Record
from synthetic import record

TASKS = ("style-a", "style-b", "style-c", "style-d", "style-e")


def board(p_by_task: dict[str, tuple[float, float]], name: str = "shield") -> list[Record]:
    """Records of a defense with P on lora and dreambooth, per task, and of `none`."""
    found = []
    for task, chains in p_by_task.items():
        for chain, p in zip(("lora", "dreambooth"), chains, strict=True):
            found += [record(name, 0.9 - 0.8 * p, task=task, chain=chain), record("none", task=task, chain=chain)]
    return found


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "leaderboard").mkdir()
    (tmp_path / "leaderboard" / "rules.md").write_text("the rules\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["diff", *arguments])


def compared(*arguments: str) -> list[dict[str, object]]:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found: list[dict[str, object]] = json.loads(result.stdout)
    return found


def test_entries_differ_by_their_strongest_attacks_and_cell_by_cell(place: Path) -> None:
    synthetic.write(place / "results" / "tiny", board({"style-a": (0.5, 0.25), "style-b": (0.5, 1.0)}))
    # only the defense's own records; `none` is there already
    other = [r for r in board({"style-a": (0.75, 0.5), "style-b": (0.25, 0.25)}, "buckler") if r.cell.defense != "none"]
    synthetic.write(place / "results" / "tiny", other)
    (entry,) = compared("tiny:shield", "tiny:buckler")
    cells = {(c["task"], c["chain"]): c["b"] - c["a"] for c in entry["cells"]}  # type: ignore[attr-defined]
    assert cells == pytest.approx(
        {
            ("style-a", "lora"): 0.25,
            ("style-a", "dreambooth"): 0.25,
            ("style-b", "lora"): -0.25,
            ("style-b", "dreambooth"): -0.75,
        }
    )
    # The strongest attack over both tasks. A: lora (0.5, 0.5); B: dreambooth (0.5, 0.25).
    assert entry["difference"] == pytest.approx((0.0 - 0.25) / 2) and entry["measure"] == "A"
    assert (entry["interval"], entry["verdict"]) == (None, "no interval")
    assert compared("shield", "buckler", "--suite", "tiny") == [entry]
    text = call("tiny:shield", "tiny:buckler").stdout
    assert "style-b  dreambooth  1.00      0.25       -0.75" in text
    assert "headline A, B - A: -0.12 (no interval)" in text or "headline A, B - A: -0.13 (no interval)" in text


def test_a_higher_board_is_called_higher(place: Path) -> None:
    before = {task: (0.2 + 0.1 * at, 0.9) for at, task in enumerate(TASKS)}
    after = {task: (0.3 + 0.1 * at + 0.02 * at, 0.9) for at, task in enumerate(TASKS)}
    synthetic.write(place / "old" / "tiny", board(before))
    synthetic.write(place / "new" / "tiny", board(after))
    synthetic.write(place / "new" / "tiny", [record("buckler", task=task) for task in TASKS])
    (boards,) = compared("old", "new")
    entries = {e["b"]: e for e in boards["entries"]}  # type: ignore[attr-defined]
    assert entries["shield@1"]["difference"] == pytest.approx(np.mean([0.1, 0.12, 0.14, 0.16, 0.18]))
    low, high = entries["shield@1"]["interval"]
    assert 0.09 < low < 0.14 < high < 0.19
    assert (boards["only_a"], boards["only_b"]) == ([], ["buckler@1"])
    text = call("old", "new").stdout
    assert (entries["shield@1"]["verdict"], entries["none@1"]["verdict"]) == ("higher", "no difference seen")
    assert "+0.14" in text and "higher" in text and "only in B: buckler@1" in text
    assert call("new/tiny", "old/tiny").stdout.splitlines()[2].endswith("lower")


def test_cells_of_different_keys_are_named_and_left_out(place: Path) -> None:
    synthetic.write(place / "old" / "tiny", [record("none"), record("shield", 0.5)])
    new = [record("none", suite_version="1.1"), record("shield", 0.1, suite_version="1.1")]
    synthetic.write(place / "new" / "tiny", new)
    result = call("old", "new")
    assert result.exit_code == 1 and "nothing can be compared" in result.stderr
    key = "style-a@1/lora@3/image_similarity@1/cpu@1"
    assert f"style-a/lora: 'tiny@1.0/{key}' and 'tiny@1.1/{key}' do not compare" in result.stdout
    assert "note: tiny@1.0 against tiny@1.1" in result.stdout


def test_cells_of_one_side_do_not_enter_the_difference(place: Path) -> None:
    synthetic.write(place / "old" / "tiny", board({"style-a": (0.5, 0.5), "style-b": (0.0, 0.0)}))
    synthetic.write(place / "new" / "tiny", board({"style-a": (0.75, 0.75)}))
    (boards,) = compared("old", "new")
    entry = next(e for e in boards["entries"] if e["a"] == "shield@1")  # type: ignore[attr-defined]
    assert entry["difference"] == pytest.approx(0.25)
    assert entry["apart"] == [f"style-b/{chain}: only A has it" for chain in ("dreambooth", "lora")]


def test_chains_outside_the_headline_are_shown_and_not_counted() -> None:
    def row(name: str, lora: float, ladder: float) -> Standing:
        scores = [
            CellScore(
                task="a", family="style", chain=chain, key="k", status="ok", p_raw=p, p=p, headline=chain == "lora"
            )
            for chain, p in (("lora", lora), ("ladder", ladder))
        ]
        empty: dict[str, float] = {}
        return Standing(
            defense=name, version=1, kind="model", p=lora, interval=None, u=1.0, p_mean_case=None, p_family=empty,
            p_chain=empty, worst={}, scores=tuple(scores), incomplete=(), flags=(), records="",
        )  # fmt: skip

    compared = compare_entries(row("x", 0.5, 0.4), row("y", 0.75, 0.0))
    assert compared.difference == 0.25
    assert {cell.chain: cell.difference for cell in compared.cells} == {"lora": 0.25, "ladder": -0.4}


def test_a_release_compares_with_what_became_of_it(place: Path) -> None:
    synthetic.write(place / "results" / "tiny", [record("none"), record("shield", 0.5)])
    assert CliRunner().invoke(cli.app, ["release", "2026.1"]).exit_code == 0
    assert "both are made of the same records" in call("2026.1", "results").stdout
    synthetic.write(place / "results" / "tiny", [record("shield", 0.1)])
    (boards,) = compared("2026.1", "results")
    assert [e["difference"] for e in boards["entries"]] == pytest.approx([0.5, 0.0])  # type: ignore[attr-defined]
    (place / "leaderboard" / "rules.md").write_text("other rules\n")
    assert CliRunner().invoke(cli.app, ["release", "2026.2"]).exit_code == 0
    text = call("2026.1", "2026.2").stdout
    assert "+0.50" in text and "note: the rules differ" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["2026.2", "results"], "nearest: '2026.1'"),
        (["tiny:shild", "tiny:none"], "nearest: 'shield'"),
        (["tinny:shield", "tiny:none"], "nearest: 'tiny'"),
        (["results", "tiny:none"], "a board cannot be compared"),
    ],
)
def test_wrong_use_names_what_is_right(place: Path, arguments: list[str], said: str) -> None:
    synthetic.write(place / "results" / "tiny", [record("none"), record("shield", 0.5)])
    CliRunner().invoke(cli.app, ["release", "2026.1"])
    result = call(*arguments)
    assert isinstance(result.exception, UsageError) and said in str(result.exception)


def test_lines_left_out_are_said(place: Path) -> None:
    synthetic.write(place / "results" / "tiny", [record("none"), record("shield", 0.5), record("buckler", 0.5)])
    with (place / "results" / "tiny" / "buckler@1.jsonl").open("a") as stream:
        stream.write("{")
    result = call("tiny:none", "tiny:shield")
    assert result.exit_code == 1 and "buckler@1.jsonl:2: truncated" in result.stderr and "+0.50" in result.stdout


def test_families_weigh_alike() -> None:
    differences = {"a": 0.9, "b": 1.1, "c": 0.9, "d": 1.1, "e": 0.0, "f": 0.0}
    families = dict.fromkeys("abcd", "style") | dict.fromkeys("ef", "object")
    assert mean_difference(differences, families) == pytest.approx(0.5)


def test_a_frozen_board_of_rules_1_compares_by_p(place: Path) -> None:
    """Rows that have no A are held against P of the others, and the line says so."""
    synthetic.write(place / "results" / "tiny", board({"style-a": (0.5, 0.25), "style-b": (0.5, 1.0)}))
    now = take(score_folder(place / "results" / "tiny"), "0" * 64).row("shield")
    then = now.model_copy(update={"tasks": None, "a": None})
    found = compare_entries(then, now)
    assert (found.measure, found.difference) == ("P", pytest.approx(0.0))
    assert "headline P" in "\n".join(entry_lines(found))
