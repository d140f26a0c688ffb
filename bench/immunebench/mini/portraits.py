"""Procedural head-and-shoulders portraits of cartoon people.

A person is an :class:`Identity` (what stays), a picture of that person adds a :class:`View` (what changes).
Every trait takes one of a few named values. All are drawn as large flat areas with dark outlines, so that each changes
a picture of 64 x 64 pixels by more than a small autoencoder's error, and no trait hides another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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
    "pale": (255, 232, 218), "rosy": (248, 156, 158), "golden": (255, 206, 70),
    "tan": (200, 138, 92), "brown": (150, 86, 42), "dark": (82, 54, 60),
}  # fmt: skip
HAIR_COLOURS: dict[str, Colour] = {
    "black": (34, 30, 40), "brown": (106, 58, 30), "blond": (255, 238, 128), "red": (216, 80, 28),
    "white": (248, 247, 244), "blue": (40, 92, 216), "pink": (244, 110, 186),
}  # fmt: skip
BACKGROUND_COLOURS: dict[str, Colour] = {
    "cream": (246, 234, 204), "teal": (36, 158, 158), "purple": (134, 88, 184), "orange": (246, 154, 64),
    "green": (104, 180, 92), "navy": (44, 60, 124), "sky blue": (138, 204, 246), "rose": (238, 150, 168),
}  # fmt: skip
BACKGROUND_PATTERNS = ("plain", "striped", "dotted")
CLOTHING_COLOURS: dict[str, Colour] = {
    "red": (214, 44, 44), "blue": (44, 88, 196), "green": (40, 136, 72), "white": (244, 244, 240),
    "yellow": (248, 208, 48), "black": (48, 46, 54), "purple": (124, 60, 164), "orange": (244, 128, 36),
}  # fmt: skip

TRAITS: dict[str, tuple[str, ...]] = {
    "skin": tuple(SKIN_TONES),
    "hair_colour": tuple(HAIR_COLOURS),
    "hair_style": ("short", "bob", "long", "afro", "mohawk", "buns", "tufts", "spikes"),
    "face": ("chubby", "boxy", "narrow", "pointed"),
    "eyes": ("beady", "big", "sleepy", "cat"),
    "brows": ("thin", "thick", "slanted", "joined"),
    "nose": ("button", "long", "broad", "clown"),
    "mouth": ("tiny", "wide", "toothy", "lips"),
    "beard": ("none", "moustache", "goatee", "full"),
    "glasses": ("none", "round", "square"),
    "mark": ("none", "spots", "blush", "star", "plaster", "eye-patch", "face-paint"),
    "ears": ("small", "jug", "rings", "pointed"),
}
UNSEEN: dict[str, tuple[str, ...]] = {
    "hair_style": ("spikes",), "eyes": ("cat",), "mark": ("eye-patch", "face-paint"), "ears": ("pointed",),
}  # fmt: skip
# How often a trait is "none"; the other values share the rest evenly.
_NONE = {"beard": 0.37, "glasses": 0.4, "mark": 0.4}
# The share of unseen values, per trait that has some, among the people of whom unseen values are expected.
_UNSEEN_SHARE = 0.5

# The adjectives differ from trait to trait, so that a word alone says which trait it belongs to.
_WORDS: dict[str, dict[str, str]] = {
    "face": {"chubby": "a chubby face", "boxy": "a boxy face", "narrow": "a narrow face", "pointed": "a pointed chin"},
    "eyes": {"beady": "beady eyes", "big": "big eyes", "sleepy": "sleepy eyes"},
    "brows": {"thin": "thin brows", "thick": "thick brows", "slanted": "slanted brows", "joined": "joined brows"},
    "nose": {"button": "a button nose", "long": "a beaky nose", "broad": "a broad nose", "clown": "a clown nose"},
    "mouth": {"tiny": "a tiny mouth", "wide": "a wide mouth", "toothy": "a toothy mouth", "lips": "plump lips"},
    "beard": {"moustache": "a moustache", "goatee": "a goatee", "full": "a full beard"},
    "glasses": {"round": "round glasses", "square": "square glasses"},
    "mark": {"spots": "spots", "blush": "blushing cheeks", "star": "a star tattoo", "plaster": "a plaster"},
    "ears": {"small": "small ears", "jug": "jug ears", "rings": "ear rings"},
}
_HAIR_WORDS = {
    "short": "short {}hair", "bob": "a {}bob", "long": "long {}hair", "afro": "a {}afro", "mohawk": "a {}mohawk",
    "buns": "two {}buns", "tufts": "tufts of {}hair",
}  # fmt: skip


def _pick(rng: np.random.Generator, choices: Sequence[str] | Mapping[str, Colour]) -> str:
    """Draw one name from a table."""
    return list(choices)[int(rng.integers(len(choices)))]


@dataclass(frozen=True)
class Identity:
    """The lasting traits of one person.

    Parameters
    ----------
    skin, hair_colour, hair_style, face, eyes, brows, nose, mouth, beard, glasses, mark, ears : str
        Values out of `TRAITS`.
    build : tuple of float
        Small individual differences in [-1, 1], of the width of the head and of the height of its features.
    """

    skin: str
    hair_colour: str
    hair_style: str
    face: str
    eyes: str
    brows: str
    nose: str
    mouth: str
    beard: str
    glasses: str
    mark: str
    ears: str
    build: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def random(cls, rng: np.random.Generator, *, unseen: float = 0.0, **fixed: str) -> Identity:
        """Draw a person, every trait independently of the others.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of the draw.
        unseen : float
            Probability, for each trait in `UNSEEN`, of one of its unseen values.
        **fixed : str
            Traits that are given.

        Returns
        -------
        Identity
            The person.

        Raises
        ------
        ValueError
            If a fixed trait or its value is not in `TRAITS`.
        """
        for trait, value in fixed.items():
            if value not in TRAITS.get(trait, ()):
                raise ValueError(f"{trait}={value!r} is not in TRAITS")
        drawn = {}
        for trait, values in TRAITS.items():
            rare = UNSEEN.get(trait, ())
            usual = [value for value in values if value not in rare]
            if rare and rng.random() < unseen:
                usual = list(rare)
            elif trait in _NONE:
                usual = ["none"] if rng.random() < _NONE[trait] else usual[1:]
            drawn[trait] = _pick(rng, usual)
        width, height = rng.uniform(-1, 1, 2)
        return cls(**{**drawn, **fixed}, build=(round(float(width), 3), round(float(height), 3)))

    def traits(self) -> tuple[str, ...]:
        """Return the values of the twelve traits, in the order of `TRAITS`."""
        return tuple(getattr(self, trait) for trait in TRAITS)

    def words(self, rng: np.random.Generator | None = None) -> str:
        """Return a caption phrase of the traits.

        Parameters
        ----------
        rng : numpy.random.Generator, optional
            With it, each trait is left out with probability 0.35; without it, all are named.

        Returns
        -------
        str
            For example "a person with dark skin, a blond bob, big eyes and round glasses". Unseen values stay unnamed.
        """
        said = {trait for trait in TRAITS if rng is None or rng.random() >= 0.35}
        phrases = [f"{self.skin} skin"] if "skin" in said else []
        colour = f"{self.hair_colour} " if "hair_colour" in said else ""
        style = _HAIR_WORDS.get(self.hair_style) if "hair_style" in said else None
        if style or colour:
            phrases.append((style or "{}hair").format(colour).replace("a afro", "an afro"))
        others = [named.get(getattr(self, trait)) for trait, named in _WORDS.items() if trait in said]
        phrases += [phrase for phrase in others if phrase]
        if not phrases:
            return "a person"
        return f"a person with {' and '.join(filter(None, [', '.join(phrases[:-1]), phrases[-1]]))}"


@dataclass(frozen=True)
class View:
    """The circumstances of one picture.

    Parameters
    ----------
    yaw : float
        Turn of the head in [-1, 1], a small shift of the features; positive towards the right edge of the picture.
    roll : float
        Tilt of the head in radians.
    x, y : float
        Offset of the head in pixels of the 128-pixel picture.
    scale : float
        Size of the person; 1 gives a face about 90 pixels high.
    background, pattern, clothing : str
        Names out of `BACKGROUND_COLOURS`, `BACKGROUND_PATTERNS` and `CLOTHING_COLOURS`.
    """

    yaw: float
    roll: float
    x: float
    y: float
    scale: float
    background: str
    pattern: str
    clothing: str

    @classmethod
    def random(cls, rng: np.random.Generator) -> View:
        """Draw a view; the pose moves a picture less than most traits of the person do."""
        return cls(
            yaw=float(rng.uniform(-1, 1)),
            roll=float(rng.uniform(-0.016, 0.016)),
            x=float(rng.uniform(-0.6, 0.6)),
            y=float(rng.uniform(-0.4, 0.4)),
            scale=float(rng.uniform(0.992, 1.008)),
            background=_pick(rng, BACKGROUND_COLOURS),
            pattern=_pick(rng, BACKGROUND_PATTERNS),
            clothing=_pick(rng, CLOTHING_COLOURS),
        )

    def words(self) -> str:
        """Return a caption phrase of the clothing and the background."""
        pattern = "" if self.pattern == "plain" else f"{self.pattern} "
        background = f"{pattern}{self.background}"
        articles = ["an" if words[0] in "aeiou" else "a" for words in (self.clothing, background)]
        return f"in {articles[0]} {self.clothing} shirt, on {articles[1]} {background} background"


_TURN = np.linspace(0.0, 2 * np.pi, 33)[:-1]
_CIRCLE: Points = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
_STEPS = np.linspace(0, 1, 6)[:-1, None]
_CATMULL_ROM: Points = 0.5 * np.hstack([
    -_STEPS + 2 * _STEPS**2 - _STEPS**3, 2 - 5 * _STEPS**2 + 3 * _STEPS**3,
    _STEPS + 4 * _STEPS**2 - 3 * _STEPS**3, _STEPS**3 - _STEPS**2,
])  # fmt: skip

_ANGLES = np.arange(10) * np.pi / 5
_STAR: Points = np.stack([np.sin(_ANGLES), -np.cos(_ANGLES)], axis=1) * np.array([[1.0], [0.5]] * 5)

_INK: Colour = (24, 20, 28)
_DARK_LIPS: Colour = (178, 14, 44)
_BRIGHT_LIPS: Colour = (250, 56, 106)
_WHITE: Colour = (252, 252, 250)
# Half width and half height of the head, and the powers that make its crown and its jaw boxier (above 2) or pointed.
_FACES: dict[str, tuple[float, float, float, float]] = {
    "chubby": (42.0, 42.0, 2.1, 2.4), "boxy": (37.0, 44.0, 2.8, 5.0),
    "narrow": (30.0, 46.0, 2.2, 2.3), "pointed": (39.0, 48.0, 2.2, 1.25),
}  # fmt: skip


def _smooth(points: Points) -> Points:
    """Return a closed Catmull-Rom curve through `points` (n, 2), five samples a segment."""
    windows = np.stack([np.roll(points, shift, axis=0) for shift in (1, 0, -1, -2)], axis=1)
    return (_CATMULL_ROM @ windows).reshape(-1, 2)


def _tint(colour: Colour, factor: float) -> Colour:
    """Darken (`factor` < 1) or lighten towards white (`factor` > 1) a colour."""
    end, share = (0, 1 - factor) if factor <= 1 else (255, factor - 1)
    return (
        int(colour[0] + (end - colour[0]) * share),
        int(colour[1] + (end - colour[1]) * share),
        int(colour[2] + (end - colour[2]) * share),
    )


def _at(points: Sequence[tuple[float, float]] | Points, x: float, y: float, side: int = 1) -> Points:
    """Shift points (n, 2), after mirroring them where `side` is -1."""
    placed: Points = np.array(points, dtype=np.float64) * (side, 1) + np.array([x, y])
    return placed


def _mirror(points: Sequence[tuple[float, float]], x: float = 0.0) -> Points:
    """Complete the right half of a closed outline, listed top to bottom, with its mirror image; `x` is the axis."""
    half = np.array(points, dtype=np.float64)
    return _at(np.concatenate([half, half[::-1] * (-1, 1)]), x, 0)


class _Brush:
    """Draws shapes given in head coordinates (pixels, origin mid-face) into the picture and the part map."""

    def __init__(self, picture: Image.Image, view: View) -> None:
        self.ids = Image.new("L", (SIZE, SIZE), BACKGROUND)
        self._pens = (ImageDraw.Draw(picture), ImageDraw.Draw(self.ids))
        self.scale = view.scale * _OVERSAMPLE
        self.centre = np.array([SIZE / 2 + view.x, 65 + view.y]) * _OVERSAMPLE
        c, s = np.cos(view.roll) * self.scale, np.sin(view.roll) * self.scale
        self._matrix = np.array([[c, s], [-s, c]])

    def shape(self, points: Points, fill: Colour, part: int, edge: float = 3.0, ink: Colour = _INK) -> None:
        """Fill a polygon and draw its outline, `edge` pixels wide and centred on it (0: none)."""
        placed = points @ self._matrix + self.centre
        self._pens[0].polygon(placed.ravel().tolist(), fill=fill)
        self._pens[1].polygon((placed / _OVERSAMPLE).ravel().tolist(), fill=part)
        if edge:
            # Back to the start, so that the outline is closed.
            self._line(np.concatenate([points, points[:2]]), ink, edge, part, len(points) < 20 and edge > 3)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour, part: int, edge: float = 3.0) -> None:
        """Fill and outline an upright ellipse: the head rolls too little for its tilt to be seen, and this is fast."""
        cx, cy = np.array([x, y]) @ self._matrix + self.centre
        rx, ry = (rx + edge / 2) * self.scale, (ry + edge / 2) * self.scale
        box = (round(cx - rx), round(cy - ry), round(cx + rx), round(cy + ry))
        self._pens[0].ellipse(box, fill=fill, outline=_INK, width=round(edge * self.scale))
        self._pens[1].ellipse([side // _OVERSAMPLE for side in box], fill=part)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: float, part: int) -> None:
        self._line(np.array(points), colour, width, part, len(points) > 2)

    def _line(self, points: Points, colour: Colour, width: float, part: int, round_joints: bool) -> None:
        placed, pixels = points @ self._matrix + self.centre, width * self.scale
        joint = "curve" if round_joints else None
        self._pens[0].line(placed.ravel().tolist(), fill=colour, width=max(1, round(pixels)), joint=joint)
        flat = (placed / _OVERSAMPLE).ravel().tolist()
        self._pens[1].line(flat, fill=part, width=max(1, round(pixels / _OVERSAMPLE)))


class _Portrait:
    """One drawing in progress: the measures derived from person and view, and a method per feature."""

    def __init__(self, who: Identity, view: View, brush: _Brush) -> None:
        self.who, self.view, self.brush = who, view, brush
        self.skin, self.hair = SKIN_TONES[who.skin], HAIR_COLOURS[who.hair_colour]
        # Nose and lips are darker than light skin and lighter than dark skin, to be more than their outlines.
        self.light = sum(self.skin) > 300
        self.width, self.length, self.crown, self.jaw = _FACES[who.face]
        self.width += 0.6 * who.build[0]
        # Features in front of the turning axis move with the yaw; those on the outline of the head stay.
        self.x = 0.9 * view.yaw
        self.eye_y = -2.0 + 0.6 * who.build[1]
        self.eye_x = 17.0
        # Dark hair on dark skin needs a light edge: a dark one would leave nothing to see. Black brows have an edge of
        # skin, which sets them off from a black fringe.
        pale_edge = who.skin == "dark" and who.hair_colour in ("black", "brown")
        self.hair_ink = _tint(self.skin, 1.5) if pale_edge else _INK
        self.brow_ink = self.skin if who.hair_colour == "black" and not pale_edge else self.hair_ink

    def _face(self, grow: float = 0.0) -> Points:
        """Return the outline of the head (32, 2), starting at the right ear and running over the chin."""
        c, s = _CIRCLE[:, 0], _CIRCLE[:, 1]
        power = np.where(s > 0, 2 / self.jaw, 2 / self.crown)
        x = (self.width + grow) * np.sign(c) * np.abs(c) ** power
        return np.stack([x, (self.length + grow) * np.sign(s) * np.abs(s) ** power], axis=1)

    def clothes(self) -> None:
        shirt = CLOTHING_COLOURS[self.view.clothing]
        outline = [(10.0, 30.0), (30.0, 36.0), (53.0, 44.0), (62.0, 66.0), (64.0, 90.0)]
        self.brush.shape(_mirror(outline), shirt, CLOTHING)
        self.brush.shape(_mirror([(13, 30), (14, 46), (7, 56)]), _tint(self.skin, 0.85), SKIN)

    def hair_back(self) -> None:
        w, style = self.width, self.who.hair_style
        if style == "bob":
            outline = [(10, -57), (w, -46), (w + 10, -16), (w + 14, 18), (w + 13, 34), (w - 6, 36), (6, 20)]
            self._mane(_smooth(_mirror(outline)))
        elif style == "long":
            outline = [(10, -57), (w, -46), (w + 9, -16), (w + 11, 30), (w + 13, 60), (w - 8, 62), (w - 12, 30)]
            self._mane(_smooth(_mirror(outline)))
        elif style == "afro":
            angles = np.linspace(-0.12, np.pi + 0.12, 9)
            bumps = np.stack([np.cos(angles) * (w + 10), -18 - np.sin(angles) * 34], axis=1)
            for fill, grow in ((_INK, 1.5), (self.hair, -1.5)):
                for x, y in bumps:
                    self.brush.ellipse(x, y, 12 + grow, 11 + grow, fill, HAIR, 0)
            self.brush.shape(bumps, self.hair, HAIR, 0)
        elif style == "buns":
            for side in (-1, 1):
                self.brush.ellipse(side * (w * 0.82), -46, 16, 15, self.hair, HAIR, 4)
        elif style == "tufts":
            for side in (-1, 1):
                for fill, grow in ((_INK, 1.5), (self.hair, -1.5)):
                    for x, y, r in ((w + 2, -26, 10), (w + 9, -15, 10), (w + 5, -4, 9)):
                        self.brush.ellipse(side * x, y, r + grow, r + grow, fill, HAIR, 0)
        elif style == "spikes":
            tips = np.linspace(-0.25, np.pi + 0.25, 8)
            gaps = 0.5 * (tips[1:] + tips[:-1])
            points = np.empty((15, 2))
            points[::2] = np.stack([np.cos(tips) * (w + 22), -16 - np.sin(tips) * 47], axis=1)
            points[1::2] = np.stack([np.cos(gaps) * (w + 3), -16 - np.sin(gaps) * 33], axis=1)
            self._mane(points)

    def _mane(self, points: Points) -> None:
        self.brush.shape(points, self.hair, HAIR, 4)

    def _cap(self, hairline: list[tuple[float, float]], grow: float = 0.0) -> None:
        """Fill between the crown and a hairline, in fractions of the width and in pixels.

        With `grow` the cap ends that many pixels outside the skull, in an outline; without, it runs into the hair
        behind the head.
        """
        line = np.array(hairline) * (self.width, 1.0) + (self.x, 0)
        outside = grow or 3.0
        ends = np.array([(self.width + outside, line[0, 1] + 3), (-self.width - outside, line[-1, 1] + 3)])
        skull = self._face(outside)[17:]
        self.brush.shape(np.concatenate([skull, ends[:1], line, ends[1:]]), self.hair, HAIR, 4 if grow else 0)
        self.brush.line([(float(x), float(y)) for x, y in line], self.hair_ink, 4, HAIR)

    def ears(self) -> None:
        kind, fold = self.who.ears, _tint(self.skin, 0.72)
        for side in (-1, 1):
            x, y = side * self.width, 4.0
            if kind == "pointed":
                tip = np.array([(-4.0, 12.0), (7, 11), (12, -4), (22, -28), (4, -12), (-4, -8)])
                self.brush.shape(_at(tip, x, y, side), self.skin, SKIN, 4)
                self.brush.shape(_at(tip * 0.45, x + side * 2, y, side), fold, SKIN, 0)
            elif kind == "jug":
                self.brush.ellipse(x + side * 6, y, 13, 17, self.skin, SKIN, 4)
                self.brush.ellipse(x + side * 8, y, 5, 9, fold, SKIN, 0)
            else:
                self.brush.ellipse(x + side * 2, y, 6, 8, self.skin, SKIN, 4)
            if kind == "rings":
                self.brush.ellipse(x + side * 6, y + 17, 8, 9, (255, 214, 30), EXTRA)

    def face(self) -> None:
        self.brush.shape(self._face(), self.skin, SKIN, 4)

    def hair_front(self) -> None:
        style = self.who.hair_style
        if style == "mohawk":
            comb = [(7, -64), (15, -54), (14, -28), (6, -25)]
            self._mane(_smooth(_mirror(comb, 0.5 * self.x)))
        elif style == "short":
            self._cap([(0.98, -12), (0.9, -24), (0.5, -34), (-0.35, -27), (-0.9, -31), (-0.98, -12)], 6)
        elif style == "buns":
            self._cap([(0.98, -14), (0.6, -28), (0.0, -34), (-0.6, -28), (-0.98, -14)], 5)
        elif style == "bob":
            self._cap([(1.0, 2), (0.84, -27), (-0.84, -27), (-1.0, 2)])
        elif style == "long":
            self._cap([(1.0, 4), (0.86, -22), (0.5, -33), (0.0, -43), (-0.5, -33), (-0.86, -22), (-1.0, 4)])
        elif style in ("afro", "spikes"):
            self._cap([(1.0, -12), (0.75, -28), (-0.75, -28), (-1.0, -12)])

    def cheeks(self) -> None:
        """Draw the marks that lie flat on the skin."""
        mark, far, y = self.who.mark, min(28.0, self.width - 7), 15.0
        for side in (-1, 1):
            x = side * far + self.x
            if mark == "blush":
                self.brush.ellipse(x, y, 9, 8, (255, 40, 140), EXTRA)
            elif mark == "spots":
                for dx, dy in ((-8, 1), (-1, 11), (5, -3)):
                    self.brush.ellipse(x + side * dx, y + dy, 5.2, 5.2, (188, 12, 20), EXTRA, 0)
            elif mark == "face-paint":
                for dy, colour in ((-4, (30, 60, 230)), (2, _WHITE), (8, (30, 60, 230))):
                    self.brush.line([(x - 9, y + dy), (x + 9, y + dy)], colour, 6, EXTRA)

    def marks(self) -> None:
        """Draw the marks that lie on top of everything."""
        mark, x, y = self.who.mark, max(24.0, self.width - 11), 17.0
        if mark == "plaster":
            strip = np.array([(15.0, -2), (9, -13), (-15, 2), (-9, 13)])
            self.brush.shape(_at(strip, self.x - x, y + 3), (255, 240, 200), EXTRA)
            self.brush.shape(_at(strip * 0.45, self.x - x, y + 3), (232, 110, 50), EXTRA, 0)
        elif mark == "star":
            self.brush.shape(_at(_STAR * 13, self.x + x, y), (0, 206, 190), EXTRA)
        elif mark == "eye-patch":
            x, y = self.x + self.eye_x, self.eye_y
            self.brush.line([(-self.width, -14), (x, y - 4), (self.width, 4)], _INK, 5, EXTRA)
            self.brush.ellipse(x, y, 15, 14, (40, 34, 46), EXTRA)

    def lenses(self) -> None:
        """Tint the glass behind the eyes, so that square and round glasses differ by more than the corners."""
        if self.who.glasses == "square":
            for side in (-1, 1):
                self.brush.shape(self._rim(side), (150, 224, 255), GLASSES, 0)

    def _rim(self, side: int) -> Points:
        x, y = self.x + side * self.eye_x, self.eye_y
        if self.who.glasses == "round":
            return _at(_CIRCLE * 14, x, y)
        return _at([(-12.5, -13), (14, -13), (14, 13), (-12.5, 13)], x, y, side)

    def glasses(self) -> None:
        kind = self.who.glasses
        if kind == "none":
            return
        frame, y = (20, 150, 60) if kind == "round" else (146, 40, 206), self.eye_y
        self.brush.line([(self.x - 3, y - 5), (self.x + 3, y - 5)], frame, 5, GLASSES)
        for side in (-1, 1):
            rim = [(float(x), float(y)) for x, y in self._rim(side)]
            self.brush.line([*rim, *rim[:2]], frame, 5, GLASSES)
            hinge, ear = side * (self.eye_x + 14) + self.x, side * self.width
            self.brush.line([(hinge, y - 3), (ear, y - 3)], frame, 5, GLASSES)

    def eyes(self) -> None:
        kind, y = self.who.eyes, self.eye_y
        for side in (-1, 1):
            x = self.x + side * self.eye_x
            look = x + 0.6 * self.view.yaw
            if kind == "beady":
                self.brush.ellipse(x, y, 6, 5.5, _WHITE, EYES, 2.5)
                self.brush.ellipse(look, y, 3.2, 3.2, _INK, EYES, 0)
            elif kind == "cat":
                self.brush.ellipse(x, y, 11, 9, (190, 240, 30), EYES)
                self.brush.ellipse(look, y, 2.5, 9, _INK, EYES, 0)
            else:
                self.brush.ellipse(x, y, 11, 11, _WHITE, EYES)
                self.brush.ellipse(look, y + 1.5, 4.8, 4.8, _INK, EYES, 0)
            if kind == "sleepy":
                self.brush.shape(_at(_CIRCLE[16:] * 11, x, y), (120, 96, 168), EYES)

    def brows(self) -> None:
        kind, y = self.who.brows, self.eye_y - 19.5
        if kind == "joined":
            bar = _mirror([(0, y + 3), (17, y - 4), (31, y + 3), (30, y + 10), (17, y + 4), (0, y + 11)], self.x)
            self.brush.shape(bar, self.hair, BROWS, 2.5, self.brow_ink)
        for side in (-1, 1):
            x = self.x + side * self.eye_x
            if kind == "thin":
                bar = _at([(-8, 3), (0, -1), (8, 2), (8, 5), (0, 3), (-8, 6)], x, y, side)
                self.brush.shape(bar, _INK, BROWS, 0)
            elif kind == "thick":
                bar = _at([(-11, -6), (13, -6), (13, 5), (-11, 5)], x, y, side)
                self.brush.shape(bar, self.hair, BROWS, 2.5, self.brow_ink)
            elif kind == "slanted":
                bar = _at([(-13, -5), (-11, -12), (15, 4), (13, 11)], x, y, side)
                self.brush.shape(bar, self.hair, BROWS, 2.5, self.brow_ink)

    def nose(self) -> None:
        kind, x = self.who.nose, 1.5 * self.x
        red, green, blue = self.skin
        fill = (int(red * 0.74), int(green * 0.58), int(blue * 0.56)) if self.light else _tint(self.skin, 1.35)
        if kind == "button":
            self.brush.ellipse(x, 10, 4.5, 4, fill, SKIN)
        elif kind == "long":
            beak = [(2.5, -14), (5, 0), (10, 14), (5, 20)]
            self.brush.shape(_smooth(_mirror(beak, x)), fill, SKIN)
        elif kind == "broad":
            self.brush.ellipse(x, 11, 18, 7.5, fill, SKIN)
        else:
            self.brush.ellipse(x, 8, 12, 12, (240, 28, 36), SKIN)

    def beard(self) -> None:
        kind, x = self.who.beard, self.x
        if kind == "full":
            jaw = self._face(2.5)[:17]
            jaw[:, 1] = np.where(jaw[:, 1] > 10, 10 + (jaw[:, 1] - 10) * 1.2, jaw[:, 1] + 6)
            # The mouth stays in a clearing of skin, as wide as the jaw allows at each height.
            low = np.array([18.0, 28.0, 38.0, 41.0])
            half = np.minimum([26.0, 24.0, 15.0, 0.0], np.interp(low, jaw[:9, 1], jaw[:9, 0]) - 7)
            opening = np.stack([half, low], axis=1)
            jaw = np.concatenate([jaw, opening * (-1, 1), opening[2::-1]])
            self.brush.shape(jaw, self.hair, BROWS, 3.0, self.hair_ink)
        elif kind == "goatee":
            chin = [(12.0, 38.0), (12, 48), (5, 60)]
            self.brush.shape(_mirror(chin, x), self.hair, BROWS, 3.0, self.hair_ink)
        elif kind == "moustache":
            half = [(0.0, 13.0), (14, 13), (24, 20), (26, 33), (19, 33), (15, 25), (0, 22)]
            self.brush.shape(_mirror(half, x), self.hair, BROWS, 3.0, self.hair_ink)

    def mouth(self) -> None:
        kind, x, y = self.who.mouth, self.x, 28.0
        lips = _DARK_LIPS if self.light else _BRIGHT_LIPS
        if kind == "tiny":
            self.brush.ellipse(x, y, 5, 4, lips, MOUTH, 2.5)
        elif kind == "wide":
            self.brush.shape(_mirror([(8, y - 1), (20, y - 5), (21, y + 2), (9, y + 6)], x), lips, MOUTH)
        elif kind == "toothy":
            self.brush.shape(_at(_CIRCLE[:17] * (17, 13), x, y - 6), _WHITE, MOUTH)
            self.brush.line([(x, y - 6), (x, y + 6)], _INK, 2, MOUTH)
        else:
            outline = [(0, y - 4), (6, y - 8), (16, y), (8, y + 9), (0, y + 9)]
            self.brush.shape(_smooth(_mirror(outline, x)), lips, MOUTH)
            self.brush.line([(x - 15, y), (x + 15, y)], _INK, 3, MOUTH)

    def draw(self) -> None:
        """Draw every feature, back to front."""
        # Only long hair falls in front of the shoulders.
        steps = (self.clothes, self.hair_back) if self.who.hair_style == "long" else (self.hair_back, self.clothes)
        for step in steps:
            step()
        self.ears()
        self.face()
        self.hair_front()
        self.beard()
        self.cheeks()
        self.lenses()
        self.eyes()
        self.glasses()
        self.mouth()
        self.nose()
        self.brows()
        self.marks()


def _backdrop(view: View, rng: np.random.Generator) -> Image.Image:
    """Return the background at the oversampled size."""
    side, colour = SIZE * _OVERSAMPLE, BACKGROUND_COLOURS[view.background]
    picture, other = Image.new("RGB", (side, side), colour), _tint(colour, 1.22 if sum(colour) < 640 else 0.86)
    # 48 pixels here are 12 of the final 64 x 64 picture.
    pen, step, phase = ImageDraw.Draw(picture), 48, int(rng.integers(48))
    if view.pattern == "striped":
        for x in range(-side - phase, side, step):
            pen.line([x, side, x + side, 0], fill=other, width=17)
    elif view.pattern == "dotted":
        for row, y in enumerate(range(-phase, side, step)):
            for x in range(-phase + (row % 2) * step // 2 - step, side, step):
                pen.ellipse([x, y, x + 22, y + 22], fill=other)
    return picture


def draw_portrait(identity: Identity, view: View, rng: np.random.Generator) -> tuple[Float, NDArray[np.uint8]]:
    """Draw one person in one view.

    Parameters
    ----------
    identity, view : Identity, View
        Who is drawn, and how.
    rng : numpy.random.Generator
        Source of the one detail that carries no meaning, the phase of the background's pattern.

    Returns
    -------
    rgb : float32 (128, 128, 3)
        Picture in [0, 1].
    parts : uint8 (128, 128)
        Region ids, indices into `PART_NAMES`.

    Raises
    ------
    KeyError
        If a skin, hair, face, background or clothing name is not in its table.
    """
    picture = _backdrop(view, rng)
    brush = _Brush(picture, view)
    _Portrait(identity, view, brush).draw()
    rgb = np.asarray(picture.reduce(_OVERSAMPLE), dtype=np.float32) / np.float32(255)
    return rgb, np.array(brush.ids)


def _far(identity: Identity) -> int:
    """Count the unseen values of a person."""
    return sum(getattr(identity, trait) in values for trait, values in UNSEEN.items())


def _cast(name: str, *, like: Identity | None = None, far: bool = False) -> Identity:
    """Draw the held-out person of that name, the same in every process; `like` gives skin, hair and its colour."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"portrait of {name}".encode()).digest()[:8], "big"))
    if like is not None:
        return near_miss(like, rng)
    while True:
        person = Identity.random(rng, unseen=_UNSEEN_SHARE if far else 0.0)
        if not far or _far(person) >= 2:
            return person


