"""Visible change without optimisation: the controls of defenses that are held to a perceptual distance.

A cloak of distance p must protect more than any other change of distance p does.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from immunebench import Concept, Context, LatentDiffusion, Params, Pictures, recaption, within


def protect_images(
    model: LatentDiffusion, concept: Concept, published: Pictures, params: Params, ctx: Context
) -> Pictures:
    """Mix each picture with a blurred one, or with itself in another style, as far as the perceptual bound allows."""
    if params.form == "blur":
        blur = ImageFilter.GaussianBlur(params.radius)
        other = np.stack([np.asarray(Image.fromarray(x).filter(blur)) for x in published.pixels])
    else:
        style = str(np.random.default_rng(ctx.seed_of("style")).choice(params.styles))
        asked = recaption(published, params.prompt.replace("{style}", style), token=concept.noun, noun=concept.noun)
        seeds = [ctx.seed_of("transfer", i) for i in range(len(published))]
        other = model.image_to_image(
            asked, seeds, strength=params.strength, steps=params.sampling_steps, guidance=params.guidance
        ).pixels
    change = other.astype(np.float32) - published.pixels.astype(np.float32)
    return within(published, change, params.perceptual_budget, ctx)
