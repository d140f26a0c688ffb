"""The autoencoder of a base: 64x64 pictures to 16x16 latents of four channels."""

from __future__ import annotations

from collections.abc import Callable
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
    curve_file = folder / "vae-loss.jsonl"

    def loss_of(rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        x = to_input(pixels[rows], device)
        with autocast(device):
            posterior = vae.encode(x).latent_dist
            output = vae.decode(posterior.sample()).sample.float()
        return reconstruction_loss(output, x), 2e-5 * posterior.kl().float().mean() / 64

    _descend(
        recipe,
        "autoencoder",
        vae,
        recipe.vae_steps,
        len(pixels),
        loss_of,
        folder / "vae.safetensors",
        curve_file,
        device,
    )
    vae = vae.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    vae.register_to_config(scaling_factor=float(1 / encode(vae, pixels[:1024], device, unscaled=True).std()))
    return vae


def refine_decoder(
    recipe: Recipe,
    vae: AutoencoderKL,
    latents: torch.Tensor,
    pixels: NDArray[np.uint8],
    folder: Path,
    device: torch.device,
) -> AutoencoderKL:
    """Go on with the decoder alone, from the cached latents that the denoiser learned: latents stay what they are.

    Parameters
    ----------
    latents
        float (n, 4, 16, 16), scaled, of ``pixels`` (n, 64, 64, 3).
    """
    decoder = torch.nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)

    def loss_of(rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        z = latents[torch.from_numpy(rows)].to(device) / vae.config.scaling_factor
        with autocast(device):
            output = vae.decode(z).sample.float()
        return reconstruction_loss(output, to_input(pixels[rows], device)), torch.zeros((), device=device)

    _descend(recipe, "decoder", decoder, recipe.decoder_steps, len(pixels), loss_of, folder / "decoder.safetensors",
             folder / "decoder-loss.jsonl", device)  # fmt: skip
    return vae.eval().requires_grad_(False)


def _descend(
    recipe: Recipe, name: str, module: torch.nn.Module, steps: int, count: int,
    loss_of: Callable[[NDArray[np.int64]], tuple[torch.Tensor, torch.Tensor]], checkpoint: Path, curve_file: Path,
    device: torch.device,
) -> None:  # fmt: skip
    """Train ``module`` to ``steps``, resumed from its checkpoint; batch and noise depend on the step alone."""
    step, tensors = load_checkpoint(checkpoint)
    if tensors:
        module.load_state_dict(tensors)
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=recipe.vae_learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
    )
    curve = Curve(curve_file, step)
    with Progress(name, steps, done=step) as progress:
        while step < steps:
            rng = np.random.default_rng([recipe.seed, len(name), step])
            torch.manual_seed(int(rng.integers(2**31)))
            for group in optimiser.param_groups:
                group["lr"] = recipe.vae_learning_rate * cosine(step, steps, warmup=100)
            loss, prior = loss_of(rng.integers(count, size=recipe.vae_batch))
            torch.autograd.backward(loss + prior)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            progress.advance(loss=loss.item())
            if step % 50 == 0:
                curve.add(step, loss=progress.means["loss"])
            if step % 500 == 0 or step == steps:
                save_checkpoint(checkpoint, step, module.state_dict())


@torch.no_grad()
def encode(
    vae: AutoencoderKL, pixels: NDArray[np.uint8], device: torch.device, *, unscaled: bool = False
) -> torch.Tensor:
    """Latent means (n, 4, H/4, W/4) on the CPU, scaled unless ``unscaled``."""
    factor = 1.0 if unscaled else vae.config.scaling_factor
    parts = [vae.encode(to_input(pixels[i : i + 256], device)).latent_dist.mode().cpu() * factor
             for i in range(0, len(pixels), 256)]  # fmt: skip
    return torch.cat(parts)
