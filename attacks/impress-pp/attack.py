"""IMPRESS++: noise, IMPRESS, a negative prompt during sampling, and denoising (Hoenig et al. 2025, sec. 4).

The authors published the four steps but no code and few values; those in the manifest are ours. The negative prompt is
the parameter `negative_prompt`, which the engine passes to the sampler.
"""

from __future__ import annotations

from immunebench import Context, LatentDiffusion, Params, Pictures, consistent, denoised, noised


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Add N(0, sigma^2) to every pixel in [0, 1], then make the noisy pictures consistent with the autoencoder."""
    noisy = noised(pictures.pixels, params.sigma, ctx.seeds(len(pictures), "impress-pp"))
    return consistent(model, Pictures(noisy, pictures.captions), params, ctx)


def clean_samples(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Denoise generated pictures, as the model has learned the noise, by non-local means with `sigma_drawn`."""
    return Pictures(denoised(pictures.pixels, params.sigma_drawn), pictures.captions)
