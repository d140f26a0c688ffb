"""Distances between pictures of equal index, on 8-bit pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from immunebench.metrics.table import Floats, Pixels


def check_pair(a: Pixels, b: Pixels) -> None:
    """Raise a UsageError unless both are uint8 of one shape."""
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise UsageError(f"paired pictures must be uint8 of one shape, not {a.dtype} {a.shape} and {b.dtype} {b.shape}")


def linf(a: Pixels, b: Pixels) -> Floats:
    """Return the L_inf distance: the largest difference of any value, (n,), 0 to 255."""
    check_pair(a, b)
    found: Floats = np.abs(a.astype(np.int16) - b.astype(np.int16)).max((1, 2, 3)).astype(np.float32)
    return found


def psnr(a: Pixels, b: Pixels) -> Floats:
    """Return the peak signal-to-noise ratio in dB, (n,), limited to 100 so that equal pictures have a finite value."""
    check_pair(a, b)
    error = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3))
    # The smallest possible difference, one value in a megapixel by 1, would give less than 110 dB.
    found: Floats = np.minimum(10 * np.log10(255.0**2 / np.maximum(error, 1e-12)), 100.0).astype(np.float32)
    return found


def ssim(a: Pixels, b: Pixels) -> Floats:
    """Return the structural similarity (Wang et al. 2004) by torchmetrics, (n,); Gaussian window of sigma 1.5.

    In double precision: in single precision, a white picture is 0.9993 like itself.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_pair(a, b)
    found = structural_similarity_index_measure(_tensor(a), _tensor(b), data_range=255.0, reduction="none")
    return np.asarray(found.reshape(-1).numpy(), np.float32)


def _tensor(pixels: Pixels) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).double()
