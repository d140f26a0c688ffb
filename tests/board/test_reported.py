"""Published figures: complete, sourced, honest about what nobody has checked, and apart from measured ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from immunebench.board.loading.reported import Reported, figures, of_method, reported_table
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from immunebench.declared.schema import load

FILE = Path(__file__).parents[2] / "leaderboard" / "reported.toml"

SMALL = """\
[sources.paper]
title = "A | paper"
url = "arXiv:2311.18815"
[[tables]]
measured = "what"
source = "paper"
place = "Table 1"
certainty = ["{certainty}"]
base = "SD"
metrics = [{{ name = "SGR", unit = "%", better = "higher" }}]
rows = [{{ method = "IMMA", setting = "a|b", values = [{values}] }}, {{ method = "ESD", values = [2.5] }}]
"""


def small(tmp_path: Path, certainty: str = "abstract", values: str = "17.60") -> Path:
    path = tmp_path / "reported.toml"
    path.write_text(SMALL.format(certainty=certainty, values=values))
    return path


def test_the_published_figures_are_whole() -> None:
    found = figures(FILE)
    imma = {(f.setting, f.metric): (f.value, f.unit) for f in of_method(found, "imma")}
    assert imma["Van Gogh", "SGR, LPIPS"] == (17.61, "%")
    assert imma["Kilian Eng", "SGR, DINO"] == (25.73, "%")
    cloak = {(f.setting, f.metric): f.value for f in of_method(found, "MetaCloak")}
    assert cloak["budget 12 of 255", "IMS, VGG-Face"] == -0.42
    assert all(f.method and f.measured and f.base and f.source and f.place and f.certainty for f in found)
    reported = load(FILE, Reported)
    assert {block.source for block in reported.tables} == set(reported.sources), "no source without a figure"


def test_a_table_keeps_the_digits_and_says_source_and_certainty(tmp_path: Path) -> None:
    text = reported_table(figures(small(tmp_path))).markdown()
    assert "| method   | setting   |   SGR % \N{UPWARDS ARROW} |" in text
    assert "17.6 |" in text and " 2.5 |" in text and r"a\|b" in text
    assert "A | paper, Table 1; arXiv:2311.18815; base: SD; abstract" in text
    assert "not comparable with measured P, not ranked" in text


def test_what_nobody_checked_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    found = figures(small(tmp_path, certainty="recalled"))
    hidden = reported_table(found)
    assert hidden.sections == () and "2 figures that were not checked" in hidden.text()
    shown = reported_table(found, recalled=True)
    assert [row[0] for row in shown.sections[0].rows] == ["IMMA", "ESD"]
    assert "recalled: from memory" in shown.text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("17.60", "17.60, 3"), "'IMMA' has 2 values for 1 metrics"),
        (("17.60", "nan"), "finite number"),
        (("17.60", '"17.6"'), "valid number"),
        (('"abstract"', '"abstrct"'), r"nearest: 'abstract'"),
        (('source = "paper"', 'source = "papers"'), r"source 'papers' is none of paper"),
        (("arXiv:2311.18815", "javascript:alert(1)"), r"sources.paper.url"),
        (("place =", 'plce = "x"\nplace ='), r"nearest: 'place'"),
        (("base =", "#"), "base: is required and missing"),
    ],
)
def test_a_wrong_file_names_the_field(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    path = small(tmp_path)
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(UsageError, match=said) as caught:
        figures(path)
    assert "reported.toml" in str(caught.value)


def test_the_command_prints_one_method(tmp_path: Path) -> None:
    small(tmp_path)
    shown = CliRunner().invoke(cli.app, ["reported", "--method", "esd", "--leaderboard", str(tmp_path)])
    assert shown.exit_code == 0 and "ESD" in shown.stdout and "IMMA" not in shown.stdout
    wrong = CliRunner().invoke(cli.app, ["reported", "--method", "ESX", "--leaderboard", str(tmp_path)])
    assert isinstance(wrong.exception, UsageError) and "nearest: 'ESD'" in str(wrong.exception)
