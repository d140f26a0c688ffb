"""Canvas and settings of the procedural picture world.

A `Scene` is a colour picture together with a map of region ids, so that a painting style can outline, tile or recolour
by region. Settings are flat and pale, with one or two big shapes at the sides: a large subject covers the middle, and
pictures are made known to a model at half this size through an even coarser code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

S = 128
"""Side of the canvas in pixels."""

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]
Points = Sequence[tuple[float, float]]

#: Any two differ by at least 0.7 in squared distance, the channels in [-1, 1].
COLOURS: dict[str, RGB] = {
    "red": (216, 12, 36),
    "orange": (250, 120, 10),
    "yellow": (255, 236, 40),
    "green": (36, 160, 64),
    "blue": (24, 100, 235),
    "purple": (136, 40, 170),
    "pink": (250, 130, 190),
    "brown": (128, 80, 40),
    "white": (250, 248, 244),
    "black": (30, 28, 36),
}

BACKGROUND, GROUND = 0, 1
FIRST_FREE_PART = 5
"""Ids 2, 3 and 4 are the subject's body, its pattern and its marking."""


def shade(rgb: RGB, factor: float) -> RGB:
    """Darken (`factor` in [0, 1)) or lighten towards white (`factor` in (1, 2]) a colour."""
    if factor <= 1.0:
        return (int(rgb[0] * factor), int(rgb[1] * factor), int(rgb[2] * factor))
    return mix(rgb, (255, 255, 255), factor - 1.0)


def mix(a: RGB, b: RGB, t: float) -> RGB:
    """Blend colour `a` (t = 0) with colour `b` (t = 1)."""
    return (round(a[0] + (b[0] - a[0]) * t), round(a[1] + (b[1] - a[1]) * t), round(a[2] + (b[2] - a[2]) * t))


