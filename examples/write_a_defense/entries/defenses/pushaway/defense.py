"""Push away: raise the denoising loss on what is to be protected, keep it low on everything else.

A worked example, after no paper: gradient ascent with a retain term. An attacker undoes it quickly.
"""

from __future__ import annotations

from immunebench import Concept, Context, LatentDiffusion, Params, Weights, training


def protect_model(model: LatentDiffusion, concepts: tuple[Concept, ...], params: Params, ctx: Context) -> Weights:
    """Descend `keep * loss(innocent pictures) - loss(owner's pictures)` over the chosen tensors of the UNet."""
    theta = model.trainable(model.unet_tensors(params.tensors))
    optimiser = ctx.adamw(theta, lr=params.lr)
    owner = model.prepare(concepts[0].owner)  # All that a defense sees of the concept.
    innocent = ctx.public_batches(model, params.batch)
    for step, batch in ctx.steps(params.steps, model, owner, batch=params.batch):
        with training(theta):
            away, keep = model.loss(batch), model.loss(next(innocent))
            optimiser.step(params.keep * keep - away, clip=1.0)
        ctx.log(step, away=away, keep=keep)
    return Weights(theta)
