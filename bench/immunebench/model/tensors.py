"""Selecting a UNet's parameters by name, and checking released weights against them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch
from torch import nn

from immunebench.core.types import StageError, Weights

TENSORS = ("attention", "cross-attention", "no-cross-attention", "all")
ATTENTION_PROJECTIONS = (".to_q.", ".to_k.", ".to_v.", ".to_out.")


def select(unet: nn.Module, which: str) -> dict[str, nn.Parameter]:
    """Return a UNet's own parameters, adapters excluded; see `LatentDiffusion.unet_tensors`."""
    own = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in unet.named_parameters()
        if ".lora_" not in name
    }
    return {name: p for name, p in own.items() if selected(name, which)}


def selected(name: str, which: str) -> bool:
    """Return whether a selection holds the UNet's parameter of this name; see `LatentDiffusion.unet_tensors`."""
    if which not in TENSORS:
        raise StageError("error", f"tensors: unknown {which!r}; one of {', '.join(TENSORS)}")
    if which == "all":
        return True
    if which == "no-cross-attention":
        # ESD-u does not train what depends on the prompt (Gandikota et al. 2023). In Stable Diffusion XL this includes
        # add_embedding, which takes the pooled text embedding; the authors' code also excludes it.
        left = (".attn2.", "conv_out.", "conv_norm_out.", "time_embedding.", "add_embedding.")
        return not any(x in name for x in left)
    needle = ".attn" if which == "attention" else ".attn2."
    return needle in name and any(x in name for x in ATTENTION_PROJECTIONS)


def check(own: Mapping[str, nn.Parameter], weights: Weights) -> None:
    """Refuse weights whose names, shapes or values do not fit; see `LatentDiffusion.check`."""
    for name, tensor in weights.tensors.items():
        if name not in own:
            near = difflib.get_close_matches(name, own, 1)
            hint = f" (nearest: {near[0]!r})" if near else ""
            raise StageError("error", f"weights: the base has no tensor {name!r}{hint}")
        if tensor.shape != own[name].shape:
            wrong, right = tuple(tensor.shape), tuple(own[name].shape)
            raise StageError("error", f"weights: {name}: shape {wrong}, the base has {right}")
        if not torch.isfinite(tensor).all():
            raise StageError("error", f"weights: {name}: a value is not finite")
