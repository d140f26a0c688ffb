"""Locating a base's diffusers folder and verifying its files against ``models.toml``.

An embedded base is stored next to ``models.toml``. A base from a model hub is looked up among the weights that the user
added (`immunebench.bases.intake`), then in the hub's cache at its pinned revision; nothing is downloaded here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from immunebench.bases.weights import cache_folder
from immunebench.core.errors import UsageError
from immunebench.declared.models import BaseModelSpec, HubSource
from immunebench.declared.profile import Profile

#: The pipeline components with weights, and the stem of their weights file.
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
SETTINGS = (
    "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json",
    "text_encoder/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json", "tokenizer/tokenizer.json",
)  # fmt: skip
#: The additional components of Stable Diffusion XL: a second text encoder and tokenizer.
SECOND_WEIGHTS = {"text_encoder_2": "model"}
SECOND_SETTINGS = (
    "text_encoder_2/config.json", "tokenizer_2/vocab.json", "tokenizer_2/merges.txt",
    "tokenizer_2/tokenizer_config.json", "tokenizer_2/special_tokens_map.json", "tokenizer_2/tokenizer.json",
)  # fmt: skip
#: Written next to the files of a converted checkpoint: the checkpoint's SHA-256 and those of the files.
ORIGIN = "origin.json"
#: Files that diffusers or transformers would load instead of those above or in addition to them.
_UNVERIFIED = (
    *(f"{part}/{name}" for part in (*WEIGHTS, *SECOND_WEIGHTS) for name in ("*.index*.json", "adapter_*")),
    "tokenizer/added_tokens.json", "tokenizer_2/added_tokens.json",
)  # fmt: skip
#: diffusers' name of the half-precision variant.
HALF = "fp16"
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_LATENTS = 4
_PREDICTIONS = ("epsilon", "v_prediction")
#: `addition_embed_type` of Stable Diffusion XL's UNet, which also reads pooled text embeddings and picture sizes.
_POOLED = "text_time"
_LARGEST_HEADER = 100 << 20
_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Tensors:
    """The content of a safetensors file by its header: number of values, their formats, shapes of tensors by name."""

    count: int
    formats: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]


def find(name: str, spec: BaseModelSpec, models: Path) -> Path:
    """Return the folder of a base.

    Parameters
    ----------
    name : str
    spec : BaseModelSpec
    models : Path
        The ``models.toml`` that defines it.

    Raises
    ------
    UsageError
        Its files are missing; the message has the commands that get them.
    """
    if spec.path is not None:
        folder = (models.parent / spec.path).resolve()
        if not folder.is_relative_to(models.parent.resolve()) or not folder.is_dir():
            raise UsageError("no such folder", file=models, field=f"bases.{name}.path", value=spec.path)
        return folder
    found = added(name) or next(filter(None, map(cached, spec.hub)), None)
    if found is None:
        raise UsageError(missing_weights(name, spec))
    return found


def is_available(name: str, spec: BaseModelSpec, models: Path) -> bool:
    """Whether the folder of a base is on this machine and has a UNet."""
    try:
        return (find(name, spec, models) / "unet").is_dir()
    except UsageError:
        return False


def missing_weights(name: str, spec: BaseModelSpec) -> str:
    """Return a one-line message for missing weights of a base: their size and the commands that get them."""
    if spec.own:
        (checkpoint,) = spec.checkpoints
        how = f"immunebench weights add {name} PATH"
        return f"the weights of the base {name} are not on this machine; add {checkpoint} with: {how}"
    return (
        f"the weights of the base {name} are missing ({spec.size_gb:g} GB, {spec.licence}); get them with: "
        f"immunebench weights fetch {name}, or add a folder or a checkpoint: immunebench weights add {name} PATH"
    )


def added_path(name: str) -> Path:
    """Return the path of a base that a user added: a folder, or with the suffix ``.folder`` a file with its path."""
    return cache_folder() / "bases" / name


def added(name: str) -> Path | None:
    """Return the folder of a base that a user added, None if there is none."""
    own, pointer = added_path(name), added_path(name).with_suffix(".folder")
    if own.is_dir():
        return own
    if not pointer.is_file():
        return None
    folder = Path(pointer.read_text("utf-8").strip())
    if not folder.is_dir():
        raise UsageError("names a folder that no longer exists:", file=pointer, value=str(folder))
    return folder


def cached(source: HubSource) -> Path | None:
    """Return the snapshot of a repository in the hub's cache, None if it is missing or incomplete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source.repo, revision=source.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None
    return folder if all((folder / part).is_dir() for part in parts(folder)) else None


def parts(folder: Path) -> dict[str, str]:
    """Return the components of a base that have weights, with the stems of their files; the UNet's config decides."""
    kind = settings(folder / "unet" / "config.json").get("addition_embed_type")
    return {**WEIGHTS, **SECOND_WEIGHTS} if kind == _POOLED else WEIGHTS


