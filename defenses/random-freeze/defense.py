"""Freezing without learning: the control of learned masks at an equal share of frozen tensors."""

from __future__ import annotations

import numpy as np

from immunebench import Concept, Context, LatentDiffusion, Mask, Params


def freeze(model: LatentDiffusion, concepts: tuple[Concept, ...], params: Params, ctx: Context) -> Mask:
    """Freeze rho N of the N tensors: drawn from the stage's seed, or the largest ones."""
    sizes = {name: tensor.numel() for name, tensor in model.unet_tensors("all").items()}
    largest = np.argsort([-size for size in sizes.values()], kind="stable")
    order = largest if params.pick == "largest" else ctx.rng.permutation(len(sizes))
    count = min(round(params.rho * len(sizes)), len(sizes) - 1)  # One always stays free.
    return Mask.of(sizes, [list(sizes)[i] for i in order[:count]])
