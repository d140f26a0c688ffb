"""The autoencoder of a base: 64x64 pictures to 16x16 latents of four channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch.nn import functional as F

from immunebench.mini.training.log import Curve, Progress, load_checkpoint, save_checkpoint
from immunebench.mini.training.recipe import Recipe
from immunebench.mini.training.schedule import autocast, cosine


def build(recipe: Recipe) -> AutoencoderKL:
    """An untrained AutoencoderKL of the recipe's widths."""
    torch.manual_seed(recipe.seed)
    blocks = len(recipe.vae_channels)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=64, block_out_channels=recipe.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1, norm_num_groups=8,
    )  # fmt: skip


def to_input(pixels: NDArray[np.uint8], device: torch.device | str = "cpu") -> torch.Tensor:
    """uint8 (n, H, W, 3) to float32 (n, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 on pixels, on finite differences (keeps outlines sharp) and on smaller pictures (keeps colours true)."""
    loss = F.l1_loss(output, target)
    for size in (2, 4, 8):
        loss = loss + 0.5 * F.l1_loss(F.avg_pool2d(output, size), F.avg_pool2d(target, size))
    for axis in (2, 3):
        loss = loss + 0.25 * F.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
    return loss


def train(recipe: Recipe, pixels: NDArray[np.uint8], folder: Path, device: torch.device) -> AutoencoderKL:
    """Train or resume the autoencoder; sets ``scaling_factor`` so that latents have unit variance."""
    vae = build(recipe).to(device)
    checkpoint = folder / "vae.safetensors"
    step, tensors = load_checkpoint(checkpoint)
    if tensors:
        vae.load_state_dict(tensors)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    vae = vae.to(memory_format=torch.channels_last)
    curve = Curve(folder / "vae-loss.jsonl", step)
    with Progress("autoencoder", recipe.vae_steps, done=step) as progress:
        while step < recipe.vae_steps:
            rng = np.random.default_rng([recipe.seed, 1, step])
            torch.manual_seed(int(rng.integers(2**31)))
            x = to_input(pixels[rng.integers(len(pixels), size=recipe.vae_batch)], device)
            for group in optimiser.param_groups:
                group["lr"] = recipe.vae_learning_rate * cosine(step, recipe.vae_steps, warmup=100)
            with autocast(device):
                posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
                output = vae.decode(posterior.sample()).sample.float()
            loss = reconstruction_loss(output, x)
            total = loss + 2e-5 * posterior.kl().float().mean() / 64
            total.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            progress.advance(loss=loss.item())
            if step % 50 == 0:
                curve.add(step, loss=progress.means["loss"])
            if step % 500 == 0 or step == recipe.vae_steps:
                save_checkpoint(checkpoint, step, vae.state_dict())
    vae = vae.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    vae.register_to_config(scaling_factor=float(1 / encode(vae, pixels[:1024], device, unscaled=True).std()))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: NDArray[np.uint8], device: torch.device, *, unscaled: bool = False) -> torch.Tensor:
    """Latent means (n, 4, H/4, W/4) on the CPU, scaled unless ``unscaled``."""
    factor = 1.0 if unscaled else vae.config.scaling_factor
    parts = [vae.encode(to_input(pixels[i : i + 256], device)).latent_dist.mode().cpu() * factor
             for i in range(0, len(pixels), 256)]  # fmt: skip
    return torch.cat(parts)
