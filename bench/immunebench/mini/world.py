"""Draws pictures of the embedded world with captions and labels from the same random draw.

Every picture is a function of ``(split, group, index)`` alone: the split and the group name a SHA-256 stream, so splits
are disjoint by construction and picture ``i`` never depends on how many were drawn before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from immunebench.mini import objects, portraits, scene, styles
from immunebench.mini.objects import Look
from immunebench.mini.vocabulary import CONCEPTS

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "owner", "published", "extra", "reference", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "owner", "published", "extra", "reference", "unseen")

#: Bumped whenever the same draw gives other pixels or captions.
WORLD_VERSION = 1

STYLE_NAMES = tuple(styles.STYLES)
OBJECT_NAMES = tuple(objects.OBJECTS)
SIZES = ("small", "big")
PLACES = ("left", "centre", "right")

#: Particular things: the appearance by which one mug differs from all mugs.
INSTANCES: dict[str, tuple[str, Look]] = {
    "object/mug": ("mug", Look("teal", "yellow", "zigzag", "heart", (0.7, -0.6, 0.8))),
    "object/backpack": ("backpack", Look("purple", "orange", "checked", "star", (-0.7, 0.7, 0.4))),
    "object/lighthouse": ("lighthouse", Look("white", "red", "banded", "none", (0.2, 0.3, 0.0))),
    "object/robot": ("robot", Look("grey", "orange", "plain", "ring", (0.0, 0.4, 0.3))),
    "object/umbrella": ("umbrella", Look("pink", "black", "spotted", "moon", (0.6, 0.5, -0.7))),
    "object/boat": ("boat", Look("green", "white", "striped", "cross", (0.5, 0.6, 0.2))),
    "object/windmill": ("windmill", Look("brown", "white", "plain", "none", (0.0, 0.0, 0.5))),
    "object/teapot": ("teapot", Look("blue", "white", "spotted", "none", (0.3, 0.0, 0.0))),
}


@dataclass(frozen=True)
class Picture:
    """One drawn picture.

    Attributes
    ----------
    pixels
        uint8, (64, 64, 3), RGB.
    content
        Words for what is shown, without the style.
    style
        Name of the style, a known one or a held-out artist.
    labels
        What the draw decided, by attribute name; see :func:`caption`.
    """

    pixels: NDArray[np.uint8]
    content: str
    style: str
    labels: dict[str, Any] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """The full caption: content and style."""
        return f"{self.content} in {self.style} style"


def generator(*names: object) -> np.random.Generator:
    """A generator that depends on its names alone (SHA-256 of them)."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "big")))


def random_look(rng: np.random.Generator) -> Look:
    """An appearance for a known object; never one of the held-out instances'."""
    names = list(scene.COLOURS)
    while True:
        colour, accent = rng.choice(len(names), 2, replace=False)
        look = Look(
            names[colour],
            names[accent],
            "plain" if rng.random() < 0.4 else str(rng.choice(objects.PATTERNS[1:])),
            "none" if rng.random() < 0.6 else str(rng.choice(objects.MARKINGS[1:])),
            (float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))),
        )
        if all(
            (look.colour, look.pattern, look.marking) != (i.colour, i.pattern, i.marking) for _, i in INSTANCES.values()
        ):
            return look


def look_words(look: Look, name: str) -> str:
    """Words of an appearance, e.g. ``red mug with white stripes``."""
    text = f"{look.colour} {name}"
    pattern = {
        "striped": "stripes",
        "spotted": "spots",
        "checked": "checks",
        "zigzag": "zigzags",
        "banded": "bands",
    }
    if look.pattern != "plain":
        text += f" with {look.accent} {pattern[look.pattern]}"
    if look.marking != "none":
        text += f" and a {look.marking}" if look.pattern != "plain" else f" with a {look.marking}"
    return text


def place_words(setting: str) -> str:
    """Where: ``in a meadow``; settings are named so that ``near a`` reads well."""
    return f"near the {setting}"


