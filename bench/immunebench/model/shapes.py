"""Architectures of full-size bases without their weights: memory and speed do not depend on the values of weights.

The configurations are those of the published pipelines; what is not said here is the library's default, which is
Stable Diffusion 1.x's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunebench.bases import base_folder
from immunebench.core.types import Numerics

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from immunebench.model.diffusion import LatentDiffusion

#: SD 1.x's and 2.x's noise schedule; ``prediction_type`` is the base's.
SCHEDULE = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "clip_sample": False, "steps_offset": 1,
}  # fmt: skip
_VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
#: What Stable Diffusion XL's denoiser has of its own kind, at any width.
_UNET_XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time",
}  # fmt: skip
_WORDS = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}


#: What the second tokenizer of Stable Diffusion XL fills prompts up with.
_SECOND_PAD = "!"


@dataclass(frozen=True)
class Shape:
    """Configurations of a pipeline's networks, over the defaults of diffusers and transformers.

    Attributes
    ----------
    source
        Whose published configuration it is.
    resolution
        Side of the pictures that the base was trained on, in pixels.
    text_2
        The second text encoder, of Stable Diffusion XL.
    """

    source: str
    unet: Mapping[str, Any]
    text: Mapping[str, Any]
    vae: Mapping[str, Any] = field(default_factory=lambda: _VAE)
    resolution: int = 512
    text_2: Mapping[str, Any] | None = None


SHAPES: dict[str, Shape] = {
    "sd14": Shape(
        "CompVis/stable-diffusion-v1-4",
        unet={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        text={
            **_WORDS, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "hidden_act": "quick_gelu", "projection_dim": 768,
        },
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
    ),
    # All of SD 1.x's kinds of blocks at full depth, 160 attention tensors, with few channels: for tests and laptops.
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
    ),
    # As `sd14-narrow`. The encoders differ in width: a single file's are told apart by it.
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
    ),
}  # fmt: skip


def networks(shape: Shape) -> dict[str, Any]:
    """Return untrained networks of a shape by the names of a pipeline's parts.

    These are ``unet``, ``vae`` and ``text_encoder``, and ``text_encoder_2`` where the shape has one. Under
    ``torch.device("meta")`` they take no memory.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    made = {
        "unet": UNet2DConditionModel(**shape.unet),
        "vae": AutoencoderKL(**shape.vae),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**shape.text)),
    }
    if shape.text_2 is not None:
        made["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**shape.text_2))
    return made


def weights_gib(shape: Shape, numerics: Numerics) -> float:
    """Return what the weights alone take under a profile's precision policy, in GiB; nothing is allocated."""
    import torch

    with torch.device("meta"):
        parts = networks(shape)
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in parts.items()}
    return base_folder.weights_gib(counts, numerics.frozen_dtype, numerics.vae_dtype)


def static_gib(shape: Shape, numerics: Numerics, trained: Sequence[Sequence[str]], kept: Sequence[str] = ()) -> float:
    """Say by arithmetic what a training step holds whatever its batch, in GiB: no measurement, and no activations.

    Parameters
    ----------
    shape : Shape
    numerics : Numerics
    trained : sequence of sequence of str
        For each optimiser, parts of the names of the UNet's tensors that it trains; an empty string is in all names.
    kept : sequence of str
        Parts of the names of the tensors of which a copy is kept, in the trained dtype.

    Returns
    -------
    float
        Weights on the device, two moments a trained value for each optimiser, and the gradient of the largest set
        unless it is released. Eight-bit moments have a scale of four bytes for each 256 values; that tensors below
        4,096 values keep fp32 moments is left out (less than 0.01 GiB on Stable Diffusion).
    """
    import torch

    from immunebench.model.runtime import GIB, dtype

    with torch.device("meta"):
        parts = networks(shape)
    own = {name: p.numel() for name, p in parts["unet"].named_parameters()}

    def count(*needles: str) -> int:
        return sum(n for name, n in own.items() if any(needle in name for needle in needles))

    frozen, value = (dtype(name).itemsize for name in (numerics.frozen_dtype, numerics.trained_dtype))
    moment = 1 + 4 / 256 if numerics.optimiser_state == "8bit" else 4
    sets = [count(*needles) for needles in trained]
    moved = count(*(needle for needles in trained for needle in needles))
    size = frozen * (sum(own.values()) - moved) + value * (moved + count(*kept)) + 2 * moment * sum(sets)
    size += 0 if numerics.release_gradients else value * max(sets)
    if not numerics.offload:
        dtypes = {n: numerics.vae_dtype if n == "vae" else numerics.frozen_dtype for n in parts if n != "unet"}
        size += sum(dtype(d).itemsize * sum(p.numel() for p in parts[n].parameters()) for n, d in dtypes.items())
    return float(size / GIB)


