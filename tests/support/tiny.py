"""A random pipeline of the embedded base's form, small enough for unit tests."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from immunebench.bases.skeleton import write_settings
from immunebench.core.types import Numerics, Pictures
from immunebench.declared.architecture import SCHEDULE, SHAPES
from immunebench.methods.context import Context
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.shapes import build


def tiny_base(folder: Path, *, prediction_type: str = "epsilon") -> Path:
    """Write a seeded random pipeline for 32x32 pictures into a folder."""
    return random_base(folder, unet=(16, 32), text=16, length=16, groups=8, prediction_type=prediction_type)


def mini_shaped_base(folder: Path) -> Path:
    """Write a random pipeline of the embedded base's size for 64x64 pictures into a folder."""
    return random_base(folder, unet=(64, 128), text=128, length=32, groups=16)


def random_base(
    folder: Path,
    *,
    unet: tuple[int, int],
    text: int,
    length: int,
    groups: int,
    prediction_type: str = "epsilon",
) -> Path:
    """Write a seeded random pipeline of Stable Diffusion's shape: f = 4, four latent channels."""
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocabulary"
    vocabulary.mkdir(exist_ok=True)
    words = ["<|startoftext|>", "<|endoftext|>"]
    letters = [chr(c) for c in range(97, 123)]
    words += letters + [f"{letter}</w>" for letter in letters]
    (vocabulary / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (vocabulary / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt"), model_max_length=length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words), hidden_size=text, intermediate_size=2 * text, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=length,
                bos_token_id=0, eos_token_id=1, pad_token_id=1,
            )
        )  # fmt: skip
        denoiser = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=unet, layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=text, attention_head_dim=2, norm_num_groups=groups,
        )  # fmt: skip
        vae = AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=4,
            block_out_channels=(8, 8, 16), layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4, sample_size=32, scaling_factor=0.5,
        )  # fmt: skip
    scheduler = DDPMScheduler.from_config({**SCHEDULE, "prediction_type": prediction_type})
    StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=denoiser, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def tiny_xl_base(folder: Path) -> Path:
    """Write a seeded random pipeline of Stable Diffusion XL's form for 32x32 pictures into a folder.

    As in the published one the end of a text is the largest token, the second encoder's settings do not name it, and
    the second tokenizer fills up with an exclamation mark.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(97, 123)]
    words = ["!", *letters, "!</w>", *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer, tokenizer_2 = (
        CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16, pad_token=pad)
        for pad in ("<|endoftext|>", "!")
    )

    def encoder(width: int, end: int, projection: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=16, projection_dim=projection,
            bos_token_id=len(words) - 2, eos_token_id=end, pad_token_id=1,
        )  # fmt: skip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        pipeline = StableDiffusionXLPipeline(
            vae=AutoencoderKL(
                in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 16), layers_per_block=1,
                down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                norm_num_groups=4, sample_size=32, scaling_factor=0.13,
            ),
            text_encoder=CLIPTextModel(encoder(16, len(words) - 1, 16)),
            text_encoder_2=CLIPTextModelWithProjection(encoder(24, 2, 20)),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=UNet2DConditionModel(
                sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
                cross_attention_dim=40, attention_head_dim=2, norm_num_groups=8, use_linear_projection=True,
                addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=68,
            ),
            scheduler=DDPMScheduler.from_config(SCHEDULE),
            add_watermarker=False,
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def tiny_pictures(count: int, caption: str = "a picture of sks", *, seed: int = 0, side: int = 32) -> Pictures:
    """Seeded smooth colour gradients."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, side)[:, None, None] * rng.uniform(0, 200, (count, 1, 1, 3))
    pixels = np.broadcast_to(ramp + 20, (count, side, side, 3))
    return Pictures(np.ascontiguousarray(pixels).round().astype(np.uint8), (caption,) * count)


@functools.cache
def tiny_folder() -> Path:
    """Return a folder with the tiny base, made once a process."""
    scratch = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return tiny_base(Path(scratch) / "base")


@functools.cache
def tiny_xl_folder() -> Path:
    """Return a folder with the tiny base of Stable Diffusion XL's form, made once a process."""
    scratch = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return tiny_xl_base(Path(scratch) / "base")


@functools.cache
def _tiny_xl_model() -> LatentDiffusion:
    return LatentDiffusion.load(tiny_xl_folder(), Numerics(resolution=32, sampling_steps=3))


def tiny_xl_model() -> LatentDiffusion:
    """Return the tiny model of Stable Diffusion XL's form in its untouched state."""
    model = _tiny_xl_model()
    model.restore()
    return model


@functools.cache
def _tiny_model() -> LatentDiffusion:
    return LatentDiffusion.load(tiny_folder(), Numerics(resolution=32, sampling_steps=3))


def tiny_model() -> LatentDiffusion:
    """Return the tiny model in its untouched state."""
    model = _tiny_model()
    model.restore()
    return model


def tiny_context(model: LatentDiffusion, out: Path, seed: int = 0) -> Context:
    """Return a context that reports to nobody."""
    return Context(model.numerics, seed, out, lambda what, done, total: None)


def narrow_folder(folder: Path, *, half: bool = False) -> Path:
    """Write a diffusers folder of Stable Diffusion 1's form with few channels.

    In single precision as trainers save it, or in half precision under the name of the variant as the hub has it.
    """
    write_settings("sd14-narrow", folder)
    model = build(SHAPES["sd14-narrow"], Numerics())
    for part, network in (("unet", model.unet), ("vae", model.vae), ("text_encoder", model.text.encoder)):
        if half:
            network.half().save_pretrained(folder / part, variant="fp16")
        else:
            network.save_pretrained(folder / part)
    return folder
