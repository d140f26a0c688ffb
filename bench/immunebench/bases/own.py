"""A user's own base: a fine-tuned, merged or pruned checkpoint, or a diffusers folder, in half precision."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from immunebench.bases import base_folder, intake
from immunebench.bases.weights import sha256
from immunebench.core.errors import UsageError
from immunebench.declared.architecture import SHAPES
from immunebench.declared.models import BaseModelSpec

#: The parts of a checkpoint in the original layout, by the beginnings of their tensors' names.
_PARTS = {
    "UNet": ("model.diffusion_model.",),
    "autoencoder": ("first_stage_model.",),
    "text encoder": ("cond_stage_model.", "conditioner.embedders."),
}
_INPUT, _TEXT = "model.diffusion_model.input_blocks.0.0.weight", ".attn2.to_k.weight"
_LATENTS = 4


def digest(path: Path) -> str:
    """Return the SHA-256 that identifies a checkpoint: of the file, or of the names and digests of a folder's files."""
    if path.is_file():
        return sha256(path)
    files = {name: sha256(path / name) for name in base_folder.loaded_files(path)}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def check(path: Path, like: str, shape: str | None, like_folder: Path | None) -> None:
    """Check that a checkpoint has all parts of a text-to-image model, and the widths of the base that it is like.

    Parameters
    ----------
    path
        A single file in the original layout, or a diffusers folder.
    like
        Name of the other base.
    shape
        Its architecture, a key of `SHAPES`; None for one that has no single-file checkpoints.
    like_folder
        Its folder, for a base without a `shape`.

    Raises
    ------
    UsageError
        It is not: the message says what is there in its place.
    """
    if path.is_dir():
        _check_folder(path, like, shape, like_folder)
        return
    if not path.is_file():
        raise UsageError("no such file or folder", file=path)
    if path.suffix not in intake.SINGLE:
        why = "is not a checkpoint: a diffusers folder, or a file whose name ends in"
        raise UsageError(why, file=path, value=" or ".join(intake.SINGLE))
    if shape is None:
        why = f"is a single file, which the base {like} has no form for; a diffusers folder is needed, not"
        raise UsageError(why, file=path, value=path.name)
    if path.suffix == ".safetensors":
        _check_tensors(path, base_folder.header(path).shapes, like, shape)


