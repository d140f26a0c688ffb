"""The Stable Diffusion x4 upscaler, loaded from its diffusers folder among the downloaded weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from immunebench.bases.weights import require_folder
from immunebench.core.types import Numerics
from immunebench.model import runtime

FOLDER = "stable-diffusion-x4-upscaler"


class DiffusionUpscaler:
    """Upscales pictures by a factor of four, one after another, each with its own seed.

    Parameters
    ----------
    pipeline
        A diffusers `StableDiffusionUpscalePipeline`.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __call__(
        self,
        pixels: NDArray[np.uint8],
        captions: Sequence[str],
        seeds: Sequence[int],
        *,
        noise_level: int,
        steps: int,
    ) -> NDArray[np.uint8]:
        """Upscale pictures uint8 (n, h, w, 3), conditioned on their captions, to uint8 (n, 4 h, 4 w, 3).

        Parameters
        ----------
        noise_level
            Level of the noise added to the input pictures, on which the network is also conditioned, 0 to 350.
        steps
            Denoising steps.
        """
        made = [
            self.pipeline(
                prompt=caption, image=Image.fromarray(picture), noise_level=noise_level, num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed),
            ).images[0]
            for picture, caption, seed in zip(pixels, captions, seeds, strict=True)
        ]  # fmt: skip
        return np.stack([np.asarray(image.convert("RGB"), np.uint8) for image in made])


def load(numerics: Numerics) -> DiffusionUpscaler:
    """Load the upscaler named ``sd-x4`` in ``models.toml``; nothing is downloaded or unpickled.

    Raises
    ------
    UsageError
        Its folder is missing among the downloaded weights.
    """
    from diffusers import StableDiffusionUpscalePipeline

    pipeline = StableDiffusionUpscalePipeline.from_pretrained(
        require_folder(FOLDER), torch_dtype=runtime.dtype(numerics.frozen_dtype),
        local_files_only=True, use_safetensors=True,
    ).to(numerics.device)  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    # 512 px pictures become 2048 px: without slicing and tiling, attention and decoder do not fit a small GPU.
    pipeline.enable_attention_slicing()
    pipeline.vae.enable_tiling()
    return DiffusionUpscaler(pipeline)
