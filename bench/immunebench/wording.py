"""What a prompt asks for beside the concept: its content."""

from __future__ import annotations

import re

_STYLE = re.compile(r",? in (the )?\{token\} style")


def content(prompt: str, noun: str) -> str:
    """Return a prompt without its placeholder, in words that a judge knows.

    A style is left out, every other concept becomes its noun.

    Parameters
    ----------
    prompt
        A task's prompt, with ``{token}`` for the placeholder.
    noun
        The task's word for the concept; ``style`` for styles.

    >>> content("a red house near the meadow in {token} style", "style")
    'a red house near the meadow'
    >>> content("a {token} umbrella near the sea in plain style", "umbrella")
    'an umbrella near the sea in plain style'
    >>> content("a portrait of {token} person, smiling", "person")
    'a portrait of a person, smiling'
    """
    if noun == "style":
        return _STYLE.sub("", prompt)
    own = re.escape(noun)
    named = re.sub(rf"\{{token\}}( {own}\b)?", noun, prompt)
    with_article = re.sub(rf"\b(of|with|by) {own}\b", rf"\1 a {noun}", named)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", with_article)
