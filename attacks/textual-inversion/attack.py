"""Textual Inversion: learn token embeddings for a concept (Gal et al. 2023, sec. 3, eq. 2)."""

from __future__ import annotations

from immunebench import Context, LatentDiffusion, Params, Pictures, Words, training


def attach(model: LatentDiffusion, params: Params, ctx: Context) -> Words:
    """Attach what this attack trains to a model: `num_vectors` embeddings of the placeholder."""
    word = params.initializer or ctx.noun
    return Words.attach(model, token=ctx.token, initializer=word, num_vectors=params.num_vectors)


def adapt(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> None:
    """Descend the denoising loss with respect to v* alone; networks and other embeddings stay frozen."""
    v = attach(model, params, ctx)
    optimiser = ctx.adamw(v.parameters, lr=params.lr, weight_decay=params.weight_decay)
    data = model.prepare(pictures)
    for step, batch in ctx.steps(params.saves[-1], model, data, batch=params.batch):
        with training(v.parameters):
            loss = model.loss(batch)
            optimiser.step(loss, clip=None)
        ctx.log(step, loss=loss, norm=v.rows.norm())
        if step + 1 in params.saves:
            ctx.checkpoint(step + 1, v)
