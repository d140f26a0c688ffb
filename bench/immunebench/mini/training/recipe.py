"""Recipes: all training hyperparameters of the embedded bases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One base.

    Attributes
    ----------
    seed
        Seeds weights, batches and noise.
    pictures
        Rendered training pictures; their latents are encoded once.
    latents
        Channels of the latents.
    vae_channels, unet_channels
        ``block_out_channels`` of the two networks.
    vae_steps, vae_batch, unet_steps, unet_batch
        Optimiser steps and batch sizes; a time limit may end training earlier.
    learning_rate
        Learning rate of the UNet and the text encoder on the plateau of the schedule.
    """

    seed: int
    pictures: int = 200_000
    latents: int = 8
    vae_channels: tuple[int, ...] = (32, 64, 64)
    vae_steps: int = 8_000
    vae_batch: int = 128
    vae_learning_rate: float = 1.0e-3
    unet_channels: tuple[int, ...] = (64, 128)
    text_width: int = 128
    text_layers: int = 2
    unet_steps: int = 12_000
    unet_batch: int = 512
    learning_rate: float = 1.0e-3
    ema: float = 0.999
    caption_dropout: float = 0.1


#: ``mini-b`` is the unknown base for transfer: different seed, widths and pictures, and shorter training.
RECIPES: dict[str, Recipe] = {
    "mini": Recipe(seed=11),
    "mini-b": Recipe(seed=29, pictures=40_000, latents=4, vae_channels=(24, 48, 64), unet_channels=(48, 96)),
}