def near_miss(identity: Identity, rng: np.random.Generator) -> Identity:
    """Draw somebody else with the same skin, hair colour and hair style.

    Parameters
    ----------
    identity : Identity
        The person whose skin and hair are shared. If it has unseen values, the other may have some as well.
    rng : numpy.random.Generator
        Source of the other traits.

    Returns
    -------
    Identity
        A person who differs in at least one trait.
    """
    unseen = _UNSEEN_SHARE if _far(identity) else 0.0
    shared = {trait: str(getattr(identity, trait)) for trait in ("skin", "hair_colour", "hair_style")}
    while True:
        other = Identity.random(rng, unseen=unseen, **shared)
        if other.traits() != identity.traits():
            return other


PEOPLE: dict[str, Identity] = {
    name: _cast(name, far=name in ("elio", "freya"))
    for name in ("ada", "bruno", "ines", "elio", "freya", "chidi", "kofi", "dana", "lena", "mika")
}
PEOPLE |= {
    name: _cast(name, like=PEOPLE[other]) for name, other in (("gita", "ada"), ("hugo", "bruno"), ("jonas", "ines"))
}
_HELD_OUT = frozenset(person.traits() for person in PEOPLE.values())


def is_held_out(identity: Identity) -> bool:
    """Tell whether a person equals one of `PEOPLE` in all twelve traits."""
    return identity.traits() in _HELD_OUT