def weights_file(folder: Path, part: str) -> Path:
    """Return the weights file of a component, the half-precision one if it exists.

    Raises
    ------
    UsageError
        There is no safetensors file; pickled weights are never loaded.
    """
    stem = {**WEIGHTS, **SECOND_WEIGHTS}[part]
    for file in (folder / part / f"{stem}.{HALF}.safetensors", folder / part / f"{stem}.safetensors"):
        if file.is_file():
            return file
    pickled = sorted(f.name for f in (folder / part).glob("*") if f.suffix in _PICKLED)
    if pickled:
        raise UsageError("holds only pickled weights, which are never loaded; safetensors are needed, not",
                         file=folder / part, value=pickled[0])  # fmt: skip
    raise UsageError("no such file", file=folder / part / f"{stem}.{HALF}.safetensors")


def variant(folder: Path, part: str) -> str | None:
    """Return the diffusers ``variant`` of the file that `weights_file` returns."""
    return HALF if f".{HALF}." in weights_file(folder, part).name else None


def loaded_files(folder: Path) -> list[str]:
    """Return the names, relative to the folder, of every file that a base is loaded from.

    Raises
    ------
    UsageError
        Weights are missing, or there is a file that the libraries would load instead or in addition.
    """
    for pattern in _UNVERIFIED:
        for other in sorted(folder.glob(pattern)):
            raise UsageError("would be loaded in addition to the files of the base; remove it", file=other)
    weights = parts(folder)
    names = [*SETTINGS, *(SECOND_SETTINGS if len(weights) > len(WEIGHTS) else ())]
    found = [name for name in names if (folder / name).is_file()]
    return sorted([*found, *(weights_file(folder, part).relative_to(folder).as_posix() for part in weights)])


def verified(name: str, spec: BaseModelSpec, folder: Path, sha256: Callable[[Path], str]) -> dict[str, str]:
    """Return SHA-256 by name of a hub base's files, after comparing its weights with ``models.toml``.

    A base converted from one of its ``checkpoints`` is compared with the digests that the conversion wrote to `ORIGIN`.

    Raises
    ------
    UsageError
        A file is missing or differs from the one of the pinned revision.
    """
    expected = spec.files
    if folder == added_path(name):
        origin = settings(folder / ORIGIN)
        if origin.get("checkpoint") not in spec.checkpoints.values() or not isinstance(origin.get("files"), dict):
            again = f"add it again: immunebench weights add {name} PATH" if spec.own else _again(name)
            raise UsageError(f"was not converted from a checkpoint of the base {name}; {again}", file=folder)
        expected = origin["files"]
    found = {}
    for file in loaded_files(folder):
        if file.endswith(".safetensors") and file not in expected:
            (known,) = [known for known in expected if known.split("/")[0] == file.split("/")[0]]
            raise UsageError(f"is not a file of the base {name}, which has {known}; {_again(name)}", file=folder / file)
        found[file] = sha256(folder / file)
        if found[file] != expected.get(file, found[file]):
            other = f"SHA-256 {found[file][:12]}..., expected {expected[file][:12]}..."
            raise UsageError(f"is not the file of the base {name} ({other}); {_again(name)}", file=folder / file)
    return found


def revision(name: str, spec: BaseModelSpec) -> str:
    """Return a base's revision for records: the pinned one, or the checkpoint that a copy was converted from."""
    own = added_path(name)
    checkpoint = settings(own / ORIGIN).get("checkpoint", "") if not spec.embedded and own.is_dir() else ""
    return f"checkpoint-{checkpoint[:12]}" if checkpoint else spec.revision


def _again(name: str) -> str:
    return f"get it with: immunebench weights fetch {name}"


