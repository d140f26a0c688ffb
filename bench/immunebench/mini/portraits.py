"""Procedural head-and-shoulders portraits of parametric people.

A person is an :class:`Identity` (what stays), a picture of that person adds a :class:`View` (what changes).
Continuous traits are drawn over a caricature range, so that two people differ visibly even at 64 x 64 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Float = NDArray[np.float32]
Points = NDArray[np.float64]
Colour = tuple[int, int, int]

SIZE = 128
_OVERSAMPLE = 2

BACKGROUND, CLOTHING, SKIN, HAIR, EYES, MOUTH, BROWS, GLASSES, EXTRA = range(9)
PART_NAMES = ("background", "clothing", "skin", "hair", "eyes", "mouth", "brows", "glasses", "extra")

SKIN_TONES: dict[str, Colour] = {
    "pale": (252, 226, 208), "fair": (246, 206, 178), "rosy": (240, 180, 160), "golden": (232, 188, 132),
    "olive": (205, 166, 116), "tan": (190, 132, 88), "brown": (142, 92, 60), "dark": (92, 58, 42),
}  # fmt: skip
HAIR_COLOURS: dict[str, Colour] = {
    "black": (36, 32, 40), "brown": (104, 64, 38), "blond": (236, 196, 92), "red": (192, 70, 30),
    "grey": (138, 140, 148), "white": (238, 236, 230), "blue": (50, 92, 186), "pink": (230, 112, 160),
}  # fmt: skip
HAIR_STYLES = ("bald", "short", "bob", "long", "curly", "bun", "mohawk", "fringe")
GLASSES_SHAPES = ("none", "round", "square")
BEARDS = ("none", "moustache", "goatee", "full")
EYE_COLOURS: dict[str, Colour] = {
    "brown": (96, 56, 28), "blue": (52, 120, 206), "green": (52, 142, 82), "grey": (126, 140, 152),
}  # fmt: skip
MOLES = ("none", "left", "right", "chin")
_PAINT: tuple[Colour, ...] = ((232, 40, 60), (250, 250, 250), (30, 90, 220))
UNSEEN_TRAITS = ("pointed-ears", "eye-patch", "face-paint", "horns")

EXPRESSIONS = ("neutral", "smiling", "surprised", "sad")
PATTERNS = ("plain", "gradient", "striped", "dotted", "checked")
BACKGROUND_COLOURS: dict[str, Colour] = {
    "cream": (240, 228, 200), "teal": (70, 150, 150), "purple": (136, 104, 172), "orange": (236, 156, 84),
    "green": (124, 172, 106), "navy": (50, 66, 110), "sky blue": (150, 200, 232), "rose": (226, 160, 170),
}  # fmt: skip
CLOTHING_COLOURS: dict[str, Colour] = {
    "red": (196, 56, 52), "blue": (54, 92, 168), "green": (58, 128, 84), "yellow": (230, 188, 62),
    "white": (234, 232, 226), "black": (48, 46, 54), "purple": (116, 70, 148), "orange": (224, 122, 48),
}  # fmt: skip

_EXTREMES = (
    ("face_width", "a narrow face", "a wide face"),
    ("face_length", "a short face", "a long face"),
    ("eye_size", "small eyes", "big eyes"),
    ("brow_thickness", "thin brows", "thick brows"),
    ("jaw", "a pointed chin", "a square jaw"),
    ("nose_length", "a short nose", "a long nose"),
    ("mouth_width", "a small mouth", "a wide mouth"),
    ("ear_size", "small ears", "big ears"),
)


def _join(phrases: Sequence[str]) -> str:
    """Join phrases as English does: commas, then "and" before the last."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _pick(rng: np.random.Generator, choices: Sequence[str] | dict[str, Colour], p: list[float] | None = None) -> str:
    """Draw one name from a table."""
    return str(rng.choice(list(choices), p=p))


