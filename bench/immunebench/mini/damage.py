"""Data augmentation for the readers (trait classifiers): mild changes, damage, and pictures without content.

All functions work on tensors (n, 3, 64, 64) in [-1, 1] with labels (n, traits). Damage changes a picture and sets the
labels of the traits that it removes to "cannot be read", and of those that it may have removed to :data:`IGNORE`.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from immunebench.mini.traits import GRAIN, IGNORE, TRAITS, unreadable

#: Traits that lie in the upper and in the lower half of a face.
UPPER = ("hair_colour", "hair_style", "eyes", "brows", "glasses")
LOWER = ("mouth", "beard", "clothing")
#: Traits that remain readable if the subject is covered: how the picture is painted, and the setting.
_KEPT = ("setting", "background", "procedure", "palette", "scale", "direction", "ground", "clothing")


@cache
def _mask(names: tuple[str, ...], device: torch.device) -> Tensor:
    return torch.tensor([trait in names for trait in TRAITS], device=device)


@cache
def _lost(device: torch.device) -> Tensor:
    return torch.tensor([unreadable(trait) for trait in TRAITS], device=device)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (n, 3, H, W)."""
    reach = min(int(2.5 * sigma + 1), 31)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / sigma) ** 2)
    kernel = (taps / taps.sum()).expand(3, 1, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="reflect"), kernel, groups=3)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="reflect"), kernel.transpose(2, 3), groups=3)


@cache
def _survives(device: torch.device) -> Tensor:
    return torch.tensor([GRAIN[trait] for trait in TRAITS], device=device)


@cache
def _dct(device: torch.device) -> Tensor:
    """The 8 x 8 matrix of the discrete cosine transform, orthonormal."""
    k, n = torch.arange(8, device=device)[:, None], torch.arange(8, device=device)[None]
    matrix = torch.cos(math.pi * (2 * n + 1) * k / 16) * math.sqrt(2 / 8)
    matrix[0] /= math.sqrt(2)
    return matrix


def jpeg(x: Tensor, step: float) -> Tensor:
    """JPEG's loss on the device: coefficients of 8 x 8 blocks rounded, coarser where the frequency is higher."""
    n, c, h, w = x.shape
    d = _dct(x.device)
    blocks = x.reshape(n, c, h // 8, 8, w // 8, 8).permute(0, 1, 2, 4, 3, 5)
    coefficients = d @ blocks @ d.T
    frequency = torch.arange(8, device=x.device)
    table = step * (1 + 0.5 * (frequency[:, None] + frequency[None]))
    back = d.T @ ((coefficients / table).round() * table) @ d
    return back.permute(0, 1, 2, 4, 3, 5).reshape(n, c, h, w)


def clouds(count: int, cells: int, device: torch.device) -> Tensor:
    """Smooth blotches of random colours (count, 3, 64, 64)."""
    if count == 0:
        return torch.empty(0, 3, 64, 64, device=device)
    seeds = torch.randn(count, 3, cells, cells, device=device) * 0.7 + torch.randn(count, 3, 1, 1, device=device) * 0.4
    return F.interpolate(seeds, 64, mode="bicubic").clamp(-1, 1)


def nothing(count: int, real: Tensor, decoded: Tensor | None, device: torch.device) -> Tensor:
    """Return pictures without content: flat, noise, gradients, blotches, bars, shuffled pictures, decoded noise."""
    if count == 0:
        return torch.empty(0, 3, 64, 64, device=device)
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, 64, device=device), torch.linspace(-1, 1, 64, device=device), indexing="ij"
    )

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device)

    colour = rand(count, 3, 1, 1) * 2 - 1
    grey = colour[:, :1].expand(-1, 3, -1, -1)
    colour = torch.where(rand(count, 1, 1, 1) < 0.4, grey, colour)
    turn = rand(count, 1, 1) * 2 * math.pi
    along = turn.cos() * x + turn.sin() * y
    across = turn.cos() * y - turn.sin() * x
    pitch = rand(count, 1, 1) * 0.45 + 0.06
    wave = (along * math.pi / pitch).sin() * torch.where(rand(count, 1, 1) < 0.5, (across * math.pi / pitch).sin(), 1.0)
    swing = (rand(count, 3, 1, 1) * 2 - 1) * 0.9
    shown = real[torch.randint(len(real), (count,), device=device)]
    kinds = [
        colour + 0.03 * torch.randn(count, 3, 64, 64, device=device),
        rand(count, 3, 64, 64) * 2 - 1,
        colour + rand(count, 1, 1, 1) * torch.randn(count, 3, 64, 64, device=device),
        colour + along[:, None] * swing,
        colour + wave[:, None] * swing,
        colour + wave[:, None].sign() * swing,
        *(clouds(count, cells, device) for cells in (2, 4, 6, 10, 16, 32)),
        _shuffled(shown, 4), _shuffled(shown, 8), _shuffled(shown, 16),
        F.interpolate(F.adaptive_avg_pool2d(shown, 3), 64, mode="bicubic"),
        F.interpolate(F.adaptive_avg_pool2d(shown, 5), 64, mode="bicubic"),
    ]  # fmt: skip
    if decoded is not None:
        kinds += [decoded[torch.randint(len(decoded), (count,), device=device)]] * 8
    table = torch.stack(kinds)
    chosen = torch.randint(len(kinds), (count,), device=device)
    return table[chosen, torch.arange(count, device=device)].clamp(-1, 1)


