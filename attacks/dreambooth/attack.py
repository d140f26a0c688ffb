"""DreamBooth: fine-tune the network on a subject while it keeps its class (Ruiz et al. 2023, sec. 3)."""

from __future__ import annotations

from immunebench import Adapter, Context, Dense, LatentDiffusion, LowRank, Params, Pictures, training


def attach(model: LatentDiffusion, params: Params, ctx: Context) -> Adapter:
    """Put what this attack trains on a model: its networks themselves, or low-rank adapters of rank `rank`."""
    if params.train == "low-rank":
        return LowRank.attach(model, rank=params.rank, seed=ctx.seed_of("lora"))
    return Dense.attach(model, text=params.text_encoder)


def adapt(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> None:
    """Descend L(x, c) + lambda L(x_pr, c_pr): the pictures, and class pictures that the base drew (eq. 2)."""
    prior = ctx.prior_batches(model, params.prior_batch) if params.prior_weight else None
    data = model.prepare(pictures)
    phi = attach(model, params, ctx)
    optimiser = ctx.adamw(phi.parameters, lr=params.lr, weight_decay=params.weight_decay)
    for step, batch in ctx.steps(params.saves[-1], model, data, batch=params.batch):
        optimiser.set_rate(1 - params.decay * step / params.saves[-1])
        with training(phi.parameters):
            loss = model.loss(batch)
            kept = model.loss(next(prior)) if prior else 0.0
            optimiser.step(loss + params.prior_weight * kept, clip=1.0)
        ctx.log(step, loss=loss, prior=kept)
        if step + 1 in params.saves:
            ctx.checkpoint(step + 1, phi)
