"""The numbers of the README are those of the committed records."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

import immunebench
from immunebench.board.assembly.scored import score_folder
from immunebench.board.tables.finding import finding

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
#: Columns of the README's table, as `immunebench.scores` calls them.
COLUMNS = {"A": "a", "W": "work", "P(1/8)": "p_at.1/8", "P(1)": "p_at.1", "P(2)": "p_at.2", "U": "u"}


def table(heading: str) -> list[dict[str, str]]:
    """Rows of the first table below a text, by the names of their columns."""
    lines = iter(README[README.index(heading) :].splitlines())
    rows = [next(line for line in lines if line.startswith("| defense"))]
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(line)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


@pytest.mark.parametrize("suite", ["mini-core"])
def test_the_board_in_the_readme_is_that_of_the_records(suite: str) -> None:
    scores = immunebench.scores(suite, results=ROOT / "results").set_index("defense")
    shown = table(f"[`{suite}`]")
    assert [row["defense"].partition("@")[0] for row in shown] == list(scores.index)
    for row in shown:
        name, _, version = row["defense"].partition("@")
        measured = scores.loc[name]
        assert int(version) == measured["version"]
        for head, column in COLUMNS.items():
            text, value = row.get(head, "-"), measured[column]
            if text.startswith(">") or text == "-":
                assert pd.isna(value) or head not in row, (name, head)
            else:
                assert float(text) == pytest.approx(value, abs=0.00501), (name, head)


@pytest.mark.parametrize("suite", ["mini-core"])
def test_the_sentence_in_the_readme_is_the_boards(suite: str) -> None:
    board = score_folder(ROOT / "results" / suite).board
    assert board is not None
    quoted = " ".join(re.sub(r"^> ?", "", line) for line in README.splitlines() if line.startswith(">"))
    assert finding(board) in " ".join(quoted.split())
