"""Reading of users' files with captions (by picture name) and evaluation prompts (one per line)."""

from __future__ import annotations

import codecs
import csv
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from immunebench.core.errors import UsageError
from immunebench.core.wording import CONTENT
from immunebench.pictures.decoding import METADATA, SUFFIXES

#: Columns of a CSV and fields of a line of JSON, as data sets of the Hugging Face hub call them.
HEADING = ("file_name", "text")
SUBJECT = "{subject}"
MAX_CHARACTERS = 300


def read_captions(file: Path, pictures: Sequence[str]) -> dict[str, str]:
    """Read captions in the forms in which they are usually kept.

    JSON: ``{"name": "caption"}``. JSON lines: ``{"file_name": "name", "text": "caption"}``. CSV, with commas,
    semicolons or tabs: ``name,caption``, with or without that heading or ``file_name,text``. Text: ``name.txt`` beside
    the picture.

    Parameters
    ----------
    file
        JSON or CSV, by its suffix. A folder holds texts beside its pictures, or ``metadata.jsonl`` or ``metadata.csv``.
    pictures
        File names of all pictures. The captions may omit their suffix where that is unambiguous, and write a name in
        another case or with its accents composed in another way.

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
        matches = _matches(name, pictures)
        if not matches:
            raise UsageError("no such picture:", file=file, value=name, choices=pictures)
        if len(matches) > 1:
            raise UsageError(f"matches {' and '.join(matches)}; name one of them, not", file=file, value=name)
        if matches[0] in found:
            raise UsageError("has two captions:", file=file, value=name)
        found[matches[0]] = checked(caption, file, name)
    return found


def _matches(name: str, pictures: Sequence[str]) -> list[str]:
    """Return the pictures that a name stands for: by the closest way of writing it that fits any."""
    ways: tuple[Callable[[str], str], ...] = (str, _composed, lambda text: _composed(text).casefold())
    for way in ways:
        found = [p for p in pictures if way(p) == way(name)] or [p for p in pictures if way(Path(p).stem) == way(name)]
        if found:
            return found
    return []


def _composed(text: str) -> str:
    """Return text with accents in their letters: file systems and programs write them in two ways."""
    return unicodedata.normalize("NFC", text)


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


def noun_of(asked: str | None, family: str, similar: str) -> str:
    """Return the class noun of one's own pictures: as asked, else that of a similar task, which no object has.

    Raises
    ------
    UsageError
        It is not valid, or an object has none.
    """
    if asked is not None:
        return checked(asked, None, "--noun")
    if family == "object":
        raise UsageError("is required for an object, e.g. --noun mug", field="--noun")
    return similar


def contents(file: Path | None, family: str, noun: str, pictures: Sequence[str]) -> dict[str, str]:
    """Return the content of each picture by its name: from a file of captions, else the words of the family.

    Raises
    ------
    UsageError
        As `read_captions`, or a caption does not name the subject.
    """
    found = dict.fromkeys(pictures, CONTENT[family])
    if file is not None:
        own = read_captions(file, pictures)
        found |= own if family == "style" else with_subject(own, noun, file)
    return found


def with_noun(text: str, theirs: str, noun: str, family: str) -> str:
    """Return a text of a similar task with another class noun in the place of its own; of other families as it is."""
    return re.sub(rf"\b{re.escape(theirs)}\b", lambda _: noun, text) if family == "object" else text


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
    if file.is_dir():
        return _folder_rows(file)
    read = {".json": _json_rows, ".jsonl": _json_line_rows, ".txt": _text_rows}
    return read.get(file.suffix.lower(), _csv_rows)(file)


def _folder_rows(folder: Path) -> list[tuple[str, str]]:
    index = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if index is not None:
        return _rows(index)
    pictures = {_composed(file.stem) for file in folder.iterdir() if file.suffix.lower() in SUFFIXES}
    texts = [file for file in sorted(folder.glob("*.txt")) if _composed(file.stem) in pictures]
    if not texts:
        raise UsageError(f"holds no captions: a .txt beside a picture, {' or '.join(METADATA)}", file=folder)
    return [row for file in texts for row in _text_rows(file)]


def _text_rows(file: Path) -> list[tuple[str, str]]:
    return [(file.stem, " ".join(_text(file).split()))]


def _json_rows(file: Path) -> list[tuple[str, str]]:
    table = _parsed(_text(file), file)
    if not isinstance(table, dict) or not all(isinstance(caption, str) for caption in table.values()):
        raise UsageError("must map names of pictures to captions", file=file)
    return list(table.items())


def _json_line_rows(file: Path) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        row = _parsed(line, f"{file}:{number}")
        values = [row.get(name) for name in HEADING] if isinstance(row, dict) else []
        if not values or not all(isinstance(value, str) for value in values):
            raise UsageError(f"must hold the texts {' and '.join(HEADING)}", file=f"{file}:{number}")
        rows.append((str(values[0]), str(values[1])))
    return rows


def _csv_rows(file: Path) -> list[tuple[str, str]]:
    lines = _text(file).splitlines()
    tables = (_table(lines, delimiter) for delimiter in ",;\t")
    rows = next((rows for rows in tables if rows and all(len(row) == 2 for row in rows)), None)
    if rows is None:
        raise UsageError(_why_no_table(lines), file=file)
    found = [(name.strip(), caption) for name, caption in rows]
    return found[1:] if found[0] in (("name", "caption"), HEADING) else found


def _table(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """Return the rows of a CSV that are not empty; none where it is no CSV."""
    try:
        return [row for row in csv.reader(lines, strict=True, delimiter=delimiter) if row]
    except csv.Error:
        return []


def _why_no_table(lines: Sequence[str]) -> str:
    try:
        for number, row in enumerate(filter(None, csv.reader(lines, strict=True)), 1):
            if len(row) != 2:
                columns = f"row {number} has {len(row)} columns, not 2"
                return f"{columns}: name,caption (quote a caption that holds commas)"
    except csv.Error as error:
        return f"is no CSV: {error}"
    return "holds no caption"


def _parsed(text: str, where: Path | str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"is no JSON: {error}", file=where) from error


def _text(file: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 where it begins with that mark of the byte order."""
    try:
        data = file.read_bytes()
        return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UsageError(f"cannot be read: {reason}", file=file) from error
