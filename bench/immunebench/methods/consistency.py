"""IMPRESS's optimisation, used by several purifiers: clean pictures are reconstructed well by the autoencoder."""

from __future__ import annotations

import numpy as np
import torch

from immunebench.core.types import Params, Pictures
from immunebench.methods.context import Context
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.pixels import to_pixels


def consistent(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Make pictures consistent with their reconstruction and similar to the published ones (Cao et al. 2023, sec. 4):

    min over x of  |x - D(E(x))|^2 + alpha max(LPIPS(x, x_adv) - epsilon, 0)

    by Adam from x_adv + N(0, start^2), pictures in [-1, 1], with a cosine schedule of the learning rate down to
    `lr_last`. The squared error is averaged over the picture, and E is the mean of the posterior, so that only the
    start is random.

    Parameters
    ----------
    model : LatentDiffusion
    pictures : Pictures
        x_adv.
    params : Params
        `steps`, `lr`, `lr_last`, `alpha`, `epsilon`, `start`.
    ctx : Context
        Of an entry whose manifest needs the perceptual distance.
    """
    cleaned = []
    for rows in ctx.micro_batches(len(pictures)):
        x_adv = model.to_images(pictures.pixels[rows])
        draws = [torch.Generator().manual_seed(ctx.seed_of("start", i)) for i in rows]
        noise = torch.stack([torch.randn(x_adv.shape[1:], generator=draw) for draw in draws]).to(x_adv)
        x = (x_adv + params.start * noise).clamp(-1, 1).requires_grad_()
        adam = torch.optim.Adam([x], lr=params.lr, eps=1e-5)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, params.steps, eta_min=params.lr_last)
        for step in ctx.counted(params.steps, f"pictures {rows[0] + 1} to {rows[-1] + 1}"):
            trip = (x - model.images(model.latents(x))).square().mean((1, 2, 3))
            away = ctx.perceptual(x, x_adv)
            # A sum, so that a picture's step does not depend on the number of pictures.
            loss = (trip + params.alpha * (away - params.epsilon).clamp(min=0)).sum()
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
            rate.step()
            with torch.no_grad():
                x.clamp_(-1, 1)
            ctx.log(step, first=int(rows[0]), trip=trip.mean(), perceptual=away.mean())
        cleaned.append(to_pixels(x))
    return Pictures(np.concatenate(cleaned), pictures.captions)
