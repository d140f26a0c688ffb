"""Comparisons as lines of text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from immunebench.board.release.diff import BoardDifference, EntryDifference
from immunebench.declared import scoring


def board_lines(difference: BoardDifference, a: str, b: str) -> Iterator[str]:
    """Yield the lines for two boards: one per defense, then rows on one side only, notes and incomparable cells."""
    yield f"{difference.suite}: A is {a}, B is {b}"
    rows = [["A", "B", "B - A", f"{scoring.CONFIDENCE:.0%} interval", "cells", "B is"]]
    for entry in difference.entries:
        numbers = [_signed(entry.difference), _span(entry.interval), str(len(entry.cells))]
        rows.append([entry.a, entry.b, *numbers, entry.verdict])
    yield from _aligned(rows)
    for side, names in (("A", difference.only_a), ("B", difference.only_b)):
        if names:
            yield f"  only in {side}: {', '.join(names)}"
    yield from (f"  note: {note}" for note in difference.notes)
    for entry in difference.entries:
        yield from (f"  {entry.b}: {text}" for text in entry.apart)


def entry_lines(entry: EntryDifference) -> Iterator[str]:
    """Yield the lines for two entries: one per (task, chain), the paired difference and incomparable cells."""
    rows = [["task", "chain", entry.a, entry.b, "B - A"]]
    rows += [[c.task, c.chain, f"{c.a:.2f}", f"{c.b:.2f}", _signed(c.difference)] for c in entry.cells]
    yield from _aligned(rows)
    span = _span(entry.interval)
    yield f"  headline {entry.measure}, B - A: {_signed(entry.difference)}{' ' if span else ''}{span} ({entry.verdict})"
    yield from (f"  {text}" for text in entry.apart)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _span(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
