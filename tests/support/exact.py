"""The tiny model in double precision, and AdamW and clipping as the papers print them.

In single precision AdamW's first step is lr times the sign of a gradient, and where that is near 0 rounding decides:
only in double can updates be held to 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from immunebench.core.types import Numerics
from immunebench.model.batch import Batch
from immunebench.model.diffusion import LatentDiffusion
from tiny import tiny_folder


class Exact(LatentDiffusion):
    """The engine's model without its roundings to single precision."""

    def predict(self, noised: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        prediction: Tensor = self.unet(noised.double(), timesteps, condition.double(), return_dict=False)[0]
        return prediction

    def draw(self, *arguments: Any) -> Batch:
        batch = super().draw(*arguments)
        return replace(batch, latents=batch.latents.double(), noise=batch.noise.double())

    def trainable(self, tensors: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        return dict(tensors)


def exact_model(kind: type[Exact] = Exact) -> Exact:
    """Return a fresh tiny model in double precision."""
    model = kind.load(tiny_folder(), Numerics(resolution=32, sampling_steps=3))
    model.unet.double()
    model.text.encoder.double()
    model._pristine = {name: t.detach().clone() for name, t in model.unet.state_dict().items()}
    return model


def denoising_loss(model: LatentDiffusion, tensors: Mapping[str, Tensor], batch: Batch, c: Tensor) -> Tensor:
    """L(theta; x, c): mean of (epsilon_theta(z_t, t, c) - epsilon)^2 with the UNet's tensors given by name."""
    alpha = model.noise_scheduler.alphas_cumprod.double()[batch.timesteps].view(-1, 1, 1, 1)
    z_t = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
    prediction = functional_call(model.unet, dict(tensors), (z_t, batch.timesteps, c.double())).sample
    return ((prediction - batch.noise) ** 2).mean()


class PaperAdamW:
    """Loshchilov & Hutter 2019, algorithm 2, after scaling gradients to a norm of at most `clip`."""

    def __init__(self, lr: float, *, decay: float = 1e-2, clip: float | None = 1.0) -> None:
        self.lr, self.decay, self.clip, self.t = lr, decay, clip, 0
        self.moments: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def descend(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Move the parameters in place; what the loss does not reach (gradient None) stays."""
        if not self.moments:
            self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self.t += 1
        norm = sum(float((g.double() ** 2).sum()) for g in gradients if g is not None) ** 0.5
        scale = 1.0 if self.clip is None else min(1.0, self.clip / (norm + 1e-6))
        for p, g, (m, v) in zip(parameters, gradients, self.moments, strict=True):
            if g is None:
                continue
            g = g * scale
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            p.mul_(1 - self.lr * self.decay)
            p.sub_(self.lr * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8))


def low_rank_weights(theta: Mapping[str, Tensor], phi: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W + B A for every weight that has them (alpha = r)."""
    merged = {}
    for name, w in theta.items():
        a, b = (phi.get(f"{name.removesuffix('.weight')}.lora_{x}.default.weight") for x in "AB")
        merged[name] = w if a is None or b is None else w + b @ a
    return merged


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, atol: float = 1e-6) -> None:
    """Hold every element of every tensor to an absolute tolerance."""
    assert found.keys() == expected.keys()
    worst = moved(found, expected)
    assert worst <= atol, worst


@torch.no_grad()
def moved(found: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """Largest difference of an element."""
    return max(float((found[name].double() - start[name].double()).abs().max()) for name in found)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values that later training does not reach."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
