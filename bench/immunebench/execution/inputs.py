"""Loads what stages compute on: bases, untouched or with released weights, and networks by name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunebench.catalog.loading import default_catalog
from immunebench.core.types import Numerics, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from immunebench.model.diffusion import LatentDiffusion


Key = Mapping[str, Any]
_bases: dict[str, LatentDiffusion] = {}


def forget_base() -> None:
    """Drop the base that this process has loaded, which an entry's code may have changed."""
    _bases.clear()


def load_base(key: Key) -> LatentDiffusion:
    """Return the base that a key names, in its untouched state; it stays loaded for the next stage of this process."""
    from immunebench.model.diffusion import LatentDiffusion

    numerics = Numerics.of(key["numerics"])
    fixed = replace(numerics, sampler="", sampling_steps=0, guidance=0.0, memory_gib=0.0, threads=0, batch=0)
    name = f"{key['base']} {json.dumps(key.get('base_files'), sort_keys=True)} {fixed!r}"
    if name not in _bases:
        _bases.clear()
        _bases[name] = LatentDiffusion.load(_planned(key["base"], key), numerics)
    model = _bases[name]
    model.numerics = numerics
    model.restore()
    return model


def _planned(base: str, key: Key) -> Path:
    """Return the folder of a base; an OSError if files that are not embedded differ from those of the key."""
    catalog = default_catalog()
    if not catalog.models.bases[base].embedded and catalog.base_files(base) != key["base_files"]:
        raise OSError(f"base {base}: its files changed after the run was planned; start it again")
    return catalog.base_folder(base)


def load_distance(name: str, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a perceptual distance that ``models.toml`` names; see `Context.perceptual`."""
    distance: Callable[[Tensor, Tensor], Tensor] = loader(default_catalog().models.perceptual[name].loader)(device)
    return distance


def loader(name: str) -> Callable[..., Any]:
    """Import the function that ``models.toml`` names as ``module:function``."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def surrogate(name: str, key: Key, model: LatentDiffusion) -> Callable[[], LatentDiffusion]:
    """Return a function that loads a further base; the stage's own is not loaded twice."""
    from immunebench.model.diffusion import LatentDiffusion

    if name == key["base"]:
        return lambda: model
    return lambda: LatentDiffusion.load(_planned(name, key["surrogates"][name]), model.numerics)


def released(key: Key, inputs: Mapping[str, Path]) -> LatentDiffusion:
    model = load_base(key)
    if "weights" in inputs:
        model.apply(Weights.load(inputs["weights"] / "weights.safetensors"))
    return model
