"""Read the records of a suite with pandas: P by defense and task, and the board's own columns.

    python examples/read_the_board.py results/mini-lite [--csv board.csv]

A folder of results holds one file a defense and one JSON line a cell. The functions of the board do the scoring; they
need neither torch nor the store, so that anybody can check a published table.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from immunebench.board.assembly.scored import score_folder
from immunebench.board.scores.model import Board
from immunebench.board.tables.writers import to_csv


def records(folder: Path) -> pd.DataFrame:
    """Every record as it was written, one row a cell, nested tables as ``cell.task``, ``utility.g``, ..."""
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text("utf-8").splitlines()]
    return pd.json_normalize([json.loads(line) for line in lines])


def protection_by_task(board: Board) -> pd.DataFrame:
    """A of each defense on each task, under the strongest attack; a gap where nothing can be said."""
    scores = [
        {"defense": row.defense, "task": task.task, "A": task.area}
        for row in board.rows
        if row.area is not None
        for task in row.area.tasks
    ]
    return pd.DataFrame(scores).pivot_table(index="defense", columns="task", values="A")


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Print three tables of a folder; return that of A by defense and task."""
    parser = argparse.ArgumentParser(description="A by defense and task of a folder of records.")
    parser.add_argument("folder", type=Path, help="Results of one suite, such as results/mini-lite.")
    parser.add_argument("--csv", type=Path, help="Write the whole board here.")
    asked = parser.parse_args(arguments)

    # The raw records: what ran, and did it end well?
    cells = records(asked.folder)
    print(cells.groupby(["cell.defense", "status"]).size().to_string(), end="\n\n")

    # The scores. Broken lines are left out and named, and a board whose controls misbehave is refused.
    found = score_folder(asked.folder)
    for problem in found.problems:
        print(f"left out: {problem}")
    found.board.require_sound()
    pivot = protection_by_task(found.board)
    print(pivot.round(2).to_string(na_rep="-"), end="\n\n")

    # The board's columns, unrounded, as `immunebench board` writes them.
    text = to_csv(found.board)
    table = pd.read_csv(io.StringIO(text))
    shown = table[["defense", "a", "work", "u", "seconds", "strongest_attack", "remarks"]]
    print(shown.round(2).to_string(index=False, na_rep="-"))
    if asked.csv is not None:
        asked.csv.write_text(text, "utf-8")
    return pivot


if __name__ == "__main__":
    main()
