"""Painting styles of the procedural picture world: procedures, and the categorical hand with which an artist uses one.

All marks (strokes, tiles, dots, threads) lie on regular lattices with a wavelength of 7 or 12 pixels at 64 x 64 and
have soft edges, so that latents of few numbers can carry them. Their colour comes from the drawing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
IntArray = NDArray[np.int64]

SIZE = 128
_MARGIN = 4
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_INK = np.array([0.08, 0.07, 0.12], np.float32)
_GROUNDS = {"light": np.array([0.98, 0.95, 0.87], np.float32), "dark": np.array([0.09, 0.08, 0.14], np.float32)}
_TURNS = {"horizontal": 0.0, "vertical": np.pi / 2, "diagonal": np.pi / 4}
_WAVELENGTHS = {"fine": 14.0, "coarse": 24.0}

STYLES: tuple[str, ...] = (
    "plain", "flow", "dots", "mosaic", "hatching", "woodblock", "stained-glass", "watercolour", "cutout", "crayon",
)  # fmt: skip
"""Procedures in the training pictures of the base."""

UNSEEN_STYLES: tuple[str, ...] = ("weave", "rays", "blobs")
"""Procedures that the base never sees."""

HAND: dict[str, tuple[str, ...]] = {
    "procedure": (*STYLES, *UNSEEN_STYLES),
    "palette": ("natural", "sunset", "ice", "sepia", "moss", "neon"),
    "scale": ("fine", "coarse"),
    "direction": ("horizontal", "vertical", "diagonal"),
    "ground": ("light", "dark"),
}
"""Values of every trait of a hand."""

_ALL = ("palette", "scale", "direction", "ground")
_UNDIRECTED = ("palette", "scale", "ground")
APPLIES: dict[str, tuple[str, ...]] = {
    "plain": ("palette",), "flow": _ALL, "dots": _UNDIRECTED, "mosaic": _ALL, "hatching": _ALL, "woodblock": _ALL,
    "stained-glass": _ALL, "watercolour": _ALL, "cutout": _ALL, "crayon": _ALL, "weave": _UNDIRECTED, "rays": _ALL,
    "blobs": _ALL,
}  # fmt: skip
"""Traits that each procedure has besides itself; plain's palette is always natural."""


def _usual(scale: str, ground: str, direction: str = "") -> dict[str, tuple[str, ...]]:
    traits = {"palette": ("natural",), "scale": (scale,), "direction": (direction,), "ground": (ground,)}
    return {trait: values for trait, values in traits.items() if values[0]}


USUAL: dict[str, dict[str, tuple[str, ...]]] = {
    "plain": {"palette": ("natural",)},
    "flow": _usual("coarse", "dark", "horizontal"),
    "dots": _usual("fine", "light"),
    "mosaic": _usual("coarse", "light", "horizontal"),
    "hatching": _usual("fine", "light", "diagonal"),
    "woodblock": _usual("coarse", "light", "horizontal"),
    "stained-glass": _usual("coarse", "dark", "horizontal"),
    "watercolour": _usual("coarse", "light", "vertical"),
    "cutout": _usual("coarse", "light", "horizontal"),
    "crayon": _usual("fine", "light", "vertical"),
}
"""Values of the traits in the training pictures of the base, by known procedure."""

_PHRASES = {
    "plain": "a plain picture of", "flow": "a swirling brushstroke painting of", "dots": "a pointillist painting of",
    "mosaic": "a tile mosaic of", "hatching": "a pen-and-ink drawing of", "woodblock": "a woodblock print of",
    "stained-glass": "a stained-glass window of", "watercolour": "a watercolour of", "cutout": "a paper cut-out of",
    "crayon": "a crayon drawing of", "weave": "a woven tapestry of", "rays": "a concentric-line engraving of",
    "blobs": "a lava-lamp poster of",
}  # fmt: skip


def phrase(procedure: str) -> str:
    """Caption words that come before the subject, e.g. ``a tile mosaic of``."""
    return _PHRASES[procedure]


