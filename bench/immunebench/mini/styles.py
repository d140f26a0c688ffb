"""Painterly styles of the procedural picture world: rendering procedures with continuous parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
IntArray = NDArray[np.int64]
Params = Mapping[str, float]
Draw = Callable[[FloatArray, ByteArray, Params, np.random.Generator], FloatArray]

SIZE = 128
_Y, _X = (g.astype(np.float32) for g in np.mgrid[0:SIZE, 0:SIZE])
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_PAPER = np.array([0.97, 0.94, 0.87], np.float32)
_INK = np.array([0.10, 0.09, 0.13], np.float32)


@dataclass(frozen=True)
class Style:
    """One rendering procedure.

    Attributes
    ----------
    name : str
        Key of the style.
    phrase : str
        Caption words that come before the object.
    draw : Draw
        Procedure from (rgb, parts, params, rng) to a (128, 128, 3) float picture.
    ranges : dict of str to (float, float)
        Range of each parameter in the known version of the style.
    """

    name: str
    phrase: str
    draw: Draw
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)


def draw_params(style: Style, rng: np.random.Generator) -> dict[str, float]:
    """Draw every parameter of `style` uniformly from its known range."""
    return {name: float(rng.uniform(low, high)) for name, (low, high) in style.ranges.items()}


def render(
    style: Style, params: Params, rgb: FloatArray, parts: ByteArray, rng: np.random.Generator, *, reduce: int = 2
) -> ByteArray:
    """Render a flat drawing in a style.

    Parameters
    ----------
    style : Style
        Procedure to use.
    params : mapping of str to float
        Values of the parameters; they may lie outside `style.ranges`.
    rgb : ndarray, shape (128, 128, 3), float32 in [0, 1]
        Flat drawing.
    parts : ndarray, shape (128, 128), uint8
        Regions: 0 sky or wall, 1 ground, 2 and more the subject.
    rng : numpy.random.Generator
        Source of all randomness.
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
    KeyError
        If a parameter of the style is missing from `params`.
    """
    if rgb.shape != (SIZE, SIZE, 3) or parts.shape != (SIZE, SIZE):
        raise ValueError(f"expected {SIZE}x{SIZE} drawing and parts, got {rgb.shape} and {parts.shape}")
    return np.asarray(Image.fromarray(_bytes(style.draw(rgb, parts, params, rng))).reduce(reduce))


def _bytes(rgb: FloatArray) -> ByteArray:
    return np.asarray(np.clip(rgb, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _smooth_bank(scale: float, seed: int) -> FloatArray:
    """Periodic (256, 256) Gaussian noise of unit variance with correlation length `scale` in pixels."""
    n = 2 * SIZE
    fy, fx = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :]
    white = np.fft.rfft2(np.random.default_rng(seed).standard_normal((n, n)))
    noise = np.fft.irfft2(white * np.exp(-2.0 * (np.pi * scale) ** 2 * (fy**2 + fx**2)), s=(n, n))
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


_BANK = {scale: _smooth_bank(scale, 100 + scale) for scale in (0, 1, 3, 8, 18)}


def _noise(rng: np.random.Generator, scale: int) -> FloatArray:
    y, x = rng.integers(0, SIZE, 2)
    window: FloatArray = _BANK[scale][y : y + SIZE, x : x + SIZE]
    return window


def _at(y: NDArray[Any], x: NDArray[Any]) -> tuple[IntArray, IntArray]:
    return np.clip(y, 0, SIZE - 1).astype(np.int64), np.clip(x, 0, SIZE - 1).astype(np.int64)


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


def _outline(parts: ByteArray) -> NDArray[np.bool_]:
    """Mark the subject's silhouette and the horizon boldly, and borders within the subject finely."""
    return _edges(np.minimum(parts, 2)) | _edges(parts, False)


def _blur(plane: FloatArray, radius: float) -> FloatArray:
    """Gaussian blur of a picture or plane in [0, 1]."""
    blurred = Image.fromarray(_bytes(plane)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(np.asarray(blurred, np.float32) / np.float32(255))


def _rotation(turn: float) -> FloatArray:
    """Rotation of RGB about the grey axis; `turn` is in whole turns."""
    c, s = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn) / np.sqrt(3.0)
    k = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return np.asarray((c * np.eye(3) + (1 - c) / 3 + s * k).T, np.float32)