def object_scene(
    name: str, look: Look | None, rng: np.random.Generator, setting: str | None = None
) -> tuple[scene.Scene, dict[str, Any], Look]:
    """Draw an object into a setting; what is not given comes from ``rng``."""
    look = look or random_look(rng)
    setting = setting or str(rng.choice(list(scene.SETTINGS)))
    size = SIZES[int(rng.random() < 0.6)]
    place = PLACES[int(rng.integers(3))]
    canvas = scene.draw_setting(setting, rng)
    side = rng.uniform(70, 80) if size == "small" else rng.uniform(86, 98)
    middle = 64 + {"left": -1, "centre": 0, "right": 1}[place] * (rng.uniform(0.25, 0.5) * (124 - side))
    bottom = rng.uniform(min(112, 64 + side * 0.72), 122)
    box = (middle - side / 2, bottom - side, middle + side / 2, bottom)
    objects.draw_object(canvas, name, look, box, rng)
    labels = {"object": name, "setting": setting, "size": size, "place": place, "colour": look.colour,
              "accent": look.accent, "pattern": look.pattern, "marking": look.marking}  # fmt: skip
    return canvas, labels, look


def object_content(labels: dict[str, Any], look: Look, subject: str, words: np.random.Generator | None = None) -> str:
    """Caption words of an object picture; with ``words``, attributes are left out at random."""

    def keep(p: float) -> bool:
        return words is None or words.random() < p

    text = look_words(look, subject) if keep(0.65) else subject
    if keep(0.3):
        text = f"{labels['size']} {text}"
    text = f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
    if keep(0.25):
        text += f" on the {labels['place']}" if labels["place"] != "centre" else " in the centre"
    if keep(0.6):
        text += f" {place_words(labels['setting'])}"
    return text


def _style_of(name: str) -> tuple[styles.Style, dict[str, float] | None]:
    if name in styles.HELD_OUT_PARAMS:
        base, params = styles.HELD_OUT_PARAMS[name]
        return styles.STYLES[base], dict(params)
    if name in styles.UNSEEN_STYLES:
        return styles.UNSEEN_STYLES[name], {
            k: (lo + hi) / 2 for k, (lo, hi) in styles.UNSEEN_STYLES[name].ranges.items()
        }
    return styles.STYLES[name], None


def paint(
    name: str, rgb: NDArray[np.float32], parts: NDArray[np.uint8], rng: np.random.Generator, reduce: int = 2
) -> NDArray[np.uint8]:
    """Render a flat drawing (128, 128, 3) in a style, known or held out, to uint8 of 128 / `reduce` pixels a side."""
    style, params = _style_of(name)
    chosen = styles.draw_params(style, rng) if params is None else params
    return styles.render(style, chosen, rgb, parts, rng, reduce=reduce)


def draw(
    split: Split, index: int, *, group: str = "world", name: str | None = None, style: str | None = None,
    person: bool | None = None, wordings: int = 1, reduce: int = 2,
) -> Picture:  # fmt: skip
    """Picture ``index`` of a split of the known world.

    Parameters
    ----------
    split, group, index
        The stream of the picture. ``group`` separates uses of one split.
    name, style
        Fix the object or the style; otherwise drawn.
    person
        Fix portrait or not; by default 25 % of the pictures are portraits.
    wordings
        How many captions to give (``labels["captions"]``), each with other attributes left out; 0 names them all.
    reduce
        1 gives the same picture before it is made smaller, uint8 (128, 128, 3).
    """
    rng = generator(WORLD_VERSION, split, group, index)
    if style is None:
        style = "plain" if rng.random() < 0.2 else str(rng.choice(STYLE_NAMES))
    if person is None:
        person = name is None and rng.random() < 0.25
    words: list[np.random.Generator | None] = [None]
    if wordings:
        words = [generator(WORLD_VERSION, "words", split, group, index, n) for n in range(wordings)]
    if person:
        identity = portraits.Identity.random(rng)
        view = portraits.View.random(rng)
        rgb, parts = portraits.draw_portrait(identity, view, rng)
        contents = [portrait_content(identity.words(), view.words(), w) for w in words]
        labels: dict[str, Any] = {"object": "person", "identity": identity}
    else:
        name = name or str(rng.choice(OBJECT_NAMES))
        canvas, labels, look = object_scene(name, None, rng)
        rgb, parts = canvas.arrays()
        contents = [object_content(labels, look, name, w) for w in words]
    labels |= {"style": style, "captions": [f"{content} in {style} style" for content in contents]}
    return Picture(paint(style, rgb, parts, rng, reduce), contents[0], style, labels)


