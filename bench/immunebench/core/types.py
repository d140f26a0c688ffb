"""Types that entries and stages exchange: pictures, concepts, parameters, weights, numerics.

Only NumPy and Pillow are imported here, so that planning and listing never load torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

StageErrorKind = Literal["error", "oom", "over_memory", "timeout", "skipped"]


class StageError(Exception):
    """A failure of a stage that is written to its record.

    Parameters
    ----------
    kind : {"error", "oom", "over_memory", "timeout", "skipped"}
        The status of every cell that needs the stage; ``skipped`` means that there was nothing to measure.
    message : str
        One line, shown in the record.
    """

    def __init__(self, kind: StageErrorKind, message: str) -> None:
        super().__init__(kind, message)
        self.kind: StageErrorKind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """A stack of pictures and one caption for each.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (n, height, width, 3)
        RGB, 0 to 255.
    captions : tuple of str
        One per picture, in the same order.

    Raises
    ------
    ValueError
        If dtype, shape or number of captions is wrong.
    """

    pixels: NDArray[np.uint8]
    captions: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or self.pixels.shape[-1] != 3:
            raise ValueError(
                f"pictures must be uint8 of shape (n, height, width, 3), "
                f"not {self.pixels.dtype} of shape {self.pixels.shape}"
            )
        if len(self.captions) != len(self.pixels):
            raise ValueError(f"{len(self.pixels)} pictures but {len(self.captions)} captions")

    def __len__(self) -> int:
        return len(self.pixels)

    def captioned(self, caption: str) -> Pictures:
        """Return the same pixels, all with one caption."""
        return Pictures(self.pixels, (caption,) * len(self))

    def save(self, folder: Path, names: Sequence[str] | None = None) -> None:
        """Write one PNG per picture and `captions.json`, which maps file names to captions.

        Parameters
        ----------
        folder : Path
            Existing folder.
        names : sequence of str, optional
            File names without suffix, whose sorted order is the order of the pictures;
            `000`, `001`, ... by default.
        """
        from PIL import Image

        names = [f"{i:03d}" for i in range(len(self))] if names is None else names
        for name, pixels in zip(names, self.pixels, strict=True):
            Image.fromarray(pixels).save(folder / f"{name}.png")
        index = {f"{name}.png": caption for name, caption in zip(names, self.captions, strict=True)}
        (folder / "captions.json").write_text(json.dumps(index, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Pictures:
        """Read what `save` wrote, in the order of the file names.

        Raises
        ------
        ValueError
            If the pictures differ in size.
        """
        from PIL import Image

        index: dict[str, str] = json.loads((folder / "captions.json").read_text())
        names = sorted(index)
        stack = [np.asarray(Image.open(folder / name).convert("RGB"), dtype=np.uint8) for name in names]
        return cls(np.stack(stack), tuple(index[name] for name in names))


@dataclass(frozen=True, slots=True, eq=False)
class Concept:
    """The concept to protect, as far as a defense knows it.

    Parameters
    ----------
    id : str
        A name that tells nothing and is another one in every run.
    family, noun : str
        Task family and the class noun of the concept (`painting`, `person`).
    token : str
        The owner's placeholder token; the attacker uses another.
    caption : str
        The owner's caption with the placeholder filled in.
    owner : Pictures
        The owner's own pictures, captioned with `caption`; disjoint from every attacker's.
    """

    id: str
    family: str
    noun: str
    token: str
    caption: str
    owner: Pictures


class Params(Mapping[str, Any]):
    """Resolved parameters of an entry, read-only, by attribute or by key.

    Raises
    ------
    AttributeError
        If the entry's manifest does not define the name.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            known = ", ".join(sorted(self._values))
            raise AttributeError(f"no parameter {name!r}; the manifest defines: {known}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("parameters are read-only")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Params({self._values!r})"


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """UNet tensors that replace those of the base.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Names as in `UNet2DConditionModel.state_dict()` of the base.
    """

    tensors: Mapping[str, Tensor]

    def save(self, path: Path) -> None:
        """Write contiguous fp32 copies as safetensors."""
        from safetensors.torch import save_file

        save_file({name: t.detach().float().cpu().contiguous() for name, t in self.tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Weights:
        """Read a safetensors file onto the CPU."""
        from safetensors.torch import load_file

        return cls(load_file(path))


@dataclass(frozen=True, slots=True)
class Numerics:
    """The settings of a profile that can change results; part of the cache key of every stage that runs a model.

    Parameters
    ----------
    device : str
        `cpu` or `cuda`.
    memory_gib : float
        Memory cap, in GiB: the process on a CPU, the allocator on a GPU.
    threads : int
        Threads of one stage on the CPU; with one, results do not depend on the number of workers.
    resolution : int
        Side of the pictures, in pixels.
    batch : int
        Sampling batch size and, unless an entry sets its own, training batch size.
    sampler : str
        `ddim`, `dpm++` or `pndm`.
    sampling_steps : int
        Denoising steps per sample.
    guidance : float
        Classifier-free guidance scale; 1 switches it off.
    attention : str
        `eager` or `sdpa`.
    frozen_dtype, trained_dtype, vae_dtype : str
        `float32`, `float16` or `bfloat16`. With a half-precision frozen dtype the networks compute in it.
    checkpointing : bool
        Gradient checkpointing of the UNet.
    optimiser_state : str
        Precision of the optimiser's moments: `float32` or `8bit`.
    release_gradients : bool
        Update each trained tensor during the backward pass and free its gradient; see `optim.ReleasedAdamW`.
    offload : bool
        Keep the autoencoder and the text encoder in CPU memory while they are not in use.
    micro_batch : int
        Pictures of a training batch whose activations are in memory at once; 0 means the whole batch.
    masters : bool
        In half precision, copy trained weights to it together after each change; see `model.halves`. Otherwise
        autocast casts them at each use, which takes less memory, and keeps norms in fp32.
    compute_capability : str
        CUDA compute capability of the profile's GPU, where it lacks features that are otherwise used (`7.5`: no
        bfloat16, no flash attention); empty where it lacks none.
    extra : mapping
        Settings of a key that this version does not know.
    """

    device: str = "cpu"
    memory_gib: float = 8.0
    threads: int = 1
    resolution: int = 64
    batch: int = 4
    sampler: str = "ddim"
    sampling_steps: int = 20
    guidance: float = 4.0
    attention: str = "eager"
    frozen_dtype: str = "float32"
    trained_dtype: str = "float32"
    vae_dtype: str = "float32"
    checkpointing: bool = False
    optimiser_state: str = "float32"
    release_gradients: bool = False
    offload: bool = False
    micro_batch: int = 0
    masters: bool = False
    compute_capability: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Numerics:
        """Build from the table in a stage's key; unknown settings go to `extra`."""
        known = {f.name for f in fields(cls)} - {"extra"}
        taken = {name: value for name, value in values.items() if name in known}
        return cls(**taken, extra={name: v for name, v in values.items() if name not in known})
