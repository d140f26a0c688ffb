"""IMMA: immunise a model against malicious adaptation (Zheng & Yeh, ECCV 2024, algorithm 1).

As published it is first order: the publisher's gradient is taken at the attacker's current state, not through the
attacker's steps. `unroll` takes it through some of them.
"""

from __future__ import annotations

import numpy as np

from immunebench import Concept, Context, LatentDiffusion, Params, Weights, distance, training, unrolled


def protect_model(model: LatentDiffusion, concepts: tuple[Concept, ...], params: Params, ctx: Context) -> Weights:
    """Alternate `inner_steps` descent steps of a simulated attacker and one ascent step of the publisher.

    max over theta_S of L(theta, phi*)  such that  phi* = argmin over phi of L(theta, phi), where L is the
    denoising loss on the owner's pictures, phi the attacker's parameters and theta_S the UNet tensors
    `params.tensors`. If phi includes theta_S (DreamBooth), both update the same tensors; with several attacks, one is
    chosen at random for each cycle. phi* is the attacker's phi, a constant; with `unroll` = k it is phi after k further
    steps, as a function of theta, which are taken back.
    """
    x = model.prepare(concepts[0].owner)  # Before an attack is attached, as a learned word changes the embeddings.
    public = ctx.public_batches(model, params.batch) if params.retain else None
    attacks = [ctx.attack(name) for name in params.against]
    phis = [attack.attach(model) for attack in attacks]
    theta = model.trainable(model.unet_tensors(params.tensors))
    theta_0 = [tensor.detach().clone() for tensor in theta.values()]
    afresh = params.inner_reset == "each_cycle"
    phi_0 = [{n: v for n, v in phi.snapshot().items() if n not in theta} if afresh else {} for phi in phis]
    descend = [ctx.adamw(p.parameters, lr=params.lr_in or a.params.lr) for a, p in zip(attacks, phis, strict=True)]
    ascend = ctx.adamw(theta, lr=params.lr_out)
    epoch = -(-len(x) // params.batch) if params.phase == "per_epoch" else params.steps
    drawn = np.random.default_rng(ctx.seed_of("attack")).integers(len(phis), size=params.steps)
    cycle, alone, clip = params.inner_steps + 1, len(phis) == 1, params.clip or None
    orders = ctx.orders(len(x), min(params.batch, len(x)))
    for phi in phis:
        phi.enable(alone)

    for k, batch in ctx.steps(params.steps, model, x, batch=params.batch):
        i, inner = int(drawn[k // cycle]), params.inner and k % epoch % cycle < params.inner_steps
        ahead = [] if inner else [model.draw(x, next(orders), ctx.generator) for _ in range(params.unroll)]
        move = training(phis[i].parameters if inner else theta)
        with phis[i].active(stay=alone), move, unrolled(phis[i], descend[i], ahead, clip):
            loss = model.loss(batch)
            if inner:
                descend[i].step(loss, clip=clip)
            else:
                retained = params.retain * model.loss(next(public)) if public else 0.0
                ascend.step(retained - loss, clip=clip)
        if afresh and not inner:
            phis[i].reset(phi_0[i])
            descend[i].reset_moments()
        ctx.log(k, loss=loss, attack=i, shift=distance(list(theta.values()), theta_0))
    return Weights(theta)
