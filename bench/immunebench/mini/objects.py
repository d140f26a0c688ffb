"""Subjects of the procedural picture world: twelve known kinds of thing, four unseen ones and the particular things.

Every kind is drawn in unit coordinates (u right, v down, both in [0, 1] over its box) by a `Pen` that applies tilt,
scale and the aspect of the look. The look (colour, accent, pattern, marking, shape, proportions) makes the individual;
the random generator varies the pose only, and that little. Flat colours and a dark outline round every part survive
a halving of the picture and a coarse code of it; fine detail does not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .scene import COLOURS, RGB, Box, Points, S, Scene

PATTERNS = ("plain", "striped", "spotted", "checked", "zigzag")
MARKINGS = ("none", "heart", "star", "cross", "moon")
SHAPES = ("wide", "regular", "tall")

BODY, PATTERN, MARKING = 2, 3, 4
WHITE, INK, WOOD, METAL = (252, 250, 246), (24, 20, 28), (150, 96, 56), (160, 166, 176)
GLASS, GOLD, LEAF, COFFEE = (176, 226, 250), (255, 206, 60), (76, 170, 76), (88, 52, 32)

#: Thickness in pixels of the outline round a part, the radius of a marking and the margin of its patch.
_OUTLINE, _MARK, _RIM = 3.4, 15.0, 3.5
#: Squared distance, the channels in [-1, 1], from which on one colour stands out against another.
_CONTRAST = 1.3
_ONLY_PATTERN = [255 if part == PATTERN else 0 for part in range(256)]

Outline = list[tuple[float, float]]


@dataclass(frozen=True)
class Look:
    """Identity of one individual thing.

    Attributes
    ----------
    colour, accent : str
        Keys of `COLOURS`, never the same: the body's colour, and that of its pattern and second large part.
    pattern, marking : str
        Members of `PATTERNS` and `MARKINGS`.
    shape : float
        Aspect in [-1, 1], from wide to tall; `shape_word` names it.
    detail : tuple of float
        Two small proportions in [-1, 1] whose meaning is the kind's own.
    """

    colour: str
    accent: str
    pattern: str
    marking: str
    shape: float
    detail: tuple[float, float]


def shape_word(shape: float) -> str:
    """Name of an aspect, a member of `SHAPES`."""
    return SHAPES[0] if shape < -1 / 3 else SHAPES[2] if shape > 1 / 3 else SHAPES[1]


@cache
def contrasting(colour: str) -> frozenset[str]:
    """Colours that stand out against one: as an accent of it they keep a pattern readable."""
    own = COLOURS[colour]
    apart = {name: sum(((a - b) / 127.5) ** 2 for a, b in zip(own, rgb, strict=True)) for name, rgb in COLOURS.items()}
    return frozenset(name for name, distance in apart.items() if distance >= _CONTRAST)


def random_look(rng: np.random.Generator, **fixed: str | float | tuple[float, float]) -> Look:
    """Draw a look.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the draw; as many numbers are taken whatever is fixed.
    **fixed : str, float or tuple of float
        Attributes of `Look` to take as given. Colour and accent always contrast, unless both are fixed.
    """
    names = list(COLOURS)
    order = [names[i] for i in rng.permutation(len(names)).tolist()]
    fitting = contrasting(str(fixed["accent"])) if "accent" in fixed else frozenset(names)
    colour = str(fixed.get("colour", next(name for name in order if name in fitting)))
    accent = next(n for n in reversed(order) if n in contrasting(colour))
    drawn: dict[str, str | float | tuple[float, float]] = {
        "colour": colour,
        "accent": accent,
        "pattern": PATTERNS[0] if rng.random() < 0.35 else PATTERNS[int(rng.integers(1, len(PATTERNS)))],
        "marking": MARKINGS[0] if rng.random() < 0.45 else MARKINGS[int(rng.integers(1, len(MARKINGS)))],
        "shape": float(0.75 * (rng.integers(3) - 1) + rng.uniform(-0.15, 0.15)),
        "detail": (float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))),
    }
    return Look(**(drawn | fixed))  # type: ignore[arg-type]


def _differences(a: Look, b: Look) -> int:
    """In how many of the five named traits two looks differ."""
    return (
        (a.colour != b.colour)
        + (a.accent != b.accent)
        + (a.pattern != b.pattern)
        + (a.marking != b.marking)
        + (shape_word(a.shape) != shape_word(b.shape))
    )


def near_miss(name: str, look: Look, rng: np.random.Generator) -> Look:
    """Another thing of the same noun: it differs in at least two of colour, accent, pattern, marking and shape.

    Parameters
    ----------
    name : str
        The noun, for callers that pick by it; every kind has the same traits.
    look : Look
        The thing that it must not be.
    rng : numpy.random.Generator
        Source of the draw.
    """
    while True:
        other = random_look(rng)
        if _differences(look, other) >= 2:
            return other


_PATTERN_WORDS = {
    "plain": "trim",
    "striped": "stripes",
    "spotted": "spots",
    "checked": "checks",
    "zigzag": "zigzags",
}


def look_words(look: Look, name: str, rng: np.random.Generator | None = None) -> str:
    """Words for a thing, such as "tall red mug with white stripes and a heart".

    Parameters
    ----------
    look : Look
        What it looks like.
    name : str
        The noun.
    rng : numpy.random.Generator, optional
        If given, each of the five attributes is left out independently with probability 0.3.
    """
    shape, colour, accent, pattern, marking = (True,) * 5 if rng is None else (rng.random(5) >= 0.3).tolist()
    before = [shape_word(look.shape)] if shape and shape_word(look.shape) != "regular" else []
    before += [look.colour] if colour else []
    after = []
    if look.pattern == "plain":
        after += [f"{look.accent} trim"] if accent else []
    elif pattern:
        after += [f"{look.accent} {_PATTERN_WORDS[look.pattern]}" if accent else _PATTERN_WORDS[look.pattern]]
    elif accent:
        after += [f"{look.accent} trim"]
    after += [f"a {look.marking}"] if marking and look.marking != "none" else []
    return " ".join([*before, name]) + (" with " + " and ".join(after) if after else "")


@cache
def _pattern_mask(name: str) -> Image.Image:
    """Pattern cover over a 2S x 2S field centred on the subject, mode L with values 0 or 255."""
    y, x = np.mgrid[0 : 2 * S, 0 : 2 * S].astype(np.float64) - S + 0.5
    if name == "striped":
        on = (x + 5) % 20 < 10
    elif name == "checked":
        on = (np.floor(x / 14 + 0.5) + np.floor(y / 14 + 0.5)) % 2 == 0
    elif name == "zigzag":
        on = (y + np.abs(x % 32 - 16) * 1.0) % 22 < 11
    elif name == "spotted":
        row = np.floor(y / 19)
        on = ((x + 12 * (row % 2)) % 24 - 12) ** 2 + (y % 19 - 9.5) ** 2 < 64
    else:
        on = np.zeros_like(x, dtype=bool)
    return Image.fromarray(np.where(on, 255, 0).astype(np.uint8))


@cache
def _circle(n: int = 24) -> Outline:
    return [(math.cos(t), math.sin(t)) for t in np.linspace(0, 2 * math.pi, n, endpoint=False).tolist()]


def _oval(cx: float, cy: float, rx: float, ry: float) -> Outline:
    return [(cx + rx * c, cy + ry * s) for c, s in _circle()]


def _arc(cx: float, cy: float, rx: float, ry: float, a0: float, a1: float, n: int = 14) -> Outline:
    """Points along an ellipse from angle `a0` to `a1` in degrees (0 right, 90 down)."""
    angles = [math.radians(a0 + (a1 - a0) * i / n) for i in range(n + 1)]
    return [(cx + rx * math.cos(t), cy + ry * math.sin(t)) for t in angles]


def _bar(x0: float, y0: float, x1: float, y1: float) -> Outline:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _round_bar(x0: float, y0: float, x1: float, y1: float, r: float) -> Outline:
    return (
        _arc(x0 + r, y0 + r, r, r, 180, 270, 4)
        + _arc(x1 - r, y0 + r, r, r, 270, 360, 4)
        + _arc(x1 - r, y1 - r, r, r, 0, 90, 4)
        + _arc(x0 + r, y1 - r, r, r, 90, 180, 4)
    )


def _moved(points: Points, distance: float, closed: bool = True) -> Outline:
    """Points moved to the left of the direction of travel, along the bisector at each, mitred up to a limit."""
    n, normals = len(points), []
    for i in range(n if closed else n - 1):
        (x0, y0), (x1, y1) = points[i], points[(i + 1) % n]
        length = math.hypot(x1 - x0, y1 - y0) or 1e-9
        normals.append(((y1 - y0) / length, (x0 - x1) / length))
    if not closed:
        normals.append(normals[-1])
    moved = []
    for i, (x, y) in enumerate(points):
        (ax, ay), (bx, by) = normals[i - 1] if closed or i else normals[0], normals[i]
        scale = distance / max(0.3, 1.0 + ax * bx + ay * by)
        moved.append((x + (ax + bx) * scale, y + (ay + by) * scale))
    return moved


def _grown(points: Points, distance: float) -> Outline:
    """Outline moved outwards."""
    turns = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True))
    return _moved(points, distance if turns > 0 else -distance)


@cache
def _symbol(name: str) -> Outline:
    """Outline of a marking in the square [-1, 1]^2."""
    if name == "star":
        radius = (1.08, 0.46)
        return [
            (radius[i % 2] * math.sin(i * math.pi / 5), 0.05 - radius[i % 2] * math.cos(i * math.pi / 5))
            for i in range(10)
        ]
    if name == "heart":
        lobes = _arc(-0.46, -0.36, 0.52, 0.54, 155, 335, 8) + _arc(0.46, -0.36, 0.52, 0.54, 205, 385, 8)
        return [*lobes, (0.0, 1.0)]
    if name == "cross":
        a, b = 0.34, 0.98
        return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a),
                (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]  # fmt: skip
    return _arc(-0.05, 0.0, 1.0, 1.0, 50, 310, 16) + _arc(0.5, 0.0, 0.72, 0.78, 265, 95, 12)


class Pen:
    """Draws in the unit square of a box, with tilt and the look's aspect; the bottom of the box stays."""

    def __init__(self, scene: Scene, look: Look, box: Box, rng: np.random.Generator, tilt: float) -> None:
        self.scene, self.look, self.rng = scene, look, rng
        self.colour, self.accent = COLOURS[look.colour], COLOURS[look.accent]
        self.a, self.b = look.detail
        x0, y0, x1, y1 = box
        s = look.shape
        self.w = (x1 - x0) * (0.94 - (0.36 * s if s > 0 else 0.14 * s))
        self.h = (y1 - y0) * (0.92 + (0.08 * s if s > 0 else 0.36 * s))
        self.size = min(x1 - x0, y1 - y0)
        self._cx, self._cy = (x0 + x1) / 2, y1 - self.h / 2 - 0.02 * (y1 - y0)
        angle = math.radians(float(rng.uniform(-tilt, tilt)))
        cos, sin = math.cos(angle), math.sin(angle)
        self._m = (self.w * cos, -self.h * sin, self.w * sin, self.h * cos)

    def wobble(self, amount: float) -> float:
        """Draw a small pose offset in unit coordinates."""
        return float(self.rng.uniform(-amount, amount))

    def at(self, points: Points) -> Outline:
        """Map unit coordinates to pixels."""
        (a, b, c, d), cx, cy = self._m, self._cx, self._cy
        return [(cx + a * (u - 0.5) + b * (v - 0.5), cy + c * (u - 0.5) + d * (v - 0.5)) for u, v in points]

    def _ink(self, outlines: Sequence[Points], width: float = _OUTLINE) -> None:
        part = self.scene.part_of(INK)
        for outline in outlines:
            self.scene.polygon(_grown(outline, width), INK, part)

    def poly(self, points: Points, colour: RGB) -> None:
        """Fill one outlined polygon as a part of its own colour."""
        self._fill(self.at(points), colour)

    def _fill(self, outline: Points, colour: RGB) -> None:
        if colour != INK:
            self._ink([outline])
        self.scene.polygon(outline, colour, self.scene.part_of(colour))

    def bar(self, x0: float, y0: float, x1: float, y1: float, colour: RGB) -> None:
        """Fill an outlined rectangle."""
        self.poly(_bar(x0, y0, x1, y1), colour)

    def disc(self, cx: float, cy: float, r: float, colour: RGB, ink: bool = True) -> None:
        """Fill a disc that stays round whatever the aspect; `r` is a fraction of the smaller side."""
        [(x, y)], q = self.at([(cx, cy)]), r * min(self.w, self.h)
        part = self.scene.part_of(colour)
        if ink and colour != INK:
            o = q + _OUTLINE
            self.scene.ellipse((x - o, y - o, x + o, y + o), INK, self.scene.part_of(INK))
        self.scene.ellipse((x - q, y - q, x + q, y + q), colour, part)

    def stroke(self, points: Points, colour: RGB, width: float) -> None:
        """Draw an outlined ribbon along a polyline; `width` is a fraction of the box side."""
        path, half = self.at(points), width * self.size / 2
        self._fill(_moved(path, half, False) + _moved(path, -half, False)[::-1], colour)

    def body(self, *outlines: Points) -> None:
        """Fill the union of outlines with the patterned colour."""
        placed = [self.at(outline) for outline in outlines]
        self._ink(placed)
        for outline in placed:
            self.scene.polygon(outline, self.colour, BODY)
        if self.look.pattern == "plain":
            return
        mask = Image.new("L", (S, S), 0)
        draw = ImageDraw.Draw(mask)
        for outline in placed:
            draw.polygon(outline, fill=255)
        x, y = round(S - self._cx), round(S - self._cy)
        cover = ImageChops.multiply(mask, _pattern_mask(self.look.pattern).crop((x, y, x + S, y + S)))
        self.scene.rgb.paste(self.accent, (0, 0, S, S), cover)
        self.scene.parts.paste(PATTERN, (0, 0, S, S), cover)

    def mark(self, cx: float, cy: float, room: float = 0.25, ground: RGB | None = None) -> None:
        """Place the marking on a plain patch, in white or black, whichever contrasts.

        `room` bounds its radius, as a fraction of the smaller side.
        """
        if self.look.marking == "none":
            return
        back, r = ground or self.colour, min(_MARK * self.size / 96, room * min(self.w, self.h))
        [(x, y)] = self.at([(cx, cy)])
        if self.look.pattern != "plain" and ground is None:
            # The patch takes away the pattern alone, not the outlines beside it.
            q, patch = r + _RIM, Image.new("L", (S, S), 0)
            ImageDraw.Draw(patch).ellipse((x - q, y - q, x + q, y + q), fill=255)
            patch = ImageChops.multiply(patch, self.scene.parts.point(_ONLY_PATTERN))
            self.scene.rgb.paste(back, (0, 0, S, S), patch)
            self.scene.parts.paste(BODY, (0, 0, S, S), patch)
        light = 0.3 * back[0] + 0.59 * back[1] + 0.11 * back[2] > 140
        outline = [(x + r * dx, y + r * dy) for dx, dy in _symbol(self.look.marking)]
        self.scene.polygon(outline, INK if light else WHITE, MARKING)

    def eye(self, cx: float, cy: float, r: float = 0.085) -> None:
        """Draw an eye."""
        self.disc(cx, cy, r, WHITE)
        self.disc(cx, cy, r * 0.6, INK)


