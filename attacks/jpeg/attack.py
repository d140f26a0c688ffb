"""JPEG: lossy compression, which removes small perturbations."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from immunebench import Context, LatentDiffusion, Params, Pictures


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Compress and decompress every picture at `quality`, with 4:2:0 chroma subsampling."""
    return Pictures(np.stack([through_jpeg(p, params.quality) for p in pictures.pixels]), pictures.captions)


def through_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Compress one picture, shape (height, width, 3)."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file).convert("RGB"))