def _shuffled(x: Tensor, size: int) -> Tensor:
    n, c, h, w = x.shape
    k = h // size
    patches = x.reshape(n, c, k, size, k, size).permute(0, 2, 4, 1, 3, 5).reshape(n, k * k, c, size, size)
    order = torch.rand(n, k * k, device=x.device).argsort(1)
    patches = patches[torch.arange(n, device=x.device)[:, None], order]
    return patches.reshape(n, k, k, c, size, size).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


def shifted(x: Tensor, most: int = 3) -> Tensor:
    """Each picture moved by up to ``most`` pixels, its edge repeated."""
    n = len(x)
    padded = F.pad(x, (most,) * 4, mode="replicate")
    rows = torch.randint(2 * most + 1, (n, 1), device=x.device) + torch.arange(64, device=x.device)
    columns = torch.randint(2 * most + 1, (n, 1), device=x.device) + torch.arange(64, device=x.device)
    at = torch.arange(n, device=x.device)[:, None, None]
    return padded[at, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def damaged(x: Tensor, labels: Tensor, boxes: Tensor, decoded: Tensor | None) -> tuple[Tensor, Tensor]:
    """Apply mild changes to a batch and one kind of damage to each of several parts; return pictures and new labels.

    Parameters
    ----------
    x, labels, boxes
        Pictures (n, 3, 64, 64), labels int (n, traits), the subjects' bounds (n, 4) in pixels.
    decoded
        Decoded random latents, if there is an autoencoder.
    """
    n, device = len(x), x.device
    lost, labels = _lost(device), labels.clone()
    x = shifted(x) * (torch.rand(n, 3, 1, 1, device=device) * 0.14 + 0.93)
    x = x + (torch.rand(n, 1, 1, 1, device=device) - 0.5) * 0.12
    x = x + torch.randn_like(x) * torch.rand(n, 1, 1, 1, device=device).square() * 0.15

    def share(begin: float, end: float) -> slice:
        return slice(round(begin * n), round(end * n))

    def lose(part: slice, mask: Tensor, value: Tensor | int) -> None:
        labels[part] = torch.where(
            mask, value if isinstance(value, Tensor) else torch.full_like(lost, value), labels[part]
        )

    survives = _survives(device)
    for begin, sigma in ((0.0, 0.5), (0.04, 0.9), (0.08, 1.3), (0.11, 1.8), (0.14, 2.6), (0.17, 4.0), (0.2, 7.0)):
        part = share(begin, begin + 0.03)
        x[part] = gaussian(x[part], sigma)
        lose(part, (survives[:, 0] < sigma) & (survives[:, 1] > sigma), IGNORE)
        lose(part, survives[:, 1] <= sigma, lost)
    for begin, step in ((0.24, 0.1), (0.27, 0.25), (0.3, 0.5)):
        part = share(begin, begin + 0.03)
        x[part] = jpeg(x[part], step)
    # Noise: what a blur of half its deviation times three would leave.
    for begin, deviation in ((0.33, 0.3), (0.36, 0.6), (0.39, 1.2), (0.42, 2.5)):
        part = share(begin, begin + 0.03)
        x[part] = x[part] + deviation * torch.randn_like(x[part])
        lose(part, (survives[:, 0] < 2.5 * deviation) & (survives[:, 1] > 1.5 * deviation), IGNORE)
        lose(part, survives[:, 1] <= 1.5 * deviation, lost)
    # Blotches laid over: hidden, perhaps hidden, or seen through.
    for begin, weight in ((0.45, 0.25), (0.48, 0.6), (0.5, 0.9)):
        part = share(begin, begin + 0.025)
        over = clouds(part.stop - part.start, 8, device)
        x[part] = (1 - weight) * x[part] + weight * over
        if weight > 0.3:
            lose(part, torch.ones_like(lost, dtype=torch.bool), lost if weight > 0.8 else IGNORE)
    _cover(x, labels, boxes, share(0.53, 0.6), lost)
    _halve(x, labels, share(0.6, 0.66), lost)
    part = share(0.66, 0.7)
    x[part] = _close_up(x[part])
    lose(part, ~_mask(("palette",), device), IGNORE)
    lose(part, _mask(("shape", "hair_style", "face", "ears"), device), lost)
    part = share(0.88, 1.0)
    x[part] = nothing(part.stop - part.start, x, decoded, device)
    lose(part, torch.ones_like(lost, dtype=torch.bool), lost)
    return x.clamp(-1, 1), labels


def _cover(x: Tensor, labels: Tensor, boxes: Tensor, part: slice, lost: Tensor) -> None:
    """Cover the subject by a patch of one colour or of blotches, which makes its own traits unreadable."""
    count, device = part.stop - part.start, x.device
    y, z = torch.arange(64, device=device)[None, :, None], torch.arange(64, device=device)[None, None]
    x0, y0, x1, y1 = (side[:, None, None] for side in boxes[part].long().unbind(1))
    hidden = (z >= x0 - 1) & (z <= x1 + 1) & (y >= y0 - 1) & (y <= y1 + 1)
    flat = (torch.rand(count, 3, 1, 1, device=device) * 2 - 1).expand(-1, -1, 64, 64)
    patch = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, flat, clouds(count, 6, device))
    x[part] = torch.where(hidden[:, None], patch, x[part])
    kept = _mask(_KEPT, device)
    labels[part] = torch.where(kept, torch.full_like(labels[part], IGNORE), lost)


