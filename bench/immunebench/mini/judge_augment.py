"""What a judge must see through, and what it must not mistake for a picture."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from immunebench.mini.judges import to_input

Bytes = NDArray[np.uint8]


def jpeg(pixels: Bytes, quality: int) -> Bytes:
    """One picture (H, W, 3) through JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=quality)
    return np.asarray(Image.open(buffer))


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (n, 3, H, W)."""
    reach = int(2.5 * sigma + 1)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (taps / taps.sum()).expand(3, 1, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="reflect"), kernel, groups=3)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="reflect"), kernel.transpose(2, 3), groups=3)


def augment(pixels: Bytes, rng: np.random.Generator) -> Tensor:
    """Shift, gain, JPEG, blur and noise at random.

    Takes uint8 (n, 64, 64, 3), returns float32 (n, 3, 64, 64) in [-1, 1].
    """
    count, side = len(pixels), pixels.shape[1]
    padded = np.pad(pixels, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    at = rng.integers(0, 7, (count, 2))
    shifted = np.stack([padded[i, y : y + side, x : x + side] for i, (y, x) in enumerate(at.tolist())])
    for i in np.flatnonzero(rng.random(count) < 0.12):
        shifted[i] = jpeg(shifted[i], int(rng.integers(25, 85)))
    x = to_input(shifted)
    gain = torch.from_numpy(rng.uniform(0.93, 1.07, (count, 3, 1, 1)).astype(np.float32))
    lift = torch.from_numpy(rng.uniform(-0.06, 0.06, (count, 1, 1, 1)).astype(np.float32))
    x = x * gain + lift
    soft = torch.from_numpy(rng.random(count) < 0.2)
    x[soft] = blur(x[soft], float(rng.uniform(0.4, 1.2)))
    noisy = np.flatnonzero(rng.random(count) < 0.25)
    sigma = rng.uniform(0, 0.16, (len(noisy), 1, 1, 1)).astype(np.float32)
    x[noisy] += torch.from_numpy(sigma * rng.standard_normal((len(noisy), 3, side, side), dtype=np.float32))
    return x.clamp(-1, 1)


NOTHING_KINDS = ("uniform", "normal", "flat", "gradient", "blurred", "shuffled", "clouds", "bars", "decoded")


def nothing(count: int, real: Bytes, decoded: Bytes | None, rng: np.random.Generator) -> Bytes:
    """Pictures that show nothing, uint8 (count, 64, 64, 3), a random kind of :data:`NOTHING_KINDS` each.

    Parameters
    ----------
    real
        Pictures to blur away or to shuffle, any number of them.
    decoded
        Decoded random latents, or None where no autoencoder is at hand.
    """
    kinds = NOTHING_KINDS if decoded is not None else NOTHING_KINDS[:-1]
    return np.stack([
        one_of_nothing(str(rng.choice(kinds)), real[int(rng.integers(len(real)))],
             real[0] if decoded is None else decoded[int(rng.integers(len(decoded)))], rng)
        for _ in range(count)
    ])  # fmt: skip


def one_of_nothing(kind: str, real: Bytes, decoded: Bytes, rng: np.random.Generator) -> Bytes:
    """One picture (H, W, 3) of a kind of nothing, made from a real picture or a decoded latent where it needs one."""
    side = real.shape[0]
    colour = rng.uniform(0, 255, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0, 255))
    if kind == "decoded":
        return decoded
    if kind == "uniform":
        return rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
    if kind == "normal":
        value = colour + rng.uniform(8, 90) * rng.standard_normal((side, side, int(rng.choice([1, 3]))))
    elif kind == "flat":
        value = colour + rng.uniform(0, 6) * rng.standard_normal((side, side, 3))
    elif kind == "gradient":
        turn = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
        value = colour + (np.cos(turn) * x + np.sin(turn) * y)[..., None] * rng.uniform(-120, 120, 3)
    elif kind == "blurred":
        cells = int(rng.integers(2, 6))
        small = Image.fromarray(real).resize((cells, cells), Image.Resampling.BOX)
        return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
    elif kind == "shuffled":
        size = int(rng.choice([4, 8]))
        n = side // size
        patches = real.reshape(n, size, n, size, 3).swapaxes(1, 2).reshape(n * n, size, size, 3)
        patches = patches[rng.permutation(n * n)].reshape(n, n, size, size, 3)
        return patches.swapaxes(1, 2).reshape(side, side, 3)
    elif kind == "clouds":
        cells = int(rng.choice([3, 5, 9, 17, 33]))
        seed = np.clip(colour + rng.uniform(20, 110) * rng.standard_normal((cells, cells, 3)), 0, 255).astype(np.uint8)
        return np.asarray(Image.fromarray(seed).resize((side, side), Image.Resampling.BICUBIC))
    else:
        turn, pitch = rng.uniform(0, np.pi), rng.uniform(3, 16)
        y, x = np.mgrid[0:side, 0:side]
        wave = np.sin((np.cos(turn) * x + np.sin(turn) * y) * 2 * np.pi / pitch)
        if rng.random() < 0.5:
            wave = wave * np.sin((np.cos(turn) * y - np.sin(turn) * x) * 2 * np.pi / pitch)
        value = colour + wave[..., None] * rng.uniform(-110, 110, 3)
    return np.broadcast_to(np.clip(value, 0, 255), (side, side, 3)).astype(np.uint8)
