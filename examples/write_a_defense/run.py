"""Measure the defense of this folder against LoRA on one task of ``mini-smoke``.

    python examples/write_a_defense/run.py [--dry-run]

What was computed once lies in the store, so a second call is quick and a stopped one goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import immunebench
from immunebench.board.assembly.scored import score_folder

ENTRIES = Path(__file__).resolve().parent / "entries"
# Beside the results of the repository, for a toy does not belong among them.
RESULTS = Path("build/examples")


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Run two cells, with and without the defense; return the table that is printed."""
    parser = argparse.ArgumentParser(description="Measure the defense `pushaway` on a task of mini-smoke.")
    parser.add_argument("--dry-run", action="store_true", help="Plan only: which stages there are and which are made.")
    asked = parser.parse_args(arguments)
    # Read beside the benchmark's own entries. Worker processes read the variable too, so it is no argument.
    os.environ["IMMUNEBENCH_ENTRIES"] = str(ENTRIES)
    cells = immunebench.run(
        "mini-smoke",
        task="object-mug",
        defense=["none", "pushaway"],
        attack="lora",
        results=RESULTS,
        dry_run=asked.dry_run,
    )
    table = cells if asked.dry_run else scores()
    print(table.to_string(index=False))
    return table


def scores() -> pd.DataFrame:
    """A and U of both, as a board scores them; one task is too few for intervals and ranks."""
    board = score_folder(RESULTS / "mini-smoke").board
    return pd.DataFrame(
        [{"defense": row.defense, "A": row.a, "U": row.u, "seconds": row.seconds} for row in board.rows]
    ).round(2)


if __name__ == "__main__":
    main()
