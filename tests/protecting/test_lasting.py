"""What is said of how long a protection lasts comes from records, frozen boards and published figures alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import made_up
from immunebench.catalog.loading import default_catalog
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from immunebench.protecting import lasting, pages, wording
from immunebench.protecting.lasting import Known, Standing
from immunebench.records.files import write_records

ROOT = Path(__file__).parents[2]


def known(defense: str, results: Path, leaderboard: Path) -> Known:
    catalog = default_catalog()
    return lasting.known(catalog.defenses[defense], catalog, results, leaderboard)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board on which `glaze-open` prevents four fifths against an attack alone, and nothing after cleaning."""
    prevented = {"lora": 0.8, "dreambooth": 0.8, "jpeg50+lora": 0.0}
    own = made_up.strength
    monkeypatch.setattr(
        made_up, "strength",
        lambda defense, task, chain: prevented[chain] if defense == "glaze-open" else own(defense, task, chain),
    )  # fmt: skip
    for defense in ("glaze-open", *made_up.CONTROLS):
        records = [made_up.record(defense, task, chain) for task in made_up.TASKS for chain in prevented]
        version = records[0].cell.defense_version
        write_records(tmp_path / "results/toy" / f"{defense}@{version}.jsonl", records)
    return tmp_path / "results"


def test_a_board_says_what_cleaning_leaves(results: Path, tmp_path: Path) -> None:
    found = known("glaze-open", results, tmp_path / "none")
    (standing,) = found.standings
    assert standing.board.startswith("toy@") and standing.measure == "A"
    assert standing.alone["lora"] == pytest.approx(0.8, abs=0.02) and standing.cleaned["jpeg50+lora"] < 0.05
    assert standing.value < 0.05, "the strongest attack cleans first"
    text = " ".join(wording.paragraphs(found))
    assert "Warning: cleaning the pictures undoes it: jpeg50+lora leaves 0.00 of 0.80" in text
    assert "No board here has it against an attacker who has clean pictures too." in text
    assert "Others report" not in text


def test_a_board_that_cannot_be_read_is_named_and_others_are_read(results: Path, tmp_path: Path) -> None:
    (results / "broken").mkdir()
    (results / "broken/glaze-open@1.jsonl").write_text("no record\n")
    found = known("glaze-open", results, tmp_path / "none")
    assert len(found.standings) == 1 and found.unread[0].startswith("broken: ")
    assert wording.paragraphs(found)[-1].startswith("Not read: broken: ")


def test_nothing_known_is_said_as_such(tmp_path: Path) -> None:
    found = known("mist", tmp_path / "results", tmp_path / "leaderboard")
    assert found == Known("mist", (), (), ())
    texts = wording.paragraphs(found)
    assert texts[0] == "How long this lasts is not known: no board here has a row of mist."
    assert "Pictures that are public already stay as they are" in texts[-1]


def test_a_release_is_read_to_its_shares_of_clean_pictures() -> None:
    found = known("mist-16", ROOT / "nowhere", ROOT / "leaderboard")
    mixed = next(s for s in found.standings if s.board == "mini-mixed@1.0 of release 2026.0-world1")
    frozen = json.loads((ROOT / "leaderboard/releases/2026.0-world1/mini-mixed/board.json").read_text())
    scores = {s["clean"]: s["p"] for s in frozen["settings"] if s["defense"] == "mist-16"}
    assert mixed.clean == {share: scores[share] for share in (25, 50, 75, 100)}
    (row,) = (row for row in frozen["rows"] if row["defense"] == "mist-16")
    assert (mixed.measure, mixed.value) == ("P", row["p"]) and mixed.embedded
    assert "64-pixel drawings" in wording.paragraphs(found)[0]


def test_figures_of_others_are_matched_by_name_and_the_unchecked_are_left_out() -> None:
    catalog, board = default_catalog(), ROOT / "leaderboard"
    of = {name: known(name, ROOT / "nowhere", board).of_it for name in ("mist-16", "mist-semantic", "glaze-open")}
    assert {name for figure in of["mist-16"] for name in figure.methods} == {"mist"}
    assert {name for figure in of["mist-semantic"] for name in figure.methods} == {"advdm"}
    assert not of["glaze-open"], "an open implementation is not the closed program"
    (general,) = known("mist", ROOT / "nowhere", board).of_its_kind
    assert general.methods == ("glaze", "mist", "anti-dreambooth") and general.value == "more than 40"
    assert lasting.names(catalog.defenses["aspl-16"]) >= {"aspl", "anti-dreambooth"}


def standing(value: float, clean: dict[int, float]) -> Standing:
    return Standing("mist", "toy@1.0", ("sd14",), False, "A", value, None, "2.00", {"lora": value}, {}, clean)


def test_clean_pictures_that_undo_it_are_said_and_all_clean_ones_are_no_finding() -> None:
    undone = wording.paragraphs(Known("mist", (standing(0.6, {25: 0.2, 100: 0.0}),), (), ()))[1]
    assert "clean pictures undo it: 25 % of them leave 0.20 of 0.60" in undone
    kept = wording.paragraphs(Known("mist", (standing(0.6, {25: 0.5, 100: 0.0}),), (), ()))
    assert "undo it" not in kept[1] and "64-pixel" not in kept[0] and "W 2.00" in kept[0]


def test_what_hardly_protects_is_called_so() -> None:
    texts = wording.paragraphs(Known("mist", (standing(0.04, {}),), (), ()))
    assert "prevent more than 0.04 of what is learned; by these records it hardly protects" in texts[1]


def test_the_page_has_the_tables_that_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs/protecting.md"
    copy = Path(shutil.copy(page, tmp_path))
    (tmp_path / "leaderboard").symlink_to(ROOT / "leaderboard")
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["protect", "--known", "--page", str(copy)])
    assert done.exit_code == 0, done.output
    how = "made again by: immunebench protect --known --page docs/protecting.md"
    assert pages.block(copy) == pages.block(page), how
    assert copy.read_text() == page.read_text(), how


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("no marks")
    with pytest.raises(UsageError, match="lacks the marks"):
        pages.write(tmp_path / "page.md", "x")
