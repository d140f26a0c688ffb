"""MetaCloak: perturbations that are robust to transformations (Liu et al., CVPR 2024, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import functional

from immunebench import Concept, Context, Draws, LatentDiffusion, Params, Perturbation, Pictures, Surrogate


def protect_images(
    model: LatentDiffusion, concept: Concept, published: Pictures, params: Params, ctx: Context
) -> Pictures:
    """Perturb the pictures against a pool of surrogates from all stages of fine-tuning, under random transformations.

    max over |delta| <= r of E_theta E_g L_cond(theta; g(x + delta)): theta starts at each of the pooled states of a
    model that is trained on the owner's clean pictures, and takes `advance` training steps on the perturbed ones after
    every `pgd_steps` steps of PGD with step size r / 10. The states are used one after another, as in the released
    code; algorithm 1 sums their losses.
    """
    a, b = concept.owner, ctx.captioned(published)
    x = Perturbation(model, b.pixels, params.budget)
    draws = Draws(b.captions, ctx.seed_of("noise"))
    f = Surrogate(model, ctx.attack(params.against[0]), ctx, lr=params.lr)
    pool = [f.state()]
    for _ in ctx.counted(params.states - 1, "pool"):
        f.train(a, params.apart)
        pool.append(f.state())

    def loss(x: Tensor, rows: Tensor) -> Tensor:
        seen = [transform(picture, draws.streams[i], params) for picture, i in zip(x, rows.tolist(), strict=True)]
        return model.losses(draws.batch(model, torch.stack(seen), rows))

    for trial in ctx.counted(params.trials, "trials"):
        for theta in pool:
            f.restore(theta)
            for _ in range(params.unroll):
                for _ in range(params.pgd_steps):
                    now = x.ascend(loss, params.budget / 10)
                f.train(Pictures(x.pictures(), b.captions), params.advance)
        ctx.log(trial, loss=now.mean())
    return Pictures(x.pictures(), published.captions)


def transform(picture: Tensor, generator: torch.Generator, params: Params) -> Tensor:
    """Blur, enlarge, center-crop and, with probability 1/2, mirror a picture, differentiably.

    Parameters
    ----------
    picture : Tensor, shape (3, h, w)
    generator : torch.Generator
        The picture's own random stream.
    params : Params
        `kernel` and the largest `sigma` of the Gaussian blur in pixels, `zoom` the largest relative enlargement.

    Returns
    -------
    Tensor, shape (3, h, w)
    """
    blur, zoom, mirror = torch.rand(3, generator=generator).tolist()
    height, width = picture.shape[-2:]
    blurred = functional.gaussian_blur(picture, [params.kernel] * 2, [0.1 + blur * (params.sigma - 0.1)] * 2)
    larger = [round(side * (1 + zoom * params.zoom)) for side in (height, width)]
    cut = functional.center_crop(functional.resize(blurred, larger), [height, width])
    return functional.hflip(cut) if mirror < 0.5 else cut
