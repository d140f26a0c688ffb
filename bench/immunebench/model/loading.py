"""Loading the components of a base from a diffusers pipeline folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from immunebench.bases.base_folder import parts, variant
from immunebench.core.types import Numerics, StageError
from immunebench.model import runtime


def read_parts(folder: Path, numerics: Numerics) -> dict[str, Any]:
    """Return the arguments of `LatentDiffusion` by name; see `LatentDiffusion.load`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    two = "text_encoder_2" in parts(folder)
    additional = ("text_encoder_2", "tokenizer_2") if two else ()
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", *additional):
        if not (folder / part).is_dir():
            raise StageError("error", f"base {folder.name}: no folder {part!r} in {folder}")
    local: dict[str, Any] = {"local_files_only": True}
    frozen = runtime.dtype(numerics.frozen_dtype)
    vae = runtime.dtype(numerics.vae_dtype)

    def weights(part: str) -> dict[str, Any]:
        return {"variant": variant(folder, part), "use_safetensors": True, **local}

    second: dict[str, Any] = {}
    if two:
        second["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(
            folder / "text_encoder_2", dtype=frozen, **weights("text_encoder_2")
        )
        second["tokenizer_2"] = CLIPTokenizer.from_pretrained(folder / "tokenizer_2", **local)
    return {
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=frozen, **weights("unet")),
        "vae": AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=vae, **weights("vae")),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=frozen, **weights("text_encoder")),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer", **local),
        "schedule": json.loads((folder / "scheduler" / "scheduler_config.json").read_text()),
        **second,
    }
