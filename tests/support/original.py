"""Writes a pipeline as a single file in the original layout of Stable Diffusion's checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_BLOCK = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def write_xl(unet: Any, vae: Any, text_encoder: Any, text_encoder_2: Any, file: Path) -> Path:
    """Save networks of Stable Diffusion XL's blocks under the names that its publisher gave their tensors."""
    tensors = _both(unet, vae, upsampler=2)
    first, second = text_encoder.state_dict(), _open_clip(text_encoder_2.state_dict())
    tensors |= {f"conditioner.embedders.0.transformer.{_text(name)}": t for name, t in first.items()}
    tensors |= {f"conditioner.embedders.1.model.{name}": t for name, t in second.items()}
    return _save(tensors, file)


def write(unet: Any, vae: Any, text_encoder: Any, file: Path) -> Path:
    """Save networks of SD 1.x's blocks under the names that CompVis gave their tensors."""
    tensors = _both(unet, vae, upsampler=1)
    tensors |= {f"cond_stage_model.transformer.{_text(name)}": t for name, t in text_encoder.state_dict().items()}
    return _save(tensors, file)


def _both(unet: Any, vae: Any, *, upsampler: int) -> dict[str, Tensor]:
    """Name what both layouts name alike; `upsampler` is the place of the first one in its block, after attentions."""
    tensors = {f"model.diffusion_model.{_unet(name, upsampler)}": t for name, t in unet.state_dict().items()}
    for name, t in vae.state_dict().items():
        renamed = _vae(name)
        # Its attention is made of convolutions of one pixel.
        linear = re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$", renamed)
        tensors[f"first_stage_model.{renamed}"] = t[:, :, None, None] if linear and t.ndim == 2 else t
    return tensors


def _save(tensors: dict[str, Tensor], file: Path) -> Path:
    from safetensors.torch import save_file

    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, file)
    return file


def _text(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name a text encoder as open_clip does: one tensor for queries, keys and values, the projection transposed."""
    made: dict[str, Tensor] = {}
    for name, t in tensors.items():
        if name == "text_projection.weight":
            made["text_projection"] = t.T
            continue
        own = name.removeprefix("text_model.")
        if found := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", own):
            three = [tensors[name.replace("q_proj", f"{side}_proj")] for side in "qkv"]
            made[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[2]}"] = torch.cat(three)
        elif not re.search(r"\.(k|v)_proj\.", own):
            own = own.replace("encoder.layers.", "transformer.resblocks.").replace("self_attn.", "attn.")
            own = own.replace("layer_norm1", "ln_1").replace("layer_norm2", "ln_2")
            own = own.replace(".fc1.", ".c_fc.").replace(".fc2.", ".c_proj.").replace("final_layer_norm", "ln_final")
            made[own.removeprefix("embeddings.").replace("position_embedding.weight", "positional_embedding")] = t
    return made


def _unet(name: str, upsampler: int) -> str:
    for own, original in _OUTER.items():
        if name.startswith(f"{own}."):
            return name.replace(own, original, 1)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, place, rest = found.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}.{_inner(kind, rest)}"
    side, block, kind, place, rest = re.fullmatch(  # type: ignore[union-attr]
        r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name
    ).groups()
    b, at = int(block), int(place)
    if kind == "downsamplers":
        return f"input_blocks.{3 * (b + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * b + 2}.{upsampler if b == 0 else 2}.{rest}"
    outer = f"input_blocks.{3 * b + at + 1}" if side == "down" else f"output_blocks.{3 * b + at}"
    return f"{outer}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    head, _, tail = rest.partition(".")
    return f"{_BLOCK[head]}.{tail}" if kind == "resnets" else rest


def _vae(name: str) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
    for own, original in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        name = name.replace(f"attn_1.{own}.", f"attn_1.{original}.")
    return name.replace("conv_norm_out", "norm_out")
