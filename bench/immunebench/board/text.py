"""Formatting of numbers for tables, and sanitising of untrusted text: no invisible characters, limited length."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

LONG = 160
"""Maximum number of characters that are shown of a text."""

_SAFE_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_HIDDEN = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
#: Non-ASCII characters that pdflatex typesets without packages: letters, and accents on ASCII letters.
_LATIN = frozenset("ßæÆøØœŒłŁ…")
_ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
_LATEX: dict[str, str] = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
}


def visible(text: object) -> str:
    """Return text with invisible and bidirectional control characters replaced by their code, such as ``<U+202E>``.

    Spaces, tabs and line breaks stay.
    """
    whole = str(text)
    # Fast path for nearly every text: printable characters are never hidden.
    return whole if whole.isprintable() else "".join(map(_shown, whole))


def shorten(text: object, most: int = LONG) -> str:
    """Return a text passed through `visible` and cut to `most` characters, with an ellipsis if it was cut."""
    shown = visible(text)
    return shown if len(shown) <= most else shown[: most - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def slug(name: str) -> str:
    """Return a file name for a name: the name itself if safe, else its safe characters and a digest of the name."""
    if len(name) <= 64 and _SAFE_NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain or 'x'}-{digest}"


def latex(text: object, most: int = LONG) -> str:
    """Return a text for LaTeX's text mode: shortened, on one line, with all special characters escaped."""
    return latex_escape(" ".join(shorten(text, most).split()))


def latex_escape(text: str) -> str:
    """Return a text for LaTeX's text mode, not shortened; control characters and line ends become spaces."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    # One pass over the characters: a second one would escape the output of the first.
    return "".join(map(_in_latex, shown))


def _in_latex(character: str) -> str:
    """Return a character as pdflatex typesets it without packages; its code point where it cannot."""
    if character.isascii() or character in _LATIN:
        return _LATEX.get(character, character)
    parts = unicodedata.normalize("NFD", character)
    if ord(character) < 0x180 and len(parts) == 2 and parts[0].isascii() and parts[1] in _ACCENTS:
        return character
    return rf"\texttt{{U+{ord(character):04X}}}"


def _shown(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _HIDDEN:
        return character
    return f"<U+{ord(character):04X}>"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with fixed digits; a dash for None; no minus sign before zero."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0.0 else text


def percent(value: float) -> str:
    """Return a number in whole percent; no minus sign before zero."""
    text = f"{value:.0%}"
    return "0%" if text == "-0%" else text


def interval_text(interval: tuple[float, float] | None) -> str:
    """Return both ends of an interval; a dash for None."""
    return "-" if interval is None else f"{number(interval[0])} to {number(interval[1])}"


def attacks_text(names: Iterable[str]) -> str:
    """Return the name that all of some attacks have, else how many different ones they are; a dash for none."""
    different = sorted(set(names))
    return different[0] if len(different) == 1 else f"{len(different)} attacks" if different else "-"
