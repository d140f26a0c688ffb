"""ESD: erase a concept by guiding the model away from it (Gandikota et al. 2023, sec. 4)."""

from __future__ import annotations

import torch
from torch.nn.functional import mse_loss

from immunebench import Concept, Context, LatentDiffusion, Params, Weights, training


def protect_model(model: LatentDiffusion, concepts: tuple[Concept, ...], params: Params, ctx: Context) -> Weights:
    """Train eps_theta(z_t, c, t) towards eps_0(z_t, t) - eta (eps_0(z_t, c, t) - eps_0(z_t, t)) (eq. 5-6).

    Form `paper` samples z_t with the edited model, at a random t in the bin of a sampling step. Form `port`, the
    authors' later code, samples it with the base at the sampler's own t, and has eps_0(z_t, c, t) as the first term of
    the target instead of eps_0(z_t, t).
    """
    eps_0 = model.frozen_copy()
    theta = model.trainable(model.unet_tensors(params.tensors))
    rate = params.lr_style if concepts[0].noun == "style" else params.lr
    optimiser = ctx.adamw(theta, lr=rate, weight_decay=0.0)
    captions = model.condition(concepts[0].owner.captions)
    unconditional = model.condition([""] * params.batch)
    sampler = model if params.form == "paper" else eps_0
    bin_width = model.noise_scheduler.config.num_train_timesteps // params.sampling_steps

    for step in ctx.counted(params.steps, "erasing"):
        c = captions[ctx.rng.integers(len(captions), size=params.batch)]
        left = int(ctx.rng.integers(params.sampling_steps))
        z, t = sampler.sample_partially(c, left, ctx.generator, steps=params.sampling_steps, guidance=params.guidance)
        if params.form == "paper":
            t = left * bin_width + int(ctx.rng.integers(bin_width))
        when = torch.full((params.batch,), t, device=model.device)
        with torch.no_grad():
            e_0, e_c = eps_0.predict(z, when, unconditional), eps_0.predict(z, when, c)
        start = e_0 if params.form == "paper" else e_c
        with training(theta):
            loss = mse_loss(model.predict(z, when, c), start - params.eta * (e_c - e_0))
            optimiser.step(loss, clip=None)
        ctx.log(step, loss=loss)
    return Weights(theta)
