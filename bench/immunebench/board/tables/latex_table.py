"""LaTeX table, shared by the board's LaTeX file and by citations."""

from __future__ import annotations

from collections.abc import Sequence

from immunebench.board.text import number

Interval = tuple[float, float]


def tabular(heads: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], *, worded: int = 0) -> str:
    """Return a booktabs ``tabular``, with a rule before each group of rows.

    Parameters
    ----------
    heads
        Headings, escaped; the first column has names.
    groups
        Rows of cells, escaped; empty groups are skipped.
    worded
        Number of last columns that have text instead of numbers.
    """
    numeric = len(heads) - 1 - worded
    lines = [r"\begin{tabular}{l" + "r" * numeric + "l" * worded + "}", r"\toprule", _line(heads)]
    for group in groups:
        if group:
            lines += [r"\midrule", *map(_line, group)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def figure(value: float | int | None, interval: Interval | None = None, *, digits: int = 2, bold: bool = False) -> str:
    """Return a number with its interval in small print and typographic minus signs; two dashes for None."""
    if value is None:
        return "--"
    text = _signed(number(value, digits))
    text = rf"\textbf{{{text}}}" if bold else text
    if interval is None:
        return text
    low, high = (_signed(number(end, digits)) for end in interval)
    return f"{text} {{\\scriptsize [{low}, {high}]}}"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _signed(text: str) -> str:
    return text.replace("-", r"\textminus{}")