def _house(p: Pen) -> None:
    w, eave = 0.42 + 0.03 * p.a, 0.4 + 0.03 * p.b
    p.bar(0.7, 0.04, 0.84, 0.3, METAL)
    p.body(_bar(0.5 - w, eave, 0.5 + w, 0.98))
    p.poly([(-0.02, eave + 0.02), (0.5, -0.02), (1.02, eave + 0.02)], p.accent)
    p.bar(0.5 - w + 0.06, 0.64, 0.5 - w + 0.27, 0.98, p.accent)
    p.disc(0.5, eave * 0.66, 0.075, GLASS)
    p.mark(0.5 + w * 0.36, 0.7, 0.22)


def _tree(p: Pen) -> None:
    t, y = 0.125 + 0.01 * p.a, 0.34
    foot = [(0.5 + t, 0.84), (0.5 + t * 2.4, 0.98), (0.5 - t * 2.4, 0.98), (0.5 - t, 0.84)]
    p.poly([(0.5 - t, 0.5), (0.5 + t, 0.5), *foot], p.accent)
    r = 0.19 + 0.012 * p.b
    lobes = [
        (x, v, r) for x, v in ((-0.32, 0.02), (0.32, 0.02), (-0.18, -0.16), (0.18, -0.16), (-0.18, 0.13), (0.18, 0.13))
    ]
    lobes.append((0.0, 0.0, 0.28))
    p.body(*[_oval(0.5 + x, y + v, q, q) for x, v, q in lobes])
    p.mark(0.5, y)


