"""Canvas and backgrounds of the procedural picture world.

A `Scene` is a colour picture together with a map of region ids, so that a painting style can
outline, tile or recolour by region. Backgrounds are kept pale and smooth: the subject has to stand out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

S = 128
"""Side of the canvas in pixels."""

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]
Points = Sequence[tuple[float, float]]

COLOURS: dict[str, RGB] = {
    "red": (214, 38, 42),
    "orange": (245, 132, 24),
    "yellow": (250, 214, 40),
    "green": (44, 152, 58),
    "teal": (22, 170, 170),
    "blue": (36, 84, 206),
    "purple": (126, 50, 172),
    "pink": (246, 128, 178),
    "brown": (126, 76, 38),
    "white": (248, 246, 240),
    "grey": (132, 136, 142),
    "black": (34, 32, 38),
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

    def gradient(self, top: RGB, bottom: RGB, y0: float, y1: float, part: int) -> None:
        """Fill the full-width band from `y0` to `y1` with a vertical gradient."""
        a, b = max(0, round(y0)), min(S, round(y1))
        if b <= a:
            return
        t = _ramp().resize((S, b - a))
        band = Image.composite(Image.new("RGB", t.size, bottom), Image.new("RGB", t.size, top), t)
        self.rgb.paste(band, (0, a))
        self.parts.paste(part, (0, a, S, b))

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Picture as float32 (S, S, 3) in [0, 1] and region ids as uint8 (S, S)."""
        rgb = np.asarray(self.rgb, dtype=np.float32) / np.float32(255.0)
        return rgb, np.array(self.parts, dtype=np.uint8)


@cache
def _ramp() -> Image.Image:
    return Image.linear_gradient("L").resize((1, 64), Image.Resampling.BOX)


def _jitter(rng: np.random.Generator, rgb: RGB, amount: float = 0.06) -> RGB:
    f = rng.uniform(1.0 - amount, 1.0 + amount, 3)
    return (min(255, int(rgb[0] * f[0])), min(255, int(rgb[1] * f[1])), min(255, int(rgb[2] * f[2])))


def _base(rng: np.random.Generator, top: RGB, bottom: RGB, ground: RGB, low: float = 78.0) -> Scene:
    """Lay a graded sky or wall over graded ground, with a random horizon."""
    scene = Scene(horizon=float(rng.uniform(low, low + 14.0)))
    ground = _jitter(rng, ground)
    scene.gradient(_jitter(rng, top), _jitter(rng, bottom), 0, scene.horizon, BACKGROUND)
    scene.gradient(shade(ground, 1.12), shade(ground, 0.86), scene.horizon, S, GROUND)
    return scene


def _clouds(scene: Scene, rng: np.random.Generator, colour: RGB) -> None:
    for _ in range(int(rng.integers(1, 4))):
        x, y, r = rng.uniform(0, S), rng.uniform(8, 34), rng.uniform(5, 8)
        for dx, dy, k in ((-1.3, 0.3, 0.8), (0.0, -0.2, 1.1), (1.3, 0.3, 0.8)):
            cx, cy, q = x + dx * r, y + dy * r, k * r
            scene.ellipse((cx - q * 1.3, cy - q * 0.8, cx + q * 1.3, cy + q * 0.8), colour, BACKGROUND)


def _hills(scene: Scene, rng: np.random.Generator, colour: RGB, height: float, part: int = GROUND) -> None:
    phase, waves = rng.uniform(0, 6.28), rng.uniform(0.8, 2.2)
    xs = np.linspace(0, S, 17)
    ys = scene.horizon - height * (0.55 + 0.45 * np.sin(phase + waves * xs / S * 6.28))
    scene.polygon([*zip(xs.tolist(), ys.tolist(), strict=True), (S, scene.horizon), (0, scene.horizon)], colour, part)


def _flecks(scene: Scene, rng: np.random.Generator, colour: RGB, n: int, dx: float, dy: float) -> None:
    """Scatter small strokes over the ground."""
    xs = rng.uniform(0, S, n).tolist()
    ys = rng.uniform(scene.horizon + 3, S, n).tolist()
    for x, y in zip(xs, ys, strict=True):
        scene.line([(x, y), (x + dx, y + dy)], colour, 1.6, GROUND)


def _meadow(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (150, 200, 240), (222, 240, 250), (142, 194, 112))
    _clouds(scene, rng, (246, 250, 252))
    _hills(scene, rng, (164, 206, 142), rng.uniform(5, 14))
    _flecks(scene, rng, (120, 176, 96), 22, 1.5, -4)
    _flecks(scene, rng, (240, 236, 190), 7, 1, 1)
    return scene


