"""Releases: same bytes twice, never half, never changed, and nothing broken in them."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from test_cite import CFF
from typer.testing import CliRunner, Result

import synthetic
from immunebench.board.assembly.scored import score_folder
from immunebench.board.release import release
from immunebench.board.release.snapshot import take
from immunebench.board.scores.model import BoardError
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from synthetic import record

ROOT = Path(__file__).parents[2]
WORLD1 = ROOT / "tests/fixtures/world1/mini-lite"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rules, citation file and results of one suite."""
    (tmp_path / "leaderboard").mkdir()
    (tmp_path / "leaderboard" / "rules.md").write_text("the rules\n")
    (tmp_path / "CITATION.cff").write_text(CFF)
    late = record("imma-lora", 0.5, created="2026-05-06T07:08:09+00:00")
    synthetic.write(tmp_path / "results" / "tiny", [record("none"), late])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def frozen(place: Path, name: str = "2026.1") -> Path:
    return place / "leaderboard" / "releases" / name


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_release_holds_boards_digests_rules_and_checksums(place: Path) -> None:
    done = call("release", "2026.1")
    assert done.exit_code == 0, done.output
    assert "missing: tiny: controls not on this board: none-replicate" in done.stdout
    files = bytes_of(frozen(place))
    expected = {
        "release.json",
        "rules.md",
        "SHA256SUMS",
        *(f"tiny/{n}" for n in ("board.md", "board.csv", "board.json", "board.tex", "snapshot.json")),
    }
    assert files.keys() == expected
    assert files["rules.md"] == b"the rules\n"
    sums = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
    assert sums == {n: hashlib.sha256(c).hexdigest() for n, c in files.items() if n != "SHA256SUMS"}
    snapshot = json.loads(files["tiny/snapshot.json"])
    assert snapshot["records"].keys() == {"none@1 style-a/none/lora/cpu/0", "imma-lora@1 style-a/imma-lora/lora/cpu/0"}
    rows = list(csv.DictReader(files["tiny/board.csv"].decode().splitlines()))
    assert [(row["defense"], row["p"]) for row in rows] == [("imma-lora", "0.5"), ("none", "0.0")]
    assert "| imma-lora@1 |" in files["tiny/board.md"].decode()
    manifest = json.loads(files["release.json"])
    assert (manifest["created"], manifest["id"]) == ("2026-05-06T07:08:09+00:00", "2026.1")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_usual_tool_verifies_the_checksums(place: Path) -> None:
    call("release", "2026.1")
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=frozen(place), check=False)
    assert done.returncode == 0


def test_two_makings_give_the_same_bytes(place: Path) -> None:
    call("release", "2026.1")
    first = bytes_of(frozen(place))
    shutil.rmtree(frozen(place))
    lines = (place / "results" / "tiny" / "none@1.jsonl").read_text()
    (place / "results" / "tiny" / "none@1.jsonl").write_text("\n" + lines.replace(",", ", "))
    call("release", "2026.1")
    assert bytes_of(frozen(place)) == first, "how a line was spelt is no part of a release"


def test_the_date_can_be_said(place: Path) -> None:
    assert call("release", "a", "--created", "2027-01-02").exit_code == 0
    assert json.loads((frozen(place, "a") / "release.json").read_text())["created"] == "2027-01-02"
    result = call("release", "b", "--created", "tomorrow")
    assert isinstance(result.exception, UsageError) and "--created" in str(result.exception)


def test_files_are_frozen_beside_the_boards(place: Path) -> None:
    (place / "README.md").write_text("what this is\n")
    assert call("release", "2026.1", "--add", "README.md").exit_code == 0
    assert bytes_of(frozen(place))["README.md"] == b"what this is\n"
    assert "tiny" in release.read("2026.1", place / "leaderboard")[1], "the checksums hold it too"


@pytest.mark.parametrize(
    ("name", "said"), [("rules.md", "another file"), ("SHA256SUMS", "another file"), ("tiny", "another file"),
                       ("nowhere.md", "cannot be read")],
)  # fmt: skip
def test_a_file_that_cannot_be_frozen_stops_the_release(place: Path, name: str, said: str) -> None:
    if name != "nowhere.md":
        (place / "more").mkdir()
        (place / "more" / name).write_text("x")
    result = call("release", "2026.1", "--add", f"more/{name}")
    assert isinstance(result.exception, UsageError) and said in str(result.exception)
    assert not (place / "leaderboard" / "releases").exists()


@pytest.mark.parametrize("name", ["", "..", ".a", "a..b", "a.", "a/b", "../x", "/tmp/x", "a b", "-a", "a\n", "x" * 65])
def test_an_unsafe_id_is_refused(place: Path, name: str) -> None:
    with pytest.raises(UsageError, match="make an id"):
        release.make(name, place / "results", place / "leaderboard")
    assert not (place / "leaderboard" / "releases").exists()


def test_a_release_is_never_changed(place: Path) -> None:
    call("release", "2026.1")
    before = bytes_of(frozen(place))
    synthetic.write(place / "results" / "tiny", [record("shield", 0.3)])
    result = call("release", "2026.1")
    assert isinstance(result.exception, UsageError) and "never changed" in str(result.exception)
    assert bytes_of(frozen(place)) == before


def refused(place: Path) -> str:
    result = call("release", "2026.1")
    assert result.exit_code == 1
    releases = place / "leaderboard" / "releases"
    assert not releases.exists() or not list(releases.iterdir()), "nothing is left behind"
    return result.stderr


