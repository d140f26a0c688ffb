"""IMPRESS: a clean picture survives the autoencoder, a perturbed one does not (Cao et al., NeurIPS 2023)."""

from __future__ import annotations

from immunebench import Context, LatentDiffusion, Params, Pictures, consistent


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Make every picture consistent with its round trip through the autoencoder, near to what was published."""
    return consistent(model, pictures, params, ctx)
