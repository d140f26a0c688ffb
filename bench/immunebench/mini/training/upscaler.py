"""Training of the upscaler: from noisy pictures of 64 pixels to the drawings of 128 pixels behind them."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from immunebench.mini import world
from immunebench.mini.training.data import to_input
from immunebench.mini.training.schedule import Budget, Descent, autocast, descend
from immunebench.mini.upscaler import FACTOR, UpscalerNet

SEED, PICTURES, STEPS, BATCH, RATE = 211, 6_000, 6_000, 64, 2e-3
#: Range of the added noise, for pixels in [0, 1]: around that of the purifier, to cover additional perturbations.
SIGMA = (0.08, 0.12)
_CHUNK = 250


def _chunk(start: int) -> NDArray[np.uint8]:
    drawn = (world.draw("train", index, group="upscaler", reduce=1) for index in range(start, start + _CHUNK))
    return np.stack([picture.pixels for picture in drawn])


def drawings(file: Path, count: int, workers: int) -> NDArray[np.uint8]:
    """Training pictures uint8 (count, 128, 128, 3); drawn on the first call, then read back."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(workers) as pool:
            np.save(file, np.concatenate(list(pool.map(_chunk, range(0, count, _CHUNK)))))
    found: NDArray[np.uint8] = np.load(file)
    return found


def train(
    folder: Path, device: torch.device, budget: Budget, *, workers: int, batch: int = BATCH, count: int = PICTURES
) -> UpscalerNet:
    """Train or resume, with an L1 loss to the drawing, and one to the picture after downscaling."""
    pixels = torch.from_numpy(drawings(folder / "drawings.npy", count, workers)).to(device)
    torch.manual_seed(SEED)
    network = UpscalerNet().to(device).to(memory_format=torch.channels_last)

    def loss_of() -> torch.Tensor:
        target = to_input(pixels[torch.randint(len(pixels), (batch,), device=device)])
        target = torch.where(torch.rand(batch, 1, 1, 1, device=device) < 0.5, target.flip(3), target)
        picture = F.avg_pool2d(target, FACTOR)
        low, high = SIGMA
        sigma = 2 * (low + (high - low) * torch.rand(batch, 1, 1, 1, device=device))
        noisy = (picture + sigma * torch.randn_like(picture)).clamp(-1, 1)
        with autocast(device):
            made = network(noisy.contiguous(memory_format=torch.channels_last)).float()
        return F.l1_loss(made, target) + F.l1_loss(F.avg_pool2d(made, FACTOR), picture)

    descent = Descent(loss_of, list(network.parameters()), device, rate=RATE, decay=0.0, betas=(0.9, 0.999))
    for _ in descend("upscaler", descent, network, folder, device, budget, seed=SEED, batch=batch):
        pass
    network.eval()
    return network
