"""`Dense`: the networks themselves, as DreamBooth trains them (Ruiz et al. 2023)."""

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
    """The whole UNet and, if wanted, the text encoders; the model's own tensors, not copies of them.

    Parameters
    ----------
    model : LatentDiffusion
    text : bool
        Whether the text encoder is trained too; both of Stable Diffusion XL's.
    """

    format: ClassVar[str] = "diffusers-dense"
    model: LatentDiffusion
    text: bool = False

    @classmethod
    def attach(cls, model: LatentDiffusion, *, text: bool = False) -> Dense:
        """Raise the networks' tensors to the trained precision and, with `text`, keep captions live."""
        adapter = cls(model, text)
        if text:
            model.text.train()
        model.trainable(adapter.parameters)
        return adapter

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The UNet's tensors by their own names, a text encoder's after ``text_encoder.`` or ``text_encoder_2.``."""
        return self.model.unet_tensors("all") | (self.model.text.parameters() if self.text else {})

    def enable(self, on: bool) -> None:
        """Do nothing: a network cannot be left out."""

    def save(self, path: Path) -> None:
        """Write the tensors under diffusers' names, ``unet.`` or the text encoder's part before them."""
        from safetensors.torch import save_file

        named = {f"unet.{n}": t for n, t in self.model.unet_tensors("all").items()}
        named |= self.model.text.parameters() if self.text else {}
        save_file(self._finite(named), path, metadata={"format": "pt"})

    def describe(self) -> dict[str, Any]:
        """Return the format and which networks the files hold."""
        return {"format": self.format, "networks": ["unet", *(self.model.text.networks if self.text else ())]}


@torch.no_grad()
def load(model: LatentDiffusion, path: Path) -> None:
    """Put saved networks in place of the model's; `LatentDiffusion.restore` takes them back."""
    from safetensors.torch import load_file

    model.trainable(model.unet_tensors("all"))
    own = {f"unet.{name}": p for name, p in model.unet_tensors("all").items()}
    saved = load_file(path)
    if any(name.startswith("text_encoder") for name in saved):
        own |= model.trainable(model.text.train())
    for name, tensor in saved.items():
        if name not in own or own[name].shape != tensor.shape:
            raise StageError("error", f"{path.name}: {name} is no tensor of the base")
        own[name].copy_(tensor)