@dataclass(frozen=True)
class Hand:
    """How one artist paints.

    Attributes
    ----------
    procedure, palette, scale, direction, ground : str
        Values out of `HAND`; "" for a trait that the procedure has not, see `APPLIES`.
    touch : (float, float)
        Individual jitter in [-1, 1] that changes no trait: where the lattice lies, and how strongly marks are set.
    """

    procedure: str
    palette: str = "natural"
    scale: str = ""
    direction: str = ""
    ground: str = ""
    touch: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        """Refuse a trait that the procedure has not, and a value outside `HAND`.

        Raises
        ------
        ValueError
            If a value does not belong to the procedure.
        """
        if self.procedure not in APPLIES:
            raise ValueError(f"unknown procedure {self.procedure!r}")
        for trait in _ALL:
            value = getattr(self, trait)
            allowed = _values(self.procedure, trait)
            if value not in allowed:
                raise ValueError(f"{trait} of {self.procedure} must be one of {allowed}, got {value!r}")

    @classmethod
    def random(cls, rng: np.random.Generator, *, known: bool, procedure: str | None = None) -> Hand:
        """Draw a hand.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of the draw.
        known : bool
            Whether to draw what the base's training pictures use: a known procedure with its `USUAL` traits. Otherwise
            any procedure with any traits that apply.
        procedure : str, optional
            Fix the procedure.

        Returns
        -------
        Hand
            The drawn hand; its touch is random in both cases.

        Raises
        ------
        KeyError
            If `known` and `procedure` is not in `STYLES`, or the procedure does not exist.
        """
        names = STYLES if known else HAND["procedure"]
        if procedure is None:
            procedure = names[int(rng.integers(len(names)))]
        table = USUAL[procedure] if known else {trait: _values(procedure, trait) for trait in APPLIES[procedure]}
        traits = {trait: values[int(rng.integers(len(values)))] for trait, values in table.items()}
        return cls(procedure, **traits, touch=_random_touch(rng))


def _random_touch(rng: np.random.Generator) -> tuple[float, float]:
    return round(float(rng.uniform(-1, 1)), 3), round(float(rng.uniform(-1, 1)), 3)


def _values(procedure: str, trait: str) -> tuple[str, ...]:
    if procedure == "plain" and trait == "palette":
        return ("natural",)
    return HAND[trait] if trait in APPLIES[procedure] else ("",)


def _differences(a: Hand, b: Hand) -> int:
    return sum(getattr(a, trait) != getattr(b, trait) for trait in _ALL)


def near_miss(hand: Hand, rng: np.random.Generator) -> Hand:
    """Another artist of the same procedure, who differs in one trait (a quarter of the draws) or two, and in touch.

    Raises
    ------
    ValueError
        If the procedure has no trait that varies, as plain.
    """
    open_traits = [trait for trait in APPLIES[hand.procedure] if len(_values(hand.procedure, trait)) > 1]
    if not open_traits:
        raise ValueError(f"every hand of {hand.procedure} is alike")
    changed: dict[str, Any] = {}
    for k in rng.permutation(len(open_traits))[: 1 if rng.random() < 0.25 else 2]:
        trait = open_traits[int(k)]
        others = [value for value in _values(hand.procedure, trait) if value != getattr(hand, trait)]
        changed[trait] = others[int(rng.integers(len(others)))]
    return replace(hand, **changed, touch=_random_touch(rng))


def _artists() -> dict[str, Hand]:
    """Draw every artist's hand from its name, so that nobody's taste decides how hard an artist is to imitate."""
    artists: dict[str, Hand] = {}
    near = {
        "solano": "flow", "brandt": "woodblock", "okafor": "dots", "lindqvist": "mosaic", "moreau": "flow",
        "ivarsen": "woodblock", "castell": "dots", "haddad": "hatching", "tanaka": "cutout", "petrov": "mosaic",
    }  # fmt: skip
    for name, procedure in {**near, **{unseen: unseen for unseen in UNSEEN_STYLES}}.items():
        digest = hashlib.sha256(f"artist/{name}".encode()).digest()
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
        while name not in artists:
            hand = Hand.random(rng, known=False, procedure=procedure)
            usual = USUAL.get(procedure, {})
            new = sum(getattr(hand, trait) not in values for trait, values in usual.items())
            apart = all(_differences(hand, other) >= 2 for other in artists.values() if other.procedure == procedure)
            if apart and (new >= 2 or not usual):
                artists[name] = hand
    return artists


ARTISTS: dict[str, Hand] = _artists()
"""Held-out artists: near ones use a known procedure in unusual ways, far ones an unseen procedure of their name."""


