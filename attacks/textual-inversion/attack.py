"""Textual Inversion: find the word that the pictures are worth (Gal et al. 2023, sec. 3, eq. 2)."""

from __future__ import annotations

from immunebench import Context, LatentDiffusion, Params, Pictures, Words, training


def attach(model: LatentDiffusion, params: Params, ctx: Context) -> Words:
    """Let the placeholder mean `num_vectors` new vectors, copies of the initializer's."""
    word = params.initializer or ctx.noun
    return Words.attach(model, token=ctx.token, initializer=word, num_vectors=params.num_vectors)


def adapt(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> None:
    """Descend the denoising loss over v* alone; networks and all other words stay as they are."""
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