def _car(p: Pen) -> None:
    top, c = 0.03 + 0.02 * p.a, 0.04 * p.b
    p.poly([(0.14 + c, 0.48), (0.26 + c, top), (0.72 + c, top), (0.88 + c, 0.48)], p.accent)
    p.poly([(0.28 + c, 0.4), (0.34 + c, top + 0.14), (0.44 + c, top + 0.14), (0.44 + c, 0.4)], GLASS)
    p.poly([(0.56 + c, 0.4), (0.56 + c, top + 0.14), (0.66 + c, top + 0.14), (0.73 + c, 0.4)], GLASS)
    p.body(_round_bar(-0.02, 0.42, 1.02, 0.86, 0.1))
    for x in (0.22, 0.78):
        p.disc(x, 0.83, 0.175, INK, ink=False)
        p.disc(x, 0.83, 0.09, p.accent)
    p.mark(0.5, 0.63, 0.2)


def _boat(p: Pen) -> None:
    w, top = 0.4 + 0.03 * p.a, 0.12 + 0.02 * p.b
    p.bar(0.475, 0.0, 0.525, 0.75, WOOD)
    p.poly([(0.5, -0.02), (0.74, 0.03), (0.5, 0.09)], p.accent)
    p.body([*_arc(0.5, top, w, 0.04, 180, 360, 8), *_arc(0.5 + w, 0.37, 0.07, 0.24, -80, 80, 6),
            *_arc(0.5, 0.61, w, 0.05, 0, 180, 8), *_arc(0.5 - w, 0.37, 0.03, 0.24, 100, 260, 6)])  # fmt: skip
    p.poly([(-0.02, 0.68), (0.12, 0.74), (0.88, 0.74), (1.02, 0.68), (0.86, 0.98), (0.14, 0.98)], p.accent)
    p.mark(0.5, 0.38)


