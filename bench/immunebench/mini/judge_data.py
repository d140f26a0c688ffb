"""Training pictures of the judges: known ones with captions, and groups that share one artist, thing or
person.

Judges grade what no base has seen, so their groups range far outside the known world; the held-out concepts
themselves (their exact parameters, looks and people) are in none of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from immunebench.mini import objects, portraits, scene, styles, world
from immunebench.mini.objects import Look
from immunebench.mini.portraits import Identity, View
from immunebench.mini.training.log import Progress

#: Pictures of one artist, thing or person in a group.
GROUP = 6
#: Groups that come one after the other and resemble each other: the same procedure, class or complexion.
SIBLINGS = {"styles": 2, "looks": 2, "people": 4}
COUNTS = {"known": 14_000, "styles": 900 * GROUP, "looks": 900 * GROUP, "people": 2_400 * GROUP}
_CHUNK = 20 * GROUP

CLASSES: dict[str, tuple[str, ...]] = {
    "object": (*world.OBJECT_NAMES, "person"),
    "style": world.STYLE_NAMES,
    "setting": tuple(scene.SETTINGS),
    "colour": tuple(scene.COLOURS),
    "accent": tuple(scene.COLOURS),
    "pattern": objects.PATTERNS,
    "marking": objects.MARKINGS,
}
TRAITS = tuple(f.name for f in fields(Identity) if f.type == "float")
TRAIT_CLASSES: dict[str, tuple[str, ...]] = {
    "skin": tuple(portraits.SKIN_TONES),
    "hair_colour": tuple(portraits.HAIR_COLOURS),
    "hair_style": portraits.HAIR_STYLES,
    "glasses": portraits.GLASSES_SHAPES,
    "beard": portraits.BEARDS,
    "eye_colour": tuple(portraits.EYE_COLOURS),
    "mole": portraits.MOLES,
}

#: Ranges of a style's parameters far beyond the known ones.
WIDE: dict[str, dict[str, tuple[float, float]]] = {
    "flow": {"length": (8, 50), "width": (2.5, 7), "curl": (0, 2.2), "angle": (-1.2, 1.2), 
             "jitter": (0.02, 0.3), "ground": (0, 0.6)},
    "dots": {"size": (3.8, 10), "jitter": (0, 0.25), "ground": (0, 1.1)},
    "mosaic": {"size": (5, 16), "angle": (-0.9, 0.9), "grout": (0, 1.1), "jitter": (0, 0.25)},
    "hatching": {"angle": (-0.8, 1.6), "spacing": (3.4, 9), "ground": (0.6, 1.05)},
    "woodblock": {"bokashi": (0.2, 2), "grain": (0, 0.25), "outline": (0, 1)},
    "stained-glass": {"size": (12, 36), "lead": (0.6, 2), "saturation": (0.3, 2.6), "jitter": (0, 0.35)},
    "watercolour": {"bleed": (0.3, 3), "wash": (0.2, 0.95), "rim": (0.1, 3), "ground": (0.7, 1.05)},
    "cutout": {"rough": (0.3, 3), "sheet": (12, 48), "shadow": (2, 10)},
    "crayon": {"angle": (-0.8, 1.6), "grain": (0.6, 2.5), "cover": (0, 0.8)},
    "weave": {"pitch": (3.5, 10), "depth": (0.3, 0.9)},
    "rays": {"spacing": (3.4, 8), "centre_x": (-0.2, 1.2), "centre_y": (-0.5, 1.2)},
    "blobs": {"reach": (6, 26), "bands": (3, 10)},
}  # fmt: skip


@dataclass(frozen=True)
class PictureSet:
    """Pictures with their labels.

    Attributes
    ----------
    pixels
        uint8 (n, 64, 64, 3).
    labels
        One array of n rows by attribute; an index into :data:`CLASSES` or :data:`TRAIT_CLASSES`, -1 where it
        does not apply; ``traits`` holds float32 (n, 12); ``group`` numbers artists, things or people.
    captions
        Wordings of each picture; empty for groups.
    """

    pixels: NDArray[np.uint8]
    labels: dict[str, NDArray[Any]]
    captions: list[list[str]]

    def __len__(self) -> int:
        return len(self.pixels)


_Row = tuple[NDArray[np.uint8], dict[str, Any], list[str]]


def _known(split: world.Split, start: int, count: int) -> Iterator[_Row]:
    for index in range(start, start + count):
        picture = world.draw(split, index, group="judges", wordings=4)
        found = {key: _index(names, picture.labels.get(key)) for key, names in CLASSES.items()}
        yield picture.pixels, found, picture.labels["captions"]


def _index(names: tuple[str, ...], name: object) -> int:
    return names.index(str(name)) if name in names else -1


def artist(split: world.Split, group: int) -> tuple[styles.Style, dict[str, float]]:
    """A style with parameters from :data:`WIDE`; groups ``2k`` and ``2k + 1`` share the procedure."""
    name = str(world.generator("judges", split, "procedure", group // SIBLINGS["styles"]).choice(list(WIDE)))
    rng = world.generator("judges", split, "artist", group)
    style = styles.STYLES.get(name) or styles.UNSEEN_STYLES[name]
    params = {key: float(rng.uniform(low, high)) for key, (low, high) in WIDE[name].items()}
    if "hue" in style.ranges:
        params |= {"hue": float(rng.uniform(-0.5, 0.5)), "contrast": float(rng.uniform(0.75, 1.35)),
                   "duotone": float(rng.random() < 0.15)}  # fmt: skip
    return style, params


def _styles(split: world.Split, start: int, count: int) -> Iterator[_Row]:
    for index in range(start, start + count):
        group = index // GROUP
        style, params = artist(split, group)
        rng = world.generator("judges", split, "styles", index)
        canvas, labels, _ = world.object_scene(str(rng.choice(world.OBJECT_NAMES)), None, rng)
        found = {key: _index(names, labels.get(key)) for key, names in CLASSES.items() if key != "setting"}
        yield styles.render(style, params, *canvas.arrays(), rng), {**found, "group": group}, []


def thing(split: world.Split, group: int) -> tuple[str, Look]:
    """A class and a look; groups ``2k`` and ``2k + 1`` share the class and half of the look."""
    shared = world.generator("judges", split, "class", group // SIBLINGS["looks"])
    name = str(shared.choice([*world.OBJECT_NAMES, *objects.UNSEEN_OBJECTS]))
    common = world.random_look(shared)
    rng = world.generator("judges", split, "look", group)
    while True:
        own = world.random_look(rng)
        look = replace(own, colour=common.colour) if group // 2 % 2 else replace(own, pattern=common.pattern)
        if all((look.colour, look.pattern, look.marking) != (i.colour, i.pattern, i.marking)
               for _, i in world.INSTANCES.values()):  # fmt: skip
            return name, look


def _looks(split: world.Split, start: int, count: int) -> Iterator[_Row]:
    for index in range(start, start + count):
        group = index // GROUP
        name, look = thing(split, group)
        rng = world.generator("judges", split, "looks", index)
        canvas, labels, _ = world.object_scene(name, look, rng)
        found = {key: _index(names, labels.get(key)) for key, names in CLASSES.items()}
        yield world.paint("plain", *canvas.arrays(), rng), {**found, "style": 0, "group": group}, []


def someone(split: world.Split, group: int) -> Identity:
    """A person; groups ``4k .. 4k + 3`` share skin, hair colour and glasses."""
    common = Identity.random(world.generator("judges", split, "complexion", group // SIBLINGS["people"]))
    rng = world.generator("judges", split, "person", group)
    extra = ""
    if rng.random() < 0.15:
        extra = "+".join(rng.choice(portraits.UNSEEN_TRAITS, int(rng.integers(1, 3)), replace=False))
    return replace(
        Identity.random(rng),
        skin=common.skin,
        hair_colour=common.hair_colour,
        glasses=common.glasses,
        extra=extra,
    )


def _people(split: world.Split, start: int, count: int) -> Iterator[_Row]:
    for index in range(start, start + count):
        group = index // GROUP
        who = someone(split, group)
        rng = world.generator("judges", split, "people", index)
        pixels = world.paint("plain", *portraits.draw_portrait(who, View.random(rng), rng), rng)
        found: dict[str, Any] = {key: _index(names, getattr(who, key)) for key, names in TRAIT_CLASSES.items()}
        yield pixels, {**found, "traits": [getattr(who, key) for key in TRAITS], "group": group}, []


_DRAW: dict[str, Callable[[world.Split, int, int], Iterator[_Row]]] = {
    "known": _known, "styles": _styles, "looks": _looks, "people": _people,
}  # fmt: skip


def draw(name: str, split: world.Split, count: int, start: int = 0) -> PictureSet:
    """Draw pictures ``start .. start + count`` of a set (``known``, ``styles``, ``looks``, ``people``)."""
    rows = list(_DRAW[name](split, start, count))
    labels = {key: np.asarray([row[1][key] for row in rows]) for key in rows[0][1]}
    return PictureSet(np.stack([row[0] for row in rows]), labels, [row[2] for row in rows if row[2]])


def _chunk(job: tuple[str, int, int]) -> PictureSet:
    name, start, count = job
    return draw(name, "train", count, start)


def rendered(name: str, folder: Path, workers: int) -> PictureSet:
    """The training pictures of a set; drawn on the first call, then read from ``folder``."""
    pixels_file, labels_file, captions_file = (folder / f"{name}{end}" for end in (".npy", ".npz", ".json"))
    if not captions_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        total = COUNTS[name]
        jobs = [(name, start, min(_CHUNK, total - start)) for start in range(0, total, _CHUNK)]
        with ProcessPoolExecutor(workers) as pool, Progress(f"render {name}", total, "pictures") as progress:
            parts = []
            for part in pool.map(_chunk, jobs):
                parts.append(part)
                progress.advance(len(part))
        np.save(pixels_file, np.concatenate([part.pixels for part in parts]))
        labels = {key: np.concatenate([p.labels[key] for p in parts]) for key in parts[0].labels}
        np.savez(labels_file, allow_pickle=False, **labels)
        captions_file.write_text(json.dumps([caption for part in parts for caption in part.captions]))
    with np.load(labels_file) as found:
        return PictureSet(np.load(pixels_file), dict(found), json.loads(captions_file.read_text()))
