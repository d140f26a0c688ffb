"""Models of a declared architecture with random weights, to measure memory and speed, which do not depend on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from immunebench.bases import base_folder
from immunebench.bases.skeleton import networks, tokenizer
from immunebench.core.types import Numerics
from immunebench.declared.architecture import SCHEDULE, SECOND_PAD, Shape

if TYPE_CHECKING:
    from immunebench.model.diffusion import LatentDiffusion


def weights_gib(shape: Shape, numerics: Numerics) -> float:
    """Return the memory of the weights alone under a profile's precision policy, in GiB; nothing is allocated."""
    import torch

    with torch.device("meta"):
        parts = networks(shape)
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in parts.items()}
    return base_folder.weights_gib(counts, numerics.frozen_dtype, numerics.vae_dtype)


def static_gib(shape: Shape, numerics: Numerics, trained: Sequence[Sequence[str]], copied: Sequence[str] = ()) -> float:
    """Compute the memory of a training step that does not depend on the batch, in GiB, without activations.

    Parameters
    ----------
    shape : Shape
    numerics : Numerics
    trained : sequence of sequence of str
        For each optimiser, substrings of the names of the UNet's tensors that it trains; an empty string matches all.
    copied : sequence of str
        Substrings of the names of the tensors of which a copy is held, in the trained dtype.

    Returns
    -------
    float
        Weights on the device, two moments per trained value for each optimiser, the gradient of the largest set unless
        it is released, and the half-precision copies of trained weights if the profile holds masters. Eight-bit moments
        have a scale of four bytes per 256 values; the fp32 moments of tensors below 4,096 values are neglected (less
        than 0.01 GiB for Stable Diffusion).
    """
    import torch

    from immunebench.core.machine import GIB
    from immunebench.model.runtime import dtype

    with torch.device("meta"):
        parts = networks(shape)
    own = {name: p.numel() for name, p in parts["unet"].named_parameters()}

    def count(*needles: str) -> int:
        return sum(n for name, n in own.items() if any(needle in name for needle in needles))

    frozen, value = (dtype(name).itemsize for name in (numerics.frozen_dtype, numerics.trained_dtype))
    moment = 1 + 4 / 256 if numerics.optimiser_state == "8bit" else 4
    sets = [count(*needles) for needles in trained]
    moved = count(*(needle for needles in trained for needle in needles))
    size = frozen * (sum(own.values()) - moved) + value * (moved + count(*copied)) + 2 * moment * sum(sets)
    size += 0 if numerics.release_gradients else value * max(sets)
    size += frozen * moved if numerics.masters else 0
    if not numerics.offload:
        dtypes = {n: numerics.vae_dtype if n == "vae" else numerics.frozen_dtype for n in parts if n != "unet"}
        size += sum(dtype(d).itemsize * sum(p.numel() for p in parts[n].parameters()) for n, d in dtypes.items())
    return float(size / GIB)


def build(shape: Shape, numerics: Numerics, seed: int = 0) -> LatentDiffusion:
    """Return a model of a shape with random weights, on the profile's device and in its dtypes."""
    import torch

    from immunebench.model.diffusion import LatentDiffusion
    from immunebench.model.runtime import dtype

    with torch.device("meta"):
        parts = networks(shape)
    with torch.random.fork_rng(devices=[0] if numerics.device == "cuda" and torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        for name, network in parts.items():
            torch.nn.Module.to(network, dtype(numerics.vae_dtype if name == "vae" else numerics.frozen_dtype))
            network.to_empty(device=numerics.device)
            _fill(network)
    second = {} if shape.text_2 is None else {"tokenizer_2": tokenizer(SECOND_PAD)}
    return LatentDiffusion(**parts, **second, tokenizer=tokenizer(), schedule=SCHEDULE, numerics=numerics)


def _fill(network: Any) -> None:
    """Initialise weights so that activations fit half precision: std 1 / sqrt(fan in), norms at 1, biases at 0."""
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
