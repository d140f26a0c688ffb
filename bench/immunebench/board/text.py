"""Text of strangers, made safe for where it is shown."""

from __future__ import annotations

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it stands; control characters and line ends become spaces."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    # One pass over characters: a second one would escape what the first has written.
    return "".join(_LATEX.get(character, character) for character in shown)