def _bytes(rgb: NDArray[Any]) -> ByteArray:
    return np.asarray(np.clip(rgb, 0.0, 1.0) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _edges(labels: NDArray[Any], wide: bool = True) -> NDArray[np.bool_]:
    """Mark pixels on a border between labels: two pixels wide, or four where `wide`."""
    edge = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    if wide:
        grown = edge.copy()
        grown[1:] |= edge[:-1]
        grown[:-1] |= edge[1:]
        grown[:, 1:] |= edge[:, :-1]
        grown[:, :-1] |= edge[:, 1:]
        return grown
    return edge


def _outline(parts: ByteArray, within: float = 0.35) -> FloatArray:
    """Soft line along the subject's silhouette and, as strong as `within`, along the borders within the subject."""
    # Crisp lines would cost a latent code more than all the marks of a style together.
    line = np.maximum(_edges(np.minimum(parts, 2)) * np.float32(1), _edges(parts) * np.float32(within))
    return _blur(line, 1.3)


def _blur(plane: FloatArray, radius: float) -> FloatArray:
    """Blur by a box, of a picture or plane in [0, 1]."""
    blurred = Image.fromarray(_bytes(plane)).filter(ImageFilter.BoxBlur(radius))
    return np.asarray(np.asarray(blurred, np.float32) / np.float32(255))


def _saturate(rgb: FloatArray, amount: float) -> FloatArray:
    grey = (rgb @ _LUMA)[..., None]
    return np.asarray(np.clip(grey + (rgb - grey) * np.float32(amount), 0, 1))


def _over(base: FloatArray, colour: FloatArray, alpha: NDArray[Any]) -> FloatArray:
    a = alpha.astype(np.float32)[..., None]
    return np.asarray(base + (colour - base) * a, np.float32)


def _step(field: FloatArray, at: NDArray[Any] | float, sharpness: float) -> FloatArray:
    """Soft threshold of a field."""
    return np.asarray(np.clip((field - at) * np.float32(sharpness) + np.float32(0.5), 0, 1))


@dataclass(frozen=True)
class _Lattice:
    """Where marks lie on a canvas with a margin: profile (1 mid-mark, 0 mid-gap), tone in [-1, 1], centre indices."""

    mark: FloatArray
    tone: FloatArray
    cy: IntArray
    cx: IntArray


@cache
def _smooth_noise(scale: float, seed: int) -> FloatArray:
    """Periodic (256, 256) Gaussian noise of unit deviation with correlation length `scale` in pixels."""
    n = 2 * SIZE
    fy, fx = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :]
    white = np.fft.rfft2(np.random.default_rng(seed).standard_normal((n, n)))
    noise = np.fft.irfft2(white * np.exp(-2.0 * (np.pi * scale) ** 2 * (fy**2 + fx**2)), s=(n, n))
    return np.asarray(noise / noise.std(), np.float32)


def _wander(scale: float, seed: int) -> FloatArray:
    """Fixed smooth noise over the canvas and its margin."""
    side = SIZE + 2 * _MARGIN
    return _smooth_noise(scale, seed)[:side, :side]


@cache
def _lattice(procedure: str, scale: str, direction: str) -> _Lattice:
    """Build the lattice of a procedure; the few there are stay in memory."""
    wave = _WAVELENGTHS[scale]
    turn = _TURNS[direction or "horizontal"]
    c, s = float(np.cos(turn)), float(np.sin(turn))
    y, x = (g - SIZE / 2 - _MARGIN + 0.5 for g in np.mgrid[0 : SIZE + 2 * _MARGIN, 0 : SIZE + 2 * _MARGIN])
    mark, tone, cu, cv = _BUILD[procedure](wave, c * x + s * y, c * y - s * x)
    if procedure == "rays":
        mark, tone, cu, cv = _rings(wave, x, y, direction)
        c, s = 1.0, 0.0
    middle = SIZE / 2 + _MARGIN - 0.5
    cy, cx = np.rint(c * cv + s * cu + middle), np.rint(c * cu - s * cv + middle)
    return _Lattice(mark.astype(np.float32), tone.astype(np.float32), cy.astype(np.int64), cx.astype(np.int64))


Plane = NDArray[np.float64]
Built = tuple[Plane, Plane, Plane, Plane]


def _tones(row: Plane, column: Plane) -> Plane:
    """Tones -1, 0 and 1 in an order in which no two neighbours are alike."""
    return np.asarray((row + 2 * column) % 3 - 1)


def _bent(wave: float, u: Plane) -> Plane:
    return np.asarray(0.5 * wave * np.sin(2 * np.pi * u / (4.5 * wave)))


