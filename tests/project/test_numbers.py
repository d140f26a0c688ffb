"""The numbers of the README are those of the committed records."""

from __future__ import annotations

from pathlib import Path

import pytest

from immunebench.board.assembly.scored import score_folder
from immunebench.board.scores.model import Board
from immunebench.board.tables.columns import columns
from immunebench.board.tables.finding import finding

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
#: Columns of the README's table, by the keys of the board's columns.
COLUMNS = {"A": "a", "W": "work", "P(1/8)": "p_at.1/8", "P(1)": "p_at.1", "P(2)": "p_at.2", "U": "u"}


def board(suite: str) -> Board:
    scored = score_folder(ROOT / "results" / suite).board
    assert scored is not None
    return scored


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
    measured, shown = board(suite), {row["defense"]: row for row in table(f"[`{suite}`]")}
    by_key = {column.key: column for column in columns(measured)}
    assert list(shown) == [f"{row.defense}@{row.version}" for row in measured.rows]
    for row in measured.rows:
        found = shown[f"{row.defense}@{row.version}"]
        assert {head: found[head] for head in COLUMNS} == {head: by_key[key].text(row) for head, key in COLUMNS.items()}
        interval = "-" if row.a_interval is None else "{:.2f} to {:.2f}".format(*row.a_interval)
        assert found["95 %"] == interval


@pytest.mark.parametrize("suite", ["mini-core"])
def test_the_sentence_in_the_readme_is_the_boards(suite: str) -> None:
    quoted = " ".join(line.removeprefix(">") for line in README.splitlines() if line.startswith(">"))
    assert finding(board(suite)) in " ".join(quoted.split())
