"""Anti-DreamBooth: perturbations against DreamBooth fine-tuning (Van Le et al., ICCV 2023, section 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from immunebench import (
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
    """Perturb B by alternating surrogate and perturbation learning (ASPL, section 4.2).

    max over |delta| <= eta of L_cond(theta*; x + delta), where theta* = argmin over theta of L_db(theta; x + delta);
    A is the owner's clean pictures, B the published ones. One round with N_s = 1000 is FSMG: f' is then the fixed
    surrogate, trained on A alone. In an ensemble, every round uses the surrogates one after another.
    """
    a, b = concept.owner, ctx.captioned(published)
    x = Perturbation(model, b.pixels, params.budget)
    draws = Draws(b.captions, ctx.seed_of("noise"))
    attack = ctx.attack(params.against[0])
    fs = [Surrogate(m, attack, ctx, lr=params.lr, weights=params.weights) for m in ctx.surrogates(model)]
    ascended = [objective(f.model, draws, target(f.model, ctx) if params.targeted else None) for f in fs]
    for k in ctx.counted(params.rounds, "rounds"):
        for f, loss in zip(fs, ascended, strict=True):
            with f.copied():  # f' <- copy(f)
                f.train(a, params.train_steps)
                for _ in range(params.pgd_steps):
                    now = x.ascend(loss, params.alpha)
            if k + 1 < params.rounds:
                f.train(Pictures(x.pictures(), b.captions), params.train_steps)
        ctx.log(k, loss=now.mean())
    return Pictures(x.pictures(), published.captions)


def objective(f: LatentDiffusion, draws: Draws, z_target: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function for L_cond, shape (b,); with a target latent z*, L_cond - mean |mu - z*_{t-1}|^2.

    mu = (z_t - (1 - alpha_t) / sqrt(1 - abar_t) eps) / sqrt(alpha_t) is the mean of p(z_{t-1} | z_t) (Ho et al. 2020,
    eq. 11; the reference samples it), eps the prediction, and z*_{t-1} = sqrt(abar_{t-1}) z* + sqrt(1 - abar_{t-1})
    epsilon with the noise epsilon of z_t. The value is maximised: denoising the pictures fails, and leads towards z*.
    """

    def loss(x: Tensor, rows: Tensor) -> Tensor:
        batch = draws.batch(f, x, rows)
        with watched([f.unet.conv_out]) as seen:
            l_cond = f.losses(batch)
        if z_target is None:
            return l_cond
        t, abars = batch.timesteps, f.noise_scheduler.alphas_cumprod.to(z_target)
        abar, before = (a.view(-1, 1, 1, 1) for a in (abars[t], torch.where(t > 0, abars[t - 1], 1.0)))
        alpha = abar / before
        z_t, eps = abar.sqrt() * batch.latents + (1 - abar).sqrt() * batch.noise, seen[0].to(z_target)
        if f.noise_scheduler.config.prediction_type == "v_prediction":
            eps = abar.sqrt() * eps + (1 - abar).sqrt() * z_t
        mu = (z_t - (1 - alpha) / (1 - abar).sqrt() * eps) / alpha.sqrt()
        wanted = before.sqrt() * z_target + (1 - before).sqrt() * batch.noise
        return l_cond - ((mu - wanted) ** 2).mean(dim=(1, 2, 3))

    return loss


def target(f: LatentDiffusion, ctx: Context) -> Tensor:
    """Return z*, shape (1, 4, h, w): the latent of a public picture, the same one for every surrogate."""
    if ctx.public is None:
        raise StageError("error", "the stage has no public pictures, one of which is the target")
    chosen = ctx.seed_of("target") % len(ctx.public)
    return f.encode(ctx.public.pixels[chosen : chosen + 1])