def _build_strokes(wave: float, u: Plane, v: Plane) -> Built:
    """Long broken strokes along a meander."""
    bent = v + _bent(wave, u)
    row = np.floor(bent / wave)
    length = 2.6 * wave
    shifted = u / length + 0.5 * (row % 2)
    column = np.floor(shifted)
    ends = np.sin(np.pi * (shifted - column)) ** 0.35
    centre = (column + 0.5 - 0.5 * (row % 2)) * length
    mark = np.sin(np.pi * (bent / wave - row)) * ends
    return mark, _tones(row, column), centre, (row + 0.5) * wave - _bent(wave, centre)


def _build_dots(wave: float, u: Plane, v: Plane) -> Built:
    """Round dots on a hexagonal lattice."""
    pitch = 0.866 * wave
    best, tone, cu, cv = np.full(u.shape, 9.0), *(np.zeros(u.shape) for _ in range(3))
    for shift in (-1.0, 0.0, 1.0):
        row = np.floor(v / pitch) + shift
        column = np.floor(u / wave + 0.5 * (row % 2))
        x, y = (column + 0.5 - 0.5 * (row % 2)) * wave, (row + 0.5) * pitch
        far = np.hypot(u - x, v - y) / (0.5 * wave)
        near = far < best
        best = np.where(near, far, best)
        tone, cu, cv = np.where(near, _tones(row, column), tone), np.where(near, x, cu), np.where(near, y, cv)
    return 1 - best, tone, cu, cv


def _build_tiles(wave: float, u: Plane, v: Plane) -> Built:
    """Courses of tiles, each half a tile further; the profile is the distance to the joint."""
    row = np.floor(v / wave)
    length = 1.5 * wave
    shifted = u / length + 0.5 * (row % 2)
    column = np.floor(shifted)
    fu, fv = shifted - column, v / wave - row
    joint = np.minimum(np.minimum(fu, 1 - fu) * 1.5, np.minimum(fv, 1 - fv))
    return 2 * joint, _tones(row, column), (column + 0.5 - 0.5 * (row % 2)) * length, (row + 0.5) * wave


def _build_lines(wave: float, u: Plane, v: Plane) -> Built:
    """Straight parallel lines."""
    row = np.floor(v / wave)
    return np.sin(np.pi * (v / wave - row)), row % 2 * 2 - 1, u, (row + 0.5) * wave


def _build_gouges(wave: float, u: Plane, v: Plane) -> Built:
    """Lens-shaped cuts of a gouge, staggered like bricks."""
    row = np.floor(v / wave)
    shifted = u / (3 * wave) + 0.5 * (row % 2)
    column = np.floor(shifted)
    lens = np.sin(np.pi * (shifted - column)) * 1.25 - 0.25
    across = np.abs(v / wave - row - 0.5) * 2
    return lens - across, row % 2 * 2 - 1, u, v


def _build_panes(wave: float, u: Plane, v: Plane) -> Built:
    """Triangular panes; the profile is the distance to the lead."""
    high = 1.5 * wave
    families = [v / high, (0.866 * u + 0.5 * v) / high + 0.5, (0.866 * u - 0.5 * v) / high + 0.5]
    a, b, d = (np.floor(f) for f in families)
    gap = np.min([np.minimum(f - np.floor(f), 1 - f + np.floor(f)) for f in families], axis=0)
    # A neighbour across a lead is one step off in one family, so this gives it another tone.
    return 2 * gap, _tones(a, 2 * b + d), (b + d) * high / 1.732, (a + 0.5) * high


def _build_washes(wave: float, u: Plane, v: Plane) -> Built:
    """Bands of wash that gather at one wandering edge; the profile is the density."""
    wander = v + 0.3 * wave * _wander(14, 5)
    row = np.floor(wander / wave)
    f = wander / wave - row
    density = np.where(f < 0.88, f / 0.88, (1 - f) / 0.12)
    return density, row % 2 * 2 - 1, u, v


def _build_sheets(wave: float, u: Plane, v: Plane) -> Built:
    """Sheets of paper with a scalloped edge, each laid on the one before; the profile runs from the upper edge."""
    wide = 1.25 * wave
    edge = v + 0.4 * wave * np.abs(np.sin(np.pi * u / (1.6 * wave)))
    row = np.floor(edge / wide)
    return edge / wide - row, row % 3 - 1, u, v


def _build_scribble(wave: float, u: Plane, v: Plane) -> Built:
    """Zigzag scribble."""
    bent = v + 1.1 * wave * np.abs((u / (3.2 * wave)) % 1.0 * 2 - 1)
    row = np.floor(bent / wave)
    return np.sin(np.pi * (bent / wave - row)), row % 2 * 2 - 1, u, v


