"""SimAC: anti-customisation with selected time steps and a feature loss (Wang et al., CVPR 2024, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from immunebench import (
    Batch,
    Concept,
    Context,
    Draws,
    LatentDiffusion,
    Params,
    Perturbation,
    Pictures,
    StageError,
    Surrogate,
    watched,
)


def protect_images(
    model: LatentDiffusion, concept: Concept, published: Pictures, params: Params, ctx: Context
) -> Pictures:
    """Perturb the pictures as ASPL does, at time steps selected for each picture and with a feature loss (section 4).

    In each round f' is a copy of the simulated attacker f that takes N_s steps on the owner's clean pictures, PGD
    ascends L_cond + lambda L_feat against f', and f takes N_s steps on the perturbed pictures.
    """
    a, b = concept.owner, ctx.captioned(published)
    x = Perturbation(model, b.pixels, params.budget)
    draws = Draws(b.captions, ctx.seed_of("noise"))
    draws.steps = select_timesteps(model, b, draws, params, ctx)
    f = Surrogate(model, ctx.attack(params.against[0]), ctx, lr=params.lr)

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        return feature_loss(model, draws.batch(model, images, rows), x.clean[rows.to(images.device)], params)

    for k in ctx.counted(params.rounds, "rounds"):
        with f.copied():  # f' <- copy(f)
            f.train(a, params.train_steps)
            for _ in range(params.pgd_steps):
                now = x.ascend(loss, params.alpha)
        if k + 1 < params.rounds:
            f.train(Pictures(x.pictures(), b.captions), params.train_steps)
        ctx.log(k, loss=now.mean())
    return Pictures(x.pictures(), published.captions)


def select_timesteps(model: LatentDiffusion, b: Pictures, draws: Draws, params: Params, ctx: Context) -> list[Tensor]:
    """Remove, for each picture, the time steps at which the loss hardly depends on the pixels (algorithm 1).

    While more than `keep` time steps remain: draw `candidates` of them and score each by the sum of |dL / dx|; remove
    the steps within `width` of the lowest; take a PGD step on a temporary perturbation at the highest.
    """
    if 2 * params.width > params.keep:
        raise StageError("error", f"width must be at most half of keep = {params.keep}, not {params.width}")
    x = Perturbation(model, b.pixels, params.budget)
    rows, every = torch.arange(len(b)), torch.arange(model.noise_scheduler.config.num_train_timesteps)
    left = torch.ones(len(rows), len(every), dtype=torch.bool)
    for _ in ctx.counted(params.deletions, "time steps"):
        busy = left.sum(dim=1) > params.keep
        if not busy.any():
            break
        draws.steps = [every[own] for own in left]
        t = torch.stack([draws.timesteps(model, rows) for _ in range(params.candidates)])
        scores = torch.stack([x.gradient(at(model, draws, own))[0].abs().sum(dim=(1, 2, 3)).cpu() for own in t])
        lowest, highest = (t.gather(0, of[None])[0] for of in (scores.argmin(dim=0), scores.argmax(dim=0)))
        # At the ends the window is shifted inwards, so that every deletion has the same width.
        middle = lowest.clamp(params.width, len(every) - params.width)[:, None]
        left &= ~((every >= middle - params.width) & (every < middle + params.width) & busy[:, None])
        x.ascend(at(model, draws, highest), params.alpha)
    return [every[own] for own in left]


def at(model: LatentDiffusion, draws: Draws, t: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function for L_cond at given time steps, one per picture."""
    return lambda x, rows: model.losses(draws.batch(model, x, rows, t[rows]))


def feature_loss(model: LatentDiffusion, batch: Batch, clean: Tensor, params: Params) -> Tensor:
    """Return L_cond + lambda L_feat, shape (b,).

    L_feat is the mean over the residual blocks of the last up-block of the mean squared difference between their
    outputs for the picture and for its clean original (`clean`, shape (b, 3, h, w), in [-1, 1]), at the same noise and
    time step. With lambda = 0 this is the released code, where the term is added without a gradient.
    """
    blocks = model.unet.up_blocks[-1].resnets
    with watched(blocks) as features:
        loss = model.losses(batch)
    if not params.feature_weight:
        return loss
    with torch.no_grad(), watched(blocks) as original:
        model.losses(replace(batch, latents=model.latents(clean)))
    # In fp32, as squares of small differences underflow in fp16.
    mses = [(own.float() - of.float()).square().flatten(1).mean(1) for own, of in zip(features, original, strict=True)]
    return loss + params.feature_weight * torch.stack(mses).mean(dim=0)
