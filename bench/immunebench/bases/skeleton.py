"""Pipelines of a declared architecture without weights: networks, tokenizers and config files."""

from __future__ import annotations

import gzip
import json
import string
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunebench.declared.architecture import SCHEDULE, SECOND_PAD, SHAPES, Shape

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def networks(shape: Shape) -> dict[str, Any]:
    """Return untrained networks of a shape by their component names in a pipeline.

    These are ``unet``, ``vae`` and ``text_encoder``, and ``text_encoder_2`` if the shape has one. Under
    ``torch.device("meta")`` they take no memory.
    """
    import torch

    # Parts of torch 2.8 that these load compute with tensors as they are loaded, which the meta device cannot.
    with torch.device("cpu"):
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


def write_settings(name: str, folder: Path) -> None:
    """Write the config files and tokenizers of a shape's diffusers pipeline into a folder, without weights."""
    import torch
    from diffusers import DDPMScheduler

    with torch.device("meta"):
        parts = networks(SHAPES[name])
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0"}
    tokenizers = {"tokenizer": tokenizer()}
    if "text_encoder_2" in parts:
        index |= {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
        tokenizers["tokenizer_2"] = tokenizer(SECOND_PAD)
    for part, network in parts.items():
        library = "transformers" if part.startswith("text_encoder") else "diffusers"
        index[part] = [library, type(network).__name__]
        if library == "transformers":
            network.config.save_pretrained(folder / part)
        else:
            network.save_config(folder / part)
    for part, words in tokenizers.items():
        words.save_pretrained(folder / part)
        # Also as vocab.json and merges.txt, as in the published pipelines: a base's vocabulary is read from there.
        words.backend_tokenizer.model.save(str(folder / part))
        index[part] = ["transformers", "CLIPTokenizer"]
    DDPMScheduler.from_config(SCHEDULE).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", "DDPMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", "utf-8")


def tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """Return CLIP's tokenizer, 49,408 tokens, from the list of merges that open_clip ships.

    Prompts are padded with the token `pad`.
    """
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = _merges()
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: place for place, word in enumerate(words)}
    pairs = [tuple(merge.split()) for merge in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad, model_max_length=77)


@cache
def clip_words() -> frozenset[str]:
    """Return the words that are single tokens of CLIP's tokenizer, without loading it."""
    merged = ("".join(merge.split()) for merge in _merges())
    return frozenset(
        {*string.ascii_lowercase, *(word.removesuffix("</w>") for word in merged if word.endswith("</w>"))}
    )


@cache
def _merges() -> tuple[str, ...]:
    """Return CLIP's byte pair merges in their order."""
    # Only the file is located, as importing the package takes seconds.
    place = find_spec("open_clip")
    if place is None or place.origin is None:
        raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")
    packed = (Path(place.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    return tuple(gzip.decompress(packed).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1])
