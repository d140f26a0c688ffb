"""Collapse: whether a generated picture has no content, such as one colour, noise, blobs or blur."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from immunebench.metrics.table import Floats, Judge, Pixels

#: A picture counts as collapsed from this probability of "nothing" on. It is the smallest threshold with at most 5 %
#: false positives on the worst dev concept of the judge `mini`; see `benchmarks/mini_collapse.py`.
NOTHING = 0.25
#: Smallest standard deviation of a channel of a picture with content, in 8-bit levels; in rendered pictures of the dev
#: set it is at least 32.
LEAST_SPREAD = 8.0
#: Smallest correlation of neighbouring pixels of a picture with content; at least 0.17 in rendered pictures of the dev
#: set, at most 0.04 in white noise.
LEAST_CORRELATION = 0.06


def collapse(judge: Judge, pixels: Pixels) -> Floats:
    """Return 1 for pictures without content, else 0, (n,).

    Uniform pictures and white noise are detected from the pixels, everything else by the judge.
    """
    blank = (spread(pixels) < LEAST_SPREAD) | (neighbour_correlation(pixels) < LEAST_CORRELATION)
    return np.asarray(blank | (judge.nothing_probability(pixels) >= NOTHING), np.float32)


def spread(pixels: Pixels) -> Floats:
    """Return the largest standard deviation of a channel, in 8-bit levels, (n,)."""
    found: Floats = pixels.astype(np.float32).std((1, 2)).max(1)
    return found


def neighbour_correlation(pixels: Pixels) -> Floats:
    """Return the correlation of neighbouring pixels' luminance, (n,), mean of both directions; 0 without variation."""
    grey = pixels.astype(np.float64).mean(3)
    grey -= grey.mean((1, 2), keepdims=True)
    across, down = (grey[:, :, 1:] * grey[:, :, :-1]).mean((1, 2)), (grey[:, 1:] * grey[:, :-1]).mean((1, 2))
    found: Floats = ((across + down) / 2 / np.maximum((grey**2).mean((1, 2)), 1e-9)).astype(np.float32)
    return found