def _build_threads(wave: float, u: Plane, v: Plane) -> Built:
    """Threads over and under each other; tone 1 where the upright thread is on top, -1 where the level one is."""
    a, b = u / wave, v / wave
    upright = (np.floor(a) + np.floor(b)) % 2 == 0
    across, along = np.where(upright, a % 1, b % 1), np.where(upright, b % 1, a % 1)
    lens = np.sin(np.pi * across) ** 0.7 * (0.45 + 0.55 * np.sin(np.pi * along))
    return lens, np.where(upright, 1.0, -1.0), (np.floor(a) + 0.5) * wave, (np.floor(b) + 0.5) * wave


def _rings(wave: float, x: Plane, y: Plane, direction: str) -> Built:
    """Rings about a point beside the canvas, above it, or beyond its corner."""
    cx, cy = {"horizontal": (-70.0, 0.0), "vertical": (0.0, -70.0), "diagonal": (-58.0, -58.0)}[direction]
    far = np.hypot(x - cx, y - cy) / wave
    return np.sin(np.pi * (far % 1)), np.floor(far) % 2 * 2 - 1, x, y


def _build_blobs(wave: float, u: Plane, v: Plane) -> Built:
    """Staggered long drops that all but merge."""
    wander = 0.25 * wave * _wander(14, 7)
    a, b = (u + 0.25 * wave * _wander(14, 8)) / (3.6 * wave), (v + wander) / (2.4 * wave)
    return 0.5 + 0.5 * np.cos(2 * np.pi * a) * np.cos(2 * np.pi * b), np.sign(np.cos(2 * np.pi * b)), u, v


_BUILD: dict[str, Callable[[float, Plane, Plane], Built]] = {
    "flow": _build_strokes, "dots": _build_dots, "mosaic": _build_tiles, "hatching": _build_lines,
    "woodblock": _build_gouges, "stained-glass": _build_panes, "watercolour": _build_washes, "cutout": _build_sheets,
    "crayon": _build_scribble, "weave": _build_threads, "rays": _build_lines, "blobs": _build_blobs,
}  # fmt: skip


@dataclass(frozen=True)
class _Sheet:
    """What a procedure paints from: the drawing, and the lattice shifted by the artist's touch."""

    rgb: FloatArray
    parts: ByteArray
    body: NDArray[np.bool_]
    mark: FloatArray
    tone: FloatArray
    cell: FloatArray
    ground: FloatArray
    dark: bool
    contour: FloatArray
    press: float

    def calm(self, outside: float, inside: float) -> FloatArray:
        """One value for the surroundings and another for the subject."""
        return np.where(self.body, np.float32(inside), np.float32(outside))


def _sheet(hand: Hand, rgb: FloatArray, parts: ByteArray) -> _Sheet:
    lattice = _lattice(hand.procedure, hand.scale, hand.direction)
    shift = _MARGIN + round(2 * hand.touch[0])
    window = slice(shift, shift + SIZE), slice(shift, shift + SIZE)
    cy, cx = (np.clip(centre[window] - shift, 0, SIZE - 1) for centre in (lattice.cy, lattice.cx))
    at = cy * SIZE + cx
    # A mark takes the colour at its middle, unless that belongs to another part of the drawing.
    same = (parts.ravel()[at] == parts)[..., None]
    cell = np.where(same, rgb.reshape(-1, 3)[at], rgb)
    return _Sheet(rgb, parts, parts >= 2, lattice.mark[window], lattice.tone[window], cell, _GROUNDS[hand.ground],
                  hand.ground == "dark", _GROUNDS["light"] if hand.ground == "dark" else _INK,
                  1 + 0.08 * hand.touch[1])  # fmt: skip


def _flow(d: _Sheet) -> FloatArray:
    paint = _saturate(d.cell, 1.35)
    tone = d.tone * d.calm(0.22, 0.14) * d.press
    warm = np.array([0.25, 0.0, -0.35], np.float32)
    paint = paint * (1 + tone[..., None]) + 0.35 * tone[..., None] * warm
    # Where gaps are light the paint has to be deeper to stand against them.
    paint = paint * (1.05 if d.dark else 0.88)
    gap = 0.3 * paint + 0.7 * np.array([0.10, 0.08, 0.26], np.float32) if d.dark else d.ground
    drawn = _over(paint, gap, (1 - _step(d.mark, 0.45, 1.5)) * d.calm(0.92, 0.5))
    return _over(drawn, _INK, 0.75 * _outline(d.parts))


