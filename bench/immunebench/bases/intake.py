"""Obtaining a base that is not embedded: from its hub, a local diffusers folder, or a single-file checkpoint."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from immunebench.bases import base_folder
from immunebench.bases.hub import failure_reason
from immunebench.bases.weights import sha256
from immunebench.core.errors import UsageError
from immunebench.declared.models import BaseModelSpec, HubSource

Log = Callable[[str], None]
#: Endings of single-file checkpoints.
SINGLE = (".safetensors", ".ckpt")


def fetch(name: str, spec: BaseModelSpec, log: Log = print) -> Path:
    """Download a base from its hub into the hub's cache and verify every file by its SHA-256.

    Parameters
    ----------
    name : str
    spec : BaseModelSpec
        Its ``hub`` lists the repositories to try, at their pinned revisions.
    log : callable
        Receives progress messages.

    Returns
    -------
    Path
        The snapshot in the cache.

    Raises
    ------
    UsageError
        The base is embedded, the disk space does not suffice, or the download failed from every repository; the
        message has the reason of each.
    """
    if spec.embedded:
        raise UsageError("is embedded, there is nothing to fetch:", field="NAME", value=name)
    if spec.own:
        how = f"is a base of your own, on no hub; add its checkpoint: immunebench weights add {name} PATH, for"
        raise UsageError(how, field="NAME", value=name)
    if not any(base_folder.cached(source) for source in spec.hub):
        _require_disk_space(name, spec)
    reasons = []
    for source in spec.hub:
        log(f"{name}: {spec.size_gb:g} GB ({spec.licence}) from {source.repo} at {source.revision[:12]}")
        try:
            folder = _fetched(name, spec, source)
        except Exception as error:  # whatever fails with one repository, the next may work
            reasons.append(f"{source.repo}: {failure_reason(error)}")
            continue
        # A copy that was added earlier has precedence over the cache, so remove it.
        base_folder.added_path(name).with_suffix(".folder").unlink(missing_ok=True)
        shutil.rmtree(base_folder.added_path(name), ignore_errors=True)
        log(f"{name}: {len(spec.files)} weight files verified against models.toml")
        return folder
    raise UsageError(f"the base {name} could not be fetched ({'; '.join(reasons)})")


def add(name: str, spec: BaseModelSpec, path: Path, log: Log = print) -> Path:
    """Use a local copy of a base: a diffusers folder in place, or a single-file checkpoint, converted once.

    Parameters
    ----------
    name : str
    spec : BaseModelSpec
    path : Path
        A diffusers folder in half precision, or a file of ``spec.checkpoints``.
    log : callable
        Receives progress messages.

    Returns
    -------
    Path
        The folder that the base is loaded from.

    Raises
    ------
    UsageError
        The base is embedded, or the files differ from those in ``models.toml``.
    """
    if spec.embedded:
        raise UsageError("is embedded, it needs no copy:", field="NAME", value=name)
    path = path.expanduser().absolute()
    own = base_folder.added_path(name)
    pointer = own.with_suffix(".folder")
    if path.resolve().is_relative_to(own.resolve()):
        raise UsageError("is where converted copies are stored; name the original", file=path)
    if path.is_dir():
        base_folder.verified(name, spec, path, sha256)
        own.parent.mkdir(parents=True, exist_ok=True)
        pointer.write_text(f"{path}\n", "utf-8")
        shutil.rmtree(own, ignore_errors=True)
        log(f"{name}: will be loaded from {path}")
        return path
    checkpoint = _require_checkpoint(name, spec, path)
    own.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=own.parent) as scratch:
        converted = Path(scratch) / "base"
        log(f"{name}: converting {path.name} to half precision")
        convert(path, str(spec.shape), converted)
        files = {file: sha256(converted / file) for file in base_folder.loaded_files(converted)}
        origin = {"checkpoint": checkpoint, "files": files}
        (converted / base_folder.ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", "utf-8")
        shutil.rmtree(own, ignore_errors=True)
        converted.rename(own)
    pointer.unlink(missing_ok=True)
    log(f"{name}: saved to {own}")
    return own


def _require_disk_space(name: str, spec: BaseModelSpec) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if spec.size_gb is not None and free < spec.size_gb:
        raise UsageError(f"has {free:.1f} GB free, the base {name} takes {spec.size_gb:g}", file=existing)


def _require_checkpoint(name: str, spec: BaseModelSpec, path: Path) -> str:
    """Check that a file is one of a base's checkpoints in ``models.toml``, and return its SHA-256."""
    if not path.is_file():
        raise UsageError("no such file or folder", file=path)
    if path.suffix not in SINGLE:
        raise UsageError("is not a checkpoint: its name must end in", file=path, value=" or ".join(SINGLE))
    if not spec.checkpoints:
        raise UsageError(f"the base {name} has no single-file checkpoint; a diffusers folder is needed, not", file=path)
    return require_known(name, spec, path, sha256(path))


def require_known(name: str, spec: BaseModelSpec, path: Path, digest: str) -> str:
    """Return a checkpoint's SHA-256 after finding it among those of a base.

    Raises
    ------
    UsageError
        It is another checkpoint; the message lists those of the base.
    """
    if digest not in spec.checkpoints.values():
        known = ", ".join(f"{file} {expected[:12]}..." for file, expected in spec.checkpoints.items())
        raise UsageError(f"has the SHA-256 {digest[:12]}..., no checkpoint of the base {name} has ({known})", file=path)
    return digest


def _fetched(name: str, spec: BaseModelSpec, source: HubSource) -> Path:
    """Download a repository's files, a second time from scratch if one in the cache is damaged."""
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
    """Replaces the one class that the published checkpoints hold besides tensors, so that none of its code is run."""


def convert(file: Path, shape: str, out: Path) -> None:
    """Convert a checkpoint in the original layout to a half-precision diffusers folder with the configs of a shape."""
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    from immunebench.bases.skeleton import write_settings
    from immunebench.declared.architecture import SHAPES

    two = SHAPES[shape].text_2 is not None
    kind: Any = StableDiffusionXLPipeline if two else StableDiffusionPipeline
    # The watermarker would change pictures; it is not used.
    parts = {"add_watermarker": False} if two else {"safety_checker": None, "requires_safety_checker": False}
    with tempfile.TemporaryDirectory() as settings:
        write_settings(shape, Path(settings))
        # A key of the callbacks dictionary in sd-v1-4.ckpt; everything else in it is tensors and numbers.
        known: list[Any] = [(_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]
        try:
            with torch.serialization.safe_globals(known):
                pipeline = kind.from_single_file(
                    str(file), config=settings, local_files_only=True, torch_dtype=torch.float16,
                    feature_extractor=None, **parts,
                )  # fmt: skip
        # Pickled checkpoints are loaded with weights_only, which raises here for anything else in them.
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise UsageError(f"cannot be converted: {type(error).__name__}: {why}", file=file) from error
        pipeline.save_pretrained(out, safe_serialization=True, variant=base_folder.HALF)
        for words in ("tokenizer", "tokenizer_2") if two else ("tokenizer",):
            shutil.copytree(Path(settings) / words, out / words, dirs_exist_ok=True)