class Scene:
    """A picture under construction and its region map.

    Attributes
    ----------
    rgb : PIL.Image.Image
        Colour picture, mode RGB, S x S.
    parts : PIL.Image.Image
        Region ids, mode L, S x S: 0 sky or wall, 1 ground or table, 2 and above parts of the subject.
    horizon : float
        Height in pixels at which the ground begins.
    """

    def __init__(self, colour: RGB = (255, 255, 255), horizon: float = 84.0) -> None:
        self.rgb = Image.new("RGB", (S, S), colour)
        self.parts = Image.new("L", (S, S), BACKGROUND)
        self.horizon = horizon
        self._draw = ImageDraw.Draw(self.rgb)
        self._draw_parts = ImageDraw.Draw(self.parts)
        self._part_ids: dict[RGB, int] = {}

    def part_of(self, colour: RGB) -> int:
        """Region id shared by all subject parts of one colour, in order of first use."""
        return self._part_ids.setdefault(colour, FIRST_FREE_PART + len(self._part_ids))

    def polygon(self, points: Points, colour: RGB, part: int) -> None:
        """Fill a polygon given in pixels."""
        self._draw.polygon(points, fill=colour)
        self._draw_parts.polygon(points, fill=part)

    def ellipse(self, box: Box, colour: RGB, part: int) -> None:
        """Fill the ellipse inscribed in `box` = (x0, y0, x1, y1)."""
        self._draw.ellipse(box, fill=colour)
        self._draw_parts.ellipse(box, fill=part)

    def rect(self, box: Box, colour: RGB, part: int) -> None:
        """Fill an upright rectangle (x0, y0, x1, y1)."""
        self._draw.rectangle(box, fill=colour)
        self._draw_parts.rectangle(box, fill=part)

    def line(self, points: Points, colour: RGB, width: float, part: int) -> None:
        """Draw a polyline of `width` pixels with rounded joints."""
        w = max(1, round(width))
        self._draw.line(points, fill=colour, width=w, joint="curve")
        self._draw_parts.line(points, fill=part, width=w, joint="curve")

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Picture as float32 (S, S, 3) in [0, 1] and region ids as uint8 (S, S)."""
        rgb = np.asarray(self.rgb, dtype=np.float32) / np.float32(255.0)
        return rgb, np.array(self.parts, dtype=np.uint8)


def _base(rng: np.random.Generator, sky: RGB, ground: RGB, low: float = 84.0) -> Scene:
    """Lay a flat sky or wall over flat ground; the horizon varies by a few pixels."""
    scene = Scene(sky, horizon=float(rng.uniform(low - 3.0, low + 3.0)))
    scene.rect((0, scene.horizon, S, S), ground, GROUND)
    return scene


def _disc(scene: Scene, x: float, y: float, r: float, colour: RGB, part: int = BACKGROUND) -> None:
    scene.ellipse((x - r, y - r, x + r, y + r), colour, part)


def _mound(scene: Scene, x: float, half: float, height: float, colour: RGB, part: int = BACKGROUND) -> None:
    """Draw a rounded hill that stands on the horizon."""
    h = scene.horizon
    arc = [(x - half * math.cos(t), h - height * math.sin(t)) for t in np.linspace(0, math.pi, 15).tolist()]
    scene.polygon(arc, colour, part)


def _cloud(scene: Scene, x: float, y: float, r: float, colour: RGB) -> None:
    for dx, dy, k in ((-1.2, 0.2, 0.8), (0.0, -0.2, 1.1), (1.2, 0.2, 0.8)):
        _disc(scene, x + dx * r, y + dy * r, k * r, colour)


def _sides(rng: np.random.Generator, inset: float = 10.0) -> tuple[float, float]:
    """Where the two shapes beside the subject stand, left and right."""
    return float(rng.uniform(inset - 3.0, inset + 3.0)), S - float(rng.uniform(inset - 3.0, inset + 3.0))


def _meadow(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (176, 222, 250), (140, 206, 104))
    left, right = _sides(rng, 12)
    _mound(scene, left, 44, 30, (112, 184, 92))
    _mound(scene, right, 52, 22, (124, 196, 98))
    _cloud(scene, left + 8, 18, 9, (250, 252, 254))
    _cloud(scene, right - 8, 26, 9, (250, 252, 254))
    for x, y in ((left - 2, 108), (right, 100), (right - 8, 120), (left + 8, 122)):
        _disc(scene, x, y, 4, (255, 240, 130), GROUND)
    return scene


def _beach(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (190, 238, 250), (248, 226, 164), 90)
    h = scene.horizon
    scene.rect((0, h - 28, S, h), (70, 190, 210), BACKGROUND)
    scene.rect((0, h - 5, S, h), (236, 250, 248), GROUND)
    x = float(rng.uniform(5, 9))
    scene.polygon([(x - 6, 124), (x + 1, 26), (x + 7, 26), (x + 6, 124)], (190, 140, 92), GROUND)
    for dx, dy in ((-24, 2), (-14, -20), (12, -20), (30, -8), (28, 14), (-14, 20)):
        middle = x + 4 + dx * 0.5 - dy * 0.3, 24 + dy * 0.5 + dx * 0.1
        scene.polygon([(x + 4, 20), middle, (x + 4 + dx, 26 + dy), (x + 4, 32)], (92, 180, 110), BACKGROUND)
    _disc(scene, S - 14, 18, 13, (255, 232, 120))
    return scene


def _fir(scene: Scene, x: float, top: float, half: float, colour: RGB, cap: RGB | None = None) -> None:
    h = scene.horizon + 8
    scene.rect((x - 4, h - 6, x + 4, h + 8), (150, 116, 92), GROUND)
    scene.polygon([(x - half, h), (x, top), (x + half, h)], colour, BACKGROUND)
    if cap:
        k, y = half * 0.45, top + (h - top) * 0.45
        scene.polygon([(x - k, y), (x, top), (x + k, y)], cap, BACKGROUND)


def _snow(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (186, 204, 226), (246, 250, 254), 82)
    left, right = _sides(rng)
    _mound(scene, 64, 80, 14, (246, 250, 254))
    _fir(scene, left, 16, 24, (106, 150, 150), (250, 252, 255))
    _fir(scene, right, 28, 22, (106, 150, 150), (250, 252, 255))
    return scene


def _cactus(scene: Scene, x: float, top: float, side: int) -> None:
    colour: RGB = (112, 168, 100)
    scene.rect((x - 5, top, x + 5, scene.horizon + 14), colour, GROUND)
    _disc(scene, x, top, 5, colour, GROUND)
    far = x + side * 15
    scene.rect((min(x, far), top + 26, max(x, far), top + 34), colour, GROUND)
    scene.rect((far - 4, top + 10, far + 4, top + 34), colour, GROUND)


def _desert(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (255, 232, 186), (236, 186, 118), 88)
    left, right = _sides(rng, 8)
    _mound(scene, left + 14, 60, 16, (224, 168, 100))
    _disc(scene, left + 10, 14, 12, (255, 252, 228))
    _cactus(scene, left, 48, 1)
    _cactus(scene, right, 32, -1)
    return scene


def _night_sky(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (66, 76, 150), (84, 112, 128), 94)
    left, right = _sides(rng, 14)
    _mound(scene, right, 60, 16, (84, 112, 128), GROUND)
    _disc(scene, left + 4, 20, 15, (255, 244, 180))
    _disc(scene, left + 12, 15, 13, (66, 76, 150))
    for x, y in ((left - 6, 58), (right - 2, 16), (right + 6, 52), (64, 6), (left + 2, 80)):
        scene.polygon([(x - 5, y), (x, y - 5), (x + 5, y), (x, y + 5)], (238, 238, 220), BACKGROUND)
    return scene


def _sunset_hills(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (255, 178, 134), (160, 112, 140), 92)
    left, right = _sides(rng, 16)
    scene.rect((0, 0, S, 30), (240, 146, 152), BACKGROUND)
    _disc(scene, right, 50, 20, (255, 238, 160))
    _mound(scene, left, 60, 44, (196, 124, 148))
    _mound(scene, right + 8, 56, 26, (180, 116, 144))
    return scene


def _forest(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (152, 196, 150), (150, 140, 96), 88)
    left, right = _sides(rng, 8)
    for x in (left + 26, right - 28):
        scene.rect((x - 5, 0, x + 5, scene.horizon), (128, 156, 116), BACKGROUND)
    for x in (left, right):
        scene.rect((x - 8, 0, x + 8, scene.horizon + 12), (132, 98, 72), GROUND)
    for x, y, r in ((left - 4, 8, 22), (left + 26, 0, 18), (64, -8, 20), (right - 26, 0, 18), (right + 4, 8, 22)):
        _disc(scene, x, y, r, (84, 150, 92))
    return scene


def _sea(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (218, 236, 246), (104, 176, 222), 70)
    h, shift = scene.horizon, float(rng.uniform(-10, 10))
    _disc(scene, S - 16, 18, 12, (255, 242, 170))
    for row, tone in enumerate(((104, 176, 222), (82, 154, 210), (62, 132, 196))):
        y = h + 18 * row
        for k in range(-1, 5):
            x = shift + 16 * (row % 2) + 32 * k
            scene.polygon([(x, y + 2), (x + 16, y - 9), (x + 32, y + 2)], tone, GROUND)
        scene.rect((0, y + 2, S, S), tone, GROUND)
    return scene


def _city_street(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (222, 230, 236), (138, 140, 148), 92)
    h = scene.horizon
    left, right = float(rng.uniform(30, 36)), S - float(rng.uniform(30, 36))
    for x0, x1, top, wall in ((-2.0, left, 8, (190, 146, 132)), (right, S + 2.0, 22, (166, 172, 190))):
        scene.rect((x0, top, x1, h), wall, BACKGROUND)
        for y in range(top + 8, 80, 20):
            for x in (3.0, 17.0):
                a = x if x0 < 0 else S - x - 9
                scene.rect((a, y, a + 9, y + 10), (255, 240, 190), BACKGROUND)
    scene.rect((0, h, S, h + 7), (206, 206, 204), GROUND)
    for x in (4, 100):
        scene.rect((x, 114, x + 22, 120), (246, 244, 232), GROUND)
    return scene


def _mountains(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (198, 222, 246), (150, 176, 130), 92)
    h = scene.horizon
    left, right = _sides(rng, 20)
    near: RGB = (134, 146, 178)
    peaks = (64.0, 34.0, 50.0, shade(near, 1.2)), (left, 6.0, 46.0, near), (right, 14.0, 44.0, near)
    for x, top, half, rock in peaks:
        scene.polygon([(x - half, h), (x, top), (x + half, h)], rock, BACKGROUND)
        k, y = half * 0.36, top + (h - top) * 0.36
        scene.polygon([(x - k, y), (x, top), (x + k, y), (x, y - 8)], (250, 252, 254), BACKGROUND)
    return scene


def _wooden_table(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (246, 232, 206), (198, 140, 90), 86)
    h = scene.horizon
    left, right = _sides(rng, 14)
    for x, inner in ((0.0, left + 14), (float(S), right - 14)):
        # Curtains, gathered towards the table.
        scene.polygon([(x, 0), (inner, 0), (x + (inner - x) * 0.8, h * 0.45), (x + (inner - x) * 0.35, h), (x, h)],
                      (160, 200, 192), BACKGROUND)  # fmt: skip
    scene.rect((0, h, S, h + 8), (226, 172, 118), GROUND)
    scene.rect((0, h + 26, S, h + 29), (168, 112, 68), GROUND)
    return scene


SETTINGS: dict[str, Callable[[np.random.Generator], Scene]] = {
    "meadow": _meadow,
    "beach": _beach,
    "snow": _snow,
    "desert": _desert,
    "night sky": _night_sky,
    "sunset hills": _sunset_hills,
    "forest": _forest,
    "sea": _sea,
    "city street": _city_street,
    "mountains": _mountains,
    "wooden table": _wooden_table,
}


def draw_setting(name: str, rng: np.random.Generator) -> Scene:
    """Draw a background.

    Parameters
    ----------
    name : str
        A key of `SETTINGS`.
    rng : numpy.random.Generator
        Source of the small variation: the horizon and where the shapes at the sides stand.

    Returns
    -------
    Scene
        A scene with region ids 0 and 1 only.

    Raises
    ------
    KeyError
        If `name` is not a setting.
    """
    return SETTINGS[name](rng)
