"""Writes the tables of ``protect --known`` into a page, between two marks."""

from __future__ import annotations

from pathlib import Path

from immunebench.core.errors import UsageError

BEGIN, END = "<!-- known: begin -->", "<!-- known: end -->"


def block(page: Path) -> str:
    """Return the text between the marks of a page.

    Raises
    ------
    UsageError
        The page cannot be read, or lacks a mark.
    """
    return _split(page)[1]


def write(page: Path, text: str) -> None:
    """Put a text between the marks of a page.

    Raises
    ------
    UsageError
        The page cannot be read or written, or lacks a mark.
    """
    before, _, after = _split(page)
    try:
        page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", "utf-8")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", file=page) from error


def _split(page: Path) -> tuple[str, str, str]:
    try:
        text = page.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", file=page) from error
    before, first, rest = text.partition(BEGIN)
    inner, last, after = rest.partition(END)
    if not first or not last:
        raise UsageError("lacks the marks between which the tables go:", file=page, value=f"{BEGIN} {END}")
    return before, inner.strip("\n") + "\n", after
