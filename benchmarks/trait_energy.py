"""How much of a picture each trait of the embedded world changes, and how much of that few numbers a patch keep.

Run ``python benchmarks/trait_energy.py``. Energy: of two pictures that differ in one trait alone, the sum of squared
differences over their 64 x 64 x 3 values in [-1, 1], a mean over pairs. Kept: the share of it that is left after the
best linear code of 4, 8 or 12 numbers for each 4 x 4 patch, which is as many as an autoencoder of so many channels has.
A trait whose kept energy is below the error of a round trip cannot be learned. Pose is listed to compare with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from immunebench.mini import objects, portraits, scene, styles, world
from immunebench.mini.objects import Look
from immunebench.mini.portraits import Identity, View
from immunebench.mini.styles import Hand

Bytes = NDArray[np.uint8]
Doubles = NDArray[np.float64]
Pair = tuple[Bytes, Bytes]
#: Draws the two pictures of one pair.
Draw = Callable[[np.random.Generator], Pair]

T = TypeVar("T", Identity, View, Look, Hand)
PLAIN = Hand("plain")
PATCH = 4
CODES = (4, 8, 12)
_POSE = ("yaw", "roll", "x", "y", "scale")


@dataclass(frozen=True)
class Row:
    """One trait: its mean energy, the least of a pair, and the shares that codes keep, as :data:`CODES` lists them."""

    trait: str
    energy: float
    least: float
    kept: tuple[float, ...]


def patches(pictures: Bytes) -> Doubles:
    """Patches of 4 x 4 pixels in [-1, 1], (n, 256, 48), of pictures uint8 (n, 64, 64, 3)."""
    n, side = len(pictures), pictures.shape[1] // PATCH
    scaled = pictures.astype(np.float64) / 127.5 - 1
    return scaled.reshape(n, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, side * side, -1)


def principal_axes(pictures: Bytes) -> tuple[Doubles, Doubles]:
    """Mean patch (48,) and the axes (48, 48) of a linear code of patches, the strongest in the first column."""
    found = patches(pictures).reshape(-1, 3 * PATCH**2)
    mean = found.mean(0)
    _, axes = np.linalg.eigh(np.cov(found - mean, rowvar=False))
    return mean, axes[:, ::-1]


def changed(drawn: T, trait: str, value: object) -> T:
    """The same person, view, look or hand with another value of one trait."""
    values: dict[str, Any] = {trait: value}
    return replace(drawn, **values)


def other(rng: np.random.Generator, values: Sequence[str], own: str) -> str:
    """One of the values that is not one's own."""
    return str(rng.choice([value for value in values if value != own]))


def _seeds(rng: np.random.Generator) -> Iterator[np.random.Generator]:
    """The same generator again and again: what carries no meaning is equal in both pictures of a pair."""
    seed = int(rng.integers(2**32))
    while True:
        yield np.random.default_rng(seed)


def _portraits(rng: np.random.Generator, people: Sequence[Identity], views: Sequence[View]) -> Pair:
    again = _seeds(rng)
    first, second = (styles.render(PLAIN, *portraits.draw_portrait(who, view, next(again)), next(again))
                     for who, view in zip(people, views, strict=True))  # fmt: skip
    return first, second


def person(trait: str) -> Draw:
    """A trait of a person, or of the view."""

    def pair(rng: np.random.Generator) -> Pair:
        who, view = Identity.random(rng, unseen=0.1), View.random(rng)
        if trait in portraits.TRAITS:
            changed_person = changed(who, trait, other(rng, portraits.TRAITS[trait], getattr(who, trait)))
            return _portraits(rng, (who, changed_person), (view, view))
        if trait == "pose":
            turned = View.random(rng)
            seen = replace(view, **{name: getattr(turned, name) for name in _POSE})
        else:
            values = {"clothing": portraits.CLOTHING_COLOURS, "background": portraits.BACKGROUND_COLOURS}[trait]
            seen = changed(view, trait, other(rng, list(values), getattr(view, trait)))
        return _portraits(rng, (who, who), (view, seen))

    return pair


def _scenes(rng: np.random.Generator, names: Sequence[str], looks: Sequence[Look], settings: Sequence[str]) -> Pair:
    again = _seeds(rng)
    first, second = (styles.render(PLAIN, *world.object_scene(name, look, next(again), setting)[:2], next(again))
                     for name, look, setting in zip(names, looks, settings, strict=True))  # fmt: skip
    return first, second