def _church(p: Pen) -> None:
    x, nave, spire = 0.2, 0.54 + 0.02 * p.a, 0.4 + 0.03 * p.b
    p.bar(x - 0.025, -0.05, x + 0.025, 0.16, INK)
    p.bar(x - 0.09, 0.0, x + 0.09, 0.05, INK)
    p.body(_bar(x - 0.18, spire, x + 0.18, 0.98))
    p.body(_bar(x + 0.18, nave, 1.0, 0.98))
    p.poly([(x + 0.18, nave), (x + 0.24, nave - 0.22), (0.92, nave - 0.22), (1.04, nave)], p.accent)
    p.poly([(x - 0.23, spire + 0.01), (x, 0.12), (x + 0.23, spire + 0.01)], p.accent)
    p.poly([(x - 0.085, 0.98), *_arc(x, 0.8, 0.085, 0.1, 180, 360, 8), (x + 0.085, 0.98)], p.accent)
    p.mark(x + 0.49, nave + 0.22, 0.2)


def _fish(p: Pen) -> None:
    h, t, wag = 0.31 + 0.015 * p.a, 0.36 + 0.03 * p.b, p.wobble(0.02)
    p.poly([(0.34, 0.5), (-0.05, 0.5 - t + wag), (0.04, 0.5 + wag), (-0.05, 0.5 + t + wag)], p.accent)
    p.poly([(0.34, 0.34), (0.3, 0.0), (0.58, 0.02), (0.82, 0.34)], p.accent)
    p.poly([(0.4, 0.7), (0.36, 0.95), (0.56, 0.97), (0.72, 0.72)], p.accent)
    p.body(_arc(0.6, 0.5, 0.43, h, -160, 160, 24))
    p.eye(0.85, 0.43)
    p.mark(0.53, 0.51, 0.24)


