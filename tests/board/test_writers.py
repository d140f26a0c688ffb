"""The files of a board say the same numbers, and no text breaks them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

import made_up
from immunebench.board.scores.curves import TaskArea
from immunebench.board.scores.model import AreaScore, Board, BoardError, Power, Row, TaskScore, TaskUtility
from immunebench.board.scores.work import Work
from immunebench.board.tables.finding import finding
from immunebench.board.tables.json_document import BoardDocument, json_schema, schema_text
from immunebench.board.tables.layout import markdown, terminal
from immunebench.board.tables.writers import to_csv, to_json, to_latex, write_files
from immunebench.board.text import latex, latex_escape, shorten, slug, visible
from immunebench.records.record import Measured, Record, Score

ROOT = Path(__file__).parents[2]


def area(a: float = 0.4249, **changes: Any) -> AreaScore:
    """A that nobody computed; the attacker needs 1.5 times the steps."""
    strongest = {"style-a": "dreambooth", "object-b": "dreambooth", "object-c": "lora"}
    tasks = tuple(TaskArea(t, t.split("-")[0], a, "lora", chain, {1.0: a}) for t, chain in strongest.items())
    base = AreaScore(
        a=a,
        interval=(0.351, 0.498),
        family={"object": 0.3, "style": 0.55},
        chain={"dreambooth": 0.42, "lora": 0.8},
        p={1.0: 0.37, 2.0: 0.22},
        work=Work((1.5, 1.5), 8.0, 3, (0.5, math.inf)),
        work_80=Work((4.0, math.inf), 4.0, 3),
        tasks=tasks,
        family_interval={"style": (0.45, 0.65)},
        matched=0.8,
    )
    return dataclasses.replace(base, **changes)


def row(defense: str = "shield", **changes: Any) -> Row:
    """A row whose numbers nobody computed."""
    base = Row(
        defense=defense,
        version=2,
        kind="model",
        p=0.39,
        sgr=0.21,
        u_gen=0.97,
        u_ben=0.913,
        fidelity=None,
        u=0.913,
        seconds=123.46,
        scores=(
            TaskScore("style-a", "style", "lora", "ok", p_raw=0.8, p=0.8, a=0.8),
            TaskScore("object-b", "object", "lora", "attack failed", p_raw=0.0, p=0.0, reason="oom"),
        ),
        utilities=(TaskUtility("style-a", 0.97, 0.913, None, 0.913),),
        incomplete=(),
        flags=(),
        u_interval=(0.88, 0.94),
        rank=1,
        track="model",
        area=area(),
    )
    return dataclasses.replace(base, **changes)


def board(*rows: Row) -> Board:
    power = (
        Power("style-a", "style", "lora", 0.1, 0.9, 0.01, informative=True, curve={60: 0.5, 120: 0.9}),
        Power("object-b", "object", "dreambooth", 0.1, 0.2, float("inf"), informative=False),
    )
    rows = rows or (
        row(),
        row("armour", area=area(0.1), rank=2),
        row("none", kind="control", area=area(0.0, tasks=()), rank=None),
    )
    return Board(rows, power, 0.03, (), ("2 informative tasks, 1 seed: no interval, no ranks",), 0.07, "toy", ("k@1",))


def test_one_number_reads_the_same_in_every_format() -> None:
    shown = board()
    in_csv = {line["defense"]: line for line in csv.DictReader(io.StringIO(to_csv(shown)))}
    in_json = {line["defense"]: line for line in json.loads(to_json(shown))["rows"]}
    for name, a, u in (("shield", 0.4249, 0.913), ("armour", 0.1, 0.913), ("none", 0.0, 0.913)):
        assert (float(in_csv[name]["a"]), float(in_csv[name]["u"])) == (a, u)
        assert (in_json[name]["a"], in_json[name]["u"]) == (a, u)
    assert float(in_csv["shield"]["a.low"]) == in_json["shield"]["a_interval"][0] == 0.351
    assert float(in_csv["shield"]["work"]) == in_json["shield"]["area"]["work"]["low"] == 1.5
    assert in_json["shield"]["area"]["work"]["interval"] == [0.5, None], "an end that was not seen"
    assert (in_csv["shield"]["work.low"], in_csv["shield"]["work.high"]) == ("0.5", "inf")
    assert in_csv["shield"]["work_80"] == "", "only a bound is known"
    assert in_json["shield"]["area"]["work_80"]["low"] == 4.0
    page = markdown(shown, "toy")
    assert "1.50 [0.50, inf]" in page and ">4.00" in page
    assert float(in_csv["shield"]["p_at.2"]) == in_json["shield"]["area"]["p"]["2"] == 0.22
    assert (
        float(in_csv["shield"]["a_family.style.high"])
        == in_json["shield"]["area"]["family_interval"]["style"][1]
        == 0.65
    )
    assert in_csv["shield"]["fidelity"] == "" and in_json["shield"]["fidelity"] is None
    assert in_csv["shield"]["strongest_attack"] == "dreambooth (2); lora (1)"
    tex = next(line for line in to_latex(shown).splitlines() if "shield" in line)
    head = next(line for line in markdown(shown, "t").splitlines() if "defense |" in line)
    md = next(line for line in markdown(shown, "t").splitlines() if "| shield@2 " in line or "|  shield@2 " in line)
    assert r"\textbf{0.42} {\scriptsize [0.35, 0.50]} & 1.50 {\scriptsize [0.50, inf]} & 0.91 {\scriptsize [0.88" in tex
    cells = dict(zip([c.strip() for c in head.split("|")], [c.strip() for c in md.split("|")], strict=True))
    assert [cells[c] for c in ("A", "95 %", "W", "P(1)", "P(2)", "U")] == [
        "0.42",
        "0.35 to 0.50",
        "1.50",
        "0.37",
        "0.22",
        "0.91",
    ]
    assert "& 123.5 &" in tex
    assert r"0.30 & 0.55 {\scriptsize [0.45, 0.65]} & 0.42 & 0.80 &" in to_latex(shown), "by family, then by chain"


def changed(name: str, linf: float, kind: str = "data", p: float = 0.5) -> list[Record]:
    """Records of an entry that changes pictures by `linf` of 255 and stops `p`, less where pictures are cleaned."""
    made = []
    for at, task in enumerate(made_up.TASKS):
        for chain in ("lora", "jpeg50+lora"):
            one = made_up.record(name, task, chain)
            part = p + 0.02 * (at % 2) - 0.2 * (chain != "lora")
            cell = one.cell.model_copy(
                update={"defense_kind": kind, "hooks": ("protect_images",), "budget": 255, "defense_title": name}
            )
            values = tuple(0.9 - 0.8 * part + x for x in (-0.02, 0.02))
            score = Score(values=values, n=2, mean=0.9 - 0.8 * part, per_step={120: 0.9 - 0.8 * part})
            measures = {"linf@1": linf, "ssim@1": 1 - linf / 100, "perceptual@1": linf / 50}
            fidelity = {metric: Measured(values=(v,), n=1, mean=v) for metric, v in measures.items()}
            made.append(one.model_copy(update={"cell": cell, "fidelity": fidelity, "scores": {one.metric: score}}))
    return made


def test_entries_that_change_pictures_are_ranked_in_their_budget_class_with_their_changes_beside() -> None:
    none = [made_up.record("none", task, chain) for task in made_up.TASKS for chain in ("lora", "jpeg50+lora")]
    entries = [("d4", 4.0, "data", 0.4), ("d8", 8.0, "data", 0.5), ("d8-less", 7.0, "data", 0.3)]
    entries += [("d16", 16.0, "data", 0.8), ("far", 40.0, "data", 0.9), ("both", 8.0, "layered", 0.6)]
    mixed = made_up.board(none + [one for name, linf, kind, p in entries for one in changed(name, linf, kind, p)])
    lines = {line["defense"]: line for line in csv.DictReader(io.StringIO(to_csv(mixed)))}
    ranks = {name: lines[name]["rank"] for name, *_ in entries}
    assert ranks == {"d4": "1", "d8": "1", "d8-less": "2", "d16": "1", "far": "", "both": "1"}
    assert "no budget class" in lines["far"]["remarks"]
    changes = [float(lines["d8"][f"changes.{name}"]) for name in ("linf", "perceptual", "ssim")]
    assert changes == pytest.approx([8, 0.16, 0.92])
    assert lines["none"]["changes.linf"] == ""
    # what cleaning undoes is a column of its own, and the strongest attack
    assert float(lines["d8"]["a_chain.lora"]) == pytest.approx(0.51)
    assert float(lines["d8"]["a_chain.jpeg50+lora"]) == pytest.approx(float(lines["d8"]["a"])) == pytest.approx(0.31)
    assert lines["d8"]["strongest_attack"] == "jpeg50+lora (6)"
    assert {league: [row.defense for row in rows] for league, rows in mixed.leagues.items()} == {
        "data, Linf 16": ["d16"],
        "layered, Linf 8": ["both"],
        "data, Linf 8": ["d8", "d8-less"],
        "data, Linf 4": ["d4"],
    }
    said = finding(mixed)
    assert said.startswith("d16 partly stops"), "what changes pictures without bound wins nothing"
    assert "ranked apart: both (layered, Linf 8) 41%, d8 (data, Linf 8) 31%, d4 (data, Linf 4) 21%" in said
    assert "| d8@1 | data, Linf 8 |" in " ".join(markdown(mixed, "t").split())


def test_no_number_is_cut_in_a_narrow_terminal() -> None:
    shown = board(row(), row("a-defense-with-a-name-of-forty-letters-ok", track="layered", badges=("Linf 16",)))
    for width in (200, 125, 80, 60):
        console = Console(width=width, file=io.StringIO())
        console.print(terminal(shown, "t", width))
        text = console.file.getvalue()
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
        assert all(f" {number} " in text for number in ("1", "0.42", "0.91"))
        assert all(head in text for head in ("rank", " A ", " U ", "remarks"))
        assert ("0.35 to 0.50" in text) == (width >= 80) and ("U_gen" in text) == (width == 200)


def test_latex_is_bold_for_tie_group_one_and_sets_apart_what_is_not_ranked() -> None:
    whole = to_latex(board(row(), row("second", rank=2), row("weak", flags=("utility gate",), rank=None)))
    tex, parts = whole.split(r"\end{table}")[:2]
    assert whole.count("{") == whole.count("}") and parts.count("second") == 1
    assert r"\textbf{\texttt{shield}}" in tex
    assert r"\textbf{\texttt{second}}" not in tex
    body = tex.split(r"\midrule")
    assert len(body) == 3 and "weak" in body[2] and "shield" in body[1]
    columns = {line.count("&") for line in tex.splitlines() if line.endswith(r"\\")}
    assert len(columns) == 1, "every line has as many columns"


def test_latex_escapes_every_special_character() -> None:
    assert latex(r"a_b%c&d#e$f{g}h~i^j\k") == (
        r"a\_b\%c\&d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"
    )
    hostile = r"\input{/etc/passwd}%_&" + "\n\n\\end{table}"
    tex = to_latex(board(row(hostile)))
    bare = re.sub(r"\\textbackslash\{\}|\\[{}%_&]", "", tex)
    assert r"\input" not in bare and tex.count(r"\end{table}") == 2
    assert len(latex("x" * 10_000)) <= 160


def test_csv_holds_hostile_text_as_text_and_no_formula() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(board(row('=1+1","'), row("a\nb"), row("r\u202el"))))))
    assert [line["defense"] for line in lines] == ['\'=1+1","', "a\nb", "r<U+202E>l"]
    assert all(line["a"] == "0.4249" for line in lines)


def test_json_follows_the_published_schema() -> None:
    document = json.loads(to_json(board()))
    published = json.loads((ROOT / "leaderboard" / "board.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(document, published)
    assert document["power"][1]["standard_error"] is None, "JSON has no infinity"
    assert BoardDocument.model_validate(document).rows[0].a_interval == (0.351, 0.498)
    del document["rows"][0]["a"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, published)


def test_published_schema_is_the_one_of_the_code() -> None:
    # To renew it: print what immunebench.board.tables.json_document.schema_text() returns, without a line end.
    assert (ROOT / "leaderboard" / "board.schema.json").read_text("utf-8") == schema_text()
    assert set(json_schema()["properties"]) >= {"rows", "power", "finding", "keys"}


def test_nothing_is_written_of_a_board_with_a_misbehaving_control(tmp_path: Path) -> None:
    bad = dataclasses.replace(board(), refusals=("destroy: U is 1.000",))
    with pytest.raises(BoardError, match=r"destroy: U is 1\.000"):
        write_files(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_measured_records_are_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    made = made_up.records(tasks=made_up.TASKS[:2])
    one = write_files(made_up.board(made), tmp_path / "a", "toy")
    two = write_files(made_up.board(made[::-1]), tmp_path / "b", "toy")
    assert [path.name for path in one] == ["board.csv", "board.json", "board.tex"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_names_of_files_are_plain_and_differ_where_names_differ() -> None:
    assert slug("imma-lora") == "imma-lora"
    hostile = ["..", "../x", "a/b", "a b", "A-b", "a--b", "", "\u202e", "jpeg50+lora", "x" * 10_000, "con.", "-"]
    slugs = [slug(name) for name in hostile]
    assert len(set(slugs)) == len(hostile)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) and len(name) <= 64 for name in slugs)


def test_hidden_characters_are_shown() -> None:
    assert visible("a\u202eb\u2069c\x00d\u200f") == "a<U+202E>b<U+2069>c<U+0000>d<U+200F>"
    assert visible("Émile \N{HEBREW LETTER ALEF}\n") == "Émile \N{HEBREW LETTER ALEF}\n"
    assert shorten("x" * 200, 10) == "x" * 9 + "…"


def test_what_pdflatex_cannot_set_stands_as_its_number() -> None:
    assert latex_escape("Zoë Łuk\u202e \u6f22") == r"Zoë Łuk \texttt{U+6F22}".replace("Łuk ", "Łuk  ")
    assert latex("\u0105_x") == r"\texttt{U+0105}\_x"
