"""Conversion between 8-bit pixels and network input."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Convert uint8 pictures, shape (n, height, width, 3), to fp32 of shape (n, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(x: Tensor) -> NDArray[np.uint8]:
    """Convert images in [-1, 1] to uint8 pictures, the inverse of `to_tensor`; values are clipped and rounded."""
    x = ((x.detach() + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    pixels: NDArray[np.uint8] = x.to(torch.uint8).cpu().numpy()
    return pixels
