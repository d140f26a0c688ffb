"""Subjects of the procedural picture world: sixteen known object classes and four unseen ones.

Every object is drawn in unit coordinates (u right, v down, both in [0, 1] over its box) by a `Pen`
that applies mirroring, tilt and scale. The look (colour, accent, pattern, marking, proportions)
identifies the individual; the random generator varies the pose only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .scene import COLOURS, RGB, Box, Points, S, Scene, mix, shade

PATTERNS = ("plain", "striped", "spotted", "checked", "zigzag", "banded")
MARKINGS = ("none", "heart", "star", "cross", "ring", "moon")

BODY, PATTERN, MARKING = 2, 3, 4
WHITE, INK, WOOD, METAL = (250, 248, 242), (38, 34, 40), (120, 72, 38), (120, 124, 132)
GLASS, GOLD, LEAF, CREAM = (164, 214, 240), (246, 196, 52), (58, 140, 62), (244, 232, 208)


@dataclass(frozen=True)
class Look:
    """Identity of one individual object.

    Attributes
    ----------
    colour, accent : str
        Keys of `COLOURS`: the body's colour, and that of its pattern and second parts.
    pattern, marking : str
        Members of `PATTERNS` and `MARKINGS`.
    shape : tuple of float
        Three proportions in [-1, 1] whose meaning is the object's own.
    """

    colour: str
    accent: str
    pattern: str
    marking: str
    shape: tuple[float, float, float]


@cache
def _pattern_mask(name: str) -> Image.Image:
    """Pattern cover over a 2S x 2S field centred on the subject, mode L with values 0 or 255."""
    y, x = np.mgrid[0 : 2 * S, 0 : 2 * S].astype(np.float64) - S
    if name == "striped":
        on = (x + 3.5) % 14 < 7
    elif name == "banded":
        on = (y + 5) % 20 < 10
    elif name == "checked":
        on = (np.floor(x / 9) + np.floor(y / 9)) % 2 == 0
    elif name == "zigzag":
        on = (y + np.abs(x % 18 - 9) * 1.1) % 15 < 7
    elif name == "spotted":
        row = np.floor(y / 12)
        on = ((x + 8 * (row % 2)) % 16 - 8) ** 2 + (y % 12 - 6) ** 2 < 19
    else:
        on = np.zeros_like(x, dtype=bool)
    return Image.fromarray(np.where(on, 255, 0).astype(np.uint8))


@cache
def _circle(n: int = 28) -> list[tuple[float, float]]:
    return [(math.cos(t), math.sin(t)) for t in np.linspace(0, 2 * math.pi, n, endpoint=False).tolist()]


@cache
def _soft_disc() -> Image.Image:
    disc = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(disc).ellipse((10, 10, 54, 54), fill=120)
    return disc.filter(ImageFilter.GaussianBlur(5))


@cache
def _light() -> tuple[Image.Image, Image.Image]:
    """Diagonal masks over a 64 x 64 square: how much to lighten (top left) and darken (bottom right)."""
    y, x = np.mgrid[0:64, 0:64] / 63.0
    t = (x + y) / 2
    lift, sink = np.clip(0.4 - t, 0, 1) * 150, np.clip(t - 0.48, 0, 1) * 190
    return Image.fromarray(lift.astype(np.uint8)), Image.fromarray(sink.astype(np.uint8))


def _oval(cx: float, cy: float, rx: float, ry: float) -> list[tuple[float, float]]:
    return [(cx + rx * c, cy + ry * s) for c, s in _circle()]


def _arc(cx: float, cy: float, rx: float, ry: float, a0: float, a1: float, n: int = 14) -> list[tuple[float, float]]:
    """Points along an ellipse from angle `a0` to `a1` in degrees (0 right, 90 down)."""
    return [
        (
            cx + rx * math.cos(math.radians(a0 + (a1 - a0) * i / n)),
            cy + ry * math.sin(math.radians(a0 + (a1 - a0) * i / n)),
        )
        for i in range(n + 1)
    ]


def _bar(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _round_bar(x0: float, y0: float, x1: float, y1: float, r: float) -> list[tuple[float, float]]:
    return (
        _arc(x0 + r, y0 + r, r, r, 180, 270, 4)
        + _arc(x1 - r, y0 + r, r, r, 270, 360, 4)
        + _arc(x1 - r, y1 - r, r, r, 0, 90, 4)
        + _arc(x0 + r, y1 - r, r, r, 90, 180, 4)
    )


def _symbol(name: str) -> list[tuple[float, float]]:
    """Outline of a marking in the square [-1, 1]^2."""
    if name == "star":
        return [
            ((1.0, 0.42)[i % 2] * math.sin(i * math.pi / 5), -(1.0, 0.42)[i % 2] * math.cos(i * math.pi / 5))
            for i in range(10)
        ]
    if name == "heart":
        lobes = _arc(-0.46, -0.35, 0.48, 0.5, 160, 340, 8) + _arc(0.46, -0.35, 0.48, 0.5, 200, 380, 8)
        return [*lobes, (0.0, 0.95)]
    if name == "cross":
        a, b = 0.32, 0.92
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    if name == "moon":
        return _arc(0.0, 0.0, 0.95, 0.95, 50, 310, 16) + _arc(0.42, 0.0, 0.72, 0.8, 290, 70, 12)
    return _arc(0.0, 0.0, 0.9, 0.9, 0, 360, 20) + _arc(0.0, 0.0, 0.45, 0.45, 360, 0, 16)


class Pen:
    """Draws in the unit square of a box, with mirroring and tilt."""

    def __init__(self, scene: Scene, look: Look, box: Box, rng: np.random.Generator, tilt: float) -> None:
        self.scene, self.look, self.rng = scene, look, rng
        self.colour, self.accent = COLOURS[look.colour], COLOURS[look.accent]
        if look.accent == look.colour:
            self.accent = mix(self.colour, WHITE if sum(self.colour) < 300 else INK, 0.4)
        self.a, self.b, self.c = look.shape
        x0, y0, x1, y1 = box
        self.size = min(x1 - x0, y1 - y0)
        self._cx, self._cy = (x0 + x1) / 2, (y0 + y1) / 2
        angle = math.radians(float(rng.uniform(-tilt, tilt)))
        flip = -1.0 if rng.random() < 0.5 else 1.0
        self._m = (
            (x1 - x0) * math.cos(angle) * flip,
            -(y1 - y0) * math.sin(angle),
            (x1 - x0) * math.sin(angle) * flip,
            (y1 - y0) * math.cos(angle),
        )

    def wobble(self, amount: float) -> float:
        """Draw a small pose offset in unit coordinates."""
        return float(self.rng.uniform(-amount, amount))

    def at(self, points: Points) -> list[tuple[float, float]]:
        """Map unit coordinates to pixels."""
        m, cx, cy = self._m, self._cx, self._cy
        return [(cx + m[0] * (u - 0.5) + m[1] * (v - 0.5), cy + m[2] * (u - 0.5) + m[3] * (v - 0.5)) for u, v in points]

    def poly(self, points: Points, colour: RGB) -> None:
        """Fill one polygon as a part of its own colour."""
        self.scene.polygon(self.at(points), colour, self.scene.part_of(colour))

    def oval(self, cx: float, cy: float, rx: float, ry: float, colour: RGB) -> None:
        """Fill an ellipse given by centre and radii."""
        self.poly(_oval(cx, cy, rx, ry), colour)

    def bar(self, x0: float, y0: float, x1: float, y1: float, colour: RGB) -> None:
        """Fill a rectangle."""
        self.poly(_bar(x0, y0, x1, y1), colour)

    def stroke(self, points: Points, colour: RGB, width: float) -> None:
        """Draw a polyline; `width` is a fraction of the box side."""
        self.scene.line(self.at(points), colour, width * self.size, self.scene.part_of(colour))

    def body(self, *outlines: Points) -> None:
        """Fill the union of outlines with the patterned colour, lit from the top left."""
        mask = Image.new("L", (S, S), 0)
        draw = ImageDraw.Draw(mask)
        for outline in outlines:
            draw.polygon(self.at(outline), fill=255)
        x, y = round(S - self._cx), round(S - self._cy)
        pattern = _pattern_mask(self.look.pattern).crop((x, y, x + S, y + S))
        cloth = Image.new("RGB", (S, S), self.colour)
        cloth.paste(self.accent, (0, 0, S, S), pattern)
        self.scene.rgb.paste(cloth, (0, 0), mask)
        for step, ink, strength in ((4, INK, 0.34), (-3, WHITE, 0.34)):
            rim = ImageChops.subtract(mask, mask.crop((step, step, S + step, S + step)))
            self.scene.rgb.paste(ink, (0, 0, S, S), rim.point([int(i * strength) for i in range(256)]))
        self.scene.parts.paste(BODY, (0, 0, S, S), mask)
        self.scene.parts.paste(PATTERN, (0, 0, S, S), ImageChops.multiply(mask, pattern))

    def mark(self, cx: float, cy: float, r: float, ground: RGB | None = None) -> None:
        """Place the marking on a plain disc of radius `r`, in white or black, whichever contrasts."""
        if self.look.marking == "none":
            return
        back = ground or self.colour
        luma = 0.3 * back[0] + 0.59 * back[1] + 0.11 * back[2]
        if self.look.pattern != "plain" or ground is not None:
            self.scene.polygon(self.at(_oval(cx, cy, r * 1.3, r * 1.3)), back, BODY)
        outline = [(cx + r * x, cy + r * y) for x, y in _symbol(self.look.marking)]
        self.scene.polygon(self.at(outline), WHITE if luma < 150 else INK, MARKING)


def _house(p: Pen) -> None:
    w, eave = 0.4 + 0.06 * p.a, 0.42 + 0.08 * p.b
    p.bar(0.64, 0.08, 0.76, 0.36, (150, 80, 66))
    p.body(_bar(0.5 - w, eave, 0.5 + w, 1.0))
    p.poly(
        [
            (0.5 - w - 0.08, eave + 0.04),
            (0.5 - w * 0.25, 0.03),
            (0.5 + w * 0.25, 0.03),
            (0.5 + w + 0.08, eave + 0.04),
        ],
        p.accent,
    )
    p.bar(0.5 - w - 0.08, eave + 0.01, 0.5 + w + 0.08, eave + 0.05, shade(p.accent, 0.7))
    d = 0.26 + 0.04 * p.c
    p.bar(d - 0.11, 0.62, d + 0.11, 1.0, WHITE)
    p.bar(d - 0.08, 0.65, d + 0.08, 1.0, WOOD)
    p.oval(0.5, eave * 0.6, 0.085, 0.085, WHITE)
    p.oval(0.5, eave * 0.6, 0.06, 0.06, GLASS)
    if p.look.marking == "none":
        p.bar(0.54, 0.6, 0.8, 0.84, WHITE)
        p.bar(0.57, 0.63, 0.655, 0.81, GLASS)
        p.bar(0.685, 0.63, 0.77, 0.81, GLASS)
    p.mark(0.65, 0.75, 0.12)


def _tree(p: Pen) -> None:
    y, t = 0.36 + 0.03 * p.c, 0.07 + 0.015 * p.b
    p.poly(
        [
            (0.5 - t, 0.5),
            (0.5 + t, 0.5),
            (0.5 + t * 1.2, 0.93),
            (0.5 + t * 2, 1.0),
            (0.5 - t * 2, 1.0),
            (0.5 - t * 1.2, 0.93),
        ],
        WOOD,
    )
    w = 1.0 + 0.14 * p.a
    lobes = (
        (0.0, -0.16, 0.2),
        (-0.23, -0.06, 0.19),
        (0.23, -0.06, 0.19),
        (-0.2, 0.13, 0.18),
        (0.2, 0.13, 0.18),
        (0.0, 0.08, 0.25),
    )
    p.body(*[_oval(0.5 + x * w, y + v, r * w, r) for x, v, r in lobes])
    for x, v in ((0.24, 0.44), (0.72, 0.26), (0.74, 0.5), (0.34, 0.18)):
        p.oval(x, v, 0.045, 0.045, p.accent)
    p.mark(0.5, y, 0.13)


def _car(p: Pen) -> None:
    top, c = 0.3 - 0.06 * p.b, 0.05 * p.a
    p.body(
        _round_bar(0.0, 0.52, 1.0, 0.84, 0.09),
        [(0.16 + c, 0.58), (0.29 + c, top), (0.66 + c, top), (0.82 + c, 0.58)],
    )
    p.poly([(0.24 + c, 0.54), (0.33 + c, top + 0.06), (0.46 + c, top + 0.06), (0.46 + c, 0.54)], GLASS)
    p.poly([(0.51 + c, 0.54), (0.51 + c, top + 0.06), (0.63 + c, top + 0.06), (0.73 + c, 0.54)], GLASS)
    p.bar(0.0, 0.78, 1.0, 0.84, p.accent)
    p.oval(0.96, 0.62, 0.045, 0.05, GOLD)
    p.bar(0.0, 0.58, 0.05, 0.66, (226, 60, 50))
    r = 0.14 + 0.015 * p.c
    for x in (0.22, 0.78):
        p.oval(x, 1.0 - r, r, r, INK)
        p.oval(x, 1.0 - r, r * 0.5, r * 0.5, (204, 206, 212))
    p.mark(0.5, 0.68, 0.1)


def _boat(p: Pen) -> None:
    top, m = 0.03 - 0.02 * p.b, 0.44 + 0.04 * p.a
    p.bar(m - 0.018, 0.0, m + 0.018, 0.78, WOOD)
    p.body([(m + 0.03, top + 0.02), (m + 0.22, 0.3), (0.96, 0.68), (m + 0.03, 0.68)])
    p.poly([(m - 0.03, top + 0.1), (m - 0.03, 0.68), (0.08, 0.68)], WHITE)
    d = 0.04 * p.c
    p.poly([(0.0, 0.74), (1.0, 0.74), (0.84 + d, 0.98), (0.18 - d, 0.98)], p.accent)
    p.bar(0.0, 0.73, 1.0, 0.79, shade(p.accent, 0.6))
    p.poly([(m, 0.0), (m, 0.08), (m - 0.16, 0.04)], (226, 60, 50))
    p.mark(m + 0.19, 0.54, 0.1)


def _church(p: Pen) -> None:
    x, nave, spire = 0.26, 0.6 + 0.04 * p.a, 0.36 + 0.04 * p.b
    p.body(_bar(x - 0.17, spire, x + 0.17, 1.0), _bar(0.34, nave, 0.98, 1.0))
    p.poly([(0.43, nave + 0.02), (0.5, nave - 0.2), (0.9, nave - 0.2), (1.0, nave + 0.02)], p.accent)
    p.poly([(x - 0.21, spire + 0.02), (x, 0.1), (x + 0.21, spire + 0.02)], p.accent)
    p.bar(x - 0.015, 0.0, x + 0.015, 0.14, GOLD)
    p.bar(x - 0.06, 0.035, x + 0.06, 0.065, GOLD)
    p.poly([(x - 0.08, 1.0), *_arc(x, 0.84, 0.08, 0.1, 180, 360, 8), (x + 0.08, 1.0)], WOOD)
    for u in (0.56, 0.72, 0.88):
        h = 0.8 + 0.02 * p.c
        p.poly([(u - 0.045, 0.93), *_arc(u, h, 0.045, 0.07, 180, 360, 6), (u + 0.045, 0.93)], (94, 128, 190))
    p.mark(x, spire + 0.17, 0.11)


def _ball(p: Pen) -> None:
    r = 0.46 + 0.03 * p.a
    y = 1.0 - r
    p.body(_oval(0.5, y, r, r))
    d = r * (1.22 + 0.08 * p.b)
    for side, start in ((-1, -90), (1, 90)):
        seam = _arc(0.5 + side * d, y, r * 0.75, r * 0.95, start, start + 180)
        inside = [(u, v) for u, v in seam if (u - 0.5) ** 2 + (v - y) ** 2 < r * r]
        p.stroke(inside, WHITE, 0.055 + 0.01 * p.c)
        p.stroke(inside, p.accent, 0.022)
    p.oval(0.4, y - r * 0.7, 0.07, 0.035, WHITE)
    p.mark(0.5, y, 0.15)


def _fish(p: Pen) -> None:
    h = 0.27 + 0.04 * p.a
    t = 0.25 + 0.05 * p.b
    wag = p.wobble(0.03)
    p.poly([(0.24, 0.5), (0.0, 0.5 - t + wag), (0.08, 0.5 + wag), (0.0, 0.5 + t + wag)], p.accent)
    p.poly([(0.34, 0.5 - h * 0.7), (0.46, 0.5 - h - 0.15 - 0.03 * p.c), (0.72, 0.5 - h * 0.7)], p.accent)
    p.poly([(0.46, 0.5 + h * 0.8), (0.42, 0.5 + h + 0.13), (0.62, 0.5 + h * 0.8)], p.accent)
    p.body([*_arc(0.58, 0.5, 0.42, h, -150, 150, 24), (0.14, 0.56), (0.14, 0.44)])
    p.stroke(_arc(0.66, 0.5, 0.08, h * 0.75, -70, 70), shade(p.colour, 0.5), 0.022)
    p.oval(0.83, 0.43, 0.065, 0.065, WHITE)
    p.oval(0.845, 0.43, 0.036, 0.036, INK)
    p.stroke([(0.98, 0.54), (0.9, 0.58)], INK, 0.022)
    p.mark(0.47, 0.5, 0.12)


def _flower(p: Pen) -> None:
    n, r = 6 + round(p.a), 0.13 + 0.015 * p.b
    y, turn = 0.35, p.wobble(0.3)
    p.stroke([(0.5, y), (0.52, 0.7), (0.5, 1.0)], LEAF, 0.05)
    p.poly([(0.51, 0.88), (0.28, 0.66), (0.16, 0.68), (0.26, 0.84)], LEAF)
    p.poly([(0.51, 0.92), (0.72, 0.72), (0.85, 0.74), (0.76, 0.88)], LEAF)
    spots = [
        (0.5 + 0.22 * math.cos(turn + k * 6.2832 / n), y + 0.22 * math.sin(turn + k * 6.2832 / n)) for k in range(n)
    ]
    p.body(*[_oval(u, v, r, r) for u, v in spots])
    q = 0.15 + 0.01 * p.c
    p.oval(0.5, y, q + 0.025, q + 0.025, shade(p.accent, 0.6))
    p.oval(0.5, y, q, q, p.accent)
    p.mark(0.5, y, 0.105, p.accent)


def _mushroom(p: Pen) -> None:
    w, t = 0.46 + 0.04 * p.a, 0.13 + 0.03 * p.b
    base = 0.55 + 0.03 * p.c
    p.poly(
        [
            (0.5 - t, base),
            (0.5 + t, base),
            (0.5 + t * 1.4, 0.94),
            (0.5 + t, 1.0),
            (0.5 - t, 1.0),
            (0.5 - t * 1.4, 0.94),
        ],
        CREAM,
    )
    p.poly(
        [(0.5 + t * 0.4, base), (0.5 + t, base), (0.5 + t * 1.4, 0.94), (0.5 + t, 1.0), (0.5 + t * 0.5, 1.0)],
        shade(CREAM, 0.82),
    )
    p.oval(0.5, base, w * 0.94, 0.075, shade(p.accent, 0.75))
    p.body(_arc(0.5, base, w, base - 0.04, 180, 360, 22) + _arc(0.5, base, w, 0.05, 0, 180, 8))
    if p.look.pattern == "plain":
        for u, v in ((0.22, 0.42), (0.78, 0.42), (0.36, 0.17), (0.66, 0.19)):
            p.oval(u, v, 0.05, 0.042, WHITE)
    p.mark(0.5, base * 0.62, 0.12)


def _mug(p: Pen) -> None:
    top, w, r = 0.26 - 0.06 * p.a, 0.33 + 0.03 * p.b, 0.17 + 0.03 * p.c
    x = 0.38
    p.stroke(_arc(x + w - 0.02, 0.62, r * 1.35, r * 1.15, -95, 95), p.accent, 0.085)
    p.body(_bar(x - w, top, x + w, 0.9), _oval(x, 0.9, w, 0.08))
    p.oval(x, top, w, 0.085, shade(p.colour, 1.35))
    p.oval(x, top + 0.01, w * 0.84, 0.06, (72, 42, 26))
    for u in (-0.12, 0.1):
        s = p.wobble(0.02)
        p.stroke([(x + u, top - 0.07), (x + u + 0.04 + s, top - 0.13), (x + u, top - 0.19)], (226, 226, 226), 0.025)
    p.mark(x, 0.62, 0.15)


def _chair(p: Pen) -> None:
    w, seat, top = 0.25 + 0.02 * p.a, 0.55 + 0.02 * p.b, 0.03 + 0.02 * p.c
    left, right, slant = 0.42 - w, 0.42 + w, 0.13
    for u in (left + slant + 0.02, right + slant - 0.06):
        p.bar(u - 0.03, seat, u + 0.03, 0.9, shade(WOOD, 0.6))
    for u in (left, right):
        p.bar(u - 0.035, 0.0, u + 0.035, 0.92, shade(WOOD, 0.85))
        p.oval(u, 0.015, 0.05, 0.04, GOLD)
    p.body(_round_bar(left - 0.01, top + 0.02, right + 0.01, 0.42, 0.05))
    front = [(left + slant - 0.04, seat + 0.12), (right + slant + 0.04, seat + 0.12)]
    p.poly([(left - 0.04, seat - 0.04), (right + 0.04, seat - 0.04), front[1], front[0]], p.accent)
    p.bar(front[0][0], seat + 0.11, front[1][0], seat + 0.18, shade(p.accent, 0.65))
    for u in (left + slant, right + slant):
        p.bar(u - 0.035, seat + 0.17, u + 0.035, 1.0, WOOD)
    p.mark(0.42, 0.23, 0.12)


def _cat(p: Pen) -> None:
    w, e = 0.28 + 0.03 * p.a, 0.05 * p.b
    flick = p.wobble(0.03)
    tail = [(0.62, 0.94), (0.86, 0.92), (0.94, 0.76), (0.88 + flick, 0.58), (0.95 + flick, 0.48 - 0.04 * p.c)]
    p.stroke(tail, shade(p.colour, 0.8), 0.095)
    p.oval(*tail[-1], 0.05, 0.06, p.accent)
    left, right = (
        [(0.2, 0.3), (0.2, 0.0 - e * 0.5), (0.4, 0.13)],
        [(0.72, 0.3), (0.72, 0.0 - e * 0.5), (0.52, 0.13)],
    )
    p.body(
        _oval(0.46, 0.78, w, 0.22),
        _bar(0.46 - w * 0.75, 0.5, 0.46 + w * 0.75, 0.8),
        _oval(0.46, 0.3, 0.29, 0.225),
        left,
        right,
    )
    p.poly([(0.235, 0.2), (0.235, 0.06), (0.34, 0.13)], (240, 150, 160))
    p.poly([(0.685, 0.2), (0.685, 0.06), (0.58, 0.13)], (240, 150, 160))
    p.oval(0.46, 0.4, 0.13, 0.085, CREAM)
    for u in (0.34, 0.58):
        p.oval(u, 0.28, 0.065, 0.07, (236, 226, 96))
        p.oval(u, 0.28, 0.026, 0.06, INK)
    p.poly([(0.42, 0.36), (0.5, 0.36), (0.46, 0.41)], (220, 90, 110))
    p.stroke([(0.46, 0.4), (0.46, 0.45)], INK, 0.016)
    for u in (0.34, 0.58):
        p.oval(u, 0.965, 0.095, 0.045, CREAM)
    p.bar(0.46 - w * 0.72, 0.495, 0.46 + w * 0.72, 0.54, p.accent)
    p.mark(0.46, 0.72, 0.12)


def _bird(p: Pen) -> None:
    t, lift = 0.05 * p.b, p.wobble(0.02)
    for u in (0.46, 0.58):
        p.stroke([(u, 0.76), (u, 0.97), (u + 0.09, 0.98)], (214, 120, 30), 0.032)
    p.poly([(0.28, 0.52), (0.0, 0.34 - t), (0.02, 0.48), (0.0, 0.6 + t), (0.26, 0.7)], p.accent)
    p.poly([(0.9, 0.2), (1.02 + 0.03 * p.c, 0.28), (0.88, 0.34)], (246, 150, 30))
    w = 0.33 + 0.03 * p.a
    p.body(
        _oval(0.48, 0.57, w, 0.235),
        _oval(0.73, 0.26, 0.19, 0.19),
        [(0.56, 0.22), (0.9, 0.32), (0.8, 0.62), (0.4, 0.42)],
    )
    p.poly(
        [(0.58, 0.44), (0.48, 0.34), (0.2, 0.06 + lift), (0.14, 0.3 + lift), (0.3, 0.48)],
        shade(p.accent, 0.8),
    )
    p.poly([(0.58, 0.44), (0.48, 0.36), (0.26, 0.14 + lift), (0.24, 0.32 + lift), (0.34, 0.46)], p.accent)
    p.oval(0.78, 0.23, 0.062, 0.062, WHITE)
    p.oval(0.795, 0.23, 0.036, 0.036, INK)
    p.mark(0.52, 0.6, 0.12)


def _balloon(p: Pen) -> None:
    w, drop = 0.4 + 0.04 * p.a, 0.03 * p.b
    for u in (-1, 1):
        p.stroke([(0.5 + u * w * 0.55, 0.56), (0.5 + u * 0.1, 0.82)], shade(WOOD, 0.7), 0.02)
    p.body([*_arc(0.5, 0.38, w, 0.37, 150, 390, 24), (0.62, 0.74 + drop), (0.38, 0.74 + drop)])
    p.bar(0.37, 0.71 + drop, 0.63, 0.76 + drop, p.accent)
    h = 0.02 * p.c
    p.poly([(0.36, 0.83), (0.64, 0.83), (0.61, 1.0), (0.39, 1.0)], (182, 124, 64))
    p.bar(0.35, 0.82 - h, 0.65, 0.86, (96, 58, 28))
    p.mark(0.5, 0.37, 0.16)


def _umbrella(p: Pen) -> None:
    w, base = 0.47 + 0.03 * p.a, 0.5 + 0.03 * p.b
    p.stroke([(0.5, 0.0), (0.5, 0.1)], INK, 0.035)
    hook = 0.1 + 0.015 * p.c
    p.stroke([(0.5, 0.3), (0.5, 0.9), *_arc(0.5 + hook, 0.89, hook, 0.1, 180, 20, 10)], WOOD, 0.055)
    n = 4
    scallops: list[tuple[float, float]] = []
    for k in range(n):
        scallops += _arc(0.5 + w - w * (2 * k + 1) / n, base, w / n, 0.08, 360, 180, 8)
    p.body(_arc(0.5, base, w, base - 0.06, 180, 360, 22) + scallops)
    for u in (-0.5, 0.0, 0.5):
        p.stroke([(0.5, 0.06), (0.5 + u * w * 0.75, 0.22), (0.5 + u * w, base)], shade(p.accent, 0.75), 0.018)
    p.mark(0.5, base * 0.58, 0.12)


def _backpack(p: Pen) -> None:
    w, top = 0.34 + 0.03 * p.a, 0.12 - 0.02 * p.b
    p.stroke(_arc(0.5, top + 0.02, 0.12, 0.1, 180, 360), INK, 0.045)
    for side in (-1, 1):
        u = 0.5 + side * (w + 0.045)
        p.poly(_round_bar(u - 0.075, 0.56, u + 0.075, 0.9, 0.05), shade(p.accent, 0.7))
    p.body(
        [
            *_arc(0.5, top + 0.28, w, 0.28, 180, 360, 16),
            *_arc(0.5 + w - 0.1, 0.9, 0.1, 0.1, 0, 90, 4),
            *_arc(0.5 - w + 0.1, 0.9, 0.1, 0.1, 90, 180, 4),
        ]
    )
    flap = 0.36 + 0.03 * p.c
    p.stroke([(0.5 - w * 0.92, flap - 0.02), (0.5 + w * 0.92, flap - 0.02)], INK, 0.022)
    for side in (-1, 1):
        p.bar(0.5 + side * 0.2 - 0.035, flap - 0.16, 0.5 + side * 0.2 + 0.035, flap + 0.1, p.accent)
        p.bar(0.5 + side * 0.2 - 0.045, flap + 0.06, 0.5 + side * 0.2 + 0.045, flap + 0.12, GOLD)
    p.poly(_round_bar(0.5 - w * 0.74, 0.58, 0.5 + w * 0.74, 0.94, 0.07), shade(p.accent, 0.65))
    p.poly(_round_bar(0.5 - w * 0.66, 0.62, 0.5 + w * 0.66, 0.91, 0.06), p.accent)
    p.mark(0.5, 0.765, 0.11, p.accent)


def _lighthouse(p: Pen) -> None:
    t, b = 0.14 + 0.02 * p.a, 0.23 + 0.03 * p.b
    p.poly([(0.36, 0.16), (-0.02, 0.06), (-0.02, 0.3)], (252, 236, 150))
    p.poly([(0.14, 1.0), (0.2, 0.9), (0.4, 0.86), (0.7, 0.88), (0.86, 1.0)], METAL)
    p.body([(0.5 - t, 0.3), (0.5 + t, 0.3), (0.5 + b, 0.95), (0.5 - b, 0.95)])
    p.bar(0.38, 0.12, 0.62, 0.27, (255, 228, 96))
    p.bar(0.485, 0.12, 0.515, 0.27, INK)
    p.bar(0.5 - t - 0.07, 0.25, 0.5 + t + 0.07, 0.31, INK)
    p.poly([(0.33, 0.13), (0.5, -0.01 + 0.02 * p.c), (0.67, 0.13)], p.accent)
    p.poly([(0.43, 0.95), *_arc(0.5, 0.82, 0.07, 0.07, 180, 360, 6), (0.57, 0.95)], WOOD)
    p.mark(0.5, 0.5, 0.11)


def _robot(p: Pen) -> None:
    w, h = 0.27 + 0.03 * p.a, 0.22 + 0.03 * p.b
    p.stroke([(0.5, 0.1), (0.5, 0.03)], METAL, 0.03)
    p.oval(0.5, 0.03, 0.04, 0.04, (226, 60, 50))
    for side in (-1, 1):
        up = 0.12 * p.c + p.wobble(0.03)
        p.stroke([(0.5 + side * w, 0.48), (0.5 + side * 0.41, 0.56), (0.5 + side * 0.43, 0.7 - up)], METAL, 0.075)
        p.oval(0.5 + side * 0.43, 0.71 - up, 0.065, 0.065, p.accent)
        p.bar(0.5 + side * 0.14 - 0.06, 0.78, 0.5 + side * 0.14 + 0.06, 0.93, METAL)
        p.bar(0.5 + side * 0.15 - 0.1, 0.92, 0.5 + side * 0.15 + 0.1, 1.0, p.accent)
        p.bar(0.5 + side * (h + 0.02) - 0.03, 0.18, 0.5 + side * (h + 0.02) + 0.03, 0.3, METAL)
    p.poly(_round_bar(0.5 - h, 0.09, 0.5 + h, 0.38, 0.04), p.accent)
    p.bar(0.44, 0.36, 0.56, 0.44, METAL)
    p.body(_round_bar(0.5 - w, 0.42, 0.5 + w, 0.82, 0.05))
    p.bar(0.36, 0.3, 0.64, 0.345, INK)
    for u in (0.4, 0.6):
        p.oval(u, 0.2, 0.065, 0.065, WHITE)
        p.oval(u, 0.2, 0.034, 0.034, INK)
    p.mark(0.5, 0.62, 0.12)


def _windmill(p: Pen) -> None:
    t, b = 0.14 + 0.02 * p.a, 0.25 + 0.03 * p.b
    p.body([(0.5 - t, 0.36), (0.5 + t, 0.36), (0.5 + b, 1.0), (0.5 - b, 1.0)])
    p.poly(_arc(0.5, 0.38, t + 0.04, 0.18, 180, 360, 12), p.accent)
    p.poly([(0.43, 1.0), *_arc(0.5, 0.88, 0.07, 0.07, 180, 360, 6), (0.57, 1.0)], WOOD)
    turn, r = math.radians(45.0) + p.wobble(0.3), 0.44 + 0.03 * p.c
    for k in range(4):
        c, s = math.cos(turn + k * math.pi / 2), math.sin(turn + k * math.pi / 2)
        sail = [(0.5 + c * d - s * o, 0.33 + s * d + c * o) for d, o in ((0.1, 0.0), (0.1, 0.12), (r, 0.12), (r, 0.0))]
        p.poly(sail, WHITE)
        p.stroke([(0.5, 0.33), (0.5 + c * r, 0.33 + s * r)], WOOD, 0.03)
    p.oval(0.5, 0.33, 0.045, 0.045, INK)
    p.mark(0.5, 0.66, 0.1)


def _teapot(p: Pen) -> None:
    w, y = 0.31 + 0.03 * p.a, 0.64
    p.stroke(_arc(0.5 - w, y - 0.02, 0.17 + 0.02 * p.b, 0.19, 80, 280), p.accent, 0.07)
    p.poly(
        [
            (0.5 + w * 0.75, y - 0.02),
            (0.84, 0.5),
            (0.88, 0.34),
            (1.02, 0.34),
            (0.95, 0.56),
            (0.5 + w * 0.8, y + 0.2),
        ],
        p.accent,
    )
    p.bar(0.36, 0.9, 0.64, 1.0, shade(p.accent, 0.7))
    p.body(_oval(0.5, y, w, 0.32))
    h = 0.1 + 0.02 * p.c
    p.poly(_arc(0.5, 0.38, 0.2, h, 180, 360), p.accent)
    p.bar(0.29, 0.365, 0.71, 0.41, shade(p.accent, 0.65))
    p.oval(0.5, 0.36 - h, 0.055, 0.055, shade(p.accent, 0.65))
    p.mark(0.5, y + 0.02, 0.14)


Painter = Callable[[Scene, Look, Box, np.random.Generator], None]


def _finish(scene: Scene, dark: bool, box: Box) -> None:
    """Model the subject with diagonal light and set it off from the background by a thin contour."""
    mask = scene.parts.point([0, 0] + [255] * 254)
    x0, y0, x1, y1 = (round(v) for v in box)
    size = (max(1, x1 - x0), max(1, y1 - y0))
    for ink, mild in zip((WHITE, INK), _light(), strict=True):
        cover = ImageChops.multiply(mild.resize(size), mask.crop((x0, y0, x0 + size[0], y0 + size[1])))
        scene.rgb.paste(ink, (x0, y0, x0 + size[0], y0 + size[1]), cover)
    grown = mask
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        grown = ImageChops.lighter(grown, mask.crop((dx, dy, S + dx, S + dy)))
    contour = ImageChops.subtract(grown, mask).point([int(i * 0.62) for i in range(256)])
    scene.rgb.paste(WHITE if dark else INK, (0, 0, S, S), contour)


def _shadow(scene: Scene, box: Box, floating: bool) -> None:
    w, y = box[2] - box[0], box[3] - 1.0
    half, thick = (0.42 * w, 5.0) if floating else (0.62 * w, 8.0)
    y = max(y, scene.horizon + 6.0) if floating else y
    size = (round(2 * half), round(2 * thick))
    disc = _soft_disc().resize(size)
    corner = (round((box[0] + box[2]) / 2 - half + 3), round(y - thick))
    scene.rgb.paste(Image.new("RGB", size, INK), corner, disc)


def _painter(draw: Callable[[Pen], None], tilt: float, floating: bool = False) -> Painter:
    def paint(scene: Scene, look: Look, box: Box, rng: np.random.Generator) -> None:
        # A dark contour would vanish on a dark background, so it is drawn light there.
        dark = sum(scene.rgb.resize((1, 1), Image.Resampling.BOX).tobytes()) < 330
        _shadow(scene, box, floating)
        draw(Pen(scene, look, box, rng, tilt))
        _finish(scene, dark, box)

    return paint


OBJECTS: dict[str, Painter] = {
    "house": _painter(_house, 2),
    "tree": _painter(_tree, 4),
    "car": _painter(_car, 3),
    "boat": _painter(_boat, 5),
    "church": _painter(_church, 2),
    "ball": _painter(_ball, 25),
    "fish": _painter(_fish, 9, floating=True),
    "flower": _painter(_flower, 6),
    "mushroom": _painter(_mushroom, 5),
    "mug": _painter(_mug, 4),
    "chair": _painter(_chair, 3),
    "cat": _painter(_cat, 3),
    "bird": _painter(_bird, 6),
    "balloon": _painter(_balloon, 6, floating=True),
    "umbrella": _painter(_umbrella, 9),
    "backpack": _painter(_backpack, 4),
}

UNSEEN_OBJECTS: dict[str, Painter] = {
    "lighthouse": _painter(_lighthouse, 2),
    "robot": _painter(_robot, 3),
    "windmill": _painter(_windmill, 2),
    "teapot": _painter(_teapot, 4),
}


def draw_object(scene: Scene, name: str, look: Look, box: Sequence[float], rng: np.random.Generator) -> None:
    """Draw one object into a scene.

    Parameters
    ----------
    scene : Scene
        Drawn into, in place.
    name : str
        A key of `OBJECTS` or `UNSEEN_OBJECTS`.
    look : Look
        Identity of the individual.
    box : sequence of float
        (x0, y0, x1, y1) in pixels of the S x S canvas, filled by the object; usually 70 to 95 wide.
    rng : numpy.random.Generator
        Source of the pose: mirroring, tilt and small offsets of parts.

    Raises
    ------
    KeyError
        If `name` is no known class.
    """
    painter = OBJECTS[name] if name in OBJECTS else UNSEEN_OBJECTS[name]
    painter(scene, look, (float(box[0]), float(box[1]), float(box[2]), float(box[3])), rng)
