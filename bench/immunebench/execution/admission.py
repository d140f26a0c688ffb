"""Admission: from the bytes that an entry's process left to the artifact, written anew by code that has seen no entry.

Headers come first: no tensor is read and no picture decoded before its name, shape, format and size are those that the
stage's key and the base leave room for. Captions, prompts and figures are not taken from what was left.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from immunebench.bases import base_folder
from immunebench.box.child import WorkFailed
from immunebench.box.folders import Untidy, read_file, regular_files
from immunebench.box.messages import Channel
from immunebench.core import machine
from immunebench.core.types import Pictures, StageError, Weights
from immunebench.execution import masks, tensors
from immunebench.execution.failures import failed_message
from immunebench.execution.hooks import check_perceptual, check_pictures

_LOG = "log.json"
#: Bytes of a log, steps of it, values of a step.
_LONGEST_LOG, _MOST_ROWS, _MOST_VALUES = 64 << 20, 2_000_000, 100
_DESCRIPTION = "adapter.json"
_SAVED = re.compile(r"adapter-(\d{5})\.safetensors")
_MOST_SAVES, _MOST_VECTORS, _MOST_RANK = 100, 1_000, 4_096
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
Key = Mapping[str, Any]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Left:
    """What an entry's process left, and what it may be.

    Attributes
    ----------
    entry
        The entry's name, for messages.
    folder
        The files that it left; hostile.
    out
        Where the artifact is written.
    key
        The whole key of the stage.
    inputs
        Folders of the artifacts that the stage reads, as the store has them.
    base
        Folder of the base.
    distance
        ``module:function`` of the perceptual distance, where the entry has a bound on it.
    words_alone
        Whether the manifest says that nothing but words is trained.
    """

    entry: str
    folder: Path
    out: Path
    key: Key
    inputs: Mapping[str, Path]
    base: Path
    distance: str | None = None
    words_alone: bool = False


def work(job: Mapping[str, Any], channel: Channel) -> Figures:
    """Admit what a stage left, in a process of its own; return figures for the manifest."""
    inputs = {name: Path(folder) for name, folder in job["inputs"].items()}
    left = Left(
        job["entry"], Path(job["left"]), Path(job["out"]), job["key"], inputs, Path(job["base"]), job["distance"],
        bool(job["words_alone"]),
    )  # fmt: skip
    try:
        figures = admit(job["stage"], left)
    except Exception as error:
        raise WorkFailed(failed_message(error, left.out)) from error
    return {**figures, "environment": machine.environment(job["key"]["numerics"]["device"])}


def admit(stage: str, left: Left) -> Figures:
    """Check what was left and write the artifact.

    Raises
    ------
    StageError
        It is not what the stage may leave; the message names the entry, the file and what is wrong.
    """
    try:
        return _ADMITS[stage](left)
    except (Untidy, tensors.Unfit) as error:
        raise StageError("error", f"{left.entry}: {error}") from error


def _protect(left: Left) -> Figures:
    if left.key["hook"] == "protect_images":
        published = Pictures.load(left.inputs["published"])
        protected = _pictures(left, [f"{i:03d}.png" for i in range(len(published))], published)
        check_pictures(left.entry, published, protected, left.key["budget"])
        p = left.key.get("perceptual_budget")
        if p is not None:
            check_perceptual(left.entry, _distances(left, published, protected), p)
        protected.save(left.out)
        return {}
    known = base_folder.header(base_folder.weights_file(left.base, "unet")).shapes
    if left.key["hook"] == "freeze":
        return _mask(left, known)
    _only(left, {"weights.safetensors", _LOG})
    most = sum(map(math.prod, known.values())) * 4 + tensors.LONGEST_HEADER

    def fits(name: str, shape: tuple[int, ...]) -> str | None:
        if name not in known:
            return "is no tensor of the base's UNet"
        return None if shape == known[name] else f"has the shape {list(shape)}, the base's {list(known[name])}"

    found = tensors.read(left.folder / "weights.safetensors", fits, most, formats={"F32"})
    Weights(found).save(left.out / "weights.safetensors")
    _copy_log(left)
    return {}


def _mask(left: Left, known: Mapping[str, tuple[int, ...]]) -> Figures:
    """Admit what a defense lets nobody train."""
    _only(left, {masks.FILE, _LOG})
    found = _json(left.folder / masks.FILE, 64 << 20)
    tensors_ = found.get("tensors") if isinstance(found, dict) else None
    if not isinstance(tensors_, dict) or tensors_.keys() != known.keys():
        raise Untidy(f"{masks.FILE} does not name the tensors of the base's UNet")
    for name, value in tensors_.items():
        if value not in ({"shape": list(known[name]), "frozen": on} for on in (True, False)):
            raise Untidy(f"{masks.FILE}: {name} is not its shape and whether it is frozen")
    frozen = [name for name, value in tensors_.items() if value["frozen"] is True]
    if len(frozen) == len(known):
        raise Untidy(f"{masks.FILE}: every tensor is frozen; at least one must stay free")
    (left.out / masks.FILE).write_text(json.dumps({"tensors": tensors_}, indent=1) + "\n")
    _copy_log(left)
    sizes = {name: math.prod(shape) for name, shape in known.items()}
    return {
        "tensors": len(sizes), "frozen_tensors": len(frozen), "parameters": sum(sizes.values()),
        "frozen_parameters": sum(sizes[name] for name in frozen),
    }  # fmt: skip


def _purify(left: Left) -> Figures:
    images = Pictures.load(left.inputs["images"])
    cleaned = _pictures(left, [f"{i:03d}.png" for i in range(len(images))], images)
    cleaned.save(left.out)
    return {"pictures": len(cleaned)}


def _generate(left: Left) -> Figures:
    key, side = left.key, int(left.key["numerics"]["resolution"])
    places = [(p, i) for p in range(len(key["prompts"])) for i in range(key["per_prompt"])]
    names = [f"p{p:02d}-{i:02d}" for p, i in places]
    captions = tuple(key["prompts"][p] for p, _ in places)
    shape = np.zeros((len(places), side, side, 3), dtype=np.uint8)
    drawn = _pictures(left, [f"{name}.png" for name in names], Pictures(shape, captions), also="prompts.json")
    drawn.save(left.out, names)
    told = {"prompts": key["prompts"], "per_prompt": key["per_prompt"]}
    (left.out / "prompts.json").write_text(json.dumps(told, indent=1) + "\n")
    return {"pictures": len(drawn)}


def _adapt(left: Left) -> Figures:
    from safetensors.torch import save_file

    described = _described(left)
    names = regular_files(left.folder, 2 * _MOST_SAVES)
    steps = [int(found[1]) for name in names if (found := _SAVED.fullmatch(name))]
    _only(left, {_LOG, _DESCRIPTION, *(f"adapter-{step:05d}.safetensors" for step in steps)})
    missing = sorted(set(left.key["params"]["saves"]) - set(steps))
    if missing:
        raise Untidy(f"no adapter was saved at step {missing[0]}")
    if len(steps) > _MOST_SAVES or described.get("steps") != sorted(steps):
        raise Untidy(f"{_DESCRIPTION} names other steps than those of the saved adapters")
    fits, most = _adapter_rule(left, str(described["format"]))
    for step in steps:
        name = f"adapter-{step:05d}.safetensors"
        read = tensors.read(left.folder / name, fits, most, formats={"F32", "F16", "BF16"})
        save_file(read, left.out / name, metadata={"format": "pt"})
    (left.out / _DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")
    _copy_log(left)
    frozen = frozenset[str]()
    if "mask" in left.inputs:
        mask = json.loads((left.inputs["mask"] / masks.FILE).read_text("utf-8"))["tensors"]
        frozen = frozenset(name for name, tensor in mask.items() if tensor["frozen"])
    masks.check_saved(left.entry, left.out, steps, frozen, words_alone=left.words_alone)
    last = left.key["params"]["steps"]
    return {"steps": last, **masks.trained(left.out, last)}


_ADMITS: Mapping[str, Callable[[Left], Figures]] = {
    "protect": _protect, "purify": _purify, "adapt": _adapt, "generate": _generate,
}  # fmt: skip


def _only(left: Left, names: set[str]) -> None:
    """Refuse any file but these."""
    for name in regular_files(left.folder, len(names) + 2 * _MOST_SAVES):
        if name not in names:
            raise Untidy(f"left {name!a}, which is no file of this stage")


def _pictures(left: Left, names: list[str], like: Pictures, *, also: str = _LOG) -> Pictures:
    """Read pictures of the size of others, in the order of those; the captions are those of the others."""
    count, height, width, _ = like.pixels.shape
    _only(left, {*names, "captions.json", also})
    if also == _LOG:
        _copy_log(left)
    # Filtered rows of eight bits, hardly packed at worst; texts and profiles have no place there.
    most = 2 * height * (3 * width + 1) + 4_096
    stack = np.empty((count, height, width, 3), dtype=np.uint8)
    for i, name in enumerate(names):
        stack[i] = _decoded(read_file(left.folder / name, most), name, height, width)
    return Pictures(stack, like.captions)


def _decoded(data: bytes, name: str, height: int, width: int) -> NDArray[np.uint8]:
    """Decode an RGB picture of eight bits after reading its size off the header."""
    import io

    from PIL import Image

    head = data[:33]
    if len(head) < 33 or head[:8] != _SIGNATURE or head[12:16] != b"IHDR":
        raise Untidy(f"{name} is no PNG")
    size = (int.from_bytes(head[16:20]), int.from_bytes(head[20:24]))
    if size != (width, height):
        raise Untidy(f"{name} is {size[0]} x {size[1]}, not {width} x {height}")
    if head[24:26] != b"\x08\x02":
        raise Untidy(f"{name} is not RGB of eight bits")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.load()
            return np.asarray(image, dtype=np.uint8).reshape(height, width, 3)
    except Exception as error:  # A decoder may raise anything on a damaged file.
        raise Untidy(f"{name} is damaged ({type(error).__name__})") from error


def _distances(left: Left, published: Pictures, protected: Pictures) -> NDArray[np.float64]:
    from immunebench.execution.inputs import loader
    from immunebench.methods.bound import paired_distances
    from immunebench.model import runtime

    assert left.distance is not None
    runtime.prepare_process(_cpu())
    return paired_distances(published, protected, loader(left.distance)("cpu"))


def _cpu() -> Any:
    from immunebench.core.types import Numerics

    return Numerics()


def _copy_log(left: Left) -> None:
    """Write the log of an entry anew: rows of names with finite numbers."""
    file = left.folder / _LOG
    if not file.exists():
        raise Untidy(f"left no {_LOG}")
    rows = _json(file, _LONGEST_LOG)
    if not isinstance(rows, list) or len(rows) > _MOST_ROWS or not all(map(_is_row, rows)):
        raise Untidy(f"{_LOG} is not a list of steps with finite numbers")
    (left.out / _LOG).write_text(json.dumps(rows, allow_nan=False) + "\n")


def _is_row(row: object) -> bool:
    return (
        isinstance(row, dict) and len(row) <= _MOST_VALUES
        and all(len(name) <= 100 for name in row)
        and all(isinstance(value, int | float) and math.isfinite(value) for value in row.values())
    )  # fmt: skip


def _json(file: Path, most: int) -> Any:
    try:
        return json.loads(read_file(file, most))
    except (ValueError, RecursionError) as error:
        raise Untidy(f"{file.name} is no JSON") from error


def _described(left: Left) -> dict[str, Any]:
    """Return the description of saved adapters, of plain values alone."""
    from immunebench.methods.adapters import FORMATS

    found = _json(left.folder / _DESCRIPTION, 1 << 20)
    if not isinstance(found, dict) or len(found) > 20:
        raise Untidy(f"{_DESCRIPTION} is no description of an adapter")
    for name, value in found.items():
        values = value if isinstance(value, list) else [value]
        if len(name) > 100 or len(values) > 1_000 or not all(_is_plain(v) for v in values):
            raise Untidy(f"{_DESCRIPTION}: {ascii(name)[:100]} is no number, text or list of them")
    if found.get("format") not in FORMATS:
        raise Untidy(f"{_DESCRIPTION}: unknown format {found.get('format')!r}; one of {', '.join(FORMATS)}")
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= 200
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def _adapter_rule(left: Left, form: str) -> tuple[tensors.Fits, int]:
    """Return what the tensors of an adapter may be on the base, and how many bytes of them there may be."""
    from immunebench.methods.adapters import Dense, Words

    trained = [part for part in base_folder.parts(left.base) if part != "vae"]
    held = {part: base_folder.header(base_folder.weights_file(left.base, part)).shapes for part in trained}
    own = {f"{part}.{name}": shape for part, shapes in held.items() for name, shape in shapes.items()}
    whole = 4 * sum(map(math.prod, own.values())) + tensors.LONGEST_HEADER
    # A learned word has one row of both encoders' columns where there are two.
    width = sum(shape[-1] for name, shape in own.items() if name.endswith("token_embedding.weight"))

    def dense(name: str, shape: tuple[int, ...]) -> str | None:
        if name not in own:
            return "is no tensor of the base"
        return None if shape == own[name] else f"has the shape {list(shape)}, the base's {list(own[name])}"

    def words(name: str, shape: tuple[int, ...]) -> str | None:
        if name != f"<{left.key['token']}>":
            return "is not the attacker's placeholder"
        right = len(shape) == 2 and shape[1] == width and 1 <= shape[0] <= _MOST_VECTORS
        return None if right else f"of shape {list(shape)} holds no embedding vectors"

    def low_rank(name: str, shape: tuple[int, ...]) -> str | None:
        module, _, side = name.removesuffix(".weight").partition(".lora")
        weight = own.get(f"{module}.weight")
        if weight is None or not side:
            return "belongs to no layer of the base's UNet"
        outer, rank = (0, 1) if side.endswith(("up", "_B")) else (1, 0)
        fits = len(shape) == len(weight) >= 2 and shape[outer] == weight[outer] and 1 <= shape[rank] <= _MOST_RANK
        kernel = (1,) * (len(weight) - 2) if outer == 0 else weight[2:]
        return (
            None if fits and shape[2:] == kernel else f"of shape {list(shape)} does not fit its layer's {list(weight)}"
        )

    return {Dense.format: (dense, whole), Words.format: (words, 4 * _MOST_VECTORS * max(width, 1) * 8)}.get(
        form, (low_rank, whole)
    )