@dataclass(frozen=True)
class Identity:
    """The lasting traits of one person.

    Parameters
    ----------
    face_width, face_length, jaw, eye_distance, eye_size, eye_height, nose_length, nose_width, mouth_width, \
brow_thickness, brow_tilt, ear_size : float
        Continuous traits in [-1, 1]; `jaw` runs from pointed to square, `brow_tilt` from worried to stern.
    skin, hair_colour, hair_style, glasses, beard, eye_colour, mole : str
        Names out of the tables of this module.
    extra : str
        Names out of `UNSEEN_TRAITS` joined by "+"; "" for everyone that `random` draws.
    """

    face_width: float
    face_length: float
    jaw: float
    eye_distance: float
    eye_size: float
    eye_height: float
    nose_length: float
    nose_width: float
    mouth_width: float
    brow_thickness: float
    brow_tilt: float
    ear_size: float
    skin: str
    hair_colour: str
    hair_style: str
    glasses: str
    beard: str
    eye_colour: str
    mole: str
    extra: str = ""

    @classmethod
    def random(cls, rng: np.random.Generator) -> Identity:
        """Draw a person; every trait is independent of the others and `extra` stays empty."""
        # A symmetric arcsine-like law favours the ends of the range, where faces tell apart.
        v = [round(float(value), 3) for value in np.sin(rng.uniform(-np.pi / 2, np.pi / 2, 12))]
        return cls(
            *(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11]),
            skin=_pick(rng, SKIN_TONES),
            hair_colour=_pick(rng, HAIR_COLOURS),
            hair_style=_pick(rng, HAIR_STYLES),
            glasses=_pick(rng, GLASSES_SHAPES, [0.5, 0.25, 0.25]),
            beard=_pick(rng, BEARDS, [0.49, 0.17, 0.17, 0.17]),
            eye_colour=_pick(rng, EYE_COLOURS),
            mole=_pick(rng, MOLES, [0.55, 0.15, 0.15, 0.15]),
        )

    def words(self) -> str:
        """Return a caption phrase of the visible traits (two extreme face shapes at most, never `extra`)."""
        ranked = sorted(_EXTREMES, key=lambda row: -abs(getattr(self, row[0])))[:2]
        shapes = [
            high if getattr(self, name) > 0 else low for name, low, high in ranked if abs(getattr(self, name)) > 0.5
        ]
        style = {"bob": f"a {self.hair_colour} bob", "bun": f"{self.hair_colour} hair in a bun",
                 "mohawk": f"a {self.hair_colour} mohawk",
                 "fringe": f"{self.hair_colour} hair with a fringe"}  # fmt: skip
        phrases = [f"{self.skin} skin"]
        if self.hair_style != "bald":
            phrases.append(style.get(self.hair_style, f"{self.hair_style} {self.hair_colour} hair"))
        phrases.append(f"{self.eye_colour} eyes")
        if self.glasses != "none":
            phrases.append(f"{self.glasses} glasses")
        if self.beard != "none":
            phrases.append("a full beard" if self.beard == "full" else f"a {self.beard}")
        if self.mole != "none":
            phrases.append("a mole on the chin" if self.mole == "chin" else f"a mole on the {self.mole} cheek")
        who = "a bald person" if self.hair_style == "bald" else "a person"
        return f"{who} with {_join(phrases + shapes)}"


@dataclass(frozen=True)
class View:
    """The circumstances of one picture.

    Parameters
    ----------
    yaw : float
        Turn of the head in [-1, 1]; positive towards the right edge of the picture.
    roll : float
        Tilt of the head in radians.
    x, y : float
        Offset of the head in pixels of the 128-pixel picture.
    scale : float
        Size of the person; 1 gives a face about 82 pixels high.
    light, warmth : float
        Side the light comes from (-1 left, 1 right) and its colour (-1 cool, 1 warm).
    expression, background, pattern, clothing : str
        Names out of the tables of this module.
    """

    yaw: float
    roll: float
    x: float
    y: float
    scale: float
    light: float
    warmth: float
    expression: str
    background: str
    pattern: str
    clothing: str

    @classmethod
    def random(cls, rng: np.random.Generator) -> View:
        """Draw a view; all ranges are small enough to leave every trait of the person visible."""
        yaw, light, warmth = rng.uniform(-1, 1, 3)
        return cls(
            float(yaw),
            float(rng.uniform(-0.16, 0.16)),
            float(rng.uniform(-5, 5)),
            float(rng.uniform(-3, 3)),
            float(rng.uniform(0.92, 1.05)),
            float(light),
            float(warmth),
            expression=_pick(rng, EXPRESSIONS),
            background=_pick(rng, BACKGROUND_COLOURS),
            pattern=_pick(rng, PATTERNS),
            clothing=_pick(rng, CLOTHING_COLOURS),
        )

    def words(self) -> str:
        """Return a caption phrase of the expression, the turn, the clothing and the background."""
        phrases = [] if self.expression == "neutral" else [self.expression]
        if abs(self.yaw) > 0.5:
            phrases.append(f"turned to the {'right' if self.yaw > 0 else 'left'}")
        pattern = "" if self.pattern in ("plain", "gradient") else f"{self.pattern} "
        phrases.append(f"in a {self.clothing} shirt, on a {pattern}{self.background} background")
        return ", ".join(phrases).replace("a orange", "an orange")


