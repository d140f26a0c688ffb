"""Similarity metrics of published papers: CLIP, DINO and LPIPS to a reference, each with two kinds of preprocessing.

`..._similarity` uses the preprocessing of each network's authors. `..._similarity_legacy` reproduces that of IMMA's
released evaluation (Zheng and Yeh 2024, eval/eval.py) including its flaws, without which its figures cannot be
reproduced. None needs a judge, so suites on any base may use them. The mean over pictures equals the mean over all
pairs with the reference, on which the published gap ratios are based.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from immunebench.core.errors import UsageError
from immunebench.metrics import networks

if TYPE_CHECKING:
    from torch import Tensor

    from immunebench.metrics.table import Floats, Pixels

#: IMMA first downscales every picture to this side, and upscales it again for CLIP and DINO.
_LEGACY_SIDE = 64
_INPUT = 224
#: CLIP's mean and standard deviation, which the legacy recipe uses for DINO too.
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_similarity(pixels: Pixels, reference: Pixels) -> Floats:
    """Return CLIP-I (Ruiz et al. 2023, section 4.3): mean cosine of CLIP ViT-B/32 to the reference, (n,), -1 to 1."""
    return _mean_cosine(networks.clip(asked_by="metric clip_similarity"), pixels, reference)


def clip_similarity_legacy(pixels: Pixels, reference: Pixels) -> Floats:
    """Return `clip_similarity` on :func:`legacy_input`, (n,)."""
    return _mean_cosine(networks.clip(asked_by="metric clip_similarity_legacy"), pixels, reference, legacy_input)


def dino_similarity(pixels: Pixels, reference: Pixels) -> Floats:
    """Return DINO (Ruiz et al. 2023, section 4.3): mean cosine of DINO ViT-S/16 to the reference, (n,), -1 to 1."""
    return _mean_cosine(networks.dino(asked_by="metric dino_similarity"), pixels, reference)


def dino_similarity_legacy(pixels: Pixels, reference: Pixels) -> Floats:
    """Return `dino_similarity` on :func:`legacy_input`, with CLIP's mean and standard deviation, (n,)."""
    return _mean_cosine(networks.dino(asked_by="metric dino_similarity_legacy"), pixels, reference, legacy_input)


def lpips_similarity(pixels: Pixels, reference: Pixels) -> Floats:
    """Return 1 - the mean LPIPS (AlexNet) to the reference at native size, (n,), at most 1.

    Raises
    ------
    UsageError
        Pictures and reference differ in size.
    """
    if pixels.shape[1:] != reference.shape[1:]:
        raise UsageError(
            f"LPIPS is not defined between pictures of {_size(pixels)} and a reference of {_size(reference)}",
            field="metric lpips_similarity",
        )
    from immunebench.model.pixels import to_tensor

    return _one_minus_lpips(to_tensor(pixels), to_tensor(reference))


def lpips_similarity_legacy(pixels: Pixels, reference: Pixels) -> Floats:
    """Return 1 - the mean LPIPS to the reference for 64 x 64 pictures in [0, 1], where it expects [-1, 1], (n,).

    The released script pairs pictures by index and so requires sets of equal size; a public reproduction of the paper's
    figures uses all pairs, as here.
    """
    return _one_minus_lpips(shrunk(pixels), shrunk(reference))


def shrunk(pixels: Pixels) -> Tensor:
    """Resize to float32 (n, 3, 64, 64) in [0, 1] by Pillow's bilinear filter, ignoring the aspect ratio."""
    import torch
    from PIL import Image

    size = (_LEGACY_SIDE, _LEGACY_SIDE)
    small = np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR)) for one in pixels])
    return torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255


def legacy_input(pixels: Pixels) -> Tensor:
    """Preprocess as IMMA does, to float32 (n, 3, 224, 224).

    Pictures are downscaled, mapped by (x + 1) / 2 although they are in [0, 1] already, upscaled and normalised with
    CLIP's statistics. The map halves the contrast and brightens. Upscaling is bicubic without antialiasing, the default
    for tensors in torchvision 0.15, which IMMA's environment pins.
    """
    import torch
    from torch.nn import functional as F

    x = F.interpolate((shrunk(pixels) + 1) / 2, size=(_INPUT, _INPUT), mode="bicubic", align_corners=False)
    return (x - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)


def _mean_cosine(
    network: networks.Network, pixels: Pixels, reference: Pixels, prepare: networks.Prepare | None = None
) -> Floats:
    found: Floats = network.embed(pixels, prepare) @ network.embed(reference, prepare).mean(0)
    return found


def _one_minus_lpips(x: Tensor, reference: Tensor) -> Floats:
    import torch

    from immunebench.metrics.perceptual import alex

    distance = alex()
    with torch.inference_mode():
        means = [torch.cat([distance(one[None], other[None]) for other in reference]).mean() for one in x]
    return np.asarray(1 - torch.stack(means).numpy(), np.float32)


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[2]} x {pixels.shape[1]}"