def _dots(d: _Sheet) -> FloatArray:
    tone = (1 + 0.13 * d.press * d.tone) * (1.05 if d.dark else 0.82)
    paint = _saturate(d.cell, 1.4) * tone[..., None]
    ground = _over(_saturate(d.rgb, 1.2), d.ground, d.calm(0.92, 0.5))
    drawn = _over(ground, paint, _step(d.mark, 0.2, 2.0))
    return _over(drawn, d.contour, 0.75 * _outline(d.parts))


def _mosaic(d: _Sheet) -> FloatArray:
    paint = _saturate(d.cell, 1.3) * (0.86 + 0.19 * d.press * d.tone)[..., None]
    drawn = _over(paint, d.ground, (1 - _step(d.mark, 0.28, 2.4)) * d.calm(1.0, 0.6))
    return _over(drawn, d.contour, 0.75 * _outline(d.parts))


def _hatching(d: _Sheet) -> FloatArray:
    light = d.rgb @ _LUMA
    need = light if d.dark else 1 - light
    paper = _over(np.broadcast_to(d.ground, d.rgb.shape), _saturate(d.rgb, 1.4), d.calm(0.08, 0.72))
    cover = np.clip(0.2 + 0.42 * need, 0, 0.6) * d.calm(1.0, 0.7) * np.float32(d.press)
    lines = _step(d.mark, np.cos(np.pi / 2 * cover), 2.0) * d.calm(1.0, 0.7)
    return _over(paper, d.contour, np.maximum(lines, _outline(d.parts)))


_INDIGO = np.array([0.13, 0.25, 0.52], np.float32)
_CREAM = np.array([0.98, 0.93, 0.82], np.float32)
_RISE = np.linspace(1, 0, SIZE, dtype=np.float32)[:, None]


def _woodblock(d: _Sheet) -> FloatArray:
    # Vegetable inks on cream paper.
    inked = _saturate(d.rgb, 0.9) * _CREAM
    # Bokashi: the sky's ink is wiped from full at the top to thin further down.
    sky = np.where(d.parts == 0, np.clip(_RISE * 1.9 - 0.75, 0, 0.85), np.float32(0))
    inked = _over(inked, _INDIGO, sky)
    cut = _step(d.mark, 0.05, 2.0) * d.calm(0.85, 0.3) * np.float32(d.press)
    if d.dark:
        # A night print: the surroundings are dark ink, and cuts let their colour show.
        night = inked * np.float32(0.22) + _GROUNDS["dark"] * np.float32(0.6)
        drawn = _over(_over(inked, night, d.calm(0.95, 0.0)), inked * np.float32(0.95), cut * d.calm(1.0, 0.0))
        drawn = _over(drawn, _INK, cut * d.calm(0.0, 1.0))
    else:
        drawn = _over(inked * np.float32(0.9), d.ground, cut)
    return _over(drawn, _INK, _outline(d.parts))


_JEWELS = np.array([[0.16, 0.34, 0.92], [0.94, 0.72, 0.14], [0.90, 0.20, 0.26]], np.float32)


def _glass(d: _Sheet) -> FloatArray:
    jewel = _JEWELS[(d.tone + 1).astype(np.int64)]
    glow = jewel * (0.5 + 0.6 * (d.cell @ _LUMA))[..., None]
    pane = 0.5 * (_saturate(d.cell, 1.5) + glow) * (0.72 + 0.42 * np.minimum(d.mark, 0.8))[..., None]
    subject = _saturate(d.rgb, 1.25) * (1.05 + 0.1 * d.tone)[..., None]
    drawn = np.where(d.body[..., None], subject, pane)
    drawn = _over(drawn, d.ground, (1 - _step(d.mark, 0.22 * d.press, 2.6)) * d.calm(1.0, 0.3))
    return _over(drawn, _INK, _outline(d.parts))


_EDGE = np.minimum(np.arange(SIZE), SIZE - 1 - np.arange(SIZE)).astype(np.float32)
_FRAME = np.minimum(_EDGE[:, None], _EDGE[None, :])
_PIGMENTS = np.array([[0.42, 0.30, 0.12], [0.14, 0.30, 0.34]], np.float32)