def build(shape: Shape, numerics: Numerics, seed: int = 0) -> LatentDiffusion:
    """Return a model of a shape with random weights, each network made on the profile's device in its dtype."""
    import torch

    from immunebench.model.diffusion import LatentDiffusion
    from immunebench.model.runtime import dtype

    with torch.device("meta"):
        parts = networks(shape)
    with torch.random.fork_rng(devices=[0] if numerics.device == "cuda" else []):
        torch.manual_seed(seed)
        for name, network in parts.items():
            torch.nn.Module.to(network, dtype(numerics.vae_dtype if name == "vae" else numerics.frozen_dtype))
            network.to_empty(device=numerics.device)
            _fill(network)
    beside = {} if shape.text_2 is None else {"tokenizer_2": tokenizer(_SECOND_PAD)}
    return LatentDiffusion(**parts, **beside, tokenizer=tokenizer(), schedule=SCHEDULE, numerics=numerics)


def _fill(network: Any) -> None:
    """Draw weights that keep activations in half precision's range: 1 / sqrt(fan in), norms at one, biases at zero."""
    import torch
    from torch import nn

    with torch.no_grad():
        for module in network.modules():
            for name, p in module.named_parameters(recurse=False):
                if isinstance(module, nn.GroupNorm | nn.LayerNorm) or p.ndim < 2:
                    p.fill_(1.0 if name == "weight" else 0.0)
                else:
                    p.normal_(std=0.02 if isinstance(module, nn.Embedding) else p[0].numel() ** -0.5)
            for name, buffer in module.named_buffers(recurse=False):
                if name != "position_ids":  # of the text encoder: these networks have no other
                    raise ValueError(f"unknown buffer {name!r}")
                buffer.copy_(torch.arange(buffer.shape[-1], device=buffer.device).expand_as(buffer))


def write_settings(name: str, folder: Path) -> None:
    """Write the settings of a shape's pipeline, as diffusers reads them, into a folder; no weights."""
    import torch
    from diffusers import DDPMScheduler

    with torch.device("meta"):
        parts = networks(SHAPES[name])
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0"}
    tokenizers = {"tokenizer": tokenizer()}
    if "text_encoder_2" in parts:
        index |= {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
        tokenizers["tokenizer_2"] = tokenizer(_SECOND_PAD)
    for part, network in parts.items():
        library = "transformers" if part.startswith("text_encoder") else "diffusers"
        index[part] = [library, type(network).__name__]
        if library == "transformers":
            network.config.save_pretrained(folder / part)
        else:
            network.save_config(folder / part)
    for part, words in tokenizers.items():
        words.save_pretrained(folder / part)
        # In the form of the published pipelines too, which is where the words that a base knows are looked up.
        words.backend_tokenizer.model.save(str(folder / part))
        index[part] = ["transformers", "CLIPTokenizer"]
    DDPMScheduler.from_config(SCHEDULE).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", "DDPMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", "utf-8")


def tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """Return CLIP's own tokenizer, 49,408 words, from the list of merges that open_clip carries.

    Prompts are filled up with the word `pad`.
    """
    import gzip
    from importlib.util import find_spec

    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    # The file alone: importing the package takes seconds.
    place = find_spec("open_clip")
    if place is None or place.origin is None:
        raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")
    packed = (Path(place.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: place for place, word in enumerate(words)}
    pairs = [tuple(merge.split()) for merge in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad, model_max_length=77)
