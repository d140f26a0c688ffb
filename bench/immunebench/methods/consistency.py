"""IMPRESS's optimisation, which several purifiers run: a clean picture survives the autoencoder."""

from __future__ import annotations

import numpy as np
import torch

from immunebench.core.types import Params, Pictures
from immunebench.methods.context import Context
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.pixels import to_pixels


def consistent(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Make every picture consistent with its round trip, near to what was published (Cao et al. 2023, sec. 4):

    min over x of  |x - D(E(x))|^2 + alpha max(LPIPS(x, x_adv) - epsilon, 0)

    by Adam from x_adv + N(0, start^2), pictures in [-1, 1], the rate falling to `lr_last` along half a cosine. The
    square is a mean over the picture and E the mean of the posterior, so that nothing is random but the start.

    Parameters
    ----------
    model : LatentDiffusion
    pictures : Pictures
        x_adv.
    params : Params
        `steps`, `lr`, `lr_last`, `alpha`, `epsilon`, `start`.
    ctx : Context
        Of an entry that asks for the perceptual distance.
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
            # A sum, for no picture's step may depend on how many others there are.
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
