"""Mist: perturbations against encoder and denoiser (Liang and Wu 2023; AdvDM: Liang et al. 2023)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from immunebench import Concept, Context, Draws, LatentDiffusion, Params, Perturbation, Pictures


def protect_images(
    model: LatentDiffusion, concept: Concept, published: Pictures, params: Params, ctx: Context
) -> Pictures:
    """Ascend w_s L(theta; x + delta, c) - w_t mean |E(x + delta) - E(y)|^2 by signed steps from a random start.

    The semantic term is AdvDM's (Liang et al. 2023, eq. 8), the textural one moves the latent to that of the target
    picture y. E is the posterior's mean; the reference samples the posterior.
    """
    side = published.pixels.shape[1:3]
    z_y = model.encode(pattern(side)[None])
    prompt = "a painting" if concept.family == "style" else "a photo"
    x = Perturbation(model, published.pixels, params.budget, seed=ctx.seed_of("start"), start="random")
    draws = Draws([prompt] * len(published), ctx.seed_of("noise"))

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        batch = draws.batch(model, images, rows)
        value = -params.textural * (batch.latents - z_y).square().mean(dim=(1, 2, 3))
        return value + params.semantic * model.losses(batch) if params.semantic else value

    for step in ctx.counted(params.steps, "perturbing"):
        values = x.ascend(objective, params.budget * params.alpha)
        ctx.log(step, objective=values.mean())
    return Pictures(x.pictures(), published.captions)


def pattern(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw y, shape (height, width, 3), with high contrast and fine detail: black and white rings and rays."""
    height, width = size
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    for ring, radius in enumerate(range(max(size), 0, -max(2, min(size) // 16))):
        box = (width / 2 - radius, height / 2 - radius, width / 2 + radius, height / 2 + radius)
        for ray in range(12):
            pen.pieslice(box, 30 * ray, 30 * ray + 30, fill="black" if (ring + ray) % 2 else "white")
    return np.array(picture)
