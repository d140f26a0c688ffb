"""Grey pictures: a control that the budget check must reject."""

from __future__ import annotations

import numpy as np

from immunebench import Concept, Context, LatentDiffusion, Params, Pictures


def protect_images(
    model: LatentDiffusion, concept: Concept, published: Pictures, params: Params, ctx: Context
) -> Pictures:
    """Replace every pixel by mid-grey."""
    return Pictures(np.full_like(published.pixels, 128), published.captions)
