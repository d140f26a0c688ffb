"""`Perturbation`: an L_inf-bounded perturbation of pictures, optimised by projected gradient steps (PGD)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from immunebench.core.types import StageError
from immunebench.methods.loops import current
from immunebench.model.batch import Batch
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.runtime import derive_seed

Objective = Callable[[Tensor, Tensor], Tensor]
#: One 8-bit level for pictures in [-1, 1]: all budgets and step sizes are in levels (1/255 of the range).
LEVEL = 2 / 255
#: Loss scale for networks in fp16, where gradients of pixels may underflow to 0, whose sign is 0.
HALF_SCALE = 2.0**10


class Perturbation:
    """delta with |delta|_inf <= epsilon on 8-bit pictures x, moved by projected gradient ascent (Madry et al. 2018).

    Parameters
    ----------
    model : LatentDiffusion
        Determines device, precision and the default micro-batch.
    pixels : ndarray of uint8, shape (n, height, width, 3)
        x, the centre of the L_inf ball.
    budget : float
        epsilon in 8-bit levels (1/255); papers sometimes use units of [-1, 1] instead.
    seed : int
        Of the random start; each picture has its own random stream.
    start : {"zero", "random"}
        delta starts at 0, or uniformly distributed in the ball.
    micro_batch : int, optional
        Pictures per forward and backward pass, which bounds memory; the profile's batch size by default.

    Attributes
    ----------
    clean, images : Tensor, shape (n, 3, height, width)
        x and x + delta, in [-1, 1].
    """

    def __init__(
        self,
        model: LatentDiffusion,
        pixels: NDArray[np.uint8],
        budget: float,
        *,
        seed: int = 0,
        start: Literal["zero", "random"] = "zero",
        micro_batch: int | None = None,
    ) -> None:
        if not 0 < budget <= 255:
            raise StageError("error", f"budget must be over 0 and at most 255 (of 255), not {budget}")
        self._pixels, self.budget = pixels, budget
        self.micro_batch = micro_batch or model.numerics.batch
        self.clean = model.to_images(pixels)
        self._scale = HALF_SCALE if torch.float16 in (model.dtype, model.vae.dtype) else 1.0
        delta = torch.zeros_like(self.clean)
        if start == "random":
            draws = [torch.Generator().manual_seed(derive_seed(seed, "start", i)) for i in range(len(pixels))]
            uniform = torch.stack([torch.rand(self.clean.shape[1:], generator=draw) for draw in draws])
            delta = (2 * uniform - 1).to(delta) * budget * LEVEL
        self.images = self._project(self.clean + delta)
        current().register("perturbation", self)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return x + delta; see `loops.Stateful`."""
        return {"images": self.images}

    def extra_state(self) -> tuple[dict[str, Tensor], Any]:
        """Return nothing, as signed gradient steps have no further state."""
        return {}, None

    def load_extra_state(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Do nothing."""

    def __len__(self) -> int:
        return len(self.clean)

    def gradient(self, objective: Objective) -> tuple[Tensor, Tensor]:
        """Differentiate an objective with respect to the pictures.

        Parameters
        ----------
        objective : callable
            Maps pictures, shape (b, 3, height, width), and their row indices, int64 of shape (b,) on the CPU, to one
            value per picture, shape (b,), or to their sum. A picture's value must not depend on other pictures.

        Returns
        -------
        gradient : Tensor, shape (n, 3, height, width)
        values : Tensor, shape (n,)
            For an objective that returns sums: the sum over the picture's micro-batch.

        Raises
        ------
        StageError
            If a gradient is not finite.
        """
        gradients, values = [], []
        for rows in torch.split(torch.arange(len(self)), self.micro_batch):
            x = self.images[rows.to(self.images.device)].requires_grad_()
            value = objective(x, rows)
            (gradient,) = torch.autograd.grad(value.sum() * self._scale, x)
            gradients.append(gradient / self._scale)
            values.append(value.detach().expand(len(rows)))
        whole = torch.cat(gradients)
        if not torch.isfinite(whole).all():
            raise StageError("error", "the gradient of the pictures is not finite")
        return whole, torch.cat(values)

    def ascend(self, objective: Objective, step_size: float) -> Tensor:
        """Take one step of projected gradient ascent, delta <- project(delta + alpha sign(gradient)), on every picture.

        Parameters
        ----------
        objective : callable
            Maximised, see `gradient`; negate it to minimise.
        step_size : float
            alpha in 8-bit levels (1/255).

        Returns
        -------
        Tensor, shape (n,)
            Values of the objective before the step.
        """
        gradient, values = self.gradient(objective)
        self.images = self._project(self.images + step_size * LEVEL * gradient.sign())
        return values

    def pictures(self) -> NDArray[np.uint8]:
        """Round to 8 bits such that no pixel differs from x by more than the integer part of the budget."""
        most, x = math.floor(self.budget), self._pixels.astype(np.int16)
        levels = ((self.images + 1) / LEVEL).round().permute(0, 2, 3, 1).cpu().numpy().astype(np.int16)
        return np.clip(levels, np.maximum(x - most, 0), np.minimum(x + most, 255)).astype(np.uint8)

    def _project(self, x: Tensor) -> Tensor:
        epsilon = self.budget * LEVEL
        return torch.clamp(torch.minimum(torch.maximum(x, self.clean - epsilon), self.clean + epsilon), -1, 1).detach()


class Draws:
    """Noise and time steps for perturbed pictures, from one random stream per picture so that none depends on others.

    Parameters
    ----------
    captions : sequence of str
        One per picture.
    seed : int

    Attributes
    ----------
    steps : sequence of Tensor of int64, or None
        The time steps from which each picture's t is drawn; None: all from 0 to T - 1.
    streams : list of torch.Generator
        On the CPU, one per picture; entries may draw further random numbers from them.
    """

    def __init__(self, captions: Sequence[str], seed: int) -> None:
        self.captions = tuple(captions)
        self.steps: Sequence[Tensor] | None = None
        self.streams = [torch.Generator().manual_seed(derive_seed(seed, "draw", i)) for i in range(len(self.captions))]
        self._conditions: dict[int, Tensor] = {}
        current().register("draws", self)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return no tensors; see `loops.Stateful`."""
        return {}

    def extra_state(self) -> tuple[dict[str, Tensor], Any]:
        """Return the state of each picture's random stream."""
        return {str(i): stream.get_state() for i, stream in enumerate(self.streams)}, None

    def load_extra_state(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Restore what `extra_state` returned."""
        for i, stream in enumerate(self.streams):
            stream.set_state(tensors[str(i)])

    def timesteps(self, model: LatentDiffusion, rows: Tensor) -> Tensor:
        """Draw t for the pictures in `rows`, shape (b,)."""
        every = torch.arange(model.noise_scheduler.config.num_train_timesteps)
        allowed = [every if self.steps is None else self.steps[i] for i in rows.tolist()]
        drawn = (torch.randint(len(own), (1,), generator=self.streams[i]) for own, i in zip(allowed, rows, strict=True))
        return torch.cat([own[index] for own, index in zip(allowed, drawn, strict=True)])

    def batch(self, model: LatentDiffusion, x: Tensor, rows: Tensor, timesteps: Tensor | None = None) -> Batch:
        """Draw epsilon and t for the pictures in `rows`.

        Parameters
        ----------
        model : LatentDiffusion
        x : Tensor, shape (b, 3, height, width)
            The pictures in [-1, 1]; the batch's latents are differentiable with respect to them.
        rows : Tensor of int64, shape (b,)
            Their indices.
        timesteps : Tensor of int64, shape (b,), optional
            Use these instead of drawing t.
        """
        z = model.latents(x)
        t = self.timesteps(model, rows) if timesteps is None else timesteps
        noise = torch.stack([torch.randn(z.shape[1:], generator=self.streams[i]) for i in rows.tolist()])
        # Embedded once, not at each step; models that train text embed the batch's captions themselves.
        if id(model) not in self._conditions:
            self._conditions[id(model)] = model.condition(self.captions)
        condition = self._conditions[id(model)][rows.to(z.device)]
        captions = tuple(self.captions[i] for i in rows.tolist())
        return Batch(z, condition, noise.to(z.device), t.to(z.device), captions)
