"""`Adapter`: base class for the parameters that an attacker trains."""

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

#: File next to the saved adapters that describes them.
DESCRIPTION = "adapter.json"


def saved_file(step: int) -> str:
    """Return the file name of the adapter after `step` updates."""
    return f"adapter-{step:05d}.safetensors"


class Adapter(ABC):
    """phi: the parameters that an attacker trains, attached to a model.

    Attributes
    ----------
    model : LatentDiffusion
        The model to which it is attached.
    format : str
        Name of the file format that `save` writes, a key of `adapters.FORMATS`.
    """

    model: LatentDiffusion
    format: ClassVar[str]

    @property
    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name (no copies)."""

    @abstractmethod
    def enable(self, on: bool) -> None:
        """Enable or disable the adapter in the model's predictions; its values do not change."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the adapter as safetensors, in a format that diffusers reads."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the content of `adapter.json`, with `format` first."""

    @contextmanager
    def active(self, *, stay: bool = False) -> Iterator[None]:
        """Enable the adapter inside the block only, for models with several adapters; `stay` leaves it unchanged."""
        if not stay:
            self.enable(True)
        try:
            yield
        finally:
            if not stay:
                self.enable(False)

    @contextmanager
    def replaced(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Predict inside the block with other tensors in the place of the parameters, differentiably.

        Parameters
        ----------
        values : mapping of str to Tensor
            By the names of `parameters`; those that it lacks stay.
        """
        own = {id(p): values[name] for name, p in self.parameters.items() if name in values}
        networks = (self.model.unet, *self.model.text.networks.values())
        modules = [module for network in networks for module in network.modules()]
        held = [(module, name, p) for module in modules for name, p in module._parameters.items() if id(p) in own]
        for module, name, p in held:
            module._parameters[name] = own[id(p)]
        try:
            yield
        finally:
            for module, name, p in held:
                module._parameters[name] = p

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of the current values, in CPU memory if the profile offloads."""
        host = torch.device("cpu") if self.model.numerics.offload else None
        return {name: p.detach().to(host or p.device, copy=True) for name, p in self.parameters.items()}

    @torch.no_grad()
    def reset(self, state: Mapping[str, Tensor]) -> None:
        """Load values from `snapshot`; `state` may hold a part of them."""
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