_TURN = np.linspace(0.0, 2 * np.pi, 33)[:-1]
_CIRCLE: Points = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
_STEPS = np.linspace(0, 1, 6)[:-1, None]
_CATMULL_ROM: Points = 0.5 * np.hstack([
    -_STEPS + 2 * _STEPS**2 - _STEPS**3, 2 - 5 * _STEPS**2 + 3 * _STEPS**3,
    _STEPS + 4 * _STEPS**2 - 3 * _STEPS**3, _STEPS**3 - _STEPS**2,
])  # fmt: skip
_ROWS, _COLUMNS = np.meshgrid(np.arange(SIZE, dtype=np.float32), np.arange(SIZE, dtype=np.float32), indexing="ij")


def _smooth(points: Points) -> Points:
    """Return a closed Catmull-Rom curve through `points` (n, 2), five samples a segment."""
    windows = np.stack([np.roll(points, shift, axis=0) for shift in (1, 0, -1, -2)], axis=1)
    return (_CATMULL_ROM @ windows).reshape(-1, 2)


def _move(points: Points, x: float, y: float) -> Points:
    """Shift `points` (n, 2)."""
    moved: Points = points + np.array([x, y])
    return moved


def _tint(colour: Colour, factor: float) -> Colour:
    """Darken (`factor` < 1) or lighten towards white (`factor` > 1) a colour."""
    if factor <= 1:
        return (int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor))
    mix = factor - 1
    return (
        int(colour[0] + (255 - colour[0]) * mix),
        int(colour[1] + (255 - colour[1]) * mix),
        int(colour[2] + (255 - colour[2]) * mix),
    )


class _Brush:
    """Draws shapes given in head coordinates (pixels, origin mid-face) into the picture and the part map."""

    def __init__(self, picture: Image.Image, view: View) -> None:
        self.ids = Image.new("L", picture.size, BACKGROUND)
        self._pens = (ImageDraw.Draw(picture), ImageDraw.Draw(self.ids))
        self.scale = view.scale * _OVERSAMPLE
        self.centre = np.array([SIZE / 2 + view.x, 65 + view.y]) * _OVERSAMPLE
        c, s = np.cos(view.roll) * self.scale, np.sin(view.roll) * self.scale
        self._matrix = np.array([[c, s], [-s, c]])

    def polygon(self, points: Points, colour: Colour, part: int) -> None:
        flat = (points @ self._matrix + self.centre).ravel().tolist()
        self._pens[0].polygon(flat, fill=colour)
        self._pens[1].polygon(flat, fill=part)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, part: int) -> None:
        self.polygon(_CIRCLE * (rx, ry) + (x, y), colour, part)

    def line(self, points: Points, colour: Colour, width: float, part: int) -> None:
        flat = (points @ self._matrix + self.centre).ravel().tolist()
        pixels = max(1, round(width * self.scale))
        self._pens[0].line(flat, fill=colour, width=pixels, joint="curve")
        self._pens[1].line(flat, fill=part, width=pixels)


def _mirror(points: Sequence[tuple[float, float]]) -> Points:
    """Complete the right half of a closed outline, listed top to bottom, with its mirror image."""
    half = np.array(points, dtype=np.float64)
    return np.concatenate([half, half[::-1] * (-1, 1)])


