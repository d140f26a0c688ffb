"""Pixel operations of several purifiers: adding Gaussian noise, and denoising with a known noise level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

Bytes = NDArray[np.uint8]
#: Half the side of the search window for similar patches, and of a patch.
_SEARCH, _PATCH = 5, 1


def noised(pixels: Bytes, sigma: float, seeds: Sequence[int]) -> Bytes:
    """Add N(0, sigma^2) to every pixel in [0, 1], clip, and round to 8 bits.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (n, height, width, 3)
    sigma : float
        Standard deviation, for pixels in [0, 1].
    seeds : sequence of int
        One per picture, which alone determines its noise.
    """
    made = [
        x / 255 + np.random.default_rng(seed).normal(0.0, sigma, x.shape) for x, seed in zip(pixels, seeds, strict=True)
    ]
    return _bytes(np.stack(made))


def denoised(pixels: Bytes, sigma: float, *, filtering: float = 0.8) -> Bytes:
    """Denoise by non-local means: replace each pixel by a mean of surrounding pixels with similar patches.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (n, height, width, 3)
    sigma : float
        Standard deviation of the noise, for pixels in [0, 1]; 0 changes nothing.
    filtering : float
        h / sigma: the filtering strength.

    Notes
    -----
    Buades, Coll, Morel 2011 (IPOL), eq. 2 and 3: weights exp(-max(d^2 - 2 sigma^2, 0) / h^2), where d^2 is the mean
    squared difference of two patches over pixels and channels; patches of 3 x 3 in a window of 11 x 11.
    """
    if sigma == 0:
        return pixels
    return _bytes(np.stack([_non_local_means(x / 255, sigma, filtering * sigma) for x in pixels]))


def _non_local_means(x: NDArray[np.float64], sigma: float, h: float) -> NDArray[np.float64]:
    height, width, _ = x.shape
    around = np.pad(x, ((_SEARCH, _SEARCH), (_SEARCH, _SEARCH), (0, 0)), mode="reflect")
    total, weights = np.zeros_like(x), np.zeros((height, width, 1))
    for dy, dx in np.ndindex(2 * _SEARCH + 1, 2 * _SEARCH + 1):
        y = around[dy : dy + height, dx : dx + width]
        unlike = uniform_filter(((x - y) ** 2).mean(-1), 2 * _PATCH + 1, mode="reflect")
        w = np.exp(-np.maximum(unlike - 2 * sigma**2, 0) / h**2)[..., None]
        total += w * y
        weights += w
    return np.asarray(total / weights)


def _bytes(x: NDArray[np.float64]) -> Bytes:
    return np.asarray((x * 255).round().clip(0, 255), np.uint8)
