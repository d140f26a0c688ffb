"""DiffPure in a latent space: noise the pictures a little and let the base denoise them.

The idea is Nie et al.'s (2022); the form, image-to-image by a text-to-image model, Hoenig et al.'s (2025).
"""

from __future__ import annotations

from immunebench import Context, LatentDiffusion, Params, Pictures, recaption


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Run the base's image-to-image at a low `strength`, told what each picture shows, in a caption or in nothing."""
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
