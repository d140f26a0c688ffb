"""Results that are broken: named by file and line, the rest still shown, and never to a score's advantage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import synthetic
from immunebench.board.assembly.scored import score_folder
from immunebench.board.loading.load import Problem, load_results
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from synthetic import METRIC, record, value

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """`shield` stops half of lora and a quarter of dreambooth, on two tasks."""
    sound = []
    for task in ("style-a", "style-b"):
        for chain, m in (("lora", 0.5), ("dreambooth", 0.7)):
            sound += [record("none", task=task, chain=chain), record("shield", m, task=task, chain=chain)]
    return synthetic.write(tmp_path / "results" / "tiny", sound)


def shield(results: Path) -> Path:
    return results / "shield@1.jsonl"


def board(results: Path) -> Result:
    return CliRunner().invoke(cli.app, ["board", "tiny", "--results", str(results.parent)])


def only(results: Path) -> Problem:
    records, problems = load_results(results)
    assert len(records) == 7
    (problem,) = problems
    return problem


def rewrite(file: Path, line: int, change: Change) -> None:
    lines = file.read_text().splitlines()
    parsed = json.loads(lines[line - 1])
    change(parsed)
    lines[line - 1] = json.dumps(parsed)
    file.write_text("\n".join(lines) + "\n")


def test_sound_results_have_no_problem(results: Path) -> None:
    records, problems = load_results(results)
    assert (len(records), problems) == (8, [])
    row = score_folder(results).board.row("shield")
    assert row is not None and row.a == pytest.approx(0.25)
    assert board(results).exit_code == 0


def test_a_truncated_line_leaves_the_others_and_takes_the_headline(results: Path) -> None:
    content = shield(results).read_bytes()
    shield(results).write_bytes(content[:-200])
    problem = only(results)
    assert (problem.file, problem.line, problem.kind, problem.fatal) == ("shield@1.jsonl", 4, "truncated", False)
    found = score_folder(results).board
    row, none = found.row("shield"), found.row("none")
    assert row is not None and row.a is None and row.incomplete[0] == "shield@1.jsonl:4 is left out (truncated)"
    assert none is not None and none.a == 0.0 and not none.incomplete
    shown = board(results)
    assert shown.exit_code == 1
    assert "shield@1" in shown.stdout and "results: shield@1.jsonl:4: truncated: " in shown.stderr


def test_a_line_cut_in_the_middle_of_a_file_is_no_end_of_a_file(results: Path) -> None:
    lines = shield(results).read_bytes().splitlines(keepends=True)
    shield(results).write_bytes(lines[0] + lines[1][:50] + b"\n" + b"".join(lines[2:]))
    assert (only(results).kind, only(results).line) == ("not json", 2)


def at(path: str, new: object) -> Change:
    """Replace the value at a dotted path; ``@`` stands for the metric."""

    def change(parsed: dict[str, Any]) -> None:
        *heads, last = path.replace("@", METRIC).split("/")
        for head in heads:
            parsed = parsed[head]
        parsed[last] = new

    return change


WRONG: list[tuple[str, object, str, str]] = [
    ("anchors/m_same", float("nan"), "not finite", "NaN"),
    ("params", {"x": float("inf")}, "not finite", "Infinity"),
    ("scores/@", synthetic.measured(1.5)[METRIC], "range", "must be in [-1, 1], not 1.48"),
    ("utility/g", 1.2, "range", "utility.g: must be in [0, 1], not 1.2"),
    ("anchors/m_other", -3.0, "range", "anchors.m_other"),
    ("metric", "image_similarty@1", "metric", "unknown metric 'image_similarty@1'"),
    ("metric", "image_similarity@2", "metric", "(newest: 'image_similarity@1')"),
    ("metric", "ism0@1", "metric", "family 'style' is measured by 'image_similarity'"),
    ("scores", {}, "inconsistent", "status is 'ok' and 'image_similarity@1' is missing"),
    ("schema_version", 2, "version", "schema_version 2 is not known"),
    ("scores/@/mean", 0.1, "inconsistent", "the mean of its values"),
    ("scores/@/n", 9, "inconsistent", "there are 4 values"),
    ("comparability", "tiny@9.9/x", "inconsistent", "comparability: is 'tiny@9.9/x'"),
    ("created", "yesterday", "field", "created: must be a time"),
    ("status", "okay", "field", "status: is not valid: 'okay' (nearest: 'ok')"),
    ("surprise", 1, "field", "unknown field 'surprise'"),
    ("cell/defense", "none", "misplaced", "is a record of none@1, which belongs into none@1.jsonl"),
    ("sheet", {"file": "../../secret.png", "sha256": "0" * 64}, "outside", "sheet.file"),
]


@pytest.mark.parametrize(("path", "new", "kind", "said"), WRONG)
def test_a_wrong_record_is_left_out_and_named(results: Path, path: str, new: object, kind: str, said: str) -> None:
    rewrite(shield(results), 2, at(path, new))
    problem = only(results)
    assert (problem.file, problem.line, problem.kind) == ("shield@1.jsonl", 2, kind)
    assert said in problem.message
    row = score_folder(results).board.row("shield")
    assert row is not None and row.a is None and row.incomplete


def test_a_number_too_large_for_a_float_is_not_finite(results: Path) -> None:
    text = shield(results).read_text().replace('"params":{}', '"params":{"x":1e999}', 1)
    shield(results).write_text(text)
    assert (only(results).kind, only(results).line) == ("not finite", 1)


def test_an_equal_record_counts_once_and_costs_nothing(results: Path) -> None:
    first = shield(results).read_text().splitlines()[0]
    with shield(results).open("a") as stream:
        stream.write(first + "\n")
    records, (problem,) = load_results(results)
    assert len(records) == 8
    assert (problem.line, problem.kind) == (5, "duplicate")
    assert "repeats shield@1.jsonl:1" in problem.message
    row = score_folder(results).board.row("shield")
    assert row is not None and row.a == pytest.approx(0.25) and not row.incomplete
    assert board(results).exit_code == 1


def test_of_records_that_disagree_none_counts(results: Path) -> None:
    better = value("shield", 0.1, task="style-a", chain="dreambooth")
    with shield(results).open("a") as stream:
        stream.write(json.dumps(better) + "\n")
    records, problems = load_results(results)
    assert len(records) == 7
    assert [(p.line, p.kind) for p in problems] == [(1, "conflict"), (5, "conflict")]
    assert "disagrees with shield@1.jsonl:5 on style-a/shield/dreambooth/cpu/0" in problems[0].message
    row = score_folder(results).board.row("shield")
    assert row is not None and row.a is None


def test_an_empty_folder_can_show_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "tiny"
    folder.mkdir(parents=True)
    records, (problem,) = load_results(folder)
    assert (records, problem.kind, problem.fatal) == ([], "empty", True)
    shown = board(folder)
    assert shown.exit_code == 2 and "there is no usable record" in shown.stderr
    (folder / "shield@1.jsonl").write_bytes(b"\xff\xfe{\n[1]\n")
    shown = board(folder)
    assert shown.exit_code == 2 and "shield@1.jsonl:1: not json" in shown.stderr
    with pytest.raises(UsageError, match="no such folder"):
        load_results(tmp_path / "nowhere")


def test_links_that_lead_outside_are_not_followed(results: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text("a password\n")
    (results / "other@1.jsonl").symlink_to(secret)
    records, (problem,) = load_results(results)
    assert len(records) == 8
    assert (problem.file, problem.kind) == ("other@1.jsonl", "outside")
    assert "password" not in str(problem)


def test_a_contact_sheet_outside_takes_its_record_along(results: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (results / "sheets").mkdir()
    (results / "sheets" / "a.png").symlink_to(tmp_path / "secret.png")
    rewrite(shield(results), 3, at("sheet", {"file": "sheets/a.png", "sha256": "0" * 64}))
    assert (only(results).kind, only(results).line) == ("outside", 3)


def test_contact_sheets_are_held_to_their_digest_where_asked(results: Path) -> None:
    (results / "sheets").mkdir()
    (results / "sheets" / "a.png").write_bytes(b"other pixels")
    rewrite(shield(results), 1, at("sheet", {"file": "sheets/a.png", "sha256": "0" * 64}))
    rewrite(shield(results), 2, at("sheet", {"file": "sheets/b.png", "sha256": "0" * 64}))
    assert load_results(results)[1] == []
    records, problems = load_results(results, sheets=True)
    assert len(records) == 8
    assert [(p.line, p.kind, p.lost) for p in problems] == [(1, "sheet", False), (2, "sheet", False)]


def test_an_older_version_of_an_entry_is_history(results: Path) -> None:
    new = [
        record("shield", 0.3, task=task, chain=chain, defense_version=2)
        for task in ("style-a", "style-b")
        for chain in ("lora", "dreambooth")
    ]
    synthetic.write(results, new)
    shield(results).write_text("broken\n")
    found = score_folder(results)
    row = found.board.row("shield")
    assert row is not None and (row.version, row.incomplete) == (2, ()) and row.a == pytest.approx(0.75)
    (results / "shield@2.jsonl").write_text("broken\n")
    synthetic.write(results, [record("shield", 0.1, defense_version=1)])
    row = score_folder(results).board.row("shield")
    assert row is not None and row.a is None, "an older version must not stand in for a broken newer one"


def test_what_is_printed_of_a_record_cannot_steer_a_terminal(results: Path) -> None:
    rewrite(shield(results), 1, at("status", "\x1b[2Jwiped\u202e"))
    text = str(only(results))
    assert "\x1b" not in text and "\u202e" not in text and "wiped" in text


def test_a_record_of_one_attack_under_the_name_of_another_blocks_no_board(results: Path) -> None:
    chain = json.loads(shield(results).read_text("utf-8").splitlines()[0])["cell"]["chain"]
    other = "lora" if chain == "dreambooth" else "dreambooth"
    rewrite(shield(results), 1, lambda made: made["cell"].update(chain=other))
    problem = only(results)
    assert (problem.kind, problem.line) == ("inconsistent", 1)
    assert "cell.chain: is" in problem.message
    row = score_folder(results).board.row("shield")
    assert row is not None and row.a is None


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_never_helps_a_score(results: Path, data: st.DataObject) -> None:
    content = shield(results).read_bytes()
    first = data.draw(st.integers(0, len(content)))
    last = data.draw(st.integers(first, min(len(content), first + 4000)))
    try:
        shield(results).write_bytes(content[:first] + content[last:])
        row = score_folder(results).board.row("shield")
    finally:
        shield(results).write_bytes(content)
    assert row is None or row.a is None or row.a <= 0.25 + 1e-9
    if row is not None and row.a is None:
        assert row.area is None and not row.passes


def test_a_line_that_vanished_takes_its_chain_and_the_headline_with_it(results: Path) -> None:
    lines = shield(results).read_text().splitlines(keepends=True)
    cells = [json.loads(line)["cell"] for line in lines]
    gone = [(cell["task"], cell["chain"]) == ("style-a", "dreambooth") for cell in cells]
    kept = [line for line, lost in zip(lines, gone, strict=True) if not lost]
    assert len(kept) == len(lines) - 1
    shield(results).write_text("".join(kept))
    row = score_folder(results).board.row("shield")
    assert row is not None and row.a is None
    assert row.a is None and row.incomplete == ("style-a/dreambooth: a record is missing",)


def test_the_benign_concept_of_a_relearn_task_has_a_metric_of_its_own(results: Path) -> None:
    metric = "concept_probability@1"
    erased = record("shield", 0.4, task="relearn-cat", family="relearn")
    text = erased.model_dump_json().replace(synthetic.METRIC, metric)
    cosine = erased.utility.model_copy(update={"benign": erased.utility.benign.model_copy(update={"floor": -0.2})})
    changed = type(erased).model_validate_json(text).model_copy(update={"utility": cosine})
    synthetic.write(results, [changed])
    assert [p for p in load_results(results)[1] if p.kind == "range"] == []
