"""Does a generated picture show anything: one colour, noise, blobs and blur do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from immunebench.metrics import Floats, Judge, Pixels

#: A picture counts as collapsed from this probability of "nothing" on. The least value that mistakes at most 5 % of
#: the dev concept that the judge of `mini` is worst at; `benchmarks/mini_collapse.py` measures both kinds of error.
NOTHING = 0.25
#: A channel of a picture varies by more than this, in 8-bit steps; rendered pictures of the dev set by 32 and more.
LEAST_SPREAD = 8.0
#: Neighbouring pixels correlate by more than this; in rendered pictures of the dev set by 0.17 and more, in white
#: noise by at most 0.04.
LEAST_CORRELATION = 0.06


def collapse(judge: Judge, pixels: Pixels) -> Floats:
    """1 where a picture shows nothing, else 0, (n,).

    A picture of one colour and white noise are seen on the pixels alone, all else by the judge.
    """
    blank = (spread(pixels) < LEAST_SPREAD) | (neighbour_correlation(pixels) < LEAST_CORRELATION)
    return np.asarray(blank | (judge.nothing_probability(pixels) >= NOTHING), np.float32)


def spread(pixels: Pixels) -> Floats:
    """Standard deviation of the channel that varies most, in 8-bit steps, (n,)."""
    found: Floats = pixels.astype(np.float32).std((1, 2)).max(1)
    return found


def neighbour_correlation(pixels: Pixels) -> Floats:
    """Correlation of the brightness of pixels that touch, across and down, (n,); 0 where nothing varies."""
    grey = pixels.astype(np.float64).mean(3)
    grey -= grey.mean((1, 2), keepdims=True)
    across, down = (grey[:, :, 1:] * grey[:, :, :-1]).mean((1, 2)), (grey[:, 1:] * grey[:, :-1]).mean((1, 2))
    found: Floats = ((across + down) / 2 / np.maximum((grey**2).mean((1, 2)), 1e-9)).astype(np.float32)
    return found
