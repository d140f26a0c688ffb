"""Resizing: downscaling and upscaling, which removes fine detail."""

from __future__ import annotations

import numpy as np
from PIL import Image

from immunebench import Context, LatentDiffusion, Params, Pictures


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Downscale by `factor` with antialiasing and upscale again, both bicubic."""
    height, width = pictures.pixels.shape[1:3]
    small = (max(1, round(width * params.factor)), max(1, round(height * params.factor)))
    back = [
        Image.fromarray(p).resize(small, Image.Resampling.BICUBIC).resize((width, height), Image.Resampling.BICUBIC)
        for p in pictures.pixels
    ]
    return Pictures(np.stack([np.asarray(image) for image in back]), pictures.captions)
