"""Numbers as the tables print them, and text of strangers made fit to be shown: nothing invisible or endless."""

from __future__ import annotations

import hashlib
import re
import unicodedata

LONG = 160
"""Characters of a text that are shown before it is cut."""

_SAFE_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_HIDDEN = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
#: What pdflatex sets of its own: letters, and accents on plain ones.
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
    """Text in which marks that nobody sees, and that may reorder or hide others, stand as ``<U+202E>``.

    Spaces and line breaks stay.
    """
    whole = str(text)
    # Nearly every text; a printable character is none of those hidden.
    return whole if whole.isprintable() else "".join(map(_shown, whole))


def shorten(text: object, most: int = LONG) -> str:
    """The beginning of a text, `visible`, at most `most` characters, with an ellipsis where it was cut."""
    shown = visible(text)
    return shown if len(shown) <= most else shown[: most - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def slug(name: str) -> str:
    """A file name for a name: itself where it is plain, else what is plain of it and a digest of all of it."""
    if len(name) <= 64 and _SAFE_NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain or 'x'}-{digest}"


def latex(text: object, most: int = LONG) -> str:
    """A text for LaTeX's text mode: cut, on one line, with every special character escaped."""
    return latex_escape(" ".join(shorten(text, most).split()))


def latex_escape(text: str) -> str:
    """A text for LaTeX's text mode, whole; control characters and line ends become spaces."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    # One pass over characters: a second one would escape what the first has written.
    return "".join(map(_in_latex, shown))


def _in_latex(character: str) -> str:
    """A character as pdflatex sets it without further packages; one that it cannot set as its number."""
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
    """Fixed-point text; a dash for a number that does not exist; no minus before zero."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0.0 else text


def interval_text(interval: tuple[float, float] | None) -> str:
    """Both ends; a dash where there is no interval."""
    return "-" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
