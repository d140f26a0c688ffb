"""Gaussian noise, which masks a smaller adversarial perturbation (Hoenig et al. 2025, sec. 4)."""

from __future__ import annotations

import numpy as np

from immunebench import Context, LatentDiffusion, Params, Pictures


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Add N(0, sigma^2) to every pixel in [0, 1] and clip."""
    x = pictures.pixels / 255 + ctx.rng.normal(0.0, params.sigma, pictures.pixels.shape)
    return Pictures((x * 255).round().clip(0, 255).astype(np.uint8), pictures.captions)