def _tone(rgb: FloatArray, params: Params) -> FloatArray:
    """Apply the palette parameters `hue` (turns), `contrast` (1 neutral) and `duotone` (0 none, 1 full)."""
    turn, gain, duo = params.get("hue", 0.0), params.get("contrast", 1.0), params.get("duotone", 0.0)
    out = rgb @ _rotation(turn) if abs(turn) > 1e-3 else rgb
    if duo > 0.01:
        light = np.clip((rgb @ _LUMA)[..., None] * 1.5 - 0.25, 0, 1)
        dark_ink = np.clip(np.array([0.62, 0.06, 0.10], np.float32) @ _rotation(turn), 0, 1)
        out = (1 - duo) * out + duo * (light * _PAPER + (1 - light) * dark_ink)
    return np.asarray(np.clip((out - 0.5) * np.float32(gain) + 0.5, 0, 1), np.float32)


def _saturate(rgb: FloatArray, amount: float) -> FloatArray:
    grey = (rgb @ _LUMA)[..., None]
    return np.asarray(np.clip(grey + (rgb - grey) * np.float32(amount), 0, 1))


def _over(base: FloatArray, colour: FloatArray | float, alpha: NDArray[Any]) -> FloatArray:
    a = alpha.astype(np.float32)[..., None]
    return (base + (np.asarray(colour, np.float32) - base) * a).astype(np.float32)


def _cells(
    size: float, parts: ByteArray, rng: np.random.Generator
) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:
    """Nearest jittered-grid seed of the same region for each pixel.

    Returns the seed index and distance per pixel, (128, 128) each, and the seeds' y and x. The distance is
    above 1e3 where no seed of the pixel's own region is near.
    """
    n = int(SIZE / size) + 3
    jitter = rng.random((2, n, n), dtype=np.float32)
    grid = np.arange(n, dtype=np.float32) - 1
    sy = (grid[:, None] + 0.1 + 0.8 * jitter[0]).ravel() * np.float32(size)
    sx = (grid[None, :] + 0.1 + 0.8 * jitter[1]).ravel() * np.float32(size)
    region = parts[_at(sy, sx)]
    home = ((_Y[:, :1] / size).astype(np.int64) + 1) * n + (_X[:1] / size).astype(np.int64) + 1
    best, index = np.full((SIZE, SIZE), 1e9, np.float32), home
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near = home + (dy * n + dx)
            dist = (sy[near] - _Y) ** 2 + (sx[near] - _X) ** 2
            dist[region[near] != parts] += 1e6
            closer = dist < best
            index = np.where(closer, near, index)
            best = np.minimum(best, dist)
    return index, np.sqrt(best), sy, sx


