"""LoRA by an attacker who looks at its training loss: scales are evened out first, then the rate is picked."""

from __future__ import annotations

import math
from collections.abc import Sequence

from immunebench import Batch, Context, LatentDiffusion, LowRank, Params, Pictures, balance, training

#: Draws that every rate is judged on, none of which it was trained on.
HELD = 8


def attach(model: LatentDiffusion, params: Params, ctx: Context) -> LowRank:
    """Put what this attack trains on a model: rank r on to_q, to_k, to_v, to_out.0 of all attentions."""
    return LowRank.attach(model, rank=params.rank, seed=ctx.seed_of("lora"))


def adapt(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> None:
    """Train the adapter at the rate that lowers the loss most in `probe_steps` steps."""
    scales = balance(model.unet)
    adapter = attach(model, params, ctx)
    start = adapter.snapshot()
    data = model.prepare(pictures)
    drawn = [b for _, b in ctx.steps(params.probe_steps + HELD, model, data, batch=params.batch, what="drawing")]
    losses = {}
    for rate in params.rates:
        adapter.reset(start)
        losses[params.lr * rate] = probed(model, adapter, params.lr * rate, drawn, params, ctx)
    adapter.reset(start)
    lr = min(losses, key=lambda rate: losses[rate])
    optimiser = ctx.adamw(adapter.parameters, lr=lr, weight_decay=params.weight_decay)
    for step, batch in ctx.steps(params.saves[-1], model, data, batch=params.batch):
        with training(adapter.parameters):
            loss = model.loss(batch)
            optimiser.step(loss, clip=1.0)
        ctx.log(step, loss=loss, lr=lr)
        if step + 1 in params.saves:
            with adapter.unscaled(scales):
                ctx.checkpoint(step + 1, adapter)


def probed(
    model: LatentDiffusion, adapter: LowRank, lr: float, drawn: Sequence[Batch], params: Params, ctx: Context
) -> float:
    """Train a little at one rate; return the mean loss on the held-out draws, infinite where it is no number."""
    optimiser = ctx.adamw(adapter.parameters, lr=lr, weight_decay=params.weight_decay)
    for batch in drawn[HELD:]:
        with training(adapter.parameters):
            optimiser.step(model.loss(batch), clip=1.0)
    loss = sum(float(model.loss(batch).detach()) for batch in drawn[:HELD]) / HELD
    return loss if math.isfinite(loss) else math.inf
