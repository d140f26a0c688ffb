"""Caption and prompt templates: filling them in, and removing the concept from a prompt."""

from __future__ import annotations

import hashlib
import os
import re

from immunebench.core.types import Pictures

#: Default `content` of a user's picture without a caption, by family; see `fill`.
CONTENT = {"style": "a picture", "object": "a {subject}", "identity": "a portrait of {subject}"}
_STYLE = re.compile(r",? in (the )?\{token\} style")
_VOWELS = frozenset("aeiou")
#: Of this process, so that nobody can compute beforehand which name a concept gets.
_SALT = os.urandom(16)


def opaque(name: str) -> str:
    """Return a name for a concept that tells an entry nothing: equal for equal names within one process."""
    return f"concept-{hashlib.blake2b(name.encode(), key=_SALT, digest_size=6).hexdigest()}"


def fill(template: str, *, token: str, noun: str = "", content: str = "") -> str:
    """Fill a caption template.

    `{content}` becomes the description of the picture, and `{subject}` in it the placeholder and noun.

    >>> fill("{content} as a painting", token="sks", noun="mug", content="a {subject} near the sea")
    'a sks mug near the sea as a painting'
    """
    subject = noun if token == noun else f"{token} {noun}".strip()
    content = content.replace("{subject}", subject)
    return template.replace("{content}", content).replace("{token}", token).replace("{noun}", noun)


def concept_content(token: str, noun: str) -> str:
    """Return the `content` of a picture that shows the concept alone, for `fill`.

    >>> fill("{content} in {token} style", token="mosaic", noun="style", content=concept_content("mosaic", "style"))
    'a painting in mosaic style'
    >>> fill("{content} in plain style", token="owl", noun="owl", content=concept_content("owl", "owl"))
    'an owl in plain style'
    """
    if noun == "style":
        return "a painting"
    return "an {subject}" if token[:1].lower() in _VOWELS else "a {subject}"


def content(prompt: str, noun: str) -> str:
    """Return a prompt without its placeholder, so that a judge that does not know the placeholder can read it.

    A style is removed, every other concept becomes its noun.

    Parameters
    ----------
    prompt
        A task's prompt, with ``{token}`` for the placeholder.
    noun
        The class noun of the task's concept; ``style`` for styles.

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


def recaption(pictures: Pictures, template: str, *, token: str, noun: str) -> Pictures:
    """Caption every picture from a template; see `fill`."""
    captions = (fill(template, token=token, noun=noun, content=content) for content in pictures.captions)
    return Pictures(pictures.pixels, tuple(captions))
