"""`LowRank`: LoRA on the UNet's attention projections (Hu et al. 2022, sec. 4.1), with peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from immunebench.core.types import StageError
from immunebench.methods.adapters.base import Adapter
from immunebench.model.diffusion import LatentDiffusion

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, slots=True, eq=False)
class LowRank(Adapter):
    """`W + (alpha / r) B A` on every target projection whose W no mask freezes, with alpha = r.

    Parameters
    ----------
    model : LatentDiffusion
        The model to which it is attached.
    rank : int
        r, at least 1.
    targets : tuple of str
        Suffixes of the names of the projections, as peft's `target_modules`.
    """

    format: ClassVar[str] = "diffusers-lora"
    model: LatentDiffusion
    rank: int
    targets: tuple[str, ...] = TARGETS

    @classmethod
    def attach(cls, model: LatentDiffusion, *, rank: int, seed: int, targets: Sequence[str] = TARGETS) -> LowRank:
        """Attach a new adapter to a model: A ~ N(0, 1/r^2), B = 0, so that the model is unchanged at first.

        Parameters
        ----------
        model : LatentDiffusion
        rank : int
        seed : int
            For the initialisation of A, which is the same on every device.
        targets : sequence of str

        Raises
        ------
        StageError
            If the model already has a low-rank adapter, or a mask freezes every projection.
        """
        from peft import LoraConfig

        if _parameters(model.unet):
            raise StageError("error", "the model already has a low-rank adapter")
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=_open(model, targets))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model.unet.add_adapter(config)
        adapter = cls(model, rank, tuple(targets))
        model.trainable(adapter.parameters)
        model.unet.requires_grad_(False)
        return adapter

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """A and B of every projection, by name."""
        return _parameters(self.model.unet)

    def enable(self, on: bool) -> None:
        """Enable or disable the adapter in the projections."""
        (self.model.unet.enable_adapters if on else self.model.unet.disable_adapters)()
        # peft enables gradients together with the adapter; here only `training` enables them.
        self.model.unet.requires_grad_(False)

    def save(self, path: Path) -> None:
        """Write diffusers' LoRA format, readable by `StableDiffusionPipeline.load_lora_weights`.

        Parameters
        ----------
        path : Path
            A `.safetensors` file in an existing folder.

        Raises
        ------
        StageError
            If a value is not finite.
        """
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict
        from safetensors.torch import save_file

        layers: dict[str, Tensor] = get_peft_model_state_dict(self.model.unet)
        if set(self.targets) <= set(TARGETS):
            # diffusers' older names, which exist for attentions only; mixed with peft's, half of a file would be lost.
            layers = convert_state_dict_to_diffusers(layers)
        save_file(self._finite({f"unet.{name}": t for name, t in layers.items()}), path, metadata={"format": "pt"})

    @contextmanager
    def unscaled(self, scales: Mapping[str, Tensor]) -> Iterator[None]:
        """Hold, while the block runs, the adapter for the weights from before `balance` scaled them.

        (W + B A) of a projection whose rows were multiplied by s is s (W + (B / s) A); of one whose columns were, it
        is (W + B (A / s)) s.

        Parameters
        ----------
        scales : mapping of str to Tensor
            As `balance` returned them.
        """
        own = self.parameters
        # Not those that a mask freezes.
        adapted = {name.partition(".lora_")[0] for name in own} & scales.keys()
        sides = {n: ("lora_A", (1, -1)) if n.endswith(".to_out.0") else ("lora_B", (-1, 1)) for n in adapted}
        parts = {
            next(name for name in own if name.startswith(f"{n}.{side}.")): scales[n].view(shape)
            for n, (side, shape) in sides.items()
        }
        before = {name: own[name].detach().clone() for name in parts}
        with torch.no_grad():
            for name, s in parts.items():
                own[name].div_(s)
        try:
            yield
        finally:
            self.reset(before)

    def describe(self) -> dict[str, Any]:
        """Return format, rank, alpha and targets."""
        return {"format": self.format, "rank": self.rank, "alpha": self.rank, "targets": list(self.targets)}


def merge(model: LatentDiffusion, path: Path) -> None:
    """Merge a saved adapter into the UNet's weights; `LatentDiffusion.restore` undoes it.

    Merged weights give the adapter's predictions (alpha = r) and sample faster.
    """
    from safetensors.torch import load_file

    model.unet.load_lora_adapter(load_file(path), prefix="unet")
    model.unet.fuse_lora()
    model.unet.unload_lora()
    model.unet.requires_grad_(False)


def _open(model: LatentDiffusion, targets: Sequence[str]) -> list[str]:
    """Return the targets as peft takes them: the suffixes, or where there is a mask the projections left open.

    Raises
    ------
    StageError
        If none is left.
    """
    if not model.frozen:
        return list(targets)
    ends = tuple(f".{target}.weight" for target in targets)
    found = [name.removesuffix(".weight") for name in model.open_tensors() if name.endswith(ends)]
    if not found:
        raise StageError("error", f"the mask freezes every projection of {', '.join(targets)}")
    return found


def _parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in unet.named_parameters() if ".lora_" in name}