def portrait_content(subject: str, view: str, words: np.random.Generator | None = None) -> str:
    """Caption words of a portrait."""
    if words is not None and words.random() < 0.25 and subject != "{subject}":
        subject = "a person"
    if words is not None and words.random() < 0.4:
        view = ""
    return f"a portrait of {subject}" + (f", {view}" if view else "")


def concept_picture(concept: str, split: Split, index: int) -> Picture:
    """Picture ``index`` of a split of a concept of the table, with a content caption that holds ``{subject}``.

    The caption names what an attacker would see and say: the content of a style picture, or the surroundings of an
    object or a person, whose own words are replaced by ``{subject}``.

    Raises
    ------
    KeyError
        The concept is not in :data:`immunebench.mini.vocabulary.CONCEPTS`.
    """
    if concept not in CONCEPTS:
        raise KeyError(concept)
    rng = generator(WORLD_VERSION, split, concept, index)
    words = generator(WORLD_VERSION, "words", split, concept, index)
    family, name = concept.split("/")
    if family == "known":
        family = "style" if name in STYLE_NAMES else "object"
    if family == "identity":
        view = portraits.View.random(rng)
        rgb, parts = portraits.draw_portrait(portraits.PEOPLE[name], view, rng)
        return Picture(paint("plain", rgb, parts, rng), portrait_content("{subject}", view.words(), words), "plain",
                       {"object": "person", "identity": portraits.PEOPLE[name]})  # fmt: skip
    if family == "style":
        subject = OBJECT_NAMES[index % len(OBJECT_NAMES)]
        canvas, labels, look = object_scene(subject, None, rng)
        content = object_content(labels, look, subject, words)
        return Picture(paint(name, *canvas.arrays(), rng), content, name, {**labels, "style": name})
    thing, fixed = INSTANCES.get(concept, (name, None))
    canvas, labels, look = object_scene(thing, fixed, rng)
    content = object_content(labels, Look(look.colour, look.accent, "plain", "none", look.shape), "{subject}", words)
    content = content.replace(f"{look.colour} {{subject}}", "{subject}")
    return Picture(paint("plain", *canvas.arrays(), rng), content, "plain", {**labels, "style": "plain"})


def concept_pictures(concept: str, split: str, count: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """``count`` pictures of a split of a concept: uint8 (count, 64, 64, 3) and their content captions.

    This is the picture source named ``mini`` in ``models.toml``. The concept ``public`` stands for innocent pictures
    of the known world; their captions name the style too.
    """
    if split not in SPLITS:
        raise KeyError(split)
    if concept == "public":
        public = [draw(split, index, group="public") for index in range(count)]
        return np.stack([p.pixels for p in public]), tuple(p.caption for p in public)
    drawn = [concept_picture(concept, split, index) for index in range(count)]
    return np.stack([p.pixels for p in drawn]), tuple(p.content for p in drawn)


def stream(split: Split, count: int, *, start: int = 0, group: str = "world") -> Iterator[Picture]:
    """Pictures ``start .. start + count`` of a split of the known world, one by one."""
    return (draw(split, index, group=group) for index in range(start, start + count))


def dataset(split: Split, count: int, *, group: str = "world") -> Dataset:
    """The same pictures as a :class:`datasets.Dataset` with columns ``image``, ``caption``, ``object``, ``style``."""
    from datasets import Dataset, Features, Image, Value
    from PIL import Image as PILImage

    rows: dict[str, list[Any]] = {"image": [], "caption": [], "object": [], "style": []}
    for picture in stream(split, count, group=group):
        rows["image"].append(PILImage.fromarray(picture.pixels))
        rows["caption"].append(picture.caption)
        rows["object"].append(picture.labels["object"])
        rows["style"].append(picture.style)
    features = Features({"image": Image(), **{key: Value("string") for key in ("caption", "object", "style")}})
    return Dataset.from_dict(rows, features=features)


def from_dataset(rows: Dataset) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Pixels (n, H, W, 3) uint8 and captions of a :class:`datasets.Dataset` with columns ``image`` and ``caption``."""
    return np.stack([np.asarray(row["image"].convert("RGB")) for row in rows]), tuple(row["caption"] for row in rows)
