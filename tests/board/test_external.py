"""External evaluations stand beside the score, are held to their form, and move nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import synthetic
from immunebench.board.assembly.scored import score_folder
from immunebench.board.loading.external import read_external
from immunebench.board.tables.layout import markdown
from immunebench.submission.check import check
from synthetic import record

SOUND = """\
id = "doe-2027"
suite = "tiny"
suite_version = "1.0"
defense = "shield"
defense_version = 1
a = 0.02
tasks = ["style-a"]
attack = "A rate that grows whenever the loss stalls"
threat_model = "Knows the method"
authors = ["J. Doe", "R. Roe"]
source = "https://example.org/paper"
published = "2027-02-01"
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = synthetic.write(tmp_path / "results" / "tiny", [record("none"), record("shield", 0.5)])
    (tmp_path / "results" / "external").mkdir()
    return folder


def hand_in(results: Path, text: str, name: str = "doe-2027") -> Path:
    file = results.parent / "external" / f"{name}.toml"
    file.write_text(text)
    return file


def test_it_is_shown_beside_the_score_and_enters_no_row(results: Path) -> None:
    before = score_folder(results).board
    hand_in(results, SOUND)
    made = score_folder(results).board
    assert [(row.defense, row.a, row.rank) for row in made.rows] == [(r.defense, r.a, r.rank) for r in before.rows]
    page = markdown(made, "t")
    assert "## Best known attacks" in page and "https://example.org/paper" in page and "J. Doe et al." in page
    hand_in(results, SOUND.replace("defense_version = 1", "defense_version = 2"))
    assert "Best known attacks" not in markdown(score_folder(results).board, "t"), "of another version"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("a = 0.02", "a = nan", "a: "),
        ("a = 0.02", "a = 7.0", "a: "),
        ("https://", "javascript://", "source: "),
        ("2027-02-01", "soon", "published: "),
        ("Knows the method", "Knows\\u001b[2J", "threat_model: "),
        ('id = "doe-2027"', 'id = "roe-2027"', "must equal the file's name"),
        ("[", "[" * 5000, "cannot be read"),
    ],
)
def test_a_wrong_one_is_named_and_the_board_stands(results: Path, old: str, new: str, said: str) -> None:
    file = hand_in(results, SOUND.replace(old, new))
    sound, (error,) = read_external(results.parent)
    assert sound == [] and said in str(error) and str(file) in str(error)
    scored = score_folder(results)
    assert scored.board.external == () and any(problem.kind == "mark" for problem in scored.problems)
    assert "external" in {one.code for one in check(results.parent / "external")}


def test_names_that_the_catalogue_lacks_are_findings(results: Path) -> None:
    hand_in(results, SOUND)
    said = {one.message.partition(":")[0] for one in check(results.parent / "external")}
    assert said == {"suite", "defense", "tasks"}
