"""IMPRESS: purification by consistency, as the autoencoder reconstructs clean pictures better (Cao et al. 2023)."""

from __future__ import annotations

from immunebench import Context, LatentDiffusion, Params, Pictures, consistent


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Make every picture consistent with its reconstruction by the autoencoder, and similar to the published one."""
    return consistent(model, pictures, params, ctx)
