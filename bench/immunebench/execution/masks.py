"""Masks of tensors: admission of what a hook `freeze` returns, and its enforcement while an attack trains.

A mask is the file `mask.json` of an artifact: ``{"tensors": {name: {"shape": [...], "frozen": true}}}``, with every
tensor of the UNet. The shapes say which architecture it was made for.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunebench.core.mask import Mask
from immunebench.core.types import StageError
from immunebench.methods.adapters import DESCRIPTION, Words, saved_file

if TYPE_CHECKING:
    from immunebench.catalog.entry import Entry
    from immunebench.model.diffusion import LatentDiffusion

FILE = "mask.json"
Shapes = Mapping[str, Sequence[int]]


def admit(entry: Entry, mask: object, model: LatentDiffusion, out: Path) -> dict[str, int]:
    """Check what a hook `freeze` returned and write it.

    Returns
    -------
    dict of str to int
        The realised ratio: `tensors`, `frozen_tensors`, `parameters`, `frozen_parameters`.

    Raises
    ------
    StageError
        If it is no `Mask`, does not name the tensors of the UNet, or leaves none free.
    """
    if not isinstance(mask, Mask):
        raise StageError("error", f"{entry.id}: freeze returned {type(mask).__name__}, not Mask")
    if wrong := [name for name, value in mask.frozen.items() if not isinstance(value, bool)]:
        raise StageError("error", f"{entry.id}: mask: {wrong[0]} is {mask.frozen[wrong[0]]!r}, not True or False")
    shapes = _shapes(model)
    _check(mask.frozen, shapes, entry.id)
    tensors = {name: {"shape": shapes[name], "frozen": mask.frozen[name]} for name in shapes}
    (out / FILE).write_text(json.dumps({"tensors": tensors}, indent=1) + "\n")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return {
        "tensors": len(sizes),
        "frozen_tensors": len(mask.names),
        "parameters": sum(sizes.values()),
        "frozen_parameters": sum(sizes[name] for name in mask.names),
    }


def enforce(model: LatentDiffusion, folder: Path) -> None:
    """Let a model refuse what the mask in a folder freezes, until it is restored.

    Raises
    ------
    StageError
        If the mask is of another architecture.
    """
    tensors = json.loads((folder / FILE).read_text("utf-8"))["tensors"]
    shapes = _shapes(model)
    _check(tensors, shapes, "mask")
    for name, tensor in tensors.items():
        if tensor["shape"] != shapes[name]:
            raise StageError(
                "error", f"mask: of another architecture: {name} has shape {tensor['shape']}, here {shapes[name]}"
            )
    model.frozen = frozenset(name for name, tensor in tensors.items() if tensor["frozen"])


def check_adapters(entry: Entry, model: LatentDiffusion, out: Path, steps: Sequence[int]) -> None:
    """Check that no saved adapter changes a frozen tensor, or one of the UNet where the attack trains words alone.

    Raises
    ------
    StageError
        With the first tensor that it would change.
    """
    check_saved(entry.id, out, steps, model.frozen, words_alone=entry.trains_words)


def check_saved(entry: str, out: Path, steps: Sequence[int], frozen: frozenset[str], *, words_alone: bool) -> None:
    """Check the files that an attack saved; see `check_adapters`."""
    if not words_alone and not frozen:
        return
    if words_alone and json.loads((out / DESCRIPTION).read_text("utf-8"))["format"] != Words.format:
        raise StageError("error", f'{entry}: trains networks, and its manifest says trains = "words"')
    for step in steps:
        changed = {_changes(name) for name in _header(out / saved_file(step))}
        if wrong := sorted(changed & frozen):
            raise StageError("error", f"{entry}: step {step} changes {wrong[0]}, which the mask freezes")


def trained(out: Path, step: int) -> dict[str, int]:
    """Return how many `trained_tensors` and `trained_parameters` a saved adapter holds."""
    sizes = [math.prod(shape) for shape in _header(out / saved_file(step)).values()]
    return {"trained_tensors": len(sizes), "trained_parameters": sum(sizes)}


def _shapes(model: LatentDiffusion) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.unet_tensors("all").items()}


def _check(frozen: Mapping[str, Any], shapes: Shapes, whose: str) -> None:
    """Hold the names of a mask against those of the UNet, and require a free tensor."""
    for name in frozen:
        if name not in shapes:
            near = difflib.get_close_matches(name, shapes, 1)
            hint = f" (nearest: {near[0]!r})" if near else ""
            raise StageError("error", f"{whose}: of another architecture: the base has no tensor {name!r}{hint}")
    if missing := [name for name in shapes if name not in frozen]:
        raise StageError("error", f"{whose}: of another architecture: the tensor {missing[0]!r} is not in the mask")
    if all(value["frozen"] if isinstance(value, dict) else value for value in frozen.values()):
        raise StageError("error", f"{whose}: every tensor is frozen; at least one must stay free")


def _changes(name: str) -> str:
    """Return the UNet's tensor that a tensor of an adapter's file changes, without the prefix ``unet.``."""
    plain = name.removeprefix("unet.")
    return plain.partition(".lora")[0] + ".weight" if ".lora" in plain else plain


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a safetensors file by name, without reading its values."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
