"""Reading of users' files with captions (by picture name) and evaluation prompts (one per line)."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from immunebench.core.errors import UsageError

SUBJECT = "{subject}"
MAX_CHARACTERS = 300


def read_captions(file: Path, pictures: Sequence[str]) -> dict[str, str]:
    """Read captions from JSON, ``{"name": "caption"}``, or from CSV, ``name,caption`` with or without that heading.

    Parameters
    ----------
    file
        JSON or CSV, by its suffix.
    pictures
        File names of all pictures. The caption file may omit their suffix where that is unambiguous.

    Returns
    -------
    Caption by file name; pictures without one are left out.

    Raises
    ------
    UsageError
        The file cannot be read, a name matches no picture or two, or a caption is empty or too long.
    """
    found: dict[str, str] = {}
    for name, caption in _rows(file):
        matches = [p for p in pictures if p == name] or [p for p in pictures if Path(p).stem == name]
        if not matches:
            raise UsageError("no such picture:", file=file, value=name, choices=pictures)
        if len(matches) > 1:
            raise UsageError(f"matches {' and '.join(matches)}; name one of them, not", file=file, value=name)
        if matches[0] in found:
            raise UsageError("has two captions:", file=file, value=name)
        found[matches[0]] = checked(caption, file, name)
    return found


def read_prompts(file: Path) -> tuple[str, ...]:
    """Read evaluation prompts with ``{token}``, one per line, without duplicates.

    Raises
    ------
    UsageError
        The file cannot be read, holds no prompt, or a line lacks the placeholder.
    """
    lines = [line.strip() for line in _text(file).splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        if "{token}" not in checked(line, file, f"prompt {number}"):
            raise UsageError("lacks {token}, the attacker's placeholder:", file=file, value=line)
    if not lines:
        raise UsageError("holds no prompt", file=file)
    return tuple(dict.fromkeys(lines))


def with_subject(captions: Mapping[str, str], noun: str, file: Path) -> dict[str, str]:
    """Replace the noun in captions by ``{subject}``, which becomes the attacker's placeholder.

    Raises
    ------
    UsageError
        A caption has neither, so that an attack could not learn a placeholder from it.
    """
    word = re.compile(rf"\b{re.escape(noun)}\b", re.IGNORECASE)
    found = {}
    for name, caption in captions.items():
        found[name] = caption if SUBJECT in caption else word.sub(lambda _: SUBJECT, caption, count=1)
        if SUBJECT not in found[name]:
            message = f"{name}: a caption must hold {SUBJECT} or the noun {noun!r}, unlike"
            raise UsageError(message, file=file, value=caption)
    return found


def checked(text: str, file: Path | None, field: str) -> str:
    """Validate the text of a caption or prompt, and strip it.

    Raises
    ------
    UsageError
        It is empty, too long, or has control characters.
    """
    if not text.strip() or len(text) > MAX_CHARACTERS or not text.isprintable():
        message = f"must be 1 to {MAX_CHARACTERS} printable characters, not"
        raise UsageError(message, file=file, field=field, value=text[:40])
    return text.strip()


def _rows(file: Path) -> list[tuple[str, str]]:
    text = _text(file)
    if file.suffix.lower() == ".json":
        try:
            table = json.loads(text)
        except ValueError as error:
            raise UsageError(f"is not JSON: {error}", file=file) from error
        if not isinstance(table, dict) or not all(isinstance(caption, str) for caption in table.values()):
            raise UsageError("must map picture names to captions", file=file)
        return list(table.items())
    try:
        rows = [row for row in csv.reader(text.splitlines(), strict=True) if row]
    except csv.Error as error:
        raise UsageError(f"is not CSV: {error}", file=file) from error
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            message = f"row {number} has {len(row)} columns, not 2: name,caption (quote a caption that holds commas)"
            raise UsageError(message, file=file)
    return [(name.strip(), caption) for name, caption in rows if (name, caption) != ("name", "caption")]


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UsageError(f"cannot be read: {reason}", file=file) from error
