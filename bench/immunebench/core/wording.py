"""Words of captions and prompts: templates are filled, and a prompt's content is told from its concept."""

from __future__ import annotations

import re

from immunebench.core.types import Pictures

#: What a picture of somebody's own shows where nobody captioned it, by family; see `fill`.
CONTENT = {"style": "a picture", "object": "a {subject}", "identity": "a portrait of {subject}"}
_STYLE = re.compile(r",? in (the )?\{token\} style")
_VOWELS = frozenset("aeiou")


def fill(template: str, *, token: str, noun: str = "", content: str = "") -> str:
    """Fill a caption: `{content}` is the picture's own words, their `{subject}` the placeholder and noun.

    >>> fill("{content} as a painting", token="sks", noun="mug", content="a {subject} near the sea")
    'a sks mug near the sea as a painting'
    """
    subject = noun if token == noun else f"{token} {noun}".strip()
    content = content.replace("{subject}", subject)
    return template.replace("{content}", content).replace("{token}", token).replace("{noun}", noun)


def whole(token: str, noun: str) -> str:
    """Return the content of a picture of the concept and of nothing else, for `fill`.

    >>> fill("{content} in {token} style", token="mosaic", noun="style", content=whole("mosaic", "style"))
    'a painting in mosaic style'
    >>> fill("{content} in plain style", token="umbrella", noun="umbrella", content=whole("umbrella", "umbrella"))
    'an umbrella in plain style'
    """
    if noun == "style":
        return "a painting"
    return "an {subject}" if token[:1].lower() in _VOWELS else "a {subject}"


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


def recaption(pictures: Pictures, template: str, *, token: str, noun: str) -> Pictures:
    """Caption every picture from a template; see `fill`."""
    captions = (fill(template, token=token, noun=noun, content=content) for content in pictures.captions)
    return Pictures(pictures.pixels, tuple(captions))