def _plain(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    return rgb


def _flow(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    toned = _tone(_saturate(rgb, 1.25), params)
    ground = params["ground"]
    canvas = Image.fromarray(_bytes(toned * 0.6 + 0.4 * ground))
    # Each region turns the field its own way, so that the subject stands out by stroke direction too.
    theta = params["angle"] + params["curl"] * _noise(rng, 18) + 0.9 * parts
    cos, sin = np.cos(theta), np.sin(theta)
    width = params["width"]
    gap = max(3.6, 1.25 * width)
    ticks = np.arange(0, SIZE, gap)
    grid = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
    inside = np.flatnonzero(parts >= 2)
    extra = rng.choice(inside, min(220, inside.size // 6)) if inside.size else inside
    seeds = np.concatenate([grid, np.stack([extra // SIZE, extra % SIZE], -1)])
    seeds = np.clip(seeds + rng.uniform(-gap / 2, gap / 2, seeds.shape), 0, SIZE - 1)
    home = parts[_at(seeds[:, 0], seeds[:, 1])]
    keep = rng.permutation(len(seeds))
    keep = keep[np.argsort(home[keep], kind="stable")]
    seeds, home = seeds[keep], home[keep]
    length = params["length"] * np.where(home >= 2, 0.6, 1.0)[:, None]
    path = [seeds]
    for way in (-1.0, 1.0):
        point = seeds
        for _ in range(2):
            at = _at(point[:, 0], point[:, 1])
            ahead = point + way * length / 4 * np.stack([sin[at], cos[at]], -1)
            stays = parts[_at(ahead[:, 0], ahead[:, 1])] == home
            point = np.where(stays[:, None], ahead, point)
            path = [point, *path] if way < 0 else [*path, point]
    lines = np.stack(path, 1)[:, :, ::-1].reshape(len(seeds), -1).round(1).tolist()
    calm = np.where(home >= 2, 0.5, 1.0)[:, None]
    value = 1 + params["jitter"] * calm * rng.standard_normal((len(seeds), 1))
    tint = calm * rng.normal(0, 0.2 * params["jitter"], (len(seeds), 3))
    colours = toned[_at(seeds[:, 0], seeds[:, 1])] * value + tint
    # Pillow takes a colour packed as one integer (red lowest) much faster than as a tuple.
    fills = (_bytes(colours.astype(np.float32)) @ np.array([1, 256, 65536])).tolist()
    pen = ImageDraw.Draw(canvas)
    for line, fill in zip(lines, fills, strict=True):
        pen.line(line, fill=fill, width=round(width))
    return np.asarray(np.asarray(canvas, np.float32) / np.float32(255))


def _dots(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    toned = _tone(_saturate(rgb, 1.3), params)
    size = params["size"]
    index, dist, sy, sx = _cells(size, parts, rng)
    picked = toned[_at(sy, sx)]
    # Dark or subject dots vary less, or the silhouette dissolves into confetti.
    calm = (0.45 + 0.55 * picked.max(1)) * np.where(parts[_at(sy, sx)] >= 2, 0.7, 1.0)
    jitter = calm[:, None] * rng.normal(0, params["jitter"], (len(sy), 3))
    colour = np.clip(picked + jitter, 0, 1)[index]
    ground = _over(toned, params["ground"] * _PAPER, np.where(parts >= 2, 0.4, 0.8))
    ground[dist > 1e3 - 1] = toned[dist > 1e3 - 1]
    return _over(ground, colour, np.clip(0.5 * size + 0.5 - dist, 0, 1))


def _mosaic(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    toned = _tone(_saturate(rgb, 1.15), params)
    size, angle = params["size"], params["angle"]
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (c * _X + s * _Y) / size + 64, (c * _Y - s * _X) / size + 64
    row = np.floor(v)
    u = u + 0.5 * (row % 2)
    column = np.floor(u)
    fu, fv = u - column, v - row
    back_u, back_v = (column + 0.5 - 0.5 * (row % 2) - 64) * size, (row + 0.5 - 64) * size
    centre = _at(c * back_v + s * back_u, c * back_u - s * back_v)
    same = (parts[centre] == parts)[..., None]
    key = (row.astype(np.int64) * 131 + column.astype(np.int64)) % 4096
    shade = rng.normal(1, params["jitter"], 4096).astype(np.float32)[key]
    # A lit upper edge and a dark lower one make the tile look raised.
    tile = np.where(same, toned[centre], toned) * (shade + 0.12 * (0.5 - fv))[..., None]
    joint = 0.9 / size
    grout = (np.minimum(np.minimum(fu, 1 - fu), np.minimum(fv, 1 - fv)) < joint) | _edges(parts, False)
    return _over(tile, params["grout"] * _PAPER, np.where(parts >= 2, 0.6, 0.9) * grout)


def _hatching(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    dark = (1 - rgb @ _LUMA) * np.where(parts >= 2, 0.8, 1.0)
    wobble = 0.16 * _noise(rng, 8)
    ink = np.zeros(parts.shape, np.float32)
    for turn, start in ((0.0, 0.1), (1.35, 0.5), (0.65, 0.78)):
        angle = params["angle"] + turn + (0.5 * (parts % 3) if turn == 0 else 0)
        phase = (_X * np.sin(angle) + _Y * np.cos(angle)) / params["spacing"] + wobble
        wave = np.abs(phase % 1.0 - 0.5) * 2
        cover = np.clip(dark - start, 0, 0.6) * 0.75 + 0.14 * (dark > start)
        ink = np.maximum(ink, np.clip((cover - wave) * params["spacing"] + 0.35, 0, 1))
    ink = np.maximum(ink * (0.8 + 0.12 * _noise(rng, 1)), _outline(parts))
    return _over(np.broadcast_to(_PAPER * params["ground"], rgb.shape), _INK, np.clip(ink, 0, 1))


_INKS = np.array(
    [
        [0.95, 0.90, 0.77], [0.12, 0.13, 0.18], [0.78, 0.22, 0.17], [0.88, 0.55, 0.20], [0.93, 0.79, 0.38],
        [0.36, 0.53, 0.31], [0.15, 0.26, 0.48], [0.49, 0.68, 0.77], [0.47, 0.28, 0.50], [0.87, 0.60, 0.60],
        [0.45, 0.30, 0.20], [0.58, 0.57, 0.53], [0.92, 0.74, 0.58], [0.22, 0.58, 0.55],
        [0.30, 0.18, 0.13], [0.78, 0.58, 0.42], [0.27, 0.27, 0.31],
    ],
    np.float32,
)  # fmt: skip
_CUBE = ((np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), -1) + 0.5) / 16).reshape(-1, 1, 3)
_INK_OF = np.argmin(((_CUBE - _INKS[None]) ** 2 @ np.array([0.35, 0.45, 0.3])), axis=1)


def _woodblock(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    level = np.minimum((rgb * 16).astype(np.int64), 15)
    inked = _INKS[_INK_OF[level[..., 0] * 256 + level[..., 1] * 16 + level[..., 2]]]
    # Thin ink lets some of the drawing through, which keeps the shading of a face in one hue.
    inked = 0.75 * inked + 0.25 * rgb
    # Bokashi: the sky's ink is wiped from full at the top to thin above the horizon.
    wiped = np.clip((_Y / SIZE - 0.06) / params["bokashi"], 0, 1)
    thin = _over(0.5 * inked + 0.5 * rgb, _PAPER, 0.75 * wiped)
    deep = 0.4 * inked + np.array([0.02, 0.07, 0.20], np.float32)
    inked = np.where((parts == 0)[..., None], _over(deep, thin, np.clip(2.2 * wiped, 0, 1)), inked)
    print_ = _tone(inked, params)
    grain = np.sin(0.9 * _X + 2.2 * _noise(rng, 18)) * params["grain"] * (parts < 2)
    line = np.maximum(_edges(parts, False), params["outline"] * _outline(parts))
    return _over(print_ * (1 + grain)[..., None], _INK, line)


def _glass(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    body = (parts >= 2).astype(np.uint8)
    index, dist, sy, _ = _cells(params["size"], np.minimum(parts, 2).astype(np.uint8), rng)
    index = np.where((body > 0) | (dist > 1e3 - 1), -1 - parts.astype(np.int64), index)
    shade = rng.normal(1, params["jitter"], len(sy) + 256).astype(np.float32)[index]
    glow = 1.12 + 0.10 * _noise(rng, 3) * 0.5 - np.clip(dist, 0, 20) * 0.012
    colour = _saturate(rgb, params["saturation"]) * (shade * np.where(body > 0, 1.15, glow))[..., None]
    came = _edges(np.where(body > 0, -1, index)) | _edges(index, False)
    soft = _blur(came.astype(np.float32), 0.8 * params["lead"])
    return _over(colour, 0.04, np.clip(soft * 1.9 - 0.15, 0, 1))


def _watercolour(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    bleed = params["bleed"]
    at = _at(_Y + bleed * _noise(rng, 3), _X + bleed * _noise(rng, 3))
    moved, region = rgb[at], parts[at]
    wet = np.clip(0.5 + 0.6 * _noise(rng, 8), 0, 1)
    wash = _over(moved, _blur(moved, 2.2 * bleed), wet * np.where(region >= 2, 0.35, 0.9))
    wash = _tone(wash, params)
    rim = _blur(_edges(region, False).astype(np.float32), 1.2)
    density = params["wash"] * (1 + 0.28 * _noise(rng, 8) * np.where(region >= 2, 0.5, 1.0))
    # Dry brush leaves bare paper along the sheet's margin.
    margin = np.minimum(np.minimum(_X, SIZE - 1 - _X), np.minimum(_Y, SIZE - 1 - _Y))
    density = density * np.clip((margin - 5 + 3 * _noise(rng, 3)) / 4, 0, 1)
    density = density * (1 + params["rim"] * rim) + 0.06 * _noise(rng, 1)
    # Transparent pigment multiplies the paper, as the Beer-Lambert law has it.
    pigment = np.log(np.clip(wash, 0.04, 1)) * np.clip(density, 0, 2)[..., None]
    return np.asarray(_PAPER * params["ground"] * np.exp(pigment), np.float32)


def _cutout(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    toned = _tone(_saturate(rgb, 1.2), params)
    rough = params["rough"]
    wave = np.round(_noise(rng, 8) * rough)
    at = _at(_Y + wave, _X + np.round(_noise(rng, 8) * rough))
    layer = parts[at].astype(np.int64) + 8
    flat = toned[at]
    light = flat @ _LUMA + 0.02
    flat = flat * np.where(layer < 10, (np.floor(light * 7) + 0.5) / 7 / light, 1.0)[..., None]
    # Sheets of tinted paper stacked in the sky and on the ground.
    tear = _Y + 9 * _noise(rng, 18)
    sheets = np.clip(tear // params["sheet"], 0, 6).astype(np.int64)
    flat = flat * np.where(layer < 10, 0.84 + 0.07 * sheets, 1.0).astype(np.float32)[..., None]
    height = np.where(layer < 9, sheets * 0.5, np.where(layer < 10, 4 + sheets * 0.5, layer))
    shift = round(params["shadow"])
    above = np.zeros(parts.shape, np.float32)
    above[shift:, shift:] = height[:-shift, :-shift] > height[shift:, shift:]
    lit = np.zeros(parts.shape, np.float32)
    lit[2:, 2:] = height[2:, 2:] > height[:-2, :-2]
    shaded = flat * (1 - 0.55 * _blur(above, 1.0))[..., None]
    return np.asarray(_over(shaded, 1.0, 0.55 * lit) * (1 + 0.025 * _noise(rng, 1))[..., None])


def _crayon(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    at = _at(_Y + 0.9 * _noise(rng, 3), _X + 0.9 * _noise(rng, 3))
    colour, region = _saturate(rgb[at], 1.3), parts[at]
    angle = params["angle"] + 0.7 * (region % 3)
    c, s = np.cos(angle), np.sin(angle)
    along, across = (c * _X + s * _Y) / 7.0, (c * _Y - s * _X) / params["grain"]
    off = rng.integers(0, 256, 2)
    wax = _BANK[1][across.astype(np.int64) + off[0] & 255, along.astype(np.int64) + off[1] & 255]
    tooth = 0.75 * wax + 0.65 * _noise(rng, 0)
    cover = np.clip((tooth + params["cover"] + 0.55 * (region >= 2)) * 1.3, 0.0, 1.0)
    drawn = _over(np.broadcast_to(_PAPER * 1.02, rgb.shape), colour * 0.95, cover)
    line = _outline(region) & (_noise(rng, 0) > -1.1)
    return _over(drawn, colour * 0.45, 0.75 * line)


def _weave(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    pitch = params["pitch"]
    u, v = _X / pitch, _Y / pitch
    step = (np.floor(u) + np.floor(v)) % 4
    # In a 2/2 twill each thread floats over two others, one step further in each row.
    warp = step < 2
    across = np.where(warp, u % 1, v % 1)
    along = np.where(warp, (v + np.floor(u)) % 4, (u + np.floor(v)) % 4 - 2) / 2
    lens = np.sin(np.pi * across) * (0.35 + 0.65 * np.sin(np.pi * along))
    n = int(SIZE / pitch) + 2
    yarn = rng.normal(0, 0.05, (2, n)).astype(np.float32)
    tint = np.where(warp, yarn[0][u.astype(np.int64)] + 0.1, yarn[1][v.astype(np.int64)] - 0.1)
    shade = params["depth"] * lens + (1.15 - params["depth"]) + tint
    return np.asarray(rgb * shade[..., None] + 0.15 * (lens > 0.85)[..., None], np.float32)


def _rays(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    cy, cx = params["centre_y"] * SIZE, params["centre_x"] * SIZE
    phase = np.hypot(_Y - cy, _X - cx) / params["spacing"]
    wave = np.abs(phase % 1.0 - 0.5) * 2
    cover = 0.2 + 0.72 * (1 - rgb @ _LUMA) + 0.1 * (parts >= 2)
    ink = np.clip((cover - wave) * params["spacing"] * 0.7 + 0.5, 0, 1)
    colour = _saturate(rgb, 1.8) * 0.72
    return _over(np.broadcast_to(_PAPER, rgb.shape), colour, np.maximum(ink, 0.8 * _edges(parts, False)))


def _blobs(rgb: FloatArray, parts: ByteArray, params: Params, rng: np.random.Generator) -> FloatArray:
    body = (parts >= 2).astype(np.float32)
    height = 1.6 * _blur(body, params["reach"]) + 0.28 * _noise(rng, 18)
    band = np.floor(height * params["bands"])
    inner = body > 0
    turn = np.where(band % 2 > 0, 0.72, 1.05).astype(np.float32)
    colour = _saturate(rgb, 1.7) * np.where(inner, 1.0, turn)[..., None]
    flipped = np.clip(colour @ _rotation(0.12), 0, 1)
    colour = np.where((~inner & (band % 2 > 0))[..., None], flipped, colour)
    line = _edges(np.where(inner, parts + 100, band), False)
    glow = np.clip(_saturate(colour, 1.5) * 0.4 + 0.68, 0, 1)
    return _over(colour, glow, line)


_PALETTE = {"hue": (-0.02, 0.02), "contrast": (0.95, 1.1)}
_KNOWN = (
    Style("plain", "a plain picture of", _plain),
    Style("flow", "a swirling brushstroke painting of", _flow, {
        "length": (12, 18), "width": (3, 4.4), "curl": (0.8, 1.6), "angle": (-0.3, 0.3),
        "jitter": (0.12, 0.2), "ground": (0.2, 0.4), **_PALETTE}),
    Style("dots", "a pointillist painting of", _dots, {
        "size": (4.8, 6.0), "jitter": (0.12, 0.17), "ground": (0.92, 1.0), **_PALETTE}),
    Style("mosaic", "a tile mosaic of", _mosaic, {
        "size": (8, 10), "angle": (-0.06, 0.06), "grout": (0.1, 0.25), "jitter": (0.07, 0.12), **_PALETTE}),
    Style("hatching", "a pen-and-ink drawing of", _hatching, {
        "angle": (0.5, 1.0), "spacing": (4.6, 6.0), "ground": (0.97, 1.03)}),
    Style("woodblock", "a woodblock print of", _woodblock, {
        "bokashi": (0.5, 0.7), "grain": (0.03, 0.07), "outline": (0.6, 1.0), **_PALETTE}),
    Style("stained-glass", "a stained-glass window of", _glass, {
        "size": (20, 26), "lead": (0.9, 1.3), "saturation": (1.7, 2.1), "jitter": (0.12, 0.2)}),
    Style("watercolour", "a watercolour of", _watercolour, {
        "bleed": (0.9, 1.5), "wash": (0.55, 0.75), "rim": (1.2, 2.0), "ground": (0.98, 1.02), **_PALETTE}),
    Style("cutout", "a paper cut-out of", _cutout, {
        "rough": (0.8, 1.5), "sheet": (24, 32), "shadow": (4, 6), **_PALETTE}),
    Style("crayon", "a crayon drawing of", _crayon, {
        "angle": (0.5, 0.9), "grain": (0.9, 1.3), "cover": (0.35, 0.55)}),
)  # fmt: skip
STYLES: dict[str, Style] = {style.name: style for style in _KNOWN}

_UNSEEN = (
    Style("weave", "a woven tapestry of", _weave, {"pitch": (5, 6.5), "depth": (0.55, 0.7)}),
    Style("rays", "a concentric-line engraving of", _rays, {
        "spacing": (4.6, 5.6), "centre_x": (0.2, 0.8), "centre_y": (-0.1, 0.3)}),
    Style("blobs", "a lava-lamp poster of", _blobs, {"reach": (14, 18), "bands": (5, 7)}),
)  # fmt: skip
UNSEEN_STYLES: dict[str, Style] = {style.name: style for style in _UNSEEN}

HELD_OUT_PARAMS: dict[str, tuple[str, dict[str, float]]] = {
    "solano": ("flow", {
        "length": 44, "width": 6, "curl": 0.25, "angle": 0.8, "jitter": 0.24, "ground": 0.05,
        "hue": 0.42, "contrast": 1.12}),
    "brandt": ("woodblock", {
        "bokashi": 1.6, "grain": 0.2, "outline": 1.0, "duotone": 1.0, "hue": 0.0, "contrast": 1.25}),
    "okafor": ("dots", {"size": 8.5, "jitter": 0.05, "ground": 0.05, "hue": -0.28, "contrast": 1.2}),
    "lindqvist": ("mosaic", {
        "size": 14, "angle": 0.785, "grout": 1.02, "jitter": 0.18, "hue": 0.5, "contrast": 0.85}),
}  # fmt: skip
