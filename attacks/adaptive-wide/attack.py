"""LoRA by an attacker who adapts: on more layers, under another caption, on pictures in another rendering."""

from __future__ import annotations

import numpy as np
from PIL import Image

from immunebench import Context, LatentDiffusion, LowRank, Params, Pictures, training


def attach(model: LatentDiffusion, params: Params, ctx: Context) -> LowRank:
    """Attach rank-r adapters to every layer of the UNet whose name ends with one of `targets`."""
    return LowRank.attach(model, rank=params.rank, seed=ctx.seed_of("lora"), targets=params.targets)


def adapt(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> None:
    """Train the adapter as LoRA does, on what the attacker made of the pictures."""
    adapter = attach(model, params, ctx)
    optimiser = ctx.adamw(adapter.parameters, lr=params.lr, weight_decay=params.weight_decay)
    data = model.prepare(rendered(pictures, params, ctx))
    for step, batch in ctx.steps(params.saves[-1], model, data, batch=params.batch, resumes=True):
        with training(adapter.parameters):
            loss = model.loss(batch)
            optimiser.step(loss, clip=1.0)
        ctx.log(step, loss=loss)
        if step + 1 in params.saves:
            ctx.checkpoint(step + 1, adapter)


def rendered(pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Return the pictures in `colours` colours each, if not 0, and all with the caption, if there is one."""
    if params.colours:
        few = [np.asarray(Image.fromarray(x).quantize(params.colours).convert("RGB")) for x in pictures.pixels]
        pictures = Pictures(np.stack(few), pictures.captions)
    words = ctx.token if ctx.token == ctx.noun else f"{ctx.token} {ctx.noun}"
    return pictures.captioned(params.caption.replace("{subject}", words)) if params.caption else pictures
