"""Random noise: independent uniform changes of all pixels within the budget, a control for image defenses."""

from __future__ import annotations

import numpy as np

from immunebench import Concept, Context, LatentDiffusion, Params, Pictures


def protect_images(
    model: LatentDiffusion, concept: Concept, published: Pictures, params: Params, ctx: Context
) -> Pictures:
    """Add integers drawn uniformly from -budget to +budget, so that rounding cannot exceed the bound."""
    change = ctx.rng.integers(-params.budget, params.budget, size=published.pixels.shape, endpoint=True)
    pixels = np.clip(published.pixels + change, 0, 255).astype(np.uint8)
    return Pictures(pixels, published.captions)
