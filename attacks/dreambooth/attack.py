"""DreamBooth: fine-tune the network on a subject while preserving its class prior (Ruiz et al. 2023, sec. 3)."""

from __future__ import annotations

from immunebench import Adapter, Context, Dense, LatentDiffusion, LowRank, Params, Pictures, training


def attach(model: LatentDiffusion, params: Params, ctx: Context) -> Adapter:
    """Attach what this attack trains to a model: the networks themselves, or low-rank adapters of rank `rank`."""
    if params.train == "low-rank":
        return LowRank.attach(model, rank=params.rank, seed=ctx.seed_of("lora"))
    return Dense.attach(model, text=params.text_encoder)


def adapt(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> None:
    """Descend L(x, c) + lambda L(x_pr, c_pr), with class pictures x_pr that the base generated (eq. 2)."""
    prior = ctx.prior_batches(model, params.prior_batch) if params.prior_weight else None
    data = model.prepare(pictures)
    phi = attach(model, params, ctx)
    optimiser = ctx.adamw(phi.parameters, lr=params.lr, weight_decay=params.weight_decay)
    for step, batch in ctx.steps(params.saves[-1], model, data, batch=params.batch):
        optimiser.set_lr_factor(1 - params.decay * step / params.saves[-1])
        with training(phi.parameters):
            loss = model.loss(batch)
            prior_loss = model.loss(next(prior)) if prior else 0.0
            optimiser.step(loss + params.prior_weight * prior_loss, clip=1.0)
        ctx.log(step, loss=loss, prior=prior_loss)
        if step + 1 in params.saves:
            ctx.checkpoint(step + 1, phi)
