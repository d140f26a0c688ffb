"""The main result of a board as one sentence, generated from its numbers."""

from __future__ import annotations

from immunebench.board.scores.model import Board, Row
from immunebench.board.tables.columns import work_text
from immunebench.board.text import percent
from immunebench.declared import scoring

_HARDLY, _LARGELY = 0.1, 0.75


def winner(board: Board) -> Row | None:
    """Return the row with the highest A above 0 that is complete and passes the gates; None if there is none.

    A row whose interval tells it from no defense comes before any whose interval does not.
    """
    able = [row for row in board.rows if not row.control and row.passes and (row.a or 0.0) > 0.0]
    return max(able, key=lambda row: (not _untold(row), row.a or 0.0), default=None)


def _untold(row: Row) -> bool:
    """Return whether a row has an interval that holds 0."""
    return row.a_interval is not None and row.a_interval[0] <= 0.0 <= row.a_interval[1]


def tied(board: Board, row: Row) -> list[Row]:
    """Return the rows of a row's tie group: same rank, track and budget class; only the row itself if unranked."""
    return [other for other in board.leagues.get(row.league, [row]) if other.rank == row.rank]


def finding(board: Board) -> str:
    """Return one sentence on the best defense: its A, its cost, the controls to compare with, and its interval."""
    if board.refusals:
        return f"No result: {'; '.join(board.refusals)}."
    if board.power and len(board.uninformative) == len(board.power):
        gain = max(power.ceiling - power.floor for power in board.power)
        return f"No result: without a defense the attack learns too little to measure (at most {gain:.2f})."
    entries = [row for row in board.rows if not row.control and row.a is not None]
    if not entries and all(row.control for row in board.rows):
        able = len(board.power) - len(board.uninformative)
        return (
            f"Without a defense the attack learns enough to measure in {able} of {len(board.power)} tasks and chains."
        )
    if not entries:
        return "No result: no defense was measured completely."
    best = winner(board) or max(entries, key=lambda row: row.a or 0.0)
    parts = [_verdict(best, board), *_elsewhere(board, best), *_controls(board), _sure(board, best)]
    return "; ".join(part for part in parts if part) + "."


def _verdict(best: Row, board: Board) -> str:
    a, u = best.a or 0.0, best.u
    chains = {power.chain for power in board.power if power.informative}
    attack = f"the {next(iter(chains))} attack" if len(chains) == 1 else "the strongest attack"
    how = "helps" if a < 0 else "hardly stops" if a < _HARDLY else "largely stops" if a >= _LARGELY else "partly stops"
    kept = "with its use unmeasured" if u is None else f"and keeps {u:.0%} of the use"
    takes = f"adds {-a:.0%} to" if a < 0 else f"takes away {percent(a)} of"
    text = f"{best.defense} {how} {attack}: it {takes} what the attack gains{_delay(best)} {kept}"
    if u is not None and "utility gate" in best.flags:
        text += f", too little to be ranked (gate {scoring.UTILITY_GATE:.0%})"
    if best.incomplete:
        text += ", on incomplete records"
    noises = [row.a for row in board.rows if row.control and row.defense.startswith("noise") and row.a is not None]
    if noises and max(noises) >= a:
        text += ", no better than random noise"
    return text


def _delay(row: Row) -> str:
    """Return text on how much a defense slows attacks down, if they were scored at several steps."""
    if row.area is None or len(row.area.p) < 2:
        return ""
    text = f" over its whole course ({percent(row.area.p[1.0])} at the end)" if 1.0 in row.area.p else ""
    work = work_text(row)
    if row.area.work is None or work[0] not in "0123456789>":
        return text
    return f"{text}, makes it {work.replace('>', 'more than ')} times as long"


def _elsewhere(board: Board, best: Row) -> list[str]:
    """Return text on the best rows of the groups (track and budget class) other than that of the overall best row."""
    leads = [rows[0] for league, rows in board.leagues.items() if league != best.league]
    if not leads:
        return []
    named = [
        f"{row.defense} ({row.league}) {percent(row.a or 0.0)}{', not told from none' if _untold(row) else ''}"
        for row in leads
    ]
    return [f"ranked apart: {', '.join(named)}"]


def _sure(board: Board, best: Row) -> str:
    """Return text on the interval and rank of the best row, or on why there is none."""
    count = board.notes[0].split(":")[0]
    if best.a_interval is None:
        return f"{count}: no interval, no ranks"
    low, high = best.a_interval
    text = f"{count}: {scoring.CONFIDENCE:.0%} interval {percent(low)} to {percent(high)}"
    if ties := len(tied(board, best)) - 1:
        text += f", not told apart from {ties} more"
    return text


def _controls(board: Board) -> list[str]:
    parts = []
    noise, destroy = board.row("noise"), board.row("destroy")
    if noise is not None and noise.a is not None:
        parts.append(f"random noise on the pictures takes away {percent(noise.a)}")
    restyled = [r for r in board.rows if r.control and r.defense.startswith("restyle") and r.a is not None]
    parts += [f"restyling them without optimisation ({row.budget_class}) {percent(row.a or 0.0)}" for row in restyled]
    if destroy is not None and destroy.a is not None and destroy.u is not None:
        parts.append(f"destroying the model takes away {percent(destroy.a)} and keeps {destroy.u:.0%} of the use")
    return parts
