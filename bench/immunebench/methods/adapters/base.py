"""`Adapter`: the state that an attacker trains, whatever it consists of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from immunebench.core.types import StageError

if TYPE_CHECKING:
    from immunebench.model.diffusion import LatentDiffusion

#: File beside the saved adapters that says what they are.
DESCRIPTION = "adapter.json"


def saved_file(step: int) -> str:
    """Name the file of the adapter after `step` updates."""
    return f"adapter-{step:05d}.safetensors"


class Adapter(ABC):
    """phi: what an attacker trains on a model that carries it.

    Attributes
    ----------
    model : LatentDiffusion
        What carries it.
    format : str
        Name of the file format that `save` writes, a key of `adapters.FORMATS`.
    """

    model: LatentDiffusion
    format: ClassVar[str]

    @property
    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """The live parameters, by name."""

    @abstractmethod
    def enable(self, on: bool) -> None:
        """Let the model's prediction use the adapter, or not; its values stay."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the adapter as safetensors, in a form that plain diffusers reads."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what `adapter.json` says of the files beside it, `format` first."""

    @contextmanager
    def active(self, *, stay: bool = False) -> Iterator[None]:
        """Use the adapter while the block runs only, for models that carry several; with `stay`, leave it on."""
        if not stay:
            self.enable(True)
        try:
            yield
        finally:
            if not stay:
                self.enable(False)

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the present values (a copy: live tensors would follow the training).

        They are in the host's memory where the profile offloads what is not in use.
        """
        host = torch.device("cpu") if self.model.numerics.offload else None
        return {name: p.detach().to(host or p.device, copy=True) for name, p in self.parameters.items()}

    @torch.no_grad()
    def reset(self, state: Mapping[str, Tensor]) -> None:
        """Copy values made by `snapshot` back, those that `state` holds."""
        own = self.parameters
        for name, value in state.items():
            own[name].copy_(value)

    def _finite(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return contiguous copies on the CPU.

        Raises
        ------
        StageError
            If a value is not finite.
        """
        if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
            raise StageError("error", "the adapter holds a value that is not finite")
        return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
