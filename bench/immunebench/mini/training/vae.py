"""The autoencoder of a base: 64x64 pictures to 16x16 latents of a few channels."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from immunebench.mini.training.data import Rendered, to_input
from immunebench.mini.training.recipe import Recipe
from immunebench.mini.training.schedule import Budget, Descent, autocast, descend


def build(recipe: Recipe) -> AutoencoderKL:
    """An untrained AutoencoderKL of the recipe's widths."""
    torch.manual_seed(recipe.seed)
    blocks = len(recipe.vae_channels)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=recipe.latents, sample_size=64,
        block_out_channels=recipe.vae_channels, down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks, layers_per_block=1, norm_num_groups=8,
    )  # fmt: skip


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return L1 and L2 of pixels plus L1 of finite differences (for edges) and of downscaled pictures (for colours)."""
    loss = F.l1_loss(output, target) + 4 * F.mse_loss(output, target)
    for size in (2, 4):
        loss = loss + 0.5 * F.l1_loss(F.avg_pool2d(output, size), F.avg_pool2d(target, size))
    for axis in (2, 3):
        loss = loss + 0.25 * F.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
    return loss


def train(recipe: Recipe, pictures: Rendered, folder: Path, device: torch.device, budget: Budget) -> AutoencoderKL:
    """Train or resume the autoencoder; sets ``scaling_factor`` so that latents have unit variance."""
    vae = build(recipe).to(device, memory_format=torch.channels_last)
    ready = torch.tensor(float(pictures.ready), device=device)

    def loss_of() -> torch.Tensor:
        rows = (torch.rand(recipe.vae_batch, device=device) * ready).long()
        x = to_input(pictures.pixels[rows]).contiguous(memory_format=torch.channels_last)
        with autocast(device):
            posterior = vae.encode(x).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            output = vae.decode(z).sample.float()
        # The KL term bounds the latents; its weight is per pixel value.
        prior = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean()
        loss: torch.Tensor = reconstruction_loss(output, x) + 2e-5 / 64 * prior
        return loss

    def refresh() -> None:
        pictures.refresh()
        ready.fill_(float(pictures.ready))

    params = list(vae.parameters())
    descent = Descent(loss_of, params, device, rate=recipe.vae_learning_rate, decay=1e-3)
    for _ in descend("vae", descent, vae, folder, device, budget, seed=recipe.seed, batch=recipe.vae_batch,
                     refresh=refresh):  # fmt: skip
        pass
    vae = vae.eval().requires_grad_(False)
    latents = encode(vae, pictures.pixels[: min(2048, pictures.ready)], unscaled=True)
    vae.register_to_config(scaling_factor=float(1 / latents.float().std()))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: torch.Tensor, *, unscaled: bool = False) -> torch.Tensor:
    """Latent means (n, c, H/4, W/4) of uint8 (n, H, W, 3), scaled unless ``unscaled``; float32 arithmetic."""
    factor = 1.0 if unscaled else vae.config.scaling_factor
    parts = [vae.encode(to_input(part)).latent_dist.mode() * factor for part in torch.split(pixels, 256)]
    return torch.cat(parts)


@torch.no_grad()
def round_trip(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures (n, 3, H, W) in [-1, 1] after the autoencoder, of uint8 (n, H, W, 3)."""
    return torch.cat([vae.decode(vae.encode(to_input(part)).latent_dist.mode()).sample.clamp(-1, 1)
                      for part in torch.split(pixels, 256)])  # fmt: skip