def changed_look(rng: np.random.Generator, look: Look, trait: str) -> Look:
    """A look that differs in one trait; colour and accent still stand out against each other."""
    if trait == "shape":
        word = other(rng, objects.SHAPES, objects.shape_word(look.shape))
        return replace(look, shape=0.75 * (objects.SHAPES.index(word) - 1))
    if trait in ("colour", "accent"):
        against = look.accent if trait == "colour" else look.colour
        return changed(look, trait, other(rng, sorted(objects.contrasting(against)), getattr(look, trait)))
    values = {"pattern": objects.PATTERNS, "marking": objects.MARKINGS}[trait]
    return changed(look, trait, other(rng, values, getattr(look, trait)))


def thing(trait: str) -> Draw:
    """A trait of a thing, its kind, or the setting."""

    def pair(rng: np.random.Generator) -> Pair:
        kinds = [*objects.OBJECTS, *objects.UNSEEN_OBJECTS]
        name, look = str(rng.choice(kinds)), objects.random_look(rng)
        setting = str(rng.choice(list(scene.SETTINGS)))
        names, looks, settings = [name, name], [look, look], [setting, setting]
        if trait == "kind":
            names[1] = other(rng, kinds, name)
        elif trait == "setting":
            settings[1] = other(rng, list(scene.SETTINGS), setting)
        else:
            looks[1] = changed_look(rng, look, trait)
        return _scenes(rng, names, looks, settings)

    return pair


def hand(trait: str, procedure: str = "") -> Draw:
    """A trait of a hand over the procedures that have it; or a procedure against plain."""

    def pair(rng: np.random.Generator) -> Pair:
        able = [name for name, applies in styles.APPLIES.items() if trait in applies and name != "plain"]
        first = Hand.random(rng, known=False, procedure=procedure or str(rng.choice(able)))
        if procedure:
            first, second = replace(first, palette="natural"), PLAIN
        else:
            second = changed(first, trait, other(rng, styles.HAND[trait], getattr(first, trait)))
        again = _seeds(rng)
        name, look = str(rng.choice(world.OBJECT_NAMES)), objects.random_look(rng)
        rgb, parts, _ = world.object_scene(name, look, next(again))
        return styles.render(first, rgb, parts, next(again)), styles.render(second, rgb, parts, next(again))

    return pair


def every_trait() -> dict[str, Draw]:
    """What draws a pair, by the trait that tells its pictures apart."""
    rows: dict[str, Draw] = {f"identity: {t}": person(t) for t in (*portraits.TRAITS, "clothing", "background", "pose")}
    rows |= {f"object: {t}": thing(t) for t in ("kind", "colour", "accent", "pattern", "marking", "shape", "setting")}
    rows |= {f"style: {t}": hand(t) for t in ("palette", "scale", "direction", "ground")}
    rows |= {f"style: plain or {name}": hand("", name) for name in styles.HAND["procedure"] if name != "plain"}
    return rows


def measure(name: str, draw: Draw, pairs: int, axes: Doubles) -> Row:
    """Energy of a trait over pairs that depend on its name alone."""
    rng = world.generator("trait energy", name)
    drawn = [draw(rng) for _ in range(pairs)]
    difference = patches(np.stack([a for a, _ in drawn])) - patches(np.stack([b for _, b in drawn]))
    energy = np.square(difference).sum((1, 2))
    kept = tuple(float(np.square(difference @ axes[:, :k]).sum() / energy.sum()) for k in CODES)
    return Row(name, float(energy.mean()), float(energy.min()), kept)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    cells: list[list[Any]] = [
        [r.trait, f"{r.energy:.0f}", f"{r.least:.0f}", *(f"{share:.2f}" for share in r.kept)] for r in rows
    ]
    heads = ["trait", "energy", "least pair", *(f"kept by {k}" for k in CODES)]
    return tabulate(
        cells, heads, tablefmt="github", disable_numparse=True, colalign=["left", *["right"] * (2 + len(CODES))]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="pairs of pictures a trait")
    parser.add_argument("--pictures", type=int, default=1500, help="that the linear code is made of")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    code = np.stack([picture.pixels for picture in world.stream("train", options.pictures, group="trait energy")])
    _, axes = principal_axes(code)
    rows = [measure(name, draw, options.pairs, axes) for name, draw in every_trait().items()]
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
