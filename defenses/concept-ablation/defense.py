"""Concept Ablation: make the name of a concept draw what an anchor's draws (Kumari et al. 2023, sec. 3)."""

from __future__ import annotations

import torch
from torch.nn.functional import mse_loss

from immunebench import Concept, Context, LatentDiffusion, Params, Weights, training


def protect_model(model: LatentDiffusion, concepts: tuple[Concept, ...], params: Params, ctx: Context) -> Weights:
    """Descend |eps_theta(x_t, c*, t) - sg eps_theta(x_t, c, t)|^2 on pictures x of the anchor prompt c (eq. 5).

    c* is the owner's caption, which names the concept, and sg stops the gradient: the teacher is the model itself at
    the current step, as in the authors' code. Form `noise` has the noise of x_t in the teacher's place (eq. 6), so
    that c* is learned as a caption of x.
    """
    concept = concepts[0]
    anchors = params.anchors_style if concept.noun == "style" else params.anchors
    prompts = [anchors[i % len(anchors)] for i in range(params.pictures)]
    drawn = model.sample(prompts, ctx.seeds(len(prompts), "anchor"))
    x = model.prepare(drawn)
    target = model.condition([concept.caption] * params.batch)
    keys_and_values = {n: p for n, p in model.unet_tensors("cross-attention").items() if ".to_k." in n or ".to_v." in n}
    theta = model.trainable(keys_and_values)
    optimiser = ctx.adamw(theta, lr=params.lr_style if concept.noun == "style" else params.lr)

    for step, batch in ctx.steps(params.steps, model, x, batch=params.batch, what="ablating", resumes=True):
        x_t, t = model.noised(batch), batch.timesteps
        with torch.no_grad():
            aim = model.predict(x_t, t, batch.condition) if params.form == "model" else batch.noise
        with training(theta):
            loss = mse_loss(model.predict(x_t, t, target[: len(t)]), aim)
            optimiser.step(loss, clip=None)
        ctx.log(step, loss=loss)
    return Weights(theta)
