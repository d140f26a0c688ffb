"""glaze-open: an open implementation of the published objective of style cloaks (Shan et al., USENIX Security 2023).

Glaze itself is closed source. This is implemented from the paper's formulas and may differ from Glaze wherever they
are not specific. Phi is the posterior mean of the base's encoder, Omega the base's own image-to-image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from immunebench import Concept, Context, LatentDiffusion, Params, Pictures, StageError, recaption, within


def protect_images(
    model: LatentDiffusion, concept: Concept, published: Pictures, params: Params, ctx: Context
) -> Pictures:
    """Move the features of x towards those of x in another style: with target style T and style transfer Omega,

    min over delta of  |Phi(x + delta) - Phi(Omega(x, T))|^2 + alpha max(LPIPS(x, x + delta) - p, 0)

    by Adam from delta ~ U(-p, p), pictures in [-1, 1]. The penalty is soft and pixels are rounded, so perturbations
    beyond p are scaled down at the end until the bound holds.
    """
    p = params.perceptual_budget
    style = target_style(model, concept, params, ctx)
    asked = recaption(published, params.prompt.replace("{style}", style), token=concept.noun, noun=concept.noun)
    seeds = [ctx.seed_of("transfer", i) for i in range(len(published))]
    omega = model.image_to_image(
        asked, seeds, strength=params.strength, steps=params.sampling_steps, guidance=params.guidance
    )
    changes = []
    for rows in ctx.micro_batches(len(published)):
        x, target = model.to_images(published.pixels[rows]), model.encode(omega.pixels[rows])
        draws = [torch.Generator().manual_seed(ctx.seed_of("start", i)) for i in rows]
        uniform = torch.stack([torch.rand(x.shape[1:], generator=draw) for draw in draws])
        delta = ((2 * uniform - 1) * p).to(x).requires_grad_()
        adam = torch.optim.Adam([delta], lr=params.lr)
        for step in ctx.counted(params.steps, f"pictures {rows[0] + 1} to {rows[-1] + 1}"):
            feature = (model.latents(x + delta) - target).square().mean((1, 2, 3))
            seen = ctx.perceptual(x, x + delta)
            # A sum, so that a picture's step does not depend on the number of pictures.
            loss = (feature + params.alpha * (seen - p).clamp(min=0)).sum()
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
            with torch.no_grad():
                delta.copy_((x + delta).clamp(-1, 1) - x)
            ctx.log(step, first=int(rows[0]), feature=feature.mean(), perceptual=seen.mean())
        changes.append(delta.detach().permute(0, 2, 3, 1).cpu().numpy() * 127.5)
    return within(published, np.concatenate(changes), p, ctx)


def target_style(model: LatentDiffusion, concept: Concept, params: Params, ctx: Context) -> str:
    """Choose T at random among the candidate styles at a medium distance from the artist.

    The distance of a style is that between two centroids of Phi: of the owner's pictures, and of pictures that the base
    generates in that style.
    """
    artist = model.encode(concept.owner.pixels).mean(0)
    distances = []
    for style in params.styles:
        prompts = [params.prompt.replace("{content}", words).replace("{style}", style) for words in params.contents]
        seeds = [ctx.seed_of("style", style, i) for i in range(len(prompts))]
        drawn = model.sample(prompts, seeds, steps=params.drawing_steps, guidance=params.guidance)
        distances.append(float((model.encode(drawn.pixels).mean(0) - artist).norm()))
        ctx.report("style distances", len(distances), len(params.styles))
    return str(params.styles[within_band(distances, np.random.default_rng(ctx.seed_of("target style")))])


def within_band(distances: Sequence[float], rng: np.random.Generator) -> int:
    """Choose at random the index of a distance between the 50th and the 75th percentile.

    Raises
    ------
    StageError
        If there is none, as is the case with two distances.
    """
    low, high = np.percentile(distances, [50, 75])
    found = [i for i, distance in enumerate(distances) if low <= distance <= high]
    if not found:
        raise StageError("error", f"styles: none of {len(distances)} lies from the 50th to the 75th percentile")
    return int(rng.choice(found))
