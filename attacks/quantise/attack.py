"""Quantisation: reduction of each picture to a palette of few colours."""

from __future__ import annotations

import numpy as np
from PIL import Image

from immunebench import Context, LatentDiffusion, Params, Pictures


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Reduce each picture to `colours` colours by median cut, without dithering."""
    reduced = [
        Image.fromarray(p).quantize(params.colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
        for p in pictures.pixels
    ]
    return Pictures(np.stack([np.asarray(image) for image in reduced]), pictures.captions)
