"""LoRA: fine-tune low-rank adapters on the attention projections (Hu et al. 2022, sec. 4)."""

from __future__ import annotations

from immunebench import Context, LatentDiffusion, LowRank, Params, Pictures, training


def attach(model: LatentDiffusion, params: Params, ctx: Context) -> LowRank:
    """Attach what this attack trains to a model: rank-r adapters on to_q, to_k, to_v, to_out.0 of all attentions."""
    return LowRank.attach(model, rank=params.rank, seed=ctx.seed_of("lora"))


def adapt(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> None:
    """Train the adapter on the attacker's captioned pictures; the base stays frozen."""
    adapter = attach(model, params, ctx)
    optimiser = ctx.adamw(adapter.parameters, lr=params.lr, weight_decay=params.weight_decay)
    data = model.prepare(pictures)
    for step, batch in ctx.steps(params.saves[-1], model, data, batch=params.batch):
        with training(adapter.parameters):
            loss = model.loss(batch)
            optimiser.step(loss, clip=1.0)
        ctx.log(step, loss=loss)
        if step + 1 in params.saves:
            ctx.checkpoint(step + 1, adapter)
