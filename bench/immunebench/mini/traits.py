"""The traits of pictures of the embedded world, which readers classify.

The renderer provides each trait of each picture. A picture's labels are one index per trait: of its value, of "cannot
be read" (a house has no eyes), or :data:`IGNORE` if it is undecidable (the red of a mug in a sepia picture).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from immunebench.mini import objects, portraits, scene, styles

#: The kind of a portrait's subject.
PERSON = "person"

_OBJECT = {
    "kind": (*objects.OBJECTS, *objects.UNSEEN_OBJECTS, PERSON),
    "colour": tuple(scene.COLOURS),
    "accent": tuple(scene.COLOURS),
    "pattern": objects.PATTERNS,
    "marking": objects.MARKINGS,
    "shape": objects.SHAPES,
}
_PLACE = {"setting": tuple(scene.SETTINGS)}
_VIEW = {"clothing": tuple(portraits.CLOTHING_COLOURS), "background": tuple(portraits.BACKGROUND_COLOURS)}

#: The values of each trait. The class "cannot be read" is not listed; it comes after the last value of each.
TRAITS: dict[str, tuple[str, ...]] = {**_OBJECT, **_PLACE, **styles.HAND, **portraits.TRAITS, **_VIEW}

#: The traits that define a concept of a family; for a style those of its procedure.
FAMILIES: dict[str, tuple[str, ...]] = {
    "object": tuple(_OBJECT),
    "identity": tuple(portraits.TRAITS),
    "style": tuple(styles.HAND),
}

IGNORE = -1

#: What a palette other than the natural one hides, or a procedure that draws in ink alone.
COLOURS = ("colour", "accent", "skin", "hair_colour", "clothing", "background", "setting")
INK = ("hatching",)

#: How wide a blur (standard deviation in pixels) a trait survives, and from which on nothing is left of it.
_FINE, _MEDIUM, _COARSE = (1.0, 2.2), (1.4, 3.0), (2.5, 5.5)
GRAIN: dict[str, tuple[float, float]] = {
    **dict.fromkeys(TRAITS, _COARSE),
    **dict.fromkeys(("accent", "pattern", "shape", "hair_style", "face", "beard", "ears"), _MEDIUM),
    **dict.fromkeys(("procedure", "scale", "direction", "ground"), _MEDIUM),
    **dict.fromkeys(("marking", "eyes", "brows", "nose", "mouth", "glasses", "mark"), _FINE),
}


def unreadable(trait: str) -> int:
    """Return the index of the class "cannot be read"."""
    return len(TRAITS[trait])


def encode(labels: Mapping[str, object]) -> NDArray[np.int16]:
    """Convert a picture's labels by name to indices (t,), ordered as :data:`TRAITS`; missing ones are unreadable."""
    found = [
        TRAITS[trait].index(str(labels[trait])) if labels.get(trait) else unreadable(trait) for trait in TRAITS
    ]  # fmt: skip
    coloured = labels.get("palette", "") in ("", "natural") and labels.get("procedure") not in INK
    if not coloured:
        for at, trait in enumerate(TRAITS):
            if trait in COLOURS and found[at] != unreadable(trait):
                found[at] = IGNORE
    return np.asarray(found, np.int16)


#: Patterns of traits in captions; the first match for a trait counts.
_PHRASES = {
    "colour": r"\b({})(?: \S+)?? (?:{kinds})\b",
    "kind": r"\b({})\b",
    "setting": r"\bnear the ({})\b",
    "procedure": r"\b({}) style\b",
    "clothing": r"\bin an? ({}) shirt\b",
    "background": r"\bon an? (?:striped |dotted )?({}) background\b",
}


def named(caption: str) -> dict[str, str]:
    """Return the traits that a caption names: kind, colour, setting, procedure, clothing and background."""
    kinds, found = "|".join(TRAITS["kind"]), {}
    for trait, phrase in _PHRASES.items():
        values = "|".join(sorted(TRAITS[trait], key=len, reverse=True))
        match = re.search(phrase.replace("{kinds}", kinds).replace("{}", values), caption)
        if match:
            found[trait] = match[1]
    return found