def _flower(p: Pen) -> None:
    n, y, turn = 6, 0.36, p.wobble(0.1)
    p.bar(0.47, 0.5, 0.53, 1.0, LEAF)
    for side in (-1, 1):
        tip = 0.5 + side * 0.4, 0.72 + 0.02 * p.a
        p.poly([(0.5, 0.96), (0.5 + side * 0.14, 0.78), tip, (0.5 + side * 0.34, 0.92)], LEAF)
    r, q = 0.27, 0.17 + 0.01 * p.b
    angles = [turn + k * math.tau / n for k in range(n)]
    p.body(*[_oval(0.5 + 1.15 * r * math.cos(t), y + r * math.sin(t), q * 1.08, q * 0.95) for t in angles])
    p.poly(_oval(0.5, y, 0.225, 0.21), p.accent)
    p.mark(0.5, y, 0.17, p.accent)


def _mug(p: Pen) -> None:
    w, x, top = 0.34 + 0.015 * p.a, 0.38, 0.12
    p.stroke(_arc(x + w - 0.04, 0.56, 0.26, 0.24 + 0.02 * p.b, -100, 100), p.accent, 0.1)
    p.body([(x - w, top), (x + w, top), *_arc(x, 0.9, w, 0.08, 0, 180, 8)])
    p.poly([(x - w, 0.8), *_arc(x, 0.8, w, 0.08, 180, 0, 8), (x + w, 0.8), *_arc(x, 0.9, w, 0.08, 0, 180, 8)], p.accent)
    p.poly(_oval(x, top, w, 0.1), p.accent)
    p.poly(_oval(x, top + 0.01, w * 0.72, 0.055), COFFEE)
    p.mark(x, 0.53)


