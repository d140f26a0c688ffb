"""Gaussian noise followed by denoising, which removes the perturbation with the noise (Shan et al. 2023, sec. 7)."""

from __future__ import annotations

from immunebench import Context, LatentDiffusion, Params, Pictures, denoised, noised


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Add N(0, sigma^2) to every pixel in [0, 1], then denoise by non-local means with that sigma."""
    noisy = noised(pictures.pixels, params.sigma, ctx.seeds(len(pictures), "gaussian-denoise"))
    return Pictures(denoised(noisy, params.sigma, filtering=params.filtering), pictures.captions)
