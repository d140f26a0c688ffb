"""Citations: what is printed can be read back, and a number is held to what it was made of."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import synthetic
from immunebench.board.assembly.scored import score_folder
from immunebench.board.release import references
from immunebench.board.release.cite import latex
from immunebench.board.release.provenance import Claim, Provenance, check, cite_rows, parse
from immunebench.board.release.snapshot import Snapshot, Standing, take
from immunebench.board.text import latex_escape
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from synthetic import record

CFF = """\
cff-version: 1.2.0
title: "ImmuneBench: a benchmark"
authors:
  - name: "ImmuneBench developers"
  - family-names: "O'Neil & Co"
    given-names: "Ann"
version: 0.1.0
date-released: 2026-03-04
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rules, citation file and results: imma-lora stops half of lora, and a control fails."""
    (tmp_path / "leaderboard").mkdir()
    (tmp_path / "leaderboard" / "rules.md").write_text("the rules\n")
    (tmp_path / "CITATION.cff").write_text(CFF)
    put(tmp_path, [record("none"), record("imma-lora", 0.5), record("destroy", 0.1, utility=useless())])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def useless() -> dict[str, Any]:
    return {"g": 0.05, "g_base": 0.8, "g0": 0.05, "benign": {"s": 0.1, "floor": 0.1, "ceiling": 0.9}}


def put(place: Path, records: list[Any]) -> None:
    synthetic.write(place / "results" / "tiny", records)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["cite", *arguments])


def line(*arguments: str) -> str:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return str(json.loads(result.stdout)["provenance"])


def test_an_alias_is_cited_as_its_entry() -> None:
    assert line("--defense", "imma") == line("--defense", "imma-lora")


def test_the_number_the_method_and_the_provenance_are_printed() -> None:
    shown = call("--defense", "imma-lora")
    assert shown.exit_code == 0
    assert r"imma-lora@1~\cite{zheng2024imma} & 0.50 & - & 1.00 & lora \\" in shown.stdout
    assert "@inproceedings{zheng2024imma," in shown.stdout and "@inproceedings{hu2022lora," in shown.stdout
    assert shown.stdout.count("@software{immunebench,") == 1
    assert "destroy" not in shown.stdout
    first = shown.stdout.splitlines()[0].removeprefix("% ")
    cited = parse(first)
    assert cited.claims == (Claim("imma-lora", 1, "0.5000"),)
    assert (cited.suite, cited.release) == ("tiny@1.0", None)


def test_a_table_of_all_rows_separates_the_controls() -> None:
    table = json.loads(call("--json").stdout)["table"].splitlines()
    names = [row.split("@")[0] for row in table[2:-2]]
    assert names == [
        r"Defense & $A$ & $W$ & $U$ & Strongest attack \\",
        r"\midrule",
        "imma-lora",
        r"\midrule",
        "none",
        "destroy",
    ]
    for name in ("families", "chains"):
        table = json.loads(call("--json", "--table", name).stdout)["table"].splitlines()
        assert table[2] == {"families": r"Defense & style \\", "chains": r"Defense & lora \\"}[name]
        assert r"imma-lora@1~\cite{zheng2024imma} & 0.50 \\" in table


def test_a_layered_row_cites_the_papers_of_its_layers(place: Path) -> None:
    put(place, [record("esd+imma-lora", 0.5), record("unheard-of+imma-lora", 0.5)])
    shown = call("--defense", "esd+imma-lora").stdout
    assert r"esd+imma-lora@1~\cite{gandikota2023erasing,zheng2024imma} & 0.50" in shown
    assert "@inproceedings{gandikota2023erasing," in shown and "@inproceedings{zheng2024imma," in shown
    assert "% no reference of unheard-of+imma-lora@1 is here" in call("--defense", "unheard-of+imma-lora").stdout


def test_an_interval_is_cited_where_the_board_has_one(place: Path) -> None:
    snapshot = taken(place)
    row = snapshot.row("imma-lora").model_copy(update={"interval": (-0.00001, 0.61239)})
    cited = cite_rows(snapshot, [row])
    assert str(cited.claims[0]) == "0.5000[0.0000,0.6124]"
    assert parse(str(cited)) == cited == parse(f"% {cited}")
    assert r"0.50 {\scriptsize [0.00, 0.61]}" in latex([row], "main", {})
    differences = check(cited, snapshot).differences
    assert differences == ("number differs: A(imma-lora@1) cited 0.5000[0.0000,0.6124], now 0.5000",)


def taken(place: Path) -> Snapshot:
    return take(score_folder(place / "results" / "tiny"), "0" * 64)


def test_an_unchanged_number_stands() -> None:
    checked = call("--check", line())
    assert (checked.exit_code, checked.stdout) == (0, "the number stands\n")


def test_a_changed_number_falls(place: Path) -> None:
    cited = line("--defense", "imma-lora")
    put(place, [record("imma-lora", 0.7)])
    checked = call("--check", cited)
    assert checked.exit_code == 1
    assert "number differs: A(imma-lora@1) cited 0.5000, now 0.2500" in checked.stdout
    assert "record changed" in checked.stdout


def test_a_record_that_changed_without_the_number_is_said(place: Path) -> None:
    cited = line("--defense", "imma-lora")
    put(place, [record("imma-lora", 0.5, code={"version": "9", "commit": None, "dirty": True, "entry_files": {}})])
    checked = json.loads(call("--check", cited, "--json").stdout)
    assert not checked["stands"]
    assert [text.split(":")[0] for text in checked["differences"]] == ["record changed"]


def test_other_rules_are_said(place: Path) -> None:
    cited = line()
    (place / "leaderboard" / "rules.md").write_text("other rules\n")
    checked = call("--check", cited)
    assert checked.exit_code == 1 and "rules changed" in checked.stdout and "number differs" not in checked.stdout


def test_a_new_entry_leaves_the_numbers_of_others(place: Path) -> None:
    cited = line("--defense", "imma-lora")
    put(place, [record("shield", 0.3)])
    checked = call("--check", cited)
    assert checked.exit_code == 0
    assert "the number stands" in checked.stdout and "note: the suite's results changed since" in checked.stdout


def test_a_new_version_of_the_suite_or_the_entry_is_another_number(place: Path) -> None:
    cited = line("--defense", "imma-lora")
    put(place, [record("imma-lora", 0.5, defense_version=2)])
    assert "defense changed: cited imma-lora@1, now imma-lora@2" in call("--check", cited).stdout
    for file in (place / "results" / "tiny").iterdir():
        file.unlink()
    put(place, [record("none", suite_version="2.0"), record("imma-lora", 0.5, suite_version="2.0")])
    assert "suite changed: cited tiny@1.0, now tiny@2.0" in call("--check", cited).stdout
    (place / "results" / "tiny" / "imma-lora@1.jsonl").unlink()
    assert "row missing: imma-lora@1" in call("--check", cited).stdout


def test_a_broken_line_costs_the_number_that_it_belongs_to(place: Path) -> None:
    ours, other = line("--defense", "imma-lora"), line("--defense", "destroy")
    with (place / "results" / "tiny" / "imma-lora@1.jsonl").open("a") as stream:
        stream.write('{"cut')
    checked = call("--check", ours)
    assert checked.exit_code == 1 and "cited 0.5000, now none" in checked.stdout
    assert "imma-lora@1.jsonl:2: truncated" in checked.stderr
    assert call("--check", other).exit_code == 0
    assert call("--defense", "imma-lora").exit_code == 1


def test_a_refused_board_has_no_number_to_cite(place: Path) -> None:
    cited = line("--defense", "imma-lora")
    put(place, [record("destroy", 0.1)])
    shown = call()
    assert shown.exit_code == 1 and "destroy: U is 1.000" in shown.stderr and shown.stdout == ""
    assert "board refused: destroy" in call("--check", cited).stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("immunebench ", ""), "begins with 'immunebench'"),
        (lambda text: text.replace("rules=", "rulez="), "nearest: 'rules'"),
        (lambda text: text.replace("results=", "results=g"), "damaged or repeated part 'results=g"),
        (lambda text: text.replace("0.5000", "0.5"), "damaged or repeated part 'A(imma-lora@1)=0.5'"),
        (lambda text: text.replace(" package=0.1.0", ""), "lacks package"),
        (lambda text: text.replace("A(imma-lora@1)=0.5000 ", ""), "lacks A(defense@version)"),
        (lambda text: text.replace("A(", "A(imma-lora@1)=0.9000 A("), "two scores of one defense"),
        (lambda text: text.replace("tiny@1.0", "tiny"), "damaged or repeated part 'suite=tiny'"),
        (lambda text: "", "begins with 'immunebench'"),
    ],
)
def test_a_damaged_line_is_wrong_use(change: Any, said: str) -> None:
    result = call("--check", change(line("--defense", "imma-lora")))
    assert isinstance(result.exception, UsageError) and said in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--defense", "imma-lore"], "nearest: 'imma-lora'"),
        (["--suite", "tinny"], "nearest: 'tiny'"),
        (["--table", "family"], "nearest: 'families'"),
        (["--release", "2026.1"], "no such release"),
        (["--leaderboard", "nowhere"], "rules.md"),
        (["--check", "immunebench", "--suite", "tiny"], "--suite"),
    ],
)
def test_wrong_use_names_what_is_right(arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert isinstance(result.exception, UsageError) and said in str(result.exception)


UNHURRIED = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SCORES = st.floats(-2, 2).map(lambda x: f"{x:.4f}")


@UNHURRIED
@given(
    st.lists(st.tuples(st.sampled_from(["esd", "imma-lora", "noise-16", "a1-b2-c3"]), SCORES), min_size=1, max_size=4),
    st.one_of(st.none(), st.tuples(SCORES, SCORES)),
    st.one_of(st.none(), st.just("2026.1-a_b@0123456789abcdef")),
)
def test_a_line_is_read_back(scores: list[tuple[str, str]], interval: Any, release: str | None) -> None:
    claims = tuple(Claim(name, at, p, interval) for at, (name, p) in enumerate(dict(scores).items()))
    cited = Provenance("mini-lite@1.0", claims, "a" * 16, "b" * 16, "c" * 16, "0.1.0", release)
    assert parse(str(cited)) == cited
    assert "\n" not in str(cited)


def test_latex_is_escaped() -> None:
    assert latex_escape("50% of a_b & {c} #1 $x$ ~^\\") == (
        r"50\% of a\_b \& \{c\} \#1 \$x\$ \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert latex_escape("a\nb\x1b") == "a b "


@UNHURRIED
@given(st.text())
def test_escaped_text_holds_no_active_character(text: str) -> None:
    left = latex_escape(text)
    for known in ("backslash", "asciitilde", "asciicircum", "less", "greater", "bar"):
        left = left.replace(f"\\text{known}{{}}", "")
    left = re.sub(r"\\texttt\{U\+[0-9A-F]{4,6}\}", "", left)
    for escaped in "&%$#_{}":
        left = left.replace(f"\\{escaped}", "")
    assert not set(left) & set("\\&%$#_{}~^<>|")


def test_bibtex_of_the_suite_comes_from_its_citation_file(place: Path) -> None:
    suite = references.suite_work(place / "CITATION.cff")
    assert references.works(suite, place).keys() == {"immunebench"}
    assert "author  = {{ImmuneBench developers} and O'Neil \\& Co, Ann}," in suite
    assert "title   = {{ImmuneBench}: a benchmark}," in suite
    assert "year    = {2026}," in suite
    (place / "CITATION.cff").write_text("title: x\n")
    with pytest.raises(UsageError, match=r"CITATION.cff: version: is required"):
        references.suite_work(place / "CITATION.cff")


def test_works_are_split_at_their_own_braces() -> None:
    text = "% note\n@misc{a, title = {{X}, @misc{no, }}}\nwords\n@book{b, year = {1}}"
    found = references.works(text, Path("cite.bib"))
    assert found == {"a": "@misc{a, title = {{X}, @misc{no, }}}", "b": "@book{b, year = {1}}"}
    with pytest.raises(UsageError, match="never closed"):
        references.works("@misc{a, title = {x}", Path("cite.bib"))
    with pytest.raises(UsageError, match="key twice: 'a'"):
        references.works("@misc{a,} @misc{a,}", Path("cite.bib"))


def test_an_entry_that_is_not_here_is_said_to_lack_its_reference(place: Path) -> None:
    put(place, [record("shield", 0.3)])
    assert "% no reference of shield@1 is here" in call("--defense", "shield").stdout


def test_citing_needs_no_torch() -> None:
    code = "import sys; from immunebench.cli import main as cli;"
    code += "sys.argv[1:] = ['cite']; cli.app(standalone_mode=False)"
    code += "; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("% immunebench suite=tiny@1.0 "), done.stderr


def test_a_row_without_a_headline_is_cited_as_none(place: Path) -> None:
    row: Standing = taken(place).row("imma-lora").model_copy(update={"a": None, "incomplete": ("x",)})
    assert str(cite_rows(taken(place), [row]).claims[0]) == "none"
    assert "imma-lora@1 & -- & - & 1.00" in latex([row], "main", {})


def test_layers_are_cited_under_their_joined_name(place: Path) -> None:
    put(place, [record("none"), record("esd+imma-lora", 0.5, defense_version=2)])
    printed = call("--suite", "tiny").stdout
    (line,) = (part.lstrip("% ") for part in printed.splitlines() if "suite=tiny@" in part)
    assert "A(esd+imma-lora@2)=0.5000" in line
    assert call("--check", line).exit_code == 0
