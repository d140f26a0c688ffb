"""DiffPure in latent space: add some noise to the pictures and denoise them with the base.

The idea is from Nie et al. (2022), its form as image-to-image with a text-to-image model from Hoenig et al. (2025).
"""

from __future__ import annotations

from immunebench import Context, LatentDiffusion, Params, Pictures, recaption


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Apply the base's image-to-image at a low `strength`, conditioned on captions of the content or on no text."""
    asked = recaption(pictures, params.prompt, token=ctx.noun, noun=ctx.noun)
    cleaned = model.image_to_image(
        asked,
        [ctx.seed_of("diffpure", i) for i in range(len(pictures))],
        strength=params.strength,
        steps=params.sampling_steps,
        guidance=params.guidance,
        negative=params.negative,
        progress=lambda done: ctx.report("cleaning", done, len(pictures)),
    )
    return Pictures(cleaned.pixels, pictures.captions)