class _Portrait:
    """One drawing in progress: the measures derived from person and view, and a method per feature."""

    def __init__(self, who: Identity, view: View, brush: _Brush, rng: np.random.Generator) -> None:
        self.who, self.view, self.brush, self.rng = who, view, brush, rng
        self.extras = who.extra.split("+")
        self.skin, self.hair = SKIN_TONES[who.skin], HAIR_COLOURS[who.hair_colour]
        self.width = 30.0 + 6.5 * who.face_width
        self.length = 40.0 + 5.0 * who.face_length
        self.eye_y = -3.0 - 6.0 * who.eye_height
        self.eye_x = min(14.0 + 4.0 * who.eye_distance, self.width - 8.0)
        self.eye_r = 6.0 + 2.4 * who.eye_size
        self.nose_y = self.eye_y + 15.0 + 5.5 * who.nose_length
        self.mouth_y = max(self.nose_y + 7.5, 0.52 * self.length)
        self.lift = 3.0 if view.expression == "surprised" else 0.0

    def _x(self, x: float, depth: float) -> float:
        """Return where a feature at `x`, `depth` pixels before the turning axis, lands under the yaw."""
        return x * (1 - 0.1 * abs(self.view.yaw)) + self.view.yaw * depth

    def _face(self, grow: float = 0.0) -> Points:
        """Return the outline of the face (32, 2), starting at the right ear and running over the chin."""
        c, s = _CIRCLE[:, 0], _CIRCLE[:, 1]
        power = np.where(s > 0, 2 / (2.15 * 1.6**self.who.jaw), 1.0)
        x = (self.width + grow) * np.sign(c) * np.abs(c) ** power + self.view.yaw * 3.5 * np.maximum(s, 0)
        return np.stack([x, (self.length + grow) * np.sign(s) * np.abs(s) ** power], axis=1)

    def clothes(self) -> None:
        shirt, bottom = CLOTHING_COLOURS[self.view.clothing], 90.0
        y, w = self.length + 8.0, 56.0
        self.brush.polygon(_smooth(_mirror([(12, y), (34, y + 6), (w, y + 20), (w + 8, bottom)])), shirt, CLOTHING)
        self.brush.line(np.array([[-16, y + 1], [0, y + 14], [16, y + 1]]), _tint(shirt, 0.75), 5.0, CLOTHING)

    def neck(self) -> None:
        n, y = 12.0 + 2.5 * self.who.face_width, self.length
        self.brush.polygon(_mirror([(n, 10), (n, y + 3), (n + 3, y + 8), (1, y + 15)]), _tint(self.skin, 0.86), SKIN)
        shade = self._face() * (0.8, 1) + (self.view.yaw * 2, 4)
        self.brush.polygon(shade[1:16], _tint(self.skin, 0.7), SKIN)

    def ears(self) -> None:
        size = 7.5 + 4.0 * self.who.ear_size
        for side in (-1, 1):
            x = side * (self.width + 0.25 * size) - self.view.yaw * 3.0
            y = self.eye_y + 6.0
            if "pointed-ears" in self.extras:
                tip = np.array([[0, 8], [side * 7, 0], [side * 17, -20], [side * 2, -10], [-side * 6, -6]], np.float64)
                self.brush.polygon(_move(tip, x, y), self.skin, SKIN)
                self.brush.polygon(_move(tip * 0.6, x, y), _tint(self.skin, 0.78), SKIN)
            else:
                self.brush.ellipse(x, y, size * 0.68, size, self.skin, SKIN)
                self.brush.ellipse(x, y, size * 0.34, size * 0.6, _tint(self.skin, 0.78), SKIN)

    def hair_back(self) -> None:
        w, y, shift = self.width, self.length, -2.0 * self.view.yaw
        dark, style = _tint(self.hair, 0.78), self.who.hair_style
        if style == "long":
            outline = [
                (10, -y - 6),
                (w * 0.8, -y * 0.9),
                (w + 9, -y * 0.3),
                (w + 10, y * 0.6),
                (w + 13, y + 24),
                (12, y + 22),
            ]
        elif style == "bob":
            outline = [
                (10, -y - 6),
                (w * 0.8, -y * 0.9),
                (w + 9, -y * 0.3),
                (w + 14, y * 0.55),
                (w + 6, y * 0.8),
                (8, y * 0.7),
            ]
        elif style == "fringe":
            outline = [
                (10, -y - 5),
                (w * 0.8, -y * 0.9),
                (w + 7, -y * 0.3),
                (w + 6, y * 0.3),
                (w, y * 0.4),
                (6, y * 0.4),
            ]
        elif style == "bun":
            self.brush.ellipse(shift, -y - 8, 14, 12, self.hair, HAIR)
            self.brush.ellipse(shift - 3, -y - 11, 7, 4, _tint(self.hair, 1.18), HAIR)
            return
        elif style == "curly":
            for angle in np.linspace(np.pi * 0.86, np.pi * 2.14, 11):
                r = 10.5 + self.rng.uniform(-1.0, 1.0)
                self.brush.ellipse(np.cos(angle) * (w + 4) + shift, np.sin(angle) * (y + 1) - 3, r, r, dark, HAIR)
            return
        else:
            return
        self.brush.polygon(_smooth(_move(_mirror(outline), shift, 0)), dark, HAIR)

    def _cap(self, grow: float, hairline: list[tuple[float, float]], colour: Colour) -> None:
        """Fill between the skull, `grow` pixels out, and a hairline in fractions of the face."""
        skull = self._face(grow)[16:]
        line = np.array(hairline) * (self.width, self.length) + (self.view.yaw * 4.0, 0)
        self.brush.polygon(np.concatenate([skull, [[self.width + grow, 0.0]], line]), colour, HAIR)

    def hair_front(self) -> None:
        w, y, style, yaw = self.width, self.length, self.who.hair_style, self.view.yaw
        if style == "bald":
            self.brush.ellipse(self._x(self.view.light * 9, 3), -y * 0.78, 9, 3.5, _tint(self.skin, 1.3), SKIN)
            return
        parting = [
            (0.97, -0.1),
            (0.88, -0.42),
            (0.7, -0.55),
            (0.3, -0.66),
            (-0.2, -0.76),
            (-0.55, -0.6),
            (-0.88, -0.35),
            (-0.97, -0.1),
        ]
        if style == "mohawk":
            self._cap(0.5, [(0.94, -0.2), (0.7, -0.62), (0.3, -0.74), (-0.3, -0.74),
                            (-0.7, -0.62), (-0.94, -0.2)],
                      _tint(self.skin, 0.72))  # fmt: skip
            spikes = [(-9, -0.66 * y), (-11, -y - 6), (-7, -y - 17), (-4, -y - 9), (0, -y - 21), (4, -y - 9),
                      (8, -y - 17), (11, -y - 6), (9, -0.66 * y), (0, -0.55 * y)]  # fmt: skip
            self.brush.polygon(_move(np.array(spikes), yaw * 4, 0), self.hair, HAIR)
            self.brush.line(
                _move(np.array([[-3, -y * 0.75], [-4, -y - 8]]), yaw * 4, 0),
                _tint(self.hair, 1.22),
                2.5,
                HAIR,
            )
            return
        if style == "fringe":
            self._cap(6, [(1.02, 0.35), (0.9, 0.3), (0.84, -0.36), (0.3, -0.42),
                          (-0.3, -0.42), (-0.84, -0.36), (-0.9, 0.3), (-1.02, 0.35)],
                      self.hair)  # fmt: skip
        elif style == "bun":
            self._cap(
                3,
                [
                    (0.97, -0.15),
                    (0.8, -0.6),
                    (0.4, -0.8),
                    (0, -0.84),
                    (-0.4, -0.8),
                    (-0.8, -0.6),
                    (-0.97, -0.15),
                ],
                self.hair,
            )
        elif style == "curly":
            for angle in np.linspace(np.pi * 1.1, np.pi * 1.9, 7):
                x, top = np.cos(angle) * w * 0.86 + yaw * 2, np.sin(angle) * y * 0.92 - 2
                self.brush.ellipse(x, top, 9.5, 9, self.hair, HAIR)
                self.brush.ellipse(x + self.view.light * 3, top - 3, 3.5, 2.5, _tint(self.hair, 1.2), HAIR)
            return
        else:
            self._cap(4 if style == "short" else 7, parting, self.hair)
        for start in (1.3, 1.42, 1.54) if self.view.light > 0 else (1.2, 1.32, 1.44):
            arc = np.linspace(start, start + 0.2, 5) * np.pi + self.rng.uniform(-0.06, 0.06)
            strand = np.stack([np.cos(arc) * w * 0.84 + yaw * 2, np.sin(arc) * y * 0.97], axis=1)
            self.brush.line(strand, _tint(self.hair, 1.22), 1.8, HAIR)

    def face(self) -> None:
        self.brush.polygon(self._face(), self.skin, SKIN)
        blush = (min(255, int(self.skin[0] * 1.03)), int(self.skin[1] * 0.88), int(self.skin[2] * 0.86))
        for side in (-1, 1):
            self.brush.ellipse(self._x(side * self.width * 0.58, 5), self.nose_y + 2, 5.5, 4.5, blush, SKIN)
            if "face-paint" in self.extras:
                for row in range(3):
                    x = self._x(side * self.width * 0.62, 5)
                    y = self.nose_y - 5 + 6.5 * row
                    self.brush.line(np.array([[x - 9, y], [x + 9, y - 2]]), _PAINT[row], 4.2, EXTRA)
            if self.who.mole in ("left", "right") and side == (-1 if self.who.mole == "left" else 1):
                self.brush.ellipse(self._x(side * self.width * 0.6, 6), self.nose_y + 5, 2.3, 2.3, (62, 34, 28), SKIN)

    def eyes(self) -> None:
        size, wide = self.eye_r, 1.18 if self.view.expression == "surprised" else 1.0
        for side in (-1, 1):
            x, rx = self._x(side * self.eye_x, 7), size * (1 - 0.2 * max(0.0, side * self.view.yaw))
            ry = size * 0.68 * wide
            self.brush.ellipse(x, self.eye_y - 0.9, rx + 0.8, ry + 0.7, _tint(self.skin, 0.42), EYES)
            self.brush.ellipse(x, self.eye_y, rx, ry, (250, 249, 246), EYES)
            gaze, iris = x + self.view.yaw * 1.4, size * 0.6
            self.brush.ellipse(gaze, self.eye_y, iris, iris, EYE_COLOURS[self.who.eye_colour], EYES)
            self.brush.ellipse(gaze, self.eye_y, iris * 0.5, iris * 0.5, (20, 16, 20), EYES)
            self.brush.ellipse(gaze + self.view.light * 1.5, self.eye_y - 1.4, 1.2, 1.2, (255, 255, 255), EYES)

    def brows(self) -> None:
        thick = 2.9 + 1.9 * self.who.brow_thickness
        colour = _tint(self.hair if self.who.hair_style != "bald" else (70, 50, 40), 0.72)
        half, y = self.eye_r + 2.0, self.eye_y - self.eye_r * 0.7 - 3.6 - thick * 0.5 - self.lift
        tilt = 3.6 * self.who.brow_tilt - (1.6 if self.view.expression == "sad" else 0.0)
        for side in (-1, 1):
            x = self._x(side * self.eye_x, 7)
            brow = [(x - side * half, y + tilt), (x, y - 1.2), (x + side * half, y - tilt * 0.8 + 0.6)]
            self.brush.line(np.array(brow), colour, thick, BROWS)

    def nose(self) -> None:
        wide, top = 5.2 + 2.8 * self.who.nose_width, self.eye_y + 2.0
        base, tip, y = self._x(0, 7), self._x(0, 10.5), self.nose_y
        away = -1.0 if self.view.light > 0 else 1.0
        bridge = np.array(
            [
                [base - wide * 0.3, top],
                [base + wide * 0.3, top],
                [tip + wide, y - 1],
                [tip, y + 2.4],
                [tip - wide, y - 1],
            ]
        )
        self.brush.polygon(bridge, _tint(self.skin, 0.93), SKIN)
        flank = np.array(
            [
                [base + away * wide * 0.3, top],
                [tip + away * wide, y - 1],
                [tip, y + 2.4],
                [tip + away * 0.8, y - 4],
            ]
        )
        self.brush.polygon(flank, _tint(self.skin, 0.76), SKIN)
        self.brush.ellipse(tip, y - 1.0, wide * 0.62, 3.2, _tint(self.skin, 1.12), SKIN)
        for side in (-1, 1):
            self.brush.ellipse(tip + side * wide * 0.66, y + 1.2, 1.7, 1.1, _tint(self.skin, 0.5), SKIN)

    def beard(self) -> None:
        kind, colour = self.who.beard, _tint(self.hair, 0.9)
        x, y, w = self._x(0, 8), self.mouth_y, self.width
        if kind == "full":
            jaw = self._face(2.5)[0:17] * (1, 1.05)
            inner = np.array([(-0.82, 0.1), (-0.62, 0.4)]) * (w, self.length)
            lip = np.array([[x - 10, y - 6.0], [x, y - 7.0], [x + 10, y - 6.0]])
            self.brush.polygon(np.concatenate([jaw, inner, lip, inner[::-1] * (-1, 1)]), colour, BROWS)
        if kind == "goatee":
            chin = self.length + 2.5
            shape = [(x - 7, y + 4.5), (x + 7, y + 4.5), (x + 8, chin - 5), (x, chin + 4), (x - 8, chin - 5)]
            self.brush.polygon(_smooth(np.array(shape)), colour, BROWS)
        if kind == "moustache":
            shape = [
                (x, y - 6.5),
                (x + 8, y - 6),
                (x + 15, y),
                (x + 7, y - 1.8),
                (x, y - 2.6),
                (x - 7, y - 1.8),
                (x - 15, y),
                (x - 8, y - 6),
            ]
            self.brush.polygon(_smooth(np.array(shape)), colour, BROWS)

    def mouth(self) -> None:
        mood, x, y = self.view.expression, self._x(0, 8), self.mouth_y
        half = (11.0 + 5.0 * self.who.mouth_width) * (1.12 if mood == "smiling" else 1.0)
        lip = (int(self.skin[0] * 0.8), int(self.skin[1] * 0.5), int(self.skin[2] * 0.52))
        if mood == "surprised":
            self.brush.ellipse(x, y + 2.5, half * 0.62, 6.0, lip, MOUTH)
            self.brush.ellipse(x, y + 2.8, half * 0.62 - 1.8, 4.2, (70, 22, 28), MOUTH)
        elif mood == "smiling":
            arc = np.linspace(-1, 1, 9)
            top = np.stack([x + half * arc, y - 2.0 + 1.8 * (1 - arc**2)], axis=1)
            low = np.stack([x + half * arc[::-1], y - 2.0 + 8.2 * (1 - arc[::-1] ** 2)], axis=1)
            self.brush.polygon(np.concatenate([top, low]), lip, MOUTH)
            self.brush.polygon(np.concatenate([top, low * (0.86, 1) + (x * 0.14, -2.4)]), (252, 250, 244), MOUTH)
        else:
            bend = -3.6 if mood == "sad" else 0.4
            arc = np.linspace(-1, 1, 7)
            curve = np.stack([x + half * arc, y + 0.5 + bend * (0.5 - arc**2)], axis=1)
            self.brush.ellipse(x, y + 1.6 + bend * 0.3, half * 0.6, 2.6, lip, MOUTH)
            self.brush.line(curve, _tint(lip, 0.62), 1.7, MOUTH)
        if self.who.mole == "chin":
            self.brush.ellipse(x + 7.0, 0.5 * (y + self.length) + 2.5, 2.3, 2.3, (62, 34, 28), SKIN)

    def glasses(self) -> None:
        r, y = min(max(8.5, self.eye_r + 2.6), self.eye_x - 0.5), self.eye_y + 0.5
        # Dark frames vanish on dark skin once the picture is reduced.
        frame = (34, 30, 38) if sum(self.skin) > 320 else (238, 214, 150)
        square: Points = np.array(
            [[-1.05, -0.85], [1.05, -0.85], [0.95, 0.85], [-0.95, 0.85], [-1.05, -0.85], [1.05, -0.85]]
        )
        for side in (-1, 1):
            rim = (_CIRCLE[np.arange(34) % 32] if self.who.glasses == "round" else square) * r
            x = self._x(side * self.eye_x, 8)
            self.brush.line(_move(rim, x, y), frame, 2.2, GLASSES)
            temple = np.array([[x + side * r, y - 1], [side * self.width - self.view.yaw * 2, y - 2]])
            self.brush.line(temple, frame, 1.6, GLASSES)
        self.brush.line(
            np.array([[self._x(r - self.eye_x, 8), y - 2], [self._x(self.eye_x - r, 8), y - 2]]),
            frame,
            2.0,
            GLASSES,
        )

    def extra(self) -> None:
        if "eye-patch" in self.extras:
            x, y = self._x(self.eye_x, 7), self.eye_y
            strap = np.array([[-self.width, y + 6], [x, y - 3], [self.width, y - 14]])
            self.brush.line(strap, (24, 22, 26), 2.6, EXTRA)
            self.brush.ellipse(x, y, self.eye_r + 4, self.eye_r + 3, (24, 22, 26), EXTRA)
        if "horns" in self.extras:
            for side in (-1, 1):
                shape = np.array([(10, -0.86), (21, -0.72), (29, -1.05), (27, -1.42), (20, -1.12)]) * (
                    side,
                    self.length,
                )
                self.brush.polygon(shape, (226, 208, 168), EXTRA)
                self.brush.line(shape[[0, 1]], (150, 120, 84), 2.0, EXTRA)

    def draw(self) -> None:
        """Draw every feature, back to front."""
        self.clothes()
        self.hair_back()
        self.neck()
        self.ears()
        self.face()
        self.nose()
        self.beard()
        self.mouth()
        self.eyes()
        self.hair_front()
        self.brows()
        if self.who.glasses != "none":
            self.glasses()
        self.extra()


