"""Destroyed weights: Gaussian noise on the tensors of the UNet, a control for the utility gate."""

from __future__ import annotations

import torch

from immunebench import Concept, Context, LatentDiffusion, Params, Weights


def protect_model(model: LatentDiffusion, concepts: tuple[Concept, ...], params: Params, ctx: Context) -> Weights:
    """Add N(0, (strength * std(w))^2) to every selected tensor w."""
    released = {}
    for name, parameter in model.unet_tensors(params.tensors).items():
        w = parameter.detach().float().cpu()
        noise = torch.randn(w.shape, generator=ctx.generator)
        released[name] = w + params.strength * w.std(correction=0) * noise
    return Weights(released)
