"""IMMA: immunise a model against malicious adaptation (Zheng & Yeh, ECCV 2024, algorithm 1).

First order: the publisher ascends at the attacker's present state and differentiates through no step.
"""

from __future__ import annotations

from immunebench import Concept, Context, LatentDiffusion, Params, Weights
from immunebench.context import distance
from immunebench.diffusion import training


def protect_model(model: LatentDiffusion, concepts: tuple[Concept, ...], params: Params, ctx: Context) -> Weights:
    """Alternate one descent step of the simulated attacker and one ascent step of the publisher.

    max over theta_S of L(theta, phi*)  such that  phi* = argmin over phi of L(theta, phi), where L is the
    denoising loss on the owner's pictures, phi the adapter and theta_S the UNet tensors `params.tensors`.
    """
    phi = ctx.attack(params.against).attach(model)
    theta = model.trainable(model.unet_tensors(params.tensors))
    phi_0, theta_0 = phi.snapshot(), [tensor.detach().clone() for tensor in theta.values()]
    descend = ctx.adamw(phi.parameters, lr=params.lr_in)
    ascend = ctx.adamw(theta, lr=params.lr_out)
    x = model.prepare(concepts[0].owner)
    public = ctx.public_batches(model, params.batch) if params.retain else None
    epoch = -(-len(x) // params.batch) if params.phase == "per_epoch" else params.steps

    for k, batch in ctx.steps(params.steps, model, x, batch=params.batch):
        if params.inner and k % epoch % 2 == 0:
            with training(phi.parameters):
                loss = model.loss(batch)
                descend.step(loss, clip=1.0)
        else:
            with training(theta):
                loss = model.loss(batch)
                kept = params.retain * model.loss(next(public)) if public else 0.0
                ascend.step(kept - loss, clip=1.0)
            if params.inner_reset == "each_cycle":
                phi.reset(phi_0)
                descend.forget()
        ctx.log(k, loss=loss, shift=distance(list(theta.values()), theta_0))
    return Weights(theta)