def _umbrella(p: Pen) -> None:
    w, base = 0.5 + 0.01 * p.a, 0.57 + 0.02 * p.b
    p.stroke([(0.5, 0.4), (0.5, 0.86), *_arc(0.61, 0.86, 0.11, 0.1, 180, 0, 8), (0.72, 0.8)], p.accent, 0.07)
    p.bar(0.475, -0.03, 0.525, 0.1, p.accent)
    dome = _arc(0.5, base, w, base - 0.04, 180, 360, 22)
    scallops = [q for k in range(4) for q in _arc(0.5 + w - w * (2 * k + 1) / 4, base, w / 4, 0.07, 360, 180, 6)]
    p.poly(dome + scallops, p.accent)
    p.body([(u, v - 0.13 * (v > base - 0.08)) for u, v in dome[1:-1] + scallops[1:-1]])
    p.mark(0.5, base * 0.48, 0.18)


def _backpack(p: Pen) -> None:
    w, top = 0.4 + 0.015 * p.a, 0.08
    p.stroke(_arc(0.5, top + 0.02, 0.14, 0.11, 180, 360), p.accent, 0.06)
    for side in (-1, 1):
        u = 0.5 + side * (w + 0.03)
        p.poly(_round_bar(u - 0.08, 0.46, u + 0.08, 0.9, 0.06), p.accent)
    p.body([*_arc(0.5, top + 0.26, w, 0.26, 180, 360, 14), *_arc(0.5 + w - 0.1, 0.88, 0.1, 0.1, 0, 90, 4),
            *_arc(0.5 - w + 0.1, 0.88, 0.1, 0.1, 90, 180, 4)])  # fmt: skip
    y = 0.64 + 0.015 * p.b
    p.poly(_round_bar(0.5 - w * 0.74, y, 0.5 + w * 0.74, 0.92, 0.06), p.accent)
    p.bar(0.42, y + 0.06, 0.58, y + 0.1, GOLD)
    p.mark(0.5, 0.38)


def _cat(p: Pen) -> None:
    w, e, flick = 0.34 + 0.015 * p.a, 0.02 * p.b, p.wobble(0.015)
    p.stroke([(0.66, 0.92), (0.88, 0.9), (0.95, 0.74), (0.93 + flick, 0.52)], p.accent, 0.11)
    for side in (-1, 1):
        p.poly([(0.44 + side * 0.34, 0.28), (0.44 + side * 0.34, -0.04 - e), (0.44 + side * 0.06, 0.12)], p.accent)
    p.body(_oval(0.44, 0.76, w, 0.24), _bar(0.44 - w * 0.7, 0.42, 0.44 + w * 0.7, 0.8))
    p.body(_oval(0.44, 0.26, 0.37, 0.21))
    for side in (-1, 1):
        p.eye(0.44 + side * 0.17, 0.23, 0.085)
        p.poly(_oval(0.44 + side * 0.16, 0.96, 0.13, 0.05), p.accent)
    p.poly([(0.38, 0.33), (0.5, 0.33), (0.44, 0.4)], (250, 150, 160))
    p.mark(0.44, 0.715, 0.19)


