"""Configurations of full-size bases: widths, blocks, vocabulary, noise schedule.

They are those of the published pipelines. What is not set here takes the default of diffusers or transformers, which is
the value of Stable Diffusion 1.x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: SD 1.x's and 2.x's noise schedule; ``prediction_type`` is the base's.
SCHEDULE = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "clip_sample": False, "steps_offset": 1,
}  # fmt: skip
_VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
#: UNet settings of Stable Diffusion XL that do not depend on its width.
_UNET_XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time",
}  # fmt: skip
_WORDS = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
#: The padding token of Stable Diffusion XL's second tokenizer.
SECOND_PAD = "!"


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one picture at a shape's own resolution, in units of 10^12, two a multiplication.

    ``unet``: one pass of the denoiser; ``encode`` and ``decode``: of the autoencoder. Counted from the networks by
    `torch.utils.flop_counter`.
    """

    unet: float
    encode: float
    decode: float


@dataclass(frozen=True)
class Shape:
    """Configurations of a pipeline's networks, as overrides of the defaults of diffusers and transformers.

    Attributes
    ----------
    source
        The repository whose published configuration it is.
    unet, text, vae
        Of the UNet, the text encoder and the autoencoder.
    resolution
        Side of the pictures that the base was trained on, in pixels.
    text_2
        Of the second text encoder, for Stable Diffusion XL.
    work
        What a picture costs.
    """

    source: str
    unet: Mapping[str, Any]
    text: Mapping[str, Any]
    vae: Mapping[str, Any] = field(default_factory=lambda: _VAE)
    resolution: int = 512
    text_2: Mapping[str, Any] | None = None
    work: Work = Work(0.0, 0.0, 0.0)


SHAPES: dict[str, Shape] = {
    "sd14": Shape(
        "CompVis/stable-diffusion-v1-4",
        unet={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        text={
            **_WORDS, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "hidden_act": "quick_gelu", "projection_dim": 768,
        },
        work=Work(0.80327, 1.11666, 2.51452),
    ),
    "sd21-base": Shape(
        "stabilityai/stable-diffusion-2-1-base",
        unet={
            "sample_size": 64, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        text={
            **_WORDS, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
            "num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 512,
        },
        work=Work(0.80426, 1.11666, 2.51452),
    ),
    # Every block type of SD 1.x at full depth, 160 attention tensors, with few channels: for tests and laptops.
    "sd14-narrow": Shape(
        "CompVis/stable-diffusion-v1-4, fewer channels",
        unet={
            "sample_size": 8, "cross_attention_dim": 32, "attention_head_dim": 2,
            "block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8,
        },
        text={
            **_WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "hidden_act": "quick_gelu", "projection_dim": 32,
        },
        vae={**_VAE, "block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4, "sample_size": 64},
        resolution=64,
        work=Work(2.711e-5, 4.770e-5, 9.943e-5),
    ),
    "sdxl": Shape(
        "stabilityai/stable-diffusion-xl-base-1.0",
        unet={
            **_UNET_XL, "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
            "block_out_channels": (320, 640, 1280), "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        text={
            **_WORDS, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "hidden_act": "quick_gelu", "projection_dim": 768,
        },
        vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
        resolution=1024,
        text_2={
            **_WORDS, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
            "num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280,
        },
        work=Work(6.76124, 4.87895, 10.47039),
    ),
    # As `sd14-narrow`. The encoders differ in width, by which diffusers distinguishes them in a single-file checkpoint.
    "sdxl-narrow": Shape(
        "stabilityai/stable-diffusion-xl-base-1.0, fewer channels",
        unet={
            **_UNET_XL, "sample_size": 8, "cross_attention_dim": 72, "attention_head_dim": 2,
            "block_out_channels": (16, 32, 32), "norm_num_groups": 8, "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 88,
        },
        text={
            **_WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "hidden_act": "quick_gelu", "projection_dim": 32,
        },
        vae={
            **_VAE, "block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4, "sample_size": 64,
            "scaling_factor": 0.13025,
        },
        resolution=64,
        text_2={
            **_WORDS, "hidden_size": 40, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2,
            "hidden_act": "gelu", "projection_dim": 40,
        },
        work=Work(8.049e-5, 4.770e-5, 9.943e-5),
    ),
}  # fmt: skip
