"""Gets a base that is not embedded: from its hub, from a folder of the user's, or from a single-file checkpoint."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from immunebench.bases import base_folder
from immunebench.bases.hub import why_not
from immunebench.bases.weights import sha256
from immunebench.core.errors import UsageError
from immunebench.declared.models import BaseModelSpec, HubSource

Say = Callable[[str], None]
_SINGLE = (".safetensors", ".ckpt")


def fetch(name: str, spec: BaseModelSpec, say: Say = print) -> Path:
    """Download a base from its hub into the hub's cache and hold every file against its SHA-256.

    Parameters
    ----------
    name : str
    spec : BaseModelSpec
        Its ``hub`` lists the repositories to try, at their pinned revisions.
    say : callable
        Told what is tried.

    Returns
    -------
    Path
        The snapshot in the cache.

    Raises
    ------
    UsageError
        It is embedded, the disk lacks the room, or no repository gave it: each with its reason.
    """
    if not spec.hub:
        raise UsageError("is embedded, there is nothing to fetch:", field="NAME", value=name)
    if not any(base_folder.cached(source) for source in spec.hub):
        _require_room(name, spec)
    reasons = []
    for source in spec.hub:
        say(f"{name}: {spec.size_gb:g} GB ({spec.licence}) from {source.repo} at {source.revision[:12]}")
        try:
            folder = _fetched(name, spec, source)
        except Exception as error:  # whatever stops one repository, the next may work
            reasons.append(f"{source.repo}: {why_not(error)}")
            continue
        # Or a copy that was added before would go on being read.
        base_folder.home(name).with_suffix(".folder").unlink(missing_ok=True)
        shutil.rmtree(base_folder.home(name), ignore_errors=True)
        say(f"{name}: {len(spec.files)} files of weights are those of models.toml")
        return folder
    raise UsageError(f"the base {name} could not be fetched ({'; '.join(reasons)})")


def add(name: str, spec: BaseModelSpec, path: Path, say: Say = print) -> Path:
    """Use a copy of a base that the user has: a diffusers folder as it is, or a checkpoint, converted once.

    Parameters
    ----------
    name : str
    spec : BaseModelSpec
    path : Path
        A folder with the pipeline's parts in half precision, or a file of ``spec.checkpoints``.
    say : callable
        Told what is done.

    Returns
    -------
    Path
        The folder that the base is loaded from.

    Raises
    ------
    UsageError
        The base is embedded, or the path is not what ``models.toml`` says of the base.
    """
    if not spec.hub:
        raise UsageError("is embedded, it needs no copy:", field="NAME", value=name)
    path = path.expanduser().absolute()
    home = base_folder.home(name)
    pointer = home.with_suffix(".folder")
    if path.resolve().is_relative_to(home.resolve()):
        raise UsageError("is where converted copies are kept; name the place that it came from", file=path)
    if path.is_dir():
        base_folder.verified(name, spec, path, sha256)
        home.parent.mkdir(parents=True, exist_ok=True)
        pointer.write_text(f"{path}\n", "utf-8")
        shutil.rmtree(home, ignore_errors=True)
        say(f"{name}: is read from {path}")
        return path
    checkpoint = _require_checkpoint(name, spec, path)
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        made = Path(scratch) / "base"
        say(f"{name}: converting {path.name} to half precision")
        _convert(path, str(spec.shape), made)
        files = {file: sha256(made / file) for file in base_folder.loaded_files(made)}
        noted = {"checkpoint": checkpoint, "files": files}
        (made / base_folder.ORIGIN).write_text(json.dumps(noted, indent=1) + "\n", "utf-8")
        shutil.rmtree(home, ignore_errors=True)
        made.rename(home)
    pointer.unlink(missing_ok=True)
    say(f"{name}: saved to {home}")
    return home


def _require_room(name: str, spec: BaseModelSpec) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    if spec.size_gb is not None and free < spec.size_gb:
        raise UsageError(f"has {free:.1f} GB free, the base {name} takes {spec.size_gb:g}", file=there)


def _require_checkpoint(name: str, spec: BaseModelSpec, path: Path) -> str:
    """Hold a single file against the checkpoints that ``models.toml`` knows of a base; return its SHA-256."""
    if not path.is_file():
        raise UsageError("no such file or folder", file=path)
    if path.suffix not in _SINGLE:
        raise UsageError("is no checkpoint: a file that ends in", file=path, value=" or ".join(_SINGLE))
    if not spec.checkpoints:
        raise UsageError(f"the base {name} has no single-file checkpoint; a diffusers folder is needed, not", file=path)
    digest = sha256(path)
    if digest not in spec.checkpoints.values():
        known = ", ".join(f"{file} {expected[:12]}..." for file, expected in spec.checkpoints.items())
        raise UsageError(f"has the SHA-256 {digest[:12]}..., no checkpoint of the base {name} ({known})", file=path)
    return digest


def _fetched(name: str, spec: BaseModelSpec, source: HubSource) -> Path:
    """Download a repository's files; once more from the beginning where one lies damaged in the cache."""
    from huggingface_hub import snapshot_download

    patterns = [*spec.files, *base_folder.SETTINGS, *base_folder.SECOND_SETTINGS, "model_index.json"]
    for again in (False, True):
        folder = Path(
            snapshot_download(
                source.repo, revision=source.revision, allow_patterns=patterns, force_download=again
            )
        )  # fmt: skip
        try:
            base_folder.verified(name, spec, folder, sha256)
        except UsageError:
            if again:
                raise
        else:
            return folder
    raise AssertionError("the second round returns or raises")


class _Inert:
    """Stands in for the one class that the published checkpoints hold beside tensors; nothing of it is run."""


def _convert(file: Path, shape: str, out: Path) -> None:
    """Convert a checkpoint in the original layout to a diffusers folder in half precision, settings from a shape."""
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    from immunebench.bases.skeleton import write_settings
    from immunebench.declared.architecture import SHAPES

    two = SHAPES[shape].text_2 is not None
    kind: Any = StableDiffusionXLPipeline if two else StableDiffusionPipeline
    # No watermark is made: pictures are the engine's.
    parts = {"add_watermarker": False} if two else {"safety_checker": None, "requires_safety_checker": False}
    with tempfile.TemporaryDirectory() as settings:
        write_settings(shape, Path(settings))
        # A key of the table of callbacks in sd-v1-4.ckpt, whose other values are tensors and numbers.
        known: list[Any] = [(_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]
        try:
            with torch.serialization.safe_globals(known):
                pipeline = kind.from_single_file(
                    str(file), config=settings, local_files_only=True, torch_dtype=torch.float16,
                    feature_extractor=None, **parts,
                )  # fmt: skip
        # A pickled checkpoint is read with weights_only; whatever else it holds stops it here.
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise UsageError(f"cannot be converted: {type(error).__name__}: {why}", file=file) from error
        pipeline.save_pretrained(out, safe_serialization=True, variant=base_folder.HALF)
        for words in ("tokenizer", "tokenizer_2") if two else ("tokenizer",):
            shutil.copytree(Path(settings) / words, out / words, dirs_exist_ok=True)