def _bird(p: Pen) -> None:
    lift = p.wobble(0.015)
    for u in (0.4, 0.56):
        p.bar(u - 0.02, 0.8, u + 0.02, 0.98, GOLD)
    p.poly([(0.28, 0.5), (-0.02, 0.34 - 0.03 * p.a), (-0.04, 0.78), (0.26, 0.72)], p.accent)
    p.poly([(0.62, 0.4), (0.44, 0.04 + lift), (0.06, -0.02 + lift - 0.02 * p.b), (0.16, 0.34), (0.3, 0.5)], p.accent)
    p.poly([(0.88, 0.2), (1.06, 0.28), (0.88, 0.38)], GOLD)
    neck = [(0.58, 0.3), (0.94, 0.32), (0.82, 0.62), (0.4, 0.42)]
    p.body(_oval(0.46, 0.58, 0.38, 0.29), _oval(0.76, 0.26, 0.2, 0.2), neck)
    p.eye(0.79, 0.22, 0.07)
    p.mark(0.45, 0.6)


def _lighthouse(p: Pen) -> None:
    t, b = 0.23 + 0.01 * p.a, 0.33 + 0.015 * p.b
    p.poly([(0.4, 0.14), (-0.04, 0.02), (-0.04, 0.32)], (255, 244, 160))
    p.poly([(0.6, 0.14), (1.04, 0.02), (1.04, 0.32)], (255, 244, 160))
    p.body([(0.5 - t, 0.3), (0.5 + t, 0.3), (0.5 + b, 0.98), (0.5 - b, 0.98)])
    p.bar(0.38, 0.1, 0.62, 0.28, GOLD)
    p.poly([(0.3, 0.12), (0.5, -0.06), (0.7, 0.12)], p.accent)
    p.bar(0.5 - t - 0.06, 0.26, 0.5 + t + 0.06, 0.34, p.accent)
    p.bar(0.5 - b - 0.1, 0.87, 0.5 + b + 0.1, 0.98, p.accent)
    p.mark(0.5, 0.61, 0.165)


def _robot(p: Pen) -> None:
    w, h = 0.33 + 0.01 * p.a, 0.26 + 0.015 * p.b
    p.bar(0.48, -0.02, 0.52, 0.12, METAL)
    p.disc(0.5, -0.01, 0.05, GOLD)
    for side in (-1, 1):
        hand = 0.5 + side * 0.46, 0.74 + p.wobble(0.015)
        p.stroke([(0.5 + side * w, 0.5), (0.5 + side * 0.44, 0.54), hand], METAL, 0.09)
        p.disc(0.5 + side * 0.46, 0.76, 0.075, p.accent)
        p.bar(0.5 + side * 0.15 - 0.06, 0.84, 0.5 + side * 0.15 + 0.06, 0.96, METAL)
        p.bar(0.5 + side * 0.17 - 0.12, 0.92, 0.5 + side * 0.17 + 0.12, 1.0, p.accent)
    p.poly(_round_bar(0.5 - h, 0.09, 0.5 + h, 0.4, 0.06), p.accent)
    p.body(_round_bar(0.5 - w, 0.42, 0.5 + w, 0.87, 0.04))
    p.bar(0.38, 0.33, 0.62, 0.35, INK)
    for side in (-1, 1):
        p.eye(0.5 + side * 0.13, 0.21, 0.07)
    p.mark(0.5, 0.645, 0.17)


def _windmill(p: Pen) -> None:
    t, b = 0.24 + 0.01 * p.a, 0.36 + 0.02 * p.b
    p.body([(0.5 - t, 0.32), (0.5 + t, 0.32), (0.5 + b, 0.98), (0.5 - b, 0.98)])
    p.poly(_arc(0.5, 0.36, t + 0.04, 0.24, 180, 360, 12), WOOD)
    turn = math.radians(45.0) + p.wobble(0.06)
    for k in range(4):
        c, s = math.cos(turn + k * math.pi / 2), math.sin(turn + k * math.pi / 2)
        blade = ((0.1, -0.03), (0.14, 0.09), (0.58, 0.13), (0.58, -0.09))
        p.poly([(0.5 + c * d - s * o, 0.34 + 0.78 * (s * d + c * o)) for d, o in blade], p.accent)
    p.disc(0.5, 0.34, 0.06, GOLD)
    p.mark(0.5, 0.77, 0.17)