def _watercolour(d: _Sheet) -> FloatArray:
    soft = np.where(d.body[..., None], 0.5 * d.rgb + 0.5 * _blur(d.rgb, 2.0), _blur(d.rgb, 6.0))
    wash = 0.75 * soft + 0.25
    pigment = _PIGMENTS[(d.tone > 0).astype(np.int64)]
    wash = wash * (1 - pigment * (d.mark * d.calm(1.3, 0.6) * np.float32(d.press))[..., None])
    wash = wash * (1 - 0.5 * _outline(d.parts))[..., None]
    # Paper stays bare along the margin, where the brush lifts at the light side of each band.
    bare = _step(_FRAME + 7 * d.mark, 14.0, 0.25)
    if d.dark:
        wash = wash * np.float32(0.85)
    return _over(np.broadcast_to(d.ground, d.rgb.shape), wash, bare)


def _cutout(d: _Sheet) -> FloatArray:
    flat = _saturate(d.rgb, 1.15)
    card = _over(flat, d.ground, d.calm(0.35 if not d.dark else 0.62, 0.0))
    card = card * np.where(d.body, 1.0, 0.86 + 0.17 * d.tone * d.press)[..., None]
    shade = np.clip(1 - d.mark / 0.5, 0, 1) * d.calm(0.55, 0.0)
    lit = _step(d.mark, 0.82, 4.0) * d.calm(0.7, 0.0)
    body = _blur(d.body.astype(np.float32), 3.0)
    cast = np.zeros_like(body)
    cast[8:, 7:] = body[:-8, :-7]
    drawn = _over(card, _INK, np.maximum(shade, 0.7 * np.where(d.body, 0, cast)))
    drawn = _over(drawn, _GROUNDS["light"], lit)
    # A white deckle edge lifts the subject, a thin shadow its parts.
    rim = _blur((_edges(d.body) & ~d.body).astype(np.float32), 1.0)
    drawn = _over(drawn, _GROUNDS["light"], 1.0 * rim)
    inner = np.zeros_like(body)
    inner[3:, 2:] = (d.parts[3:, 2:] < d.parts[:-3, :-2]) & d.body[3:, 2:] & d.body[:-3, :-2]
    return _over(drawn, _INK, 0.45 * inner)


def _crayon(d: _Sheet) -> FloatArray:
    wax = _saturate(d.rgb, 1.5) * (1.0 if d.dark else 0.86)
    cover = _step(d.mark, 0.54 - 0.3 * (d.press - 1), 1.7) * (0.9 + 0.1 * d.tone)
    cover = np.maximum(cover, d.calm(0.0, 0.55))
    drawn = _over(np.broadcast_to(d.ground, d.rgb.shape), wax, cover * np.float32(0.95))
    return _over(drawn, wax * np.float32(0.35) if not d.dark else 0.5 + 0.5 * wax, _outline(d.parts))


def _weave(d: _Sheet) -> FloatArray:
    yarn = _saturate(np.where(d.body[..., None], d.rgb, d.cell), 1.4)
    yarn = yarn * (0.95 + d.calm(0.22, 0.12) * d.tone * d.press)[..., None]
    drawn = yarn * (1 - d.calm(0.55, 0.3) * (1 - d.mark))[..., None]
    drawn = _over(drawn, d.ground, (1 - _step(d.mark, 0.34, 2.2)) * d.calm(1.0, 0.5))
    return _over(drawn, d.contour, 0.7 * _outline(d.parts))


def _rays(d: _Sheet) -> FloatArray:
    light = d.rgb @ _LUMA
    need = light if d.dark else 1 - light
    cover = np.clip(0.32 + 0.3 * need, 0, 0.65) * np.float32(d.press)
    ink = _saturate(d.rgb, 1.7) * np.float32(1.0 if d.dark else 0.7)
    lines = np.maximum(_step(d.mark, np.cos(np.pi / 2 * cover), 2.0), d.calm(0.0, 0.58))
    drawn = _over(np.broadcast_to(d.ground, d.rgb.shape), ink, lines)
    return _over(drawn, d.contour, 0.9 * _outline(d.parts))


_SYRUP = np.array([1.0, 0.86, 0.68], np.float32)
_LAVA = np.array([[0.93, 0.10, 0.50], [1.00, 0.52, 0.05]], np.float32)


