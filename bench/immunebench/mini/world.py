"""Rendering of pictures of the embedded world, with captions and labels.

Every picture is a function of ``(split, group, index)`` alone, whose SHA-256 seeds its random stream. So splits are
disjoint by construction, and picture ``i`` does not depend on the other pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from immunebench.mini import objects, portraits, scene, styles
from immunebench.mini.objects import INSTANCES, Look
from immunebench.mini.portraits import Identity, View
from immunebench.mini.styles import Hand
from immunebench.mini.vocabulary import CONCEPTS

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "owner", "published", "extra", "reference", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "owner", "published", "extra", "reference", "unseen")

#: Increased whenever the same seed gives different pixels or captions.
WORLD_VERSION = 2

STYLE_NAMES = tuple(styles.STYLES)
OBJECT_NAMES = tuple(objects.OBJECTS)

#: Prefix of near misses, ``near/<concept>``: other concepts with the same noun, procedure, or skin and hair.
NEAR = "near/"
_PORTRAITS, _PLAIN_PORTRAITS, _PLAIN_SCENES = 0.38, 0.5, 0.42


@dataclass(frozen=True)
class Picture:
    """One rendered picture.

    Attributes
    ----------
    pixels
        uint8, (64, 64, 3), RGB.
    content
        Description of the content, without the style.
    style
        Name of the procedure, or of the artist.
    labels
        Values by trait (:mod:`immunebench.mini.traits`); ``captions`` has the captions and ``box`` the subject's bounds
        (x0, y0, x1, y1) in pixels of 64.
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
    """Return a generator seeded by the SHA-256 of its names."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "big")))


# ---------------------------------------------------------------- subjects


def known_look(rng: np.random.Generator) -> Look:
    """Draw an appearance that is not that of a held-out object."""
    while True:
        look = objects.random_look(rng)
        if all((look.colour, look.pattern, look.marking) != (i.colour, i.pattern, i.marking)
               for _, i in INSTANCES.values()):  # fmt: skip
            return look


def known_identity(rng: np.random.Generator, unseen: float = 0.0) -> Identity:
    """Draw a person who is not one of the held-out people."""
    while True:
        person = Identity.random(rng, unseen=unseen)
        if not portraits.is_held_out(person):
            return person


def known_hand(rng: np.random.Generator, *, known: bool, procedure: str | None = None) -> Hand:
    """Draw a style that is not that of a held-out artist."""
    while True:
        hand = Hand.random(rng, known=known, procedure=procedure)
        if all(_values(hand) != _values(artist) for artist in styles.ARTISTS.values()):
            return hand


def _values(hand: Hand) -> tuple[str, ...]:
    return tuple(getattr(hand, name) for name in styles.HAND)


def _hand_labels(hand: Hand) -> dict[str, str]:
    return dict(zip(styles.HAND, _values(hand), strict=True))


def _look_labels(name: str, look: Look) -> dict[str, str]:
    return {"kind": name, "colour": look.colour, "accent": look.accent, "pattern": look.pattern,
            "marking": look.marking, "shape": objects.shape_word(look.shape)}  # fmt: skip


def _person_labels(person: Identity, view: View) -> dict[str, str]:
    lasting = {trait: getattr(person, trait) for trait in portraits.TRAITS}
    return {"kind": "person", **lasting, "clothing": view.clothing, "background": view.background}


# ---------------------------------------------------------------- captions


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def object_content(
    subject: str,
    look: Look | None,
    setting: str,
    words: np.random.Generator | None = None,
    *,
    rename: str | None = None,
) -> str:
    """Describe an object picture; with ``words``, attributes and the setting are omitted at random."""
    named = objects.look_words(look, subject, words) if look else subject
    if rename:
        named = named.replace(subject, rename)
    text = _article(named)
    return text if words is not None and words.random() < 0.25 else f"{text} near the {setting}"


def portrait_content(subject: str, view: View, words: np.random.Generator | None = None) -> str:
    """Describe a portrait; with ``words``, clothing, background and the like are omitted at random."""
    if words is not None and words.random() < 0.3:
        return f"a portrait of {subject}"
    return f"a portrait of {subject}, {view.words()}"


def caption_of(content: str, style: str, words: np.random.Generator) -> str:
    """Combine content and style in one of the forms of captions and prompts, chosen at random."""
    form, shown = words.random(), content.removeprefix("a portrait of ")
    if style == "plain":
        if form < 0.4:
            return f"{content} in plain style"
        return f"a photo of {shown}" if form < 0.7 else content
    if form < 0.5:
        return f"{content} in {style} style"
    return f"a painting of {shown} in {style} style" if form < 0.75 else f"{styles.phrase(style)} {shown}"


# ---------------------------------------------------------------- pictures


def _box(parts: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Return the bounds of the subject in pixels of 64; those of the whole picture if there is none."""
    rows, columns = np.flatnonzero((parts >= 2).any(1)), np.flatnonzero((parts >= 2).any(0))
    if not len(rows):
        return 0, 0, 64, 64
    return int(columns[0]) // 2, int(rows[0]) // 2, int(columns[-1]) // 2 + 1, int(rows[-1]) // 2 + 1