def _teapot(p: Pen) -> None:
    w, y = 0.34 + 0.01 * p.a, 0.6
    p.stroke(_arc(0.46 - w + 0.06, y - 0.03, 0.18, 0.2 + 0.02 * p.b, 70, 290), p.accent, 0.085)
    tip = [(0.84, 0.48), (0.88, 0.28), (1.06, 0.28), (0.99, 0.56)]
    p.poly([(0.46 + w * 0.7, y - 0.06), *tip, (0.46 + w * 0.8, y + 0.24)], p.accent)
    p.bar(0.28, 0.88, 0.64, 0.98, p.accent)
    p.body(_oval(0.46, y, w, 0.34))
    p.disc(0.46, 0.12, 0.07, p.accent)
    p.poly([(0.2, 0.32), *_arc(0.46, 0.32, 0.26, 0.16, 180, 360), (0.72, 0.32)], p.accent)
    p.mark(0.46, y + 0.05)


Painter = Callable[[Scene, Look, Box, np.random.Generator], None]


def _painter(draw: Callable[[Pen], None], tilt: float) -> Painter:
    def paint(scene: Scene, look: Look, box: Box, rng: np.random.Generator) -> None:
        draw(Pen(scene, look, box, rng, tilt))

    return paint


OBJECTS: dict[str, Painter] = {
    "house": _painter(_house, 1.5),
    "tree": _painter(_tree, 2),
    "car": _painter(_car, 2),
    "boat": _painter(_boat, 3),
    "church": _painter(_church, 1.5),
    "fish": _painter(_fish, 3),
    "flower": _painter(_flower, 3),
    "cat": _painter(_cat, 2),
    "bird": _painter(_bird, 3),
    "mug": _painter(_mug, 2),
    "backpack": _painter(_backpack, 2),
    "umbrella": _painter(_umbrella, 3),
}

UNSEEN_OBJECTS: dict[str, Painter] = {
    "lighthouse": _painter(_lighthouse, 1.5),
    "robot": _painter(_robot, 2),
    "windmill": _painter(_windmill, 1.5),
    "teapot": _painter(_teapot, 2),
}


def draw_object(scene: Scene, name: str, look: Look, box: Sequence[float], rng: np.random.Generator) -> None:
    """Draw one thing into a scene.

    Parameters
    ----------
    scene : Scene
        Drawn into, in place.
    name : str
        A key of `OBJECTS` or `UNSEEN_OBJECTS`.
    look : Look
        Identity of the individual.
    box : sequence of float
        (x0, y0, x1, y1) in pixels of the S x S canvas, filled by the thing; usually 84 to 104 wide.
    rng : numpy.random.Generator
        Source of the pose: tilt and small offsets of parts.

    Raises
    ------
    KeyError
        If `name` is no known kind.
    """
    painter = OBJECTS[name] if name in OBJECTS else UNSEEN_OBJECTS[name]
    painter(scene, look, (float(box[0]), float(box[1]), float(box[2]), float(box[3])), rng)


def _instances() -> dict[str, tuple[str, Look]]:
    """Draw the particular things, each by its concept's name; those of one noun differ in three traits or more."""
    concepts = ("mug", "mug-2", "mug-3", "backpack", "backpack-2", "backpack-3", "boat", "boat-2", "umbrella", "house",
                "car", "cat", *UNSEEN_OBJECTS)  # fmt: skip
    found: dict[str, tuple[str, Look]] = {}
    for concept in concepts:
        noun = concept.split("-")[0]
        seed = hashlib.sha256(f"object/{concept}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(seed[:16], "big"))
        others = [look for name, look in found.values() if name == noun]
        while True:
            look = random_look(rng)
            # The first of a noun shows every trait, so that a fine-tuned model has something to get wrong.
            full = look.pattern != "plain" and look.marking != "none"
            if (full or others) and all(_differences(look, other) >= 3 for other in others):
                break
        found[f"object/{concept}"] = noun, look
    return found


INSTANCES: dict[str, tuple[str, Look]] = _instances()
"""The particular things by concept: the noun and the look."""
