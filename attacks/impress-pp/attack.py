"""IMPRESS++: noise, IMPRESS, a negative prompt while pictures are drawn, and denoising (Hoenig et al. 2025, sec. 4).

The authors published the four parts, no code and few values: those of the manifest are ours. The negative prompt is
the parameter `negative_prompt`, which the engine gives to the sampler.
"""

from __future__ import annotations

from immunebench import Context, LatentDiffusion, Params, Pictures, consistent, denoised, noised


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Drown the perturbation in N(0, sigma^2), then make the noisy pictures consistent with the autoencoder."""
    noisy = noised(pictures.pixels, params.sigma, ctx.seeds(len(pictures), "impress-pp"))
    return consistent(model, Pictures(noisy, pictures.captions), params, ctx)


def clean_samples(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Take what noise the model has learnt from the pictures that it draws, by non-local means at `sigma_drawn`."""
    return Pictures(denoised(pictures.pixels, params.sigma_drawn), pictures.captions)