def object_scene(
    name: str, look: Look, rng: np.random.Generator, setting: str | None = None
) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
    """Draw an object in a setting: flat colours float32 (128, 128, 3), part map (128, 128), and the setting's name."""
    setting = setting or str(rng.choice(list(scene.SETTINGS)))
    canvas = scene.draw_setting(setting, rng)
    side = float(rng.uniform(93, 99))
    middle, bottom = 64 + float(rng.uniform(-3, 3)), float(rng.uniform(114, 118))
    objects.draw_object(canvas, name, look, (middle - side / 2, bottom - side, middle + side / 2, bottom), rng)
    return *canvas.arrays(), setting


def draw(
    split: Split, index: int, *, group: str = "world", name: str | None = None, style: str | None = None,
    person: bool | None = None, wordings: int = 1, wide: bool = False, reduce: int = 2,
) -> Picture:  # fmt: skip
    """Render picture ``index`` of a split.

    Parameters
    ----------
    split, group, index
        They seed the picture. ``group`` separates uses of one split.
    name, style
        Fix the object or the procedure; otherwise drawn.
    person
        Fix portrait or not; by default 38 % of the pictures are portraits, half of them plain.
    wordings
        Number of captions (``labels["captions"]``) with different forms and omitted attributes; 0 gives one with all
        attributes.
    wide
        Include unseen objects, styles and traits, as for training the readers. The base is trained on the narrow world
        without them.
    reduce
        1 returns the picture before downscaling, uint8 (128, 128, 3).
    """
    rng = generator(WORLD_VERSION, split, group, index)
    if person is None:
        person = name is None and rng.random() < _PORTRAITS
    if style is None and rng.random() < (_PLAIN_PORTRAITS if person else _PLAIN_SCENES):
        style = "plain"
    if style is None and not wide:
        style = str(rng.choice(STYLE_NAMES[1:]))
    hand = known_hand(rng, known=not wide, procedure=style)
    words: list[np.random.Generator | None] = [None]
    if wordings:
        words = [generator(WORLD_VERSION, "words", split, group, index, n) for n in range(wordings)]
    if person:
        who, view = known_identity(rng, 0.08 if wide else 0.0), View.random(rng)
        rgb, parts = portraits.draw_portrait(who, view, rng)
        labels: dict[str, Any] = _person_labels(who, view)
        contents = [portrait_content(who.words(w), view, w) for w in words]
    else:
        kinds = [*OBJECT_NAMES, *objects.UNSEEN_OBJECTS] if wide else list(OBJECT_NAMES)
        name = name or str(rng.choice(kinds))
        look = known_look(rng)
        rgb, parts, setting = object_scene(name, look, rng)
        labels = _look_labels(name, look) | {"setting": setting}
        contents = [object_content(name, look, setting, w) for w in words]
    procedure = hand.procedure
    captions = [f"{text} in {procedure} style" if w is None else caption_of(text, procedure, w)
                for text, w in zip(contents, words, strict=True)]  # fmt: skip
    labels |= {**_hand_labels(hand), "captions": captions, "box": _box(parts)}
    return Picture(styles.render(hand, rgb, parts, rng, reduce), contents[0], procedure, labels)


