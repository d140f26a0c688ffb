"""What a run came to: the scores of its defenses so far, and where to go on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from immunebench.records.record import Record


def score_table(folder: Path, defenses: Collection[str]) -> list[list[str]]:
    """Return A, P(1) and U of defenses as the records of a folder have them, with headings; empty without a board.

    Parameters
    ----------
    folder
        Folder of a suite's records.
    defenses
        Ids of the rows to return.
    """
    from immunebench.board.assembly.scored import score_folder
    from immunebench.board.scores.model import BoardError
    from immunebench.board.text import number

    try:
        board = score_folder(folder).board
    except BoardError:
        return []
    rows = [
        [
            row.defense,
            number(row.a),
            number(None if row.area is None else row.area.p.get(1.0)),
            number(row.u),
            "; ".join(["incomplete"] * bool(row.incomplete) + list(row.flags)),
        ]
        for row in board.rows
        if row.defense in defenses
    ]
    return [["defense", "A", "P(1)", "U", ""], *rows] if rows else []


def advice(records: Collection[Record], suite: str, options: str) -> Iterator[str]:
    """Yield the commands to go on with: the traceback of the first failure, and the board.

    Parameters
    ----------
    records
        Records of the run.
    suite
        The suite's id.
    options
        Options by which the commands find the results.
    """
    failed = next((record.failure for record in records if record.failure is not None), None)
    if failed is not None:
        yield f"traceback: immunebench why {failed.digest[:12]}"
    if any(record.status == "timeout" for record in records):
        yield "too long: fewer steps in the entry's presets, or a longer --timeout; then the same with --retry-failed"
    elif failed is not None:
        yield "again: a changed entry runs anew by itself, the same one with --retry-failed"
    yield f"next: immunebench board {suite}{options}"