def _halve(x: Tensor, labels: Tensor, part: slice, lost: Tensor) -> None:
    """Hide the upper or the lower half of the picture."""
    count, device = part.stop - part.start, x.device
    y = torch.arange(64, device=device).view(1, 1, 64, 1)
    upper = torch.rand(count, 1, 1, 1, device=device) < 0.5
    flat = (torch.rand(count, 3, 1, 1, device=device) * 2 - 1).expand(-1, -1, 64, 64)
    patch = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, flat, clouds(count, 6, device))
    x[part] = torch.where(torch.where(upper, y < 38, y >= 38), patch, x[part])
    gone = torch.where(upper[:, :, 0, 0], _mask(UPPER, device), _mask(LOWER, device))
    kept = ~gone & _mask(("skin", "kind", "palette"), device)
    perhaps = torch.where(kept, labels[part], torch.full_like(labels[part], IGNORE))
    labels[part] = torch.where(gone, lost, perhaps)


def _close_up(x: Tensor) -> Tensor:
    """A random window of 16 to 24 pixels, enlarged."""
    n, device = len(x), x.device
    span = (torch.rand(n, device=device) * 8 + 16) / 64
    at = (torch.rand(n, 2, device=device) * 2 - 1) * (1 - span[:, None])
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = span
    theta[:, :, 2] = at
    grid = F.affine_grid(theta, [n, 3, 64, 64], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
