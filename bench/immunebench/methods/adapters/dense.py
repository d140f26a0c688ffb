"""`Dense`: full fine-tuning of the networks, as in DreamBooth (Ruiz et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from immunebench.core.types import StageError
from immunebench.methods.adapters.base import Adapter
from immunebench.model.diffusion import LatentDiffusion


@dataclass(frozen=True, slots=True, eq=False)
class Dense(Adapter):
    """All parameters of the UNet that no mask freezes and optionally of the text encoders; no copies.

    Parameters
    ----------
    model : LatentDiffusion
    text : bool
        Whether the text encoder is trained too (both of them in Stable Diffusion XL).
    """

    format: ClassVar[str] = "diffusers-dense"
    model: LatentDiffusion
    text: bool = False

    @classmethod
    def attach(cls, model: LatentDiffusion, *, text: bool = False) -> Dense:
        """Cast the networks' parameters to the dtype for training and, with `text`, embed captions at each step."""
        adapter = cls(model, text)
        if text:
            model.text.train()
        model.trainable(adapter.parameters)
        return adapter

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The UNet's parameters by name, the text encoders' prefixed by ``text_encoder.`` or ``text_encoder_2.``."""
        return self.model.open_tensors() | (self.model.text.parameters() if self.text else {})

    def enable(self, on: bool) -> None:
        """Do nothing, as the networks themselves cannot be disabled."""

    def save(self, path: Path) -> None:
        """Write the tensors by their diffusers names, prefixed by ``unet.`` or the text encoder's component name."""
        from safetensors.torch import save_file

        named = {f"unet.{n}": t for n, t in self.model.open_tensors().items()}
        named |= self.model.text.parameters() if self.text else {}
        save_file(self._finite(named), path, metadata={"format": "pt"})

    def describe(self) -> dict[str, Any]:
        """Return the format and the networks in the files."""
        return {"format": self.format, "networks": ["unet", *(self.model.text.networks if self.text else ())]}


@torch.no_grad()
def load(model: LatentDiffusion, path: Path) -> None:
    """Load saved networks into the model; `LatentDiffusion.restore` undoes it."""
    from safetensors.torch import load_file

    model.trainable(model.unet_tensors("all"))
    own = {f"unet.{name}": p for name, p in model.unet_tensors("all").items()}
    saved = load_file(path)
    if any(name.startswith("text_encoder") for name in saved):
        own |= model.trainable(model.text.train())
    for name, tensor in saved.items():
        if name not in own or own[name].shape != tensor.shape:
            raise StageError("error", f"{path.name}: {name} is not a tensor of the base")
        own[name].copy_(tensor)
