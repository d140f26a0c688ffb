"""A bound on the perceptual distance of perturbed pictures: measured on 8-bit pixels, enforced by scaling down."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from immunebench.core.types import Pictures
from immunebench.model.pixels import to_tensor

if TYPE_CHECKING:
    from immunebench.methods.context import Context

#: Bisection steps for the scale factor: 1 / 1024 of a perturbation is less than half an 8-bit level.
HALVINGS = 10


def distances(a: Pictures, b: Pictures, ctx: Context) -> NDArray[np.float64]:
    """Return the context's perceptual distance (n,) between pictures of equal index; see `paired_distances`."""
    return paired_distances(a, b, ctx.perceptual, ctx.numerics.device)


@torch.no_grad()
def paired_distances(
    a: Pictures, b: Pictures, distance: Callable[[Tensor, Tensor], Tensor], device: str = "cpu"
) -> NDArray[np.float64]:
    """Return the distance (n,) between pictures of equal index, one at a time so that none depends on the batch."""
    pairs = (
        (to_tensor(x[None]).to(device), to_tensor(y[None]).to(device)) for x, y in zip(a.pixels, b.pixels, strict=True)
    )
    return np.array([float(distance(x, y)) for x, y in pairs])


def within(clean: Pictures, change: NDArray[np.float32], p: float, ctx: Context) -> Pictures:
    """Round perturbed pictures to 8 bits, and scale each perturbation down until the perceptual bound holds.

    Parameters
    ----------
    clean : Pictures
    change : ndarray of float, shape (n, height, width, 3)
        The perturbation in 8-bit levels (of 255).
    p : float
        Largest distance of a rounded picture from its clean one.
    ctx : Context
        Provides the perceptual distance.

    Returns
    -------
    Pictures
        With the largest scale factor per picture that bisection finds: 1 if the whole perturbation is within the
        bound, 0 (the clean picture) if none is.
    """

    def scaled(factor: NDArray[np.float64]) -> Pictures:
        moved = clean.pixels + factor[:, None, None, None] * change
        return Pictures(moved.round().clip(0, 255).astype(np.uint8), clean.captions)

    low, high = np.zeros(len(clean)), np.ones(len(clean))
    fits = distances(clean, scaled(high), ctx) <= p
    low[fits] = 1.0
    for _ in range(0 if fits.all() else HALVINGS):
        middle = np.where(fits, 1.0, (low + high) / 2)
        keeps = distances(clean, scaled(middle), ctx) <= p
        low, high = np.where(keeps, middle, low), np.where(keeps, high, middle)
    return scaled(low)