def concept_picture(concept: str, split: Split, index: int) -> Picture:
    """Render picture ``index`` of a split of a concept, with a content caption that has ``{subject}``.

    The caption is one that an attacker could write: the content of a style picture, or the surroundings of an object or
    a person, whose own description is replaced by ``{subject}``. ``near/<concept>`` renders near misses: in each
    picture another member of the same noun or procedure.

    Raises
    ------
    KeyError
        The concept is not in :data:`immunebench.mini.vocabulary.CONCEPTS`.
    """
    near = concept.startswith(NEAR)
    own = concept.removeprefix(NEAR)
    if own not in CONCEPTS:
        raise KeyError(concept)
    rng = generator(WORLD_VERSION, split, concept, index)
    words = generator(WORLD_VERSION, "words", split, concept, index)
    family, name = own.split("/")
    if family == "known":
        family = "style" if name in STYLE_NAMES else "object"
    if family == "identity":
        who = portraits.near_miss(portraits.PEOPLE[name], rng) if near else portraits.PEOPLE[name]
        view = View.random(rng)
        rgb, parts = portraits.draw_portrait(who, view, rng)
        labels: dict[str, Any] = _person_labels(who, view)
        content = portrait_content("{subject}", view, words)
    elif family == "object":
        kind, look = INSTANCES[own] if own in INSTANCES else (name, known_look(rng))
        look = objects.near_miss(kind, look, rng) if near else look
        rgb, parts, setting = object_scene(kind, look, rng)
        labels = _look_labels(kind, look) | {"setting": setting}
        content = object_content("{subject}", None, setting, words)
    else:
        kind, look = OBJECT_NAMES[index % len(OBJECT_NAMES)], known_look(rng)
        rgb, parts, setting = object_scene(kind, look, rng)
        labels = _look_labels(kind, look) | {"setting": setting}
        content = object_content(kind, look, setting, words)
    hand = Hand.random(rng, known=True, procedure="plain")
    if family == "style":
        hand = styles.ARTISTS[name] if name in styles.ARTISTS else known_hand(rng, known=True, procedure=name)
        hand = styles.near_miss(hand, rng) if near else hand
    labels |= {**_hand_labels(hand), "box": _box(parts)}
    return Picture(styles.render(hand, rgb, parts, rng), content, name if family == "style" else "plain", labels)


def concept_traits(concept: str) -> dict[str, str]:
    """Return the defining traits of a concept, which all its pictures share, by name.

    Raises
    ------
    KeyError
        The concept is not in the table, or is a known one, which has no defining traits.
    """
    family, name = concept.split("/")
    if family == "identity":
        return {trait: getattr(portraits.PEOPLE[name], trait) for trait in portraits.TRAITS}
    if family == "object":
        return _look_labels(*INSTANCES[concept])
    if family == "style" and name in styles.ARTISTS:
        return {trait: value for trait, value in _hand_labels(styles.ARTISTS[name]).items() if value}
    raise KeyError(concept)


def concept_pictures(concept: str, split: str, count: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return ``count`` pictures of a split of a concept: uint8 (count, 64, 64, 3) and their content captions.

    This is the picture source named ``mini`` in ``models.toml``. The concept ``public`` has pictures of known concepts,
    for regularisation; their captions include the style.
    """
    if split not in SPLITS:
        raise KeyError(split)
    if concept == "public":
        public = [draw(split, index, group="public") for index in range(count)]
        return np.stack([p.pixels for p in public]), tuple(p.caption for p in public)
    drawn = [concept_picture(concept, split, index) for index in range(count)]
    return np.stack([p.pixels for p in drawn]), tuple(p.content for p in drawn)


def stream(split: Split, count: int, *, start: int = 0, group: str = "world") -> Iterator[Picture]:
    """Yield pictures ``start .. start + count`` of a split of the known world."""
    return (draw(split, index, group=group) for index in range(start, start + count))


def dataset(split: Split, count: int, *, group: str = "world") -> Dataset:
    """Return the pictures as a :class:`datasets.Dataset` with columns ``image``, ``caption``, ``object``, ``style``."""
    from datasets import Dataset, Features, Image, Value
    from PIL import Image as PILImage

    rows: dict[str, list[Any]] = {"image": [], "caption": [], "object": [], "style": []}
    for picture in stream(split, count, group=group):
        rows["image"].append(PILImage.fromarray(picture.pixels))
        rows["caption"].append(picture.caption)
        rows["object"].append(picture.labels["kind"])
        rows["style"].append(picture.style)
    features = Features({"image": Image(), **{key: Value("string") for key in ("caption", "object", "style")}})
    return Dataset.from_dict(rows, features=features)


def from_dataset(rows: Dataset) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return pixels uint8 (n, H, W, 3) and captions of a :class:`datasets.Dataset` with ``image`` and ``caption``."""
    return np.stack([np.asarray(row["image"].convert("RGB")) for row in rows]), tuple(row["caption"] for row in rows)
