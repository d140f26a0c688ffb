"""Every trait that a picture of the embedded world can have, in one table: what readers read.

The renderer knows each trait of each picture. A picture's labels are one index a trait: of the value, of
"cannot be read" (a house has no eyes), or :data:`IGNORE` where nobody can say (a mug's red in a sepia picture).
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

#: Trait to its values. The answer "cannot be read" is not listed: it comes after the last value of each.
TRAITS: dict[str, tuple[str, ...]] = {**_OBJECT, **_PLACE, **styles.HAND, **portraits.TRAITS, **_VIEW}

#: The traits that make a member of a family; of a style those that its procedure has.
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
    """The index of the answer "cannot be read"."""
    return len(TRAITS[trait])


def encode(labels: Mapping[str, object]) -> NDArray[np.int16]:
    """Indices (t,) in the order of :data:`TRAITS` from a picture's labels by name; what is not there cannot be read."""
    found = [
        TRAITS[trait].index(str(labels[trait])) if labels.get(trait) else unreadable(trait) for trait in TRAITS
    ]  # fmt: skip
    coloured = labels.get("palette", "") in ("", "natural") and labels.get("procedure") not in INK
    if not coloured:
        for at, trait in enumerate(TRAITS):
            if trait in COLOURS and found[at] != unreadable(trait):
                found[at] = IGNORE
    return np.asarray(found, np.int16)


#: How captions put the traits that they name; the first that fits a trait counts.
_PHRASES = {
    "colour": r"\b({})(?: \S+)?? (?:{kinds})\b",
    "kind": r"\b({})\b",
    "setting": r"\bnear the ({})\b",
    "procedure": r"\b({}) style\b",
    "clothing": r"\bin an? ({}) shirt\b",
    "background": r"\bon an? (?:striped |dotted )?({}) background\b",
}


def named(caption: str) -> dict[str, str]:
    """The traits of a scene that a caption names: kind, colour, setting, procedure, clothing and background."""
    kinds, found = "|".join(TRAITS["kind"]), {}
    for trait, phrase in _PHRASES.items():
        values = "|".join(sorted(TRAITS[trait], key=len, reverse=True))
        match = re.search(phrase.replace("{kinds}", kinds).replace("{}", values), caption)
        if match:
            found[trait] = match[1]
    return found