def add(name: str, path: Path, shape: str | None, log: Callable[[str], None]) -> None:
    """Convert a checkpoint to half precision and keep it as a base of this machine.

    Parameters
    ----------
    name
        The base's own name.
    path
        As `check` accepted it.
    shape
        Architecture of a single file.
    log
        Receives progress messages.

    Raises
    ------
    UsageError
        The checkpoint cannot be read, or holds values that half precision cannot hold.
    """
    place = base_folder.added_path(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        converted = Path(scratch) / "base"
        log(f"{name}: converting {path.name} to half precision")
        known = digest(path)
        if path.is_dir():
            _halve(path, converted)
        else:
            intake.convert(path, str(shape), converted)
        for part in base_folder.parts(converted):
            _require_finite(base_folder.weights_file(converted, part), path)
        files = {file: sha256(converted / file) for file in base_folder.loaded_files(converted)}
        origin = {"checkpoint": known, "files": files}
        (converted / base_folder.ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", "utf-8")
        shutil.rmtree(place, ignore_errors=True)
        converted.rename(place)
    place.with_suffix(".folder").unlink(missing_ok=True)
    log(f"{name}: saved to {place}")


def add_again(name: str, spec: BaseModelSpec, path: Path, log: Callable[[str], None] = print) -> None:
    """Add the checkpoint of a base that is described already, as on another machine; see `add` for the errors.

    Raises
    ------
    UsageError
        It is another checkpoint than the one that the base was described from.
    """
    path = path.expanduser().absolute()
    check(path, str(spec.like), spec.shape, None)
    intake.require_known(name, spec, path, digest(path))
    add(name, path, spec.shape, log)


def _check_tensors(file: Path, table: Mapping[str, tuple[int, ...]], like: str, shape: str) -> None:
    if any(name.startswith("lora_") or ".lora" in name for name in table):
        raise UsageError("is a low-rank adapter, not a whole model; merge it into its base first", file=file)
    missing = [part for part, starts in _PARTS.items() if not any(name.startswith(starts) for name in table)]
    if missing:
        first = next(iter(table), "")
        why = f"has no {' and no '.join(missing)} in the layout of Stable Diffusion's checkpoints; its first tensor is"
        raise UsageError(why, file=file, value=first)
    channels = table.get(_INPUT, (0, 0))[1:2]
    if channels != (_LATENTS,):
        why = f"must take {_LATENTS} channels: models for inpainting or editing take more, such as"
        raise UsageError(why, file=file, field=_INPUT, value=channels[0] if channels else None)
    widths = {size[1] for name, size in table.items() if name.startswith(_PARTS["UNet"]) and name.endswith(_TEXT)}
    _require_width(next(iter(widths), None), like, shape, file)


def _check_folder(folder: Path, like: str, shape: str | None, like_folder: Path | None) -> None:
    for part in base_folder.parts(folder):
        file = base_folder.weights_file(folder, part)
        base_folder.header(file)
    for name in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
                 "tokenizer/vocab.json"):  # fmt: skip
        if not (folder / name).is_file():
            raise UsageError("no such file", file=folder / name)
    base_folder.loaded_files(folder)
    file = folder / "unet" / "config.json"
    channels = base_folder.settings(file).get("in_channels", _LATENTS)
    if channels != _LATENTS:
        why = f"must be {_LATENTS}: models for inpainting or editing take more, such as"
        raise UsageError(why, file=file, field="in_channels", value=channels)
    width = base_folder.settings(file).get("cross_attention_dim")
    if shape is not None:
        _require_width(width, like, shape, file)
    elif like_folder is not None:
        _compare_width(width, base_folder.settings(like_folder / "unet" / "config.json"), like, file)


def _require_width(width: object, like: str, shape: str, file: Path) -> None:
    if width != SHAPES[shape].unet["cross_attention_dim"]:
        fits = [name for name, other in SHAPES.items() if other.unet["cross_attention_dim"] == width]
        _compare_width(width, SHAPES[shape].unet, like, file, fits)


def _compare_width(
    width: object, expected: Mapping[str, Any], like: str, file: Path, fits: list[str] | None = None
) -> None:
    known = expected.get("cross_attention_dim")
    if width != known:
        hint = f"; it is {' or '.join(fits)}'s" if fits else ""
        why = f"is of another architecture than {like}: {known} values a token of text{hint}, not"
        raise UsageError(why, file=file, field="cross_attention_dim", value=width)


def _halve(folder: Path, out: Path) -> None:
    """Copy a diffusers folder with its weights in half precision."""
    import torch
    from safetensors.torch import load_file, save_file

    for name in base_folder.loaded_files(folder):
        if not name.endswith(".safetensors"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, out / name)
    index = folder / "model_index.json"
    if index.is_file():
        shutil.copyfile(index, out / index.name)
    for part, stem in base_folder.parts(folder).items():
        file = base_folder.weights_file(folder, part)
        try:
            tensors = load_file(file)
        except Exception as error:  # safetensors' own exception is no OSError
            raise UsageError(f"cannot be read: {' '.join(str(error).split())[:200]}", file=file) from error
        half = {n: t.to(torch.float16) if t.is_floating_point() else t for n, t in tensors.items()}
        (out / part).mkdir(parents=True, exist_ok=True)
        target = out / part / f"{stem}.{base_folder.HALF}.safetensors"
        save_file({n: t.contiguous() for n, t in half.items()}, target, metadata={"format": "pt"})


def _require_finite(file: Path, source: Path) -> None:
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no mapping
            if not bool(tensors.get_tensor(name).isfinite().all()):
                why = "holds a value that is not finite, or too large for half precision, in"
                raise UsageError(why, file=source, value=f"{file.parent.name}: {name}")