def _beach(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (150, 214, 240), (228, 244, 246), (238, 220, 172), 84)
    _clouds(scene, rng, (248, 252, 252))
    h = scene.horizon
    scene.gradient((104, 184, 204), (156, 216, 220), h - rng.uniform(14, 20), h, BACKGROUND)
    scene.line([(x, h + 1.5 * (x // 16 % 2)) for x in range(0, S + 16, 16)], (244, 248, 244), 2, GROUND)
    _flecks(scene, rng, (222, 200, 148), 16, 3, 0)
    return scene


def _snow(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (168, 190, 216), (214, 224, 236), (236, 242, 248))
    _firs(scene, rng, (150, 176, 184), 6)
    _hills(scene, rng, (228, 236, 244), rng.uniform(3, 8))
    for x, y in rng.uniform(0, S, (24, 2)).tolist():
        scene.ellipse((x - 1, y - 1, x + 1, y + 1), (250, 252, 255), BACKGROUND if y < scene.horizon else GROUND)
    return scene


def _desert(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (240, 206, 150), (250, 232, 192), (228, 184, 122))
    x, r = rng.uniform(10, 118), rng.uniform(7, 10)
    scene.ellipse((x - r, 20 - r, x + r, 20 + r), (252, 244, 214), BACKGROUND)
    _hills(scene, rng, (232, 196, 142), rng.uniform(10, 20))
    _hills(scene, rng, (222, 178, 118), rng.uniform(4, 9))
    _flecks(scene, rng, (208, 162, 104), 12, 6, 1)
    return scene


def _night_sky(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (24, 28, 74), (58, 62, 120), (44, 66, 84), 86)
    for x, y in rng.uniform((0, 0), (S, scene.horizon), (26, 2)).tolist():
        scene.ellipse((x - 0.8, y - 0.8, x + 0.8, y + 0.8), (206, 208, 226), BACKGROUND)
    x, r = rng.uniform(12, 116), rng.uniform(6, 10)
    scene.ellipse((x - r, 16 - r, x + r, 16 + r), (226, 222, 190), BACKGROUND)
    scene.ellipse((x - r + 5, 14 - r, x + r + 5, 14 + r), (34, 38, 88), BACKGROUND)
    _hills(scene, rng, (38, 54, 84), rng.uniform(6, 12))
    return scene


def _sunset_hills(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (206, 140, 168), (252, 206, 148), (128, 112, 122))
    x, r, y = rng.uniform(14, 114), rng.uniform(10, 14), scene.horizon - rng.uniform(12, 30)
    scene.ellipse((x - r, y - r, x + r, y + r), (255, 232, 176), BACKGROUND)
    _hills(scene, rng, (196, 146, 150), rng.uniform(16, 26))
    _hills(scene, rng, (158, 126, 138), rng.uniform(6, 12))
    return scene


def _firs(scene: Scene, rng: np.random.Generator, colour: RGB, n: int) -> None:
    for x, t in zip(rng.uniform(0, S, n).tolist(), rng.uniform(24, 46, n).tolist(), strict=True):
        h = scene.horizon
        scene.polygon([(x - t * 0.26, h), (x, h - t), (x + t * 0.26, h)], colour, BACKGROUND)


def _forest(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (172, 204, 178), (214, 228, 200), (132, 158, 106))
    for x, w in zip(rng.uniform(0, S, 7).tolist(), rng.uniform(2, 4, 7).tolist(), strict=True):
        scene.rect((x - w, 0, x + w, scene.horizon), (154, 172, 146), BACKGROUND)
    _firs(scene, rng, (142, 178, 146), 7)
    _flecks(scene, rng, (108, 136, 88), 20, 2, -3)
    return scene


def _sea(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (166, 208, 236), (232, 240, 240), (96, 160, 194), 72)
    _clouds(scene, rng, (248, 250, 252))
    for _ in range(9):
        x, y = rng.uniform(-8, S), rng.uniform(scene.horizon + 4, S)
        scene.line([(x, y), (x + 6, y - 2), (x + 12, y), (x + 18, y - 2)], (150, 198, 218), 1.6, GROUND)
    return scene


def _city_street(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (188, 206, 222), (232, 232, 226), (158, 158, 162), 88)
    h, x = scene.horizon, -4.0
    while x < S:
        w, t, tone = rng.uniform(14, 26), rng.uniform(26, 66), rng.uniform(0.92, 1.06)
        wall = shade((182, 184, 192), min(1.0, tone))
        scene.rect((x, h - t, x + w - 1, h), wall, BACKGROUND)
        for wy in np.arange(h - t + 5, h - 6, 10).tolist():
            for wx in np.arange(x + 3, x + w - 5, 7).tolist():
                scene.rect((wx, wy, wx + 3, wy + 4), (222, 216, 190), BACKGROUND)
        x += w
    scene.rect((0, h, S, h + 4), (198, 196, 192), GROUND)
    for x in range(int(rng.integers(-20, 0)), S, 28):
        scene.rect((x, 116, x + 14, 118), (228, 226, 214), GROUND)
    return scene


def _wooden_table(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (222, 212, 198), (236, 228, 216), (196, 152, 108), 76)
    h = scene.horizon
    for k in range(1, 5):
        y = h + (S - h) * k / 4.6
        scene.line([(0, y), (S, y)], (172, 128, 86), 1.4, GROUND)
    for _ in range(8):
        x, y = rng.uniform(0, S), rng.uniform(h + 3, S)
        scene.line([(x, y), (x + 14, y)], (184, 140, 96), 1, GROUND)
    scene.rect((0, h, S, h + 2), (216, 176, 132), GROUND)
    return scene


def _tiled_floor(rng: np.random.Generator) -> Scene:
    wall: RGB = ((216, 224, 220), (226, 218, 206), (210, 216, 228))[int(rng.integers(3))]
    scene = _base(rng, wall, shade(wall, 1.2), (206, 210, 210), 80)
    h, off = scene.horizon, rng.uniform(0, 1)
    ys = [h + (S - h) * v for v in (0.0, 0.16, 0.38, 0.66, 1.02)]
    dark = _jitter(rng, (176, 186, 190))
    for row in range(4):
        for col in range(-5, 6):
            if (row + col) % 2:
                edge = [
                    (64 + (col + off + i) * (y - h + 22) * 0.42, y)
                    for y, i in ((ys[row], 0), (ys[row], 1), (ys[row + 1], 1), (ys[row + 1], 0))
                ]
                scene.polygon(edge, dark, GROUND)
    return scene


_WALLS: tuple[RGB, ...] = (
    (232, 222, 196),
    (200, 220, 214),
    (226, 206, 206),
    (206, 212, 230),
    (220, 226, 204),
)


def _plain_wall(rng: np.random.Generator) -> Scene:
    wall = _WALLS[int(rng.integers(len(_WALLS)))]
    scene = _base(rng, wall, shade(wall, 0.95), (184, 166, 148), 86)
    scene.rect((0, scene.horizon - 4, S, scene.horizon), (240, 238, 232), BACKGROUND)
    return scene


def _striped_wallpaper_room(rng: np.random.Generator) -> Scene:
    wall = _WALLS[int(rng.integers(len(_WALLS)))]
    scene = _base(rng, wall, wall, (172, 146, 128), 86)
    step = rng.uniform(12, 18)
    for x in np.arange(rng.uniform(-12, 0), S, step).tolist():
        scene.rect((x, 0, x + step * 0.5, scene.horizon), shade(wall, 0.9), BACKGROUND)
    scene.rect((0, scene.horizon - 4, S, scene.horizon), (242, 238, 230), BACKGROUND)
    return scene


def _mountains(rng: np.random.Generator) -> Scene:
    scene = _base(rng, (176, 204, 232), (226, 234, 240), (156, 180, 138), 84)
    h = scene.horizon
    for x in (rng.uniform(4, 40), rng.uniform(88, 124), rng.uniform(46, 84)):
        t, w = rng.uniform(44, 66), rng.uniform(30, 42)
        scene.polygon([(x - w, h), (x, h - t), (x + w, h)], _jitter(rng, (172, 184, 202)), BACKGROUND)
        q = w * 0.26
        cap = [
            (x - q, h - t * 0.74),
            (x, h - t),
            (x + q, h - t * 0.74),
            (x + q / 3, h - t * 0.8),
            (x, h - t * 0.7),
        ]
        scene.polygon(cap, (240, 244, 248), BACKGROUND)
    _flecks(scene, rng, (136, 162, 118), 14, 2, -3)
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
    "tiled floor": _tiled_floor,
    "plain wall": _plain_wall,
    "striped wallpaper room": _striped_wallpaper_room,
}


def draw_setting(name: str, rng: np.random.Generator) -> Scene:
    """Draw a background.

    Parameters
    ----------
    name : str
        A key of `SETTINGS`.
    rng : numpy.random.Generator
        Source of the continuous variation (horizon, hues, clouds, hills and so on).

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
