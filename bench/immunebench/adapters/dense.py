"""`Dense`: the networks themselves, as DreamBooth trains them (Ruiz et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from immunebench.adapters.base import Adapter
from immunebench.diffusion import LatentDiffusion
from immunebench.types import StageError

_TEXT = "text_encoder."


@dataclass(frozen=True, slots=True, eq=False)
class Dense(Adapter):
    """The whole UNet and, if wanted, the text encoder; the model's own tensors, not copies of them.

    Parameters
    ----------
    model : LatentDiffusion
    text : bool
        Whether the text encoder is trained too.
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
        """The UNet's tensors by their own names, the text encoder's after ``text_encoder.``."""
        text = self.model.text.encoder.named_parameters() if self.text else ()
        return self.model.unet_tensors("all") | {f"{_TEXT}{name}": p for name, p in text}

    def enable(self, on: bool) -> None:
        """Do nothing: a network cannot be left out."""

    def save(self, path: Path) -> None:
        """Write the tensors under diffusers' names, ``unet.`` or ``text_encoder.`` before them."""
        from safetensors.torch import save_file

        named = {n if n.startswith(_TEXT) else f"unet.{n}": t for n, t in self.parameters.items()}
        save_file(self._finite(named), path, metadata={"format": "pt"})

    def describe(self) -> dict[str, Any]:
        """Return the format and which networks the files hold."""
        return {"format": self.format, "networks": ["unet", *(["text_encoder"] if self.text else [])]}


@torch.no_grad()
def load(model: LatentDiffusion, path: Path) -> None:
    """Put saved networks in place of the model's; `LatentDiffusion.restore` takes them back."""
    from safetensors.torch import load_file

    model.trainable(model.unet_tensors("all"))
    own = {f"unet.{name}": p for name, p in model.unet_tensors("all").items()}
    saved = load_file(path)
    if any(name.startswith(_TEXT) for name in saved):
        own |= {f"{_TEXT}{name}": p for name, p in model.trainable(model.text.train()).items()}
    for name, tensor in saved.items():
        if name not in own or own[name].shape != tensor.shape:
            raise StageError("error", f"{path.name}: {name} is no tensor of the base")
        own[name].copy_(tensor)
