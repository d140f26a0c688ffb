"""Learning-rate schedule, precision and noise weighting of the training runs."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch


def cosine(step: int, total: int, *, warmup: int, floor: float = 0.02) -> float:
    """Factor in [floor, 1]: linear warm-up, then half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 for matrix products; weights stay in float32."""
    return torch.autocast(device.type, torch.bfloat16)


def min_snr(alphas_cumprod: torch.Tensor, gamma: float = 5.0) -> torch.Tensor:
    """Weights min(SNR, gamma) / SNR of an epsilon loss for each of T timesteps (Hang et al. 2023, eq. 7)."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / snr
