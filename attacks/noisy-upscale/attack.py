"""Noisy upscaling: noise, then an upscaler that removes it like a degradation (Hoenig et al. 2025, sec. 4)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from immunebench import Context, LatentDiffusion, Params, Pictures, noised


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Add N(0, sigma^2) to every pixel in [0, 1], upscale by a network, and average down to the original size."""
    noisy = noised(pictures.pixels, params.sigma, ctx.seeds(len(pictures), "noisy-upscale"))
    large = ctx.upscale(noisy, pictures.captions, noise_level=params.noise_level, steps=params.sampling_steps)
    height, width = noisy.shape[1:3]
    back = [np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling.BOX)) for x in large]
    return Pictures(np.stack(back), pictures.captions)
