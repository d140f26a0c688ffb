"""Recipes: every number that decides what the embedded bases become."""

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
    vae_channels, unet_channels
        ``block_out_channels`` of the two networks.
    vae_steps, vae_batch, unet_steps, unet_batch
        Optimiser steps and pictures a step.
    learning_rate
        Peak rate of the UNet and the text encoder (cosine to 2 % after a linear warm-up).
    """

    seed: int
    pictures: int = 40_000
    vae_channels: tuple[int, ...] = (32, 64, 64)
    vae_steps: int = 5_200
    vae_batch: int = 10
    decoder_steps: int = 2_500
    vae_learning_rate: float = 1.0e-3
    unet_channels: tuple[int, ...] = (64, 128)
    text_width: int = 128
    text_layers: int = 2
    unet_steps: int = 5_500
    unet_batch: int = 32
    learning_rate: float = 1.0e-3
    ema: float = 0.999
    caption_dropout: float = 0.1


#: CPU recipes. ``mini-b`` is the unknown base of transfer attacks: other seed, other widths, shorter training.
RECIPES: dict[str, Recipe] = {
    "mini": Recipe(seed=11),
    "mini-b": Recipe(seed=29, pictures=24_000, vae_channels=(24, 48, 64), vae_steps=3_600,
                     decoder_steps=1_500, unet_channels=(48, 96), unet_steps=4_000),
}  # fmt: skip
