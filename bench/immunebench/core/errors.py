"""`UsageError`: the exception for mistakes that the user can correct."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

#: Most characters of an error's line, which may hold a value of any length.
_LONGEST = 2_000


def printable(text: str) -> str:
    """Escape control characters and changes of writing direction, so that text from a file is safe to print."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(text: str, most: int) -> str:
    """Return text of at most about `most` characters: the middle of a longer one is left out, and that is said."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters left out) ... {text[-half:]}"


class UsageError(Exception):
    """A mistake in a file, option or argument; the command line prints it and exits with status 2.

    Parameters
    ----------
    message
        What is wrong, in a few words, without the value.
    file
        The file that holds the wrong value, if there is one.
    field
        Dotted name of the field or the option.
    value
        The wrong value; shown after the message when it is not None.
    choices
        The valid values; the message names the nearest one, or lists up to eight where none is near.
    """

    def __init__(
        self,
        message: str,
        *,
        file: Path | str | None = None,
        field: str | None = None,
        value: object = None,
        choices: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = None if file is None else str(file)
        self.field = field
        self.value = value
        self.choices = tuple(sorted(choices))

    def __str__(self) -> str:
        where = "".join(f"{printable(part)}: " for part in (self.file, self.field) if part)
        what = self.message if self.value is None else f"{self.message} {_repr(self.value)}"
        return printable(" ".join(shortened(f"{where}{what}{self._hint()}", _LONGEST).split()))

    def __reduce__(self) -> tuple[object, ...]:
        # Pickling between processes passes positional arguments only, which do not hold these fields.
        return (_rebuild, (self.message, self.file, self.field, self.value, self.choices))

    def _hint(self) -> str:
        if not self.choices:
            return ""
        near = difflib.get_close_matches(_repr(self.value).strip("'"), self.choices, n=1, cutoff=0.5)
        if near:
            return f" (nearest: {near[0]!r})"
        listed = ", ".join(self.choices[:8]) + (", ..." if len(self.choices) > 8 else "")
        return f" (valid: {listed})"


def _repr(value: object) -> str:
    try:
        return shortened(repr(value), _LONGEST // 4)
    except ValueError:  # Python writes no integer of more than 4,300 digits.
        return "an integer of thousands of digits"


def _rebuild(message: str, file: str | None, field: str | None, value: object, choices: tuple[str, ...]) -> UsageError:
    return UsageError(message, file=file, field=field, value=value, choices=choices)
