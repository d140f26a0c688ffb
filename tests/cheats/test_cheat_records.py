"""Records made up or altered to rank: each is found, named by file, line and field, and moves no other row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from immunebench.board.assembly.scored import load_suite_results, score_folder
from immunebench.board.loading.load import Problem
from immunebench.board.loading.marks import Reproduction, add_reproduction, file_digest, read_marks
from immunebench.board.scores.model import Board
from immunebench.board.tables.layout import markdown
from immunebench.catalog.loading import default_catalog
from immunebench.store.graph import canonical_json

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "results" / "mini-smoke"
#: An entry of the house that has no records in the suite: what a stranger would hand in.
OWN = "imma-multi"
TRAITS = "trait_agreement@1"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The records that the repository ships, byte by byte."""
    folder = tmp_path / "results" / "mini-smoke"
    folder.mkdir(parents=True)
    for file in SMOKE.glob("*.jsonl"):
        shutil.copy(file, folder)
    return folder


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines() if line]


def write(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    (folder / name).write_text("".join(canonical_json(record) + "\n" for record in records))


def hand_in(folder: Path, change: Change = lambda record: None, name: str = OWN) -> None:
    """Write a stranger's records: those of `imma-lora` under another name, on another machine, then changed."""
    version = default_catalog().defense(name).version if name in default_catalog().defenses else 1
    records = lines(folder, "imma-lora@2.jsonl")
    for record in records:
        record["cell"] |= {"defense": name, "defense_version": version}
        record["env"]["processor"] = "another"
        change(record)
    stem = {f"{record['cell']['defense']}@{record['cell']['defense_version']}" for record in records}
    write(folder, f"{stem.pop()}.jsonl", records)


def found(folder: Path) -> list[Problem]:
    return list(load_suite_results(folder).problems)


def board(folder: Path) -> Board:
    return score_folder(folder).board


def of_others(made: Board) -> list[tuple[object, ...]]:
    rows = [row for row in made.rows if row.defense in ("none", "noise", "destroy", "imma-lora")]
    return [(row.defense, row.version, row.a, row.u, row.rank, row.incomplete, row.badges) for row in rows]


def scale(record: dict[str, Any], to: float, *path: str) -> None:
    """Replace all values of the target metric at a path, consistently."""
    part = record
    for name in path:
        part = part[name]
    score = part[record["metric"]]
    n = len(score["values"])
    score["values"] = [to + 0.0005 * (i - (n - 1) / 2) for i in range(n)]
    score["mean"] = sum(score["values"]) / n
    for step, values in score["per_step"].items():
        last = int(step) == record["final_step"]
        score["per_step"][step] = score["values"] if last else [to] * len(values)


def test_the_shipped_records_are_official_and_without_findings(results: Path) -> None:
    loaded = load_suite_results(results)
    assert loaded.problems == () and len(loaded.records) == 19
    assert {name for name, _ in loaded.vouched} == {"none", "noise", "destroy", "imma-lora"}


def test_an_honest_stranger_stands_apart_and_is_shown(results: Path) -> None:
    before = of_others(board(results))
    hand_in(results)
    made = board(results)
    assert found(results) == [] and of_others(made) == before
    row = made.row(OWN)
    assert row is not None and row.a is not None and row.apart and row.league == "model, self-reported"
    assert [other.defense for other in made.rows][:2] == ["imma-lora", OWN]
    assert any(note == f"self-reported, ranked apart: {OWN}" for note in made.notes)


def test_a_board_of_own_records_alone_is_a_whole_board(results: Path) -> None:
    for file in results.glob("*.jsonl"):
        file.write_text(file.read_text() + "\n")
    made = board(results)
    assert found(results) == []
    assert not any(row.apart for row in made.rows) and made.row("imma-lora") is not None
    assert any("every record is self-reported" in note for note in made.notes)


def lower(record: dict[str, Any]) -> None:
    scale(record, 0.31, "scores")


def raised_ceiling(record: dict[str, Any]) -> None:
    scale(record, 0.995, "baseline", "ceiling", "scores")


def moved_anchor(record: dict[str, Any]) -> None:
    record["anchors"]["m_same"] -= 0.05


def raised_floor(record: dict[str, Any]) -> None:
    scale(record, 0.9, "baseline", "floor", "scores")


def easier_use(record: dict[str, Any]) -> None:
    record["utility"]["g_base"] = 0.1


def easier_benign(record: dict[str, Any]) -> None:
    record["utility"]["benign"]["ceiling"] = record["utility"]["benign"]["floor"] + 0.01


def all_equal(record: dict[str, Any]) -> None:
    scale(record, 0.3, "scores")
    score = record["scores"][record["metric"]]
    score["values"] = [0.3] * len(score["values"])
    score["mean"] = 0.3
    score["per_step"][str(record["final_step"])] = score["values"]


def floor_again(record: dict[str, Any]) -> None:
    # A floor of one value throughout is that of a judge who reads nothing: it may come again.
    floor, score = record["baseline"]["floor"]["scores"][record["metric"]], record["scores"][record["metric"]]
    score |= {"values": floor["values"], "mean": floor["mean"]}
    score["per_step"][str(record["final_step"])] = floor["values"]


def other_end(record: dict[str, Any]) -> None:
    record["scores"][record["metric"]]["per_step"][str(record["final_step"])] = [0.3] * 12


def fewer_pictures(record: dict[str, Any]) -> None:
    record["attestation"] = None  # It would say how many were scored.
    for part in (record["scores"], record["baseline"]["floor"]["scores"], record["baseline"]["ceiling"]["scores"]):
        score = part[record["metric"]]
        score["values"] = score["values"][:8]
        score |= {"n": 8, "mean": sum(score["values"]) / 8}
        if str(record["final_step"]) in score["per_step"]:
            score["per_step"][str(record["final_step"])] = score["values"]


def beyond_the_range(record: dict[str, Any]) -> None:
    scale(record, 1.2, "baseline", "defended_floor", "scores")


def a_control(record: dict[str, Any]) -> None:
    record["cell"]["defense_kind"] = "control"


def other_hooks(record: dict[str, Any]) -> None:
    record["cell"]["hooks"] = ["protect_images"]


def newer_attack(record: dict[str, Any]) -> None:
    record["cell"]["links"][0]["version"] = 99
    record["comparability"] = record["comparability"].replace("lora@3", "lora@99")


def newer_suite(record: dict[str, Any]) -> None:
    record["suite_version"] = "9.0"
    record["comparability"] = record["comparability"].replace("@3.0/", "@9.0/")


def other_chain(record: dict[str, Any]) -> None:
    record["cell"]["chain"] = "dreambooth"
    record["cell"]["links"] = [{"attack": "dreambooth", "version": 1}]
    head, task, _, *rest = record["comparability"].split("/")
    record["comparability"] = "/".join([head, task, "dreambooth@1", *rest])


def other_floor_scores(record: dict[str, Any]) -> None:
    # Of the same machine, so that equal stages give equal bytes.
    record["env"] = lines(SMOKE, "none@1.jsonl")[0]["env"]
    record["attestation"]["files"]["floor_scores"] = "0" * 64


def no_hash_of_what_is_released(record: dict[str, Any]) -> None:
    del record["attestation"]["files"]["protect_model"]


def unheard_of_box(record: dict[str, Any]) -> None:
    record["attestation"]["boxes"] = dict.fromkeys(record["attestation"]["boxes"], "vault")


def negative_memory(record: dict[str, Any]) -> None:
    record["cost"]["adapt"]["peak_process_gib"] = -3.0


CHEATS: list[tuple[Change, str, str]] = [
    (other_floor_scores, "disagrees", "attestation.files.floor_scores: is 000000000000..., and"),
    (no_hash_of_what_is_released, "unknown", "attestation.files.protect_model: is missing"),
    (negative_memory, "range", "cost.adapt.peak_process_gib: must be at least 0, not -3.0"),
    (raised_ceiling, "disagrees", "baseline.ceiling.scores."),
    (raised_floor, "disagrees", "baseline.floor.scores."),
    (moved_anchor, "disagrees", "anchors.m_same: is"),
    (easier_use, "disagrees", "utility.g_base: is 0.1"),
    (easier_benign, "disagrees", "utility.benign.ceiling: is"),
    (all_equal, "impossible", "values: are all 0.3, and no two pictures"),
    (floor_again, "impossible", "values: equal the floor's one by one"),
    (other_end, "impossible", "per_step.128: differs from values"),
    (fewer_pictures, "unknown", "n: is 8, and the suite draws 12 prompts x 1"),
    (beyond_the_range, "range", "baseline.defended_floor."),
    (a_control, "unknown", "cell.defense_kind: is 'control', and the entry's manifest says 'model'"),
    (other_hooks, "unknown", "cell.hooks: is"),
    (newer_attack, "unknown", "cell.links.0.version: is 99"),
    (newer_suite, "unknown", "suite_version: is '9.0', and the newest here is '3.0'"),
    (other_chain, "unknown", "cell.chain: 'dreambooth' is no chain of mini-smoke 3.0"),
]


@pytest.mark.parametrize(("change", "kind", "said"), CHEATS, ids=[change.__name__ for change, _, _ in CHEATS])
def test_an_altered_record_is_named_and_in_no_row(results: Path, change: Change, kind: str, said: str) -> None:
    before = of_others(board(results))
    hand_in(results, change)
    problems = found(results)
    assert problems and {(p.file.partition("@")[0], p.kind) for p in problems} == {(OWN, kind)}
    assert any(said in problem.message for problem in problems) and all(problem.line for problem in problems)
    made = board(results)
    row = made.row(OWN)
    assert of_others(made) == before and (row is None or (row.a is None and row.rank is None))
    shown = markdown(made, "t")
    assert "Records with findings" in shown and f"{OWN}@" in shown


def test_a_box_that_nobody_knows_is_a_fault_of_its_line(results: Path) -> None:
    hand_in(results, unheard_of_box)
    problems = found(results)
    assert [(p.kind, p.line) for p in problems] == [("field", 1), ("field", 2), ("field", 3), ("field", 4)]
    assert all("attestation.boxes." in p.message and "'vault'" in p.message for p in problems)


def test_hashes_of_another_kind_of_machine_are_not_compared(results: Path) -> None:
    def elsewhere(record: dict[str, Any]) -> None:
        record["attestation"]["files"]["anchors"] = "0" * 64

    hand_in(results, elsewhere)
    assert found(results) == []


def test_a_record_typed_by_hand_for_no_entry_has_no_row(results: Path) -> None:
    before = of_others(board(results))
    hand_in(results, lower, name="wall")
    problems = found(results)
    assert len(problems) == 4 and all(p.kind == "unknown" and "unknown defense 'wall'" in p.message for p in problems)
    assert board(results).row("wall") is None and of_others(board(results)) == before


def test_a_higher_version_by_somebody_else_replaces_no_row(results: Path) -> None:
    before = of_others(board(results))

    def up(record: dict[str, Any]) -> None:
        lower(record)
        record["cell"]["defense_version"] = 3

    hand_in(results, up, name="imma-lora")
    problems = found(results)
    assert {p.kind for p in problems} == {"unknown"}
    assert all(
        "cell.defense_version: is 3, and the newest version of imma-lora here is 2" in p.message for p in problems
    )
    assert of_others(board(results)) == before


def test_a_second_file_of_an_official_entry_counts_nothing(results: Path) -> None:
    """Neither its better values nor the disagreement, which would take both out."""
    before = of_others(board(results))
    records = lines(results, "imma-lora@2.jsonl")
    for record in records:
        lower(record)
    (results / "more").mkdir()
    write(results, "more/imma-lora@2.jsonl", records)
    extra = lines(results, "none@1.jsonl")[:1]
    extra[0]["cell"]["seed"] = 7
    write(results, "more/none@1.jsonl", extra)
    problems = found(results)
    assert len(problems) == 5 and all("whose vouched records are in" in p.message for p in problems)
    assert of_others(board(results)) == before


def test_who_edits_anothers_record_takes_its_mark_and_is_named(results: Path) -> None:
    records = lines(results, "none@1.jsonl")
    for record in records:
        scale(record, 0.5, "scores")
    write(results, "none@1.jsonl", records)
    problems = found(results)
    assert {p.file for p in problems} == {"none@1.jsonl"} and {p.kind for p in problems} == {"disagrees"}
    assert "(official) says" in problems[0].message
    row = board(results).row("imma-lora")
    assert row is not None and row.a is not None and row.a < 0.1, "held to the ceilings of its own records"


def test_without_a_vouched_record_what_most_files_say_is_right(results: Path) -> None:
    for name in ("noise@1.jsonl", "destroy@1.jsonl", "none@1.jsonl"):
        (results / name).write_text((results / name).read_text() + "\n")
    (results / "imma-lora@2.jsonl").write_text((results / "imma-lora@2.jsonl").read_text() + "\n")
    hand_in(results, raised_ceiling)
    assert {(p.file.partition("@")[0], p.kind) for p in found(results)} == {(OWN, "disagrees")}


def reproduction(results: Path, name: str) -> Reproduction:
    return Reproduction(
        file=name, sha256=file_digest(results / name), seed=0, cells=("a/b/lora/cpu/0",), exact=True, tolerance=0.0,
        version="0.1.0", created="2026-01-01T00:00:00+00:00", signature="0" * 64,
    ).signed()  # fmt: skip


def test_a_mark_belongs_to_the_bytes_of_a_file_and_shows_a_change(results: Path) -> None:
    hand_in(results)
    (file,) = results.glob(f"{OWN}@*.jsonl")
    marks = add_reproduction(results, reproduction(results, file.name))
    row = board(results).row(OWN)
    assert row is not None and not row.apart
    sound = marks.read_text()
    marks.write_text(sound.replace('"exact": true', '"exact": false'))
    assert "marks.0.signature: is not that of the other fields" in read_marks(results, None).faults[0]
    (problem,) = found(results)
    assert (problem.file, problem.kind, problem.lost) == ("marks.json", "mark", False)
    marks.write_text(sound)
    file.write_text(file.read_text() + "\n")
    row = board(results).row(OWN)
    assert row is not None and row.apart


@pytest.mark.parametrize("text", ["", "[", "[" * 10_000, '{"marks": [{}]}', '{"marks": 3}', "null", "\udcff"])
def test_marks_that_cannot_be_read_give_none_and_break_nothing(results: Path, text: str) -> None:
    (results / "marks.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    marks = read_marks(results, None)
    assert marks.reproduced == {} and len(marks.faults) == 1 and marks.faults[0].startswith("marks.json: ")
    assert board(results).row("imma-lora") is not None


def protected(record: dict[str, Any], metric: str, value: float) -> None:
    measured = record["fidelity"][metric]
    measured["values"] = [value] * len(measured["values"])
    measured["mean"] = value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ssim@2": 1.0}, "fidelity.ssim@2.values: are exactly 1.0 of pictures that are changed"),
        ({"perceptual@1": 0.0}, "fidelity.perceptual@1.values: are exactly 0.0"),
        ({"linf@1": 0.0}, "fidelity.linf@1: no picture is changed"),
    ],
)
def test_pictures_that_are_changed_and_perfect_are_impossible(
    results: Path, changes: dict[str, float], said: str
) -> None:
    records = lines(results, "noise@1.jsonl")
    for record in records:
        for metric, value in changes.items():
            protected(record, metric, value)
        if "linf@1" in changes:
            lower(record)
    write(results, "noise@1.jsonl", records)
    assert {p.kind for p in found(results)} == {"impossible"} and said in found(results)[0].message


def test_an_attestation_counts_the_pictures_that_were_scored(results: Path) -> None:
    def attested(record: dict[str, Any]) -> None:
        record["attestation"] = {"files": {}, "boxes": {}, "prompts": 12, "pictures": 24}

    hand_in(results, attested)
    assert "n: is 12, and the record rests on 24 pictures" in found(results)[0].message
