"""APDM: protect a subject along the path on which a personalisation would learn it (Lee et al. 2025, APDM).

arXiv 2511.01307: learning to protect (L2P) with direct protective optimisation (DPO), written from its equations.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from immunebench import Batch, Concept, Context, LatentDiffusion, Params, Weights, distance, training


def protect_model(model: LatentDiffusion, concepts: tuple[Concept, ...], params: Params, ctx: Context) -> Weights:
    """Step theta along the sum of the protection's gradients on the path of a simulated DreamBooth.

    A copy w of theta takes `inner_steps` steps of L_DB; at each of its points the gradient of L_PPL + DPO is taken and
    summed up. Form `code` is the release: there the gradient of L_DB was never cleared, so it is summed up as well.
    """
    x = model.prepare(concepts[0].owner)
    pairs = model.prepare(ctx.class_pictures.captioned(concepts[0].caption))
    prior = model.prepare(ctx.class_pictures)
    size = min(params.batch, len(x), len(prior))
    orders = [ctx.orders(len(data), size) for data in (x, prior, x, pairs, prior)]
    ref = model.frozen_copy()
    theta = model.trainable(model.unet_tensors("all"))
    first = [tensor.detach().clone() for tensor in theta.values()]
    protect = ctx.adamw(theta, lr=params.lr)

    def along_the_path() -> tuple[list[Tensor], Tensor]:
        start = [tensor.detach().clone() for tensor in theta.values()]
        personalise = ctx.adamw(theta, lr=params.lr_in or params.lr)
        total = [torch.zeros_like(tensor) for tensor in start]
        for _ in range(params.inner_steps):
            subject, kept, minus, plus, kept_too = (
                model.draw(data, next(order), ctx.generator)
                for data, order in zip((x, prior, x, pairs, prior), orders, strict=True)
            )
            kept = replace(kept, timesteps=subject.timesteps)
            plus = replace(plus, noise=minus.noise, timesteps=minus.timesteps)
            with training(theta):
                g_db = personalise.gradient(model.loss(subject) + params.prior_weight * model.loss(kept))
                personalise.descend(g_db, clip=None)
                protection = params.prior_weight * model.loss(kept_too) + dpo(model, ref, minus, plus, params.beta)
                g_pr = personalise.gradient(protection)
            torch._foreach_add_(total, g_pr)
            if params.form == "code":
                torch._foreach_add_(total, g_db)
        with torch.no_grad():
            torch._foreach_copy_(list(theta.values()), start)
        return total, protection.detach()

    for step in ctx.counted(params.steps, "protecting", resumes=True):
        total, protection = along_the_path()
        protect.descend(total, clip=None)
        ctx.log(step, protection=protection, shift=distance(list(theta.values()), first))
    return Weights(theta)


def dpo(model: LatentDiffusion, ref: LatentDiffusion, minus: Batch, plus: Batch, beta: float) -> Tensor:
    """-log sigmoid(-beta d), with d for each element the pair's rise of error over that of the subject; the mean.

    Both pictures have the same noise, time step and prompt, which names the subject. Lower where the subject x- is
    denoised worse than by the base `ref`, and its pair x+, another member of the class, better.
    """
    with torch.no_grad():
        before_plus, before_minus = ref.errors(plus), ref.errors(minus)
    d = (model.errors(plus) - before_plus) - (model.errors(minus) - before_minus)
    return -logsigmoid(-beta * d).mean()