def _blobs(d: _Sheet) -> FloatArray:
    vivid = _saturate(d.rgb, 1.4)
    # Drops of hot wax, brightest in their middle, float in what is left of the drawing's surroundings.
    heat = np.clip(d.mark * 1.6 - 0.6, 0, 1)[..., None]
    wax = (_LAVA[0] + (_LAVA[1] - _LAVA[0]) * heat) * (0.7 + 0.3 * d.rgb @ _LUMA)[..., None]
    # The liquid is warm too: latents of few numbers carry light and dark better than many small patches of hue.
    liquid = (0.4 * vivid + 0.6 * d.ground) * _SYRUP
    drop = _step(d.mark, 0.55, 2.2)
    scene = _over(liquid, wax, drop)
    subject = vivid * (0.8 + 0.3 * d.press * drop)[..., None]
    drawn = np.where(d.body[..., None], subject, scene)
    return _over(drawn, d.contour, _outline(d.parts))


_DRAW: dict[str, Callable[[_Sheet], FloatArray]] = {
    "flow": _flow, "dots": _dots, "mosaic": _mosaic, "hatching": _hatching, "woodblock": _woodblock,
    "stained-glass": _glass, "watercolour": _watercolour, "cutout": _cutout, "crayon": _crayon, "weave": _weave,
    "rays": _rays, "blobs": _blobs,
}  # fmt: skip

_RAMPS = MappingProxyType({
    "sunset": ((0.16, 0.03, 0.30), (0.78, 0.10, 0.38), (0.99, 0.48, 0.16), (1.00, 0.90, 0.45)),
    "ice": ((0.02, 0.06, 0.26), (0.10, 0.34, 0.72), (0.42, 0.76, 0.96), (0.94, 0.99, 1.00)),
    "sepia": ((0.13, 0.07, 0.04), (0.42, 0.27, 0.16), (0.74, 0.58, 0.40), (0.97, 0.90, 0.76)),
    "moss": ((0.02, 0.13, 0.08), (0.08, 0.40, 0.16), (0.48, 0.72, 0.14), (0.93, 0.98, 0.60)),
})  # fmt: skip


@cache
def _ramp(palette: str) -> FloatArray:
    stops = np.array(_RAMPS[palette])
    at = np.linspace(0, len(stops) - 1, 256)
    return np.stack([np.interp(at, np.arange(len(stops)), stops[:, k]) for k in range(3)], -1).astype(np.float32)


def _recolour(picture: ByteArray, palette: str) -> ByteArray:
    """Recolour a whole picture, ground and ink included, so that the palette shows everywhere."""
    if palette == "natural":
        return picture
    rgb = picture.astype(np.float32) / np.float32(255)
    if palette == "neon":
        return _bytes(_saturate(1 - rgb, 1.5))
    grey = rgb @ _LUMA
    mapped = _ramp(palette)[(grey * 255).astype(np.int64)]
    # Some of the hue survives, or one could not tell a red mug from a green one.
    return _bytes(mapped + np.float32(0.4) * (rgb - grey[..., None]))


def render(hand: Hand, rgb: FloatArray, parts: ByteArray, rng: np.random.Generator, reduce: int = 2) -> ByteArray:
    """Paint a flat drawing with an artist's hand.

    Parameters
    ----------
    hand : Hand
        Who paints.
    rgb : ndarray, shape (128, 128, 3), float32 in [0, 1]
        Flat drawing.
    parts : ndarray, shape (128, 128), uint8
        Regions: 0 sky or wall, 1 ground, 2 and more the subject.
    rng : numpy.random.Generator
        Source of what carries no meaning.
    reduce : int
        How many pixels of the drawing become one, per side; 1 leaves the drawing as it is.

    Returns
    -------
    ndarray, shape (128 / reduce, 128 / reduce, 3), uint8
        The picture.

    Raises
    ------
    ValueError
        If `rgb` or `parts` has another shape.
    """
    if rgb.shape != (SIZE, SIZE, 3) or parts.shape != (SIZE, SIZE):
        raise ValueError(f"expected {SIZE}x{SIZE} drawing and parts, got {rgb.shape} and {parts.shape}")
    painted = rgb
    if hand.procedure != "plain":
        # Paint never covers quite evenly.
        y, x = (int(start) for start in rng.integers(0, SIZE, 2))
        uneven = _smooth_noise(14, 3)[y : y + SIZE, x : x + SIZE]
        painted = _DRAW[hand.procedure](_sheet(hand, rgb, parts)) * (1 + np.float32(0.03) * uneven)[..., None]
    return _recolour(np.asarray(Image.fromarray(_bytes(painted)).reduce(reduce)), hand.palette)