def test_a_misbehaving_control_stops_the_release(place: Path) -> None:
    synthetic.write(place / "results" / "tiny", [record("destroy", 0.9)])
    said = refused(place)
    assert "tiny: the board is not rendered" in said and "destroy: U is 1.000" in said and "--suite" in said


def test_a_folder_of_tries_is_left_out_where_suites_are_named(place: Path) -> None:
    synthetic.write(place / "results" / "try", [record("none"), record("destroy", 0.9)])
    assert "destroy: U is 1.000" in refused(place)
    done = call("release", "2026.1", "--suite", "tiny")
    assert done.exit_code == 0 and "missing: try: left out" in done.stdout
    assert not (frozen(place) / "try").exists()
    wrong = call("release", "2026.2", "--suite", "tini")
    assert isinstance(wrong.exception, UsageError) and "(nearest: 'tiny')" in str(wrong.exception)


def test_every_broken_record_stops_the_release_and_is_named(place: Path) -> None:
    with (place / "results" / "tiny" / "none@1.jsonl").open("a") as stream:
        stream.write("{}\n[]\n")
    (place / "results" / "empty").mkdir()
    (place / "results" / "empty" / "x@1.jsonl").write_text("")
    said = refused(place)
    assert "tiny/none@1.jsonl:2: field" in said and "tiny/none@1.jsonl:3: field" in said
    assert "empty/.: empty: there is no usable record" in said


def test_a_missing_contact_sheet_stops_the_release(place: Path) -> None:
    sheet = {"file": "sheets/a.png", "sha256": hashlib.sha256(b"png").hexdigest()}
    synthetic.write(place / "results" / "tiny", [record("imma-lora", 0.5, sheet=sheet)])
    assert "imma-lora@1.jsonl:1: sheet" in refused(place)
    (place / "results" / "tiny" / "sheets").mkdir()
    (place / "results" / "tiny" / "sheets" / "a.png").write_bytes(b"png")
    assert call("release", "2026.1").exit_code == 0


def test_what_is_no_suite_is_left_out_and_said(place: Path) -> None:
    (place / "results" / "notes").mkdir()
    synthetic.write(place / "results" / "copy", [record("none")])
    done = call("release", "2026.1")
    assert done.exit_code == 0
    assert "missing: notes: no records" in done.stdout
    assert "missing: copy: left out, for it holds records of tiny@1.0" in done.stdout
    assert not (frozen(place) / "copy").exists()


def test_nothing_to_release_is_a_refusal(place: Path) -> None:
    shutil.rmtree(place / "results" / "tiny")
    assert "no results" in refused(place)


def test_a_number_of_a_release_stands_whatever_results_become(place: Path) -> None:
    call("release", "2026.1")
    shown = call("cite", "--release", "2026.1", "--defense", "imma-lora")
    line = shown.stdout.splitlines()[0].removeprefix("% ")
    assert "release=2026.1@" in line and "@misc{immunebench-2026.1," in shown.stdout
    synthetic.write(place / "results" / "tiny", [record("imma-lora", 0.9)])
    (place / "leaderboard" / "rules.md").write_text("other rules\n")
    assert call("cite", "--check", line).exit_code == 0
    forged = call("cite", "--check", line.replace("0.5000", "0.9000"))
    assert forged.exit_code == 1 and "number differs" in forged.stdout


@pytest.mark.parametrize("harm", ["change", "remove", "add", "link"])
def test_a_release_that_was_touched_is_not_read(place: Path, harm: str) -> None:
    call("release", "2026.1")
    board = frozen(place) / "tiny" / "snapshot.json"
    if harm == "change":
        board.write_text(board.read_text().replace("0.5", "0.9"))
    elif harm == "add":
        (frozen(place) / "tiny" / "more.json").write_text("{}")
    else:
        moved = board.rename(place / "elsewhere.json")
        if harm == "link":
            board.symlink_to(moved)
    with pytest.raises(BoardError, match=r"not what was frozen: tiny/"):
        release.read("2026.1", place / "leaderboard")
    assert call("cite", "--release", "2026.1").exit_code == 1


def test_a_release_made_anew_under_the_same_name_is_noticed(place: Path) -> None:
    call("release", "2026.1")
    line = call("cite", "--release", "2026.1").stdout.splitlines()[0].removeprefix("% ")
    shutil.rmtree(frozen(place))
    call("release", "2026.1", "--created", "2026-12-31")
    checked = call("cite", "--check", line)
    assert checked.exit_code == 1 and "release changed: 2026.1" in checked.stdout


def test_the_frozen_boards_are_what_was_frozen() -> None:
    found = release.names(ROOT / "leaderboard")
    assert "2026.0-world1" in found
    for name in found:
        release.read(name, ROOT / "leaderboard")


def test_records_of_world_1_still_give_its_frozen_numbers() -> None:
    frozen = release.read("2026.0-world1", ROOT / "leaderboard")[1]["mini-lite"]
    scored = score_folder(WORLD1)
    assert scored.problems == () and scored.board.refusals == ()
    assert {"none", "none-replicate", "imma-lora", "destroy"} == {row.defense for row in scored.board.rows}
    now = take(scored, frozen.rules)
    assert now.records.items() <= frozen.records.items(), "read back to the same digests"
    for row in now.rows:
        then = frozen.row(row.name)
        assert row.p == pytest.approx(then.p, abs=1e-12) and row.u == pytest.approx(then.u, abs=1e-12)
    assert now.row("imma-lora").p == pytest.approx(0.0092, abs=5e-5), "0.01 on the frozen board"