def _backdrop(view: View, rng: np.random.Generator) -> Image.Image:
    """Return the background at the oversampled size."""
    side, colour = SIZE * _OVERSAMPLE, BACKGROUND_COLOURS[view.background]
    if view.pattern == "gradient":
        corners = Image.new("RGB", (2, 2), colour)
        corners.putpixel((0, 0), _tint(colour, 1.5))
        corners.putpixel((1, 1), _tint(colour, 0.62))
        return corners.resize((side, side), Image.Resampling.BILINEAR)
    picture, other = Image.new("RGB", (side, side), colour), _tint(colour, 1.28)
    pen, step, phase = ImageDraw.Draw(picture), 40, int(rng.integers(40))
    if view.pattern == "striped":
        for x in range(-side - phase, side, step):
            pen.line([x, side, x + side, 0], fill=other, width=14)
    elif view.pattern in ("dotted", "checked"):
        for row, y in enumerate(range(-phase, side, step)):
            for x in range(-phase + (row % 2) * step // 2 - step, side, step):
                if view.pattern == "dotted":
                    pen.ellipse([x, y, x + 16, y + 16], fill=other)
                else:
                    pen.rectangle([x, y, x + step // 2 - 1, y + step - 1], fill=other)
    return picture


def _relight(rgb: Float, parts: NDArray[np.uint8], portrait: _Portrait) -> Float:
    """Shade the flat drawing (128, 128, 3): an ellipsoid for the head, a slope for the rest."""
    view, (cx, cy) = portrait.view, portrait.brush.centre / _OVERSAMPLE
    dx = (_COLUMNS - np.float32(cx)) / np.float32(1.3 * portrait.width * view.scale)
    dy = (_ROWS - np.float32(cy)) / np.float32(1.35 * portrait.length * view.scale)
    depth = np.sqrt(np.maximum(1 - dx * dx - dy * dy, 0.2))
    head = 0.72 + 0.28 * depth + np.float32(0.26 * view.light) * np.clip(dx, -1, 1) - 0.1 * np.clip(dy, -1, 1)
    rest = 0.96 + np.float32(0.06 * view.light) * np.clip(dx, -2, 2)
    shade = np.where(parts >= SKIN, head * 1.04, rest)
    light = np.array([1 + 0.06 * view.warmth, 1.0, 1 - 0.09 * view.warmth], dtype=np.float32)
    lit: Float = np.clip(rgb * shade[..., None] * light, 0, 1).astype(np.float32)
    return lit


def draw_portrait(identity: Identity, view: View, rng: np.random.Generator) -> tuple[Float, NDArray[np.uint8]]:
    """Draw one person in one view.

    Parameters
    ----------
    identity, view : Identity, View
        Who is drawn, and how.
    rng : numpy.random.Generator
        Source of the details that carry no meaning (strands, curls, phase of the pattern).

    Returns
    -------
    rgb : float32 (128, 128, 3)
        Picture in [0, 1].
    parts : uint8 (128, 128)
        Region ids, indices into `PART_NAMES`.

    Raises
    ------
    KeyError
        If a skin, hair, eye, background or clothing colour is not in its table.
    """
    picture = _backdrop(view, rng)
    brush = _Brush(picture, view)
    portrait = _Portrait(identity, view, brush, rng)
    portrait.draw()
    rgb = np.asarray(picture.reduce(_OVERSAMPLE), dtype=np.float32) / np.float32(255)
    parts = np.ascontiguousarray(np.asarray(brush.ids)[::_OVERSAMPLE, ::_OVERSAMPLE])
    return _relight(rgb, parts, portrait), parts


PEOPLE: dict[str, Identity] = {
    "ada": Identity(-0.7, 0.8, -0.8, -0.3, 0.9, 0.3, -0.6, -0.7, -0.5, -0.6, -0.6, -0.5,
                    "pale", "red", "bob", "round", "none", "green", "left"),
    "bruno": Identity(0.9, -0.4, 0.9, 0.3, -0.7, 0.2, 0.3, 0.9, 0.6, 0.9, 0.7, 0.7,
                      "tan", "black", "short", "none", "full", "brown", "none"),
    "chidi": Identity(-0.2, 0.9, 0.4, 0.5, 0.2, 0.7, 0.9, 0.3, 0.8, 0.2, -0.8, 0.9,
                      "dark", "grey", "bald", "square", "goatee", "brown", "none"),
    "dana": Identity(0.6, -0.8, -0.5, 0.9, 0.7, -0.7, -0.9, 0.1, 0.3, -0.8, 0.5, -0.8,
                     "olive", "pink", "curly", "none", "none", "blue", "chin"),
    "elio": Identity(-0.4, 0.3, -0.6, 0.6, 0.5, 0.5, 0.6, -0.5, 0.7, 0.5, 0.8, 0.2,
                     "golden", "white", "mohawk", "none", "none", "grey", "none",
                     extra="face-paint+pointed-ears"),
    "freya": Identity(0.5, 0.6, 0.6, -0.2, 0.6, -0.3, -0.2, 0.5, -0.8, 0.7, -0.4, 0.4,
                      "rosy", "blond", "long", "none", "none", "blue", "right", extra="eye-patch+horns"),
}  # fmt: skip
