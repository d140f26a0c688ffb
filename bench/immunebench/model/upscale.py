"""The Stable Diffusion x4 upscaler, from its diffusers folder among the fetched weights."""

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
    """Enlarges pictures four times, one after another, each from its own seed.

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
        """Pictures uint8 (n, 4 h, 4 w, 3) of pictures uint8 (n, h, w, 3), asked for by their captions.

        Parameters
        ----------
        noise_level
            How much noise the network is told to take from the pictures, and is given with them, 0 to 350.
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
        Its folder is not among the fetched weights.
    """
    from diffusers import StableDiffusionUpscalePipeline

    pipeline = StableDiffusionUpscalePipeline.from_pretrained(
        require_folder(FOLDER), torch_dtype=runtime.dtype(numerics.frozen_dtype),
        local_files_only=True, use_safetensors=True,
    ).to(numerics.device)  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    # A 512 px picture becomes 2048 px: whole attention maps and the whole decoder do not fit a small GPU.
    pipeline.enable_attention_slicing()
    pipeline.vae.enable_tiling()
    return DiffusionUpscaler(pipeline)