def check(name: str, folder: Path, profile: Profile) -> None:
    """Check that a base is supported and runs on a profile; reads file headers and configs only.

    Raises
    ------
    UsageError
        A component or its safetensors file is missing; the architecture or the noise schedule is not that of Stable
        Diffusion 1, 2 or XL; there are only single-precision weights for a half-precision profile; the weights exceed
        its memory; or the autoencoder of Stable Diffusion XL would run in fp16.
    """
    from immunebench.declared.architecture import SCHEDULE

    unet, vae = settings(folder / "unet" / "config.json"), settings(folder / "vae" / "config.json")
    prediction(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    schedule = settings(file)
    # Config files have no SHA-256 in models.toml, as repositories and libraries format the same settings differently.
    for field in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule"):
        if schedule.get(field) != SCHEDULE[field]:
            why = f"must be {SCHEDULE[field]}, as in Stable Diffusion's schedule, not"
            raise UsageError(why, file=file, field=field, value=schedule.get(field))
    for part, field, value in (
        ("unet", "in_channels", unet.get("in_channels", _LATENTS)),
        ("unet", "out_channels", unet.get("out_channels", _LATENTS)),
        ("vae", "latent_channels", vae.get("latent_channels", _LATENTS)),
    ):
        if value != _LATENTS:
            why = f"must be {_LATENTS}: only text-to-image models without additional inputs are supported, not"
            raise UsageError(why, file=folder / part / "config.json", field=field, value=value)
    _check_encoders(name, folder, unet, profile)
    held = {part: header(weights_file(folder, part)) for part in parts(folder)}
    if profile.frozen_dtype != "float32":
        for part in (part for part in held if part != "vae"):
            if held[part].formats == {"F32"}:
                raise UsageError(
                    f"is in single precision, and the profile {profile.id} is {profile.precision}; get the files in "
                    f"half precision with: immunebench weights fetch {name}",
                    file=weights_file(folder, part),
                )
    counts = {part: tensors.count for part, tensors in held.items()}
    size = weights_gib(counts, profile.frozen_dtype, profile.vae_dtype)
    if size >= profile.memory_gib:
        raise UsageError(
            f"has {profile.memory_gib:g} GiB, less than the {size:.1f} GiB of the weights of the base {name} alone:",
            field="profile", value=profile.id,
        )  # fmt: skip


def _check_encoders(name: str, folder: Path, unet: Mapping[str, Any], profile: Profile) -> None:
    """Check that the UNet fits the text encoders, and the restrictions of Stable Diffusion XL."""
    two = (folder / "text_encoder_2").is_dir() or "text_encoder_2" in parts(folder)
    expected, kind = _POOLED if two else None, unet.get("addition_embed_type")
    if kind != expected:
        why = f"must be {expected!r} with two text encoders" if two else "requires inputs that one text encoder lacks:"
        why += ", not" if two and kind is not None else ""
        raise UsageError(why, file=folder / "unet" / "config.json", field="addition_embed_type", value=kind)
    if not two:
        return
    vocabulary = folder / "tokenizer_2" / "vocab.json"
    if not vocabulary.is_file():
        raise UsageError("no such file", file=vocabulary)
    index = folder / "model_index.json"
    if settings(index).get("force_zeros_for_empty_prompt", True) is not True:
        why = "must be true, as in Stable Diffusion XL: the empty prompt is embedded as zeros, not"
        raise UsageError(why, file=index, field="force_zeros_for_empty_prompt", value=False)
    if profile.vae_dtype == "float16":
        raise UsageError(
            f"of the profile {profile.id}: the autoencoder of the base {name} overflows in",
            field="vae_dtype", value=profile.vae_dtype, choices=["float32"],
        )  # fmt: skip


def weights_gib(counts: Mapping[str, int], frozen: str, vae: str) -> float:
    """Return the memory of networks' weights in GiB, from their parameter counts and dtypes."""
    from immunebench.core.machine import GIB

    dtypes = {"vae": vae}
    return sum(count * _SIZES[dtypes.get(part, frozen)] for part, count in counts.items()) / GIB


def prediction(folder: Path) -> str:
    """Return the prediction type of a base's UNet: ``epsilon`` or ``v_prediction``.

    Raises
    ------
    UsageError
        The prediction type is another one, or the file cannot be read.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    found = settings(file).get("prediction_type", "epsilon")
    if found not in _PREDICTIONS:
        raise UsageError("is not valid:", file=file, field="prediction_type", value=found, choices=_PREDICTIONS)
    return str(found)


def side(folder: Path) -> int | None:
    """Return the native resolution of a base in pixels, None if its configs do not state it."""
    unet, vae = (settings(folder / part / "config.json") for part in ("unet", "vae"))
    latents, blocks = unet.get("sample_size"), vae.get("block_out_channels")
    if type(latents) is not int or not isinstance(blocks, list) or not blocks:
        return None
    return int(latents * 2 ** (len(blocks) - 1))


def settings(file: Path) -> dict[str, Any]:
    """Return a component's JSON config, empty if there is no file.

    Raises
    ------
    UsageError
        It cannot be read, or is not a JSON object.
    """
    try:
        found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot be read: {reason}", file=file) from error
    if not isinstance(found, dict):
        raise UsageError("is not a JSON object", file=file)
    return found


def header(file: Path) -> Tensors:
    """Read the header of a safetensors file, without its weights.

    Raises
    ------
    UsageError
        The file is not in the safetensors format, or is truncated.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError(f"its header would have {length} bytes")
            table = json.loads(stream.read(length))
        tensors = {name: tensor for name, tensor in table.items() if name != "__metadata__"}
        spans = [tensor["data_offsets"] for tensor in tensors.values()]
        if any(not 0 <= first <= last for first, last in spans):
            raise ValueError("a tensor lies outside of it")
        end = max(last for _, last in spans)
        if file.stat().st_size < 8 + length + end:
            raise ValueError("it is truncated")
        shapes = {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}
        formats = frozenset(tensor["dtype"] for tensor in tensors.values())
        return Tensors(sum(map(math.prod, shapes.values())), formats, shapes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise UsageError(f"is not a safetensors file: {error}", file=file) from error
