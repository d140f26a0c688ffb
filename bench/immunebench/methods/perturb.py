"""`Perturbation`: a bounded change of pictures, and the signed gradient steps that every image defense takes."""

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
#: One 8-bit level where pictures lie in [-1, 1]: every budget and step is given in levels (1/255 of the range).
LEVEL = 2 / 255
#: Of the loss where a network runs in fp16: gradients of pixels may lie below its smallest number; sign(0) is 0.
HALF_SCALE = 2.0**10


class Perturbation:
    """delta with |delta|_inf <= epsilon on 8-bit pictures x, moved by projected gradient ascent (Madry et al. 2018).

    Parameters
    ----------
    model : LatentDiffusion
        Gives device, precision and the default micro-batch.
    pixels : ndarray of uint8, shape (n, height, width, 3)
        x, which stays the centre of the ball.
    budget : float
        epsilon in 1/255; never in units of [-1, 1], which papers mix up with it.
    seed : int
        Of the random start; each picture has a stream of its own.
    start : {"zero", "random"}
        delta begins at 0, or uniformly within the ball.
    micro_batch : int, optional
        Pictures whose graph is held at once, so that memory does not grow with n; the profile's batch by default.

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

    def live(self) -> dict[str, Tensor]:
        """Return x + delta; see `loops.Stateful`."""
        return {"images": self.images}

    def rest(self) -> tuple[dict[str, Tensor], Any]:
        """Return nothing: a signed step has no memory."""
        return {}, None

    def take(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Do nothing."""

    def __len__(self) -> int:
        return len(self.clean)

    def gradient(self, objective: Objective) -> tuple[Tensor, Tensor]:
        """Differentiate an objective with respect to the pictures.

        Parameters
        ----------
        objective : callable
            From some pictures, shape (b, 3, height, width), and their rows, int64 of shape (b,) on the CPU, to one
            value each, shape (b,), or to their sum. A picture's value must not depend on the others'.

        Returns
        -------
        gradient : Tensor, shape (n, 3, height, width)
        values : Tensor, shape (n,)
            Of an objective that gives sums: the sum of the picture's micro-batch.

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
        """Take delta <- project(delta + alpha sign(gradient)) on every picture.

        Parameters
        ----------
        objective : callable
            What is ascended, see `gradient`; negate it to descend.
        step_size : float
            alpha in 1/255.

        Returns
        -------
        Tensor, shape (n,)
            Values before the step.
        """
        gradient, values = self.gradient(objective)
        self.images = self._project(self.images + step_size * LEVEL * gradient.sign())
        return values

    def pictures(self) -> NDArray[np.uint8]:
        """Round to 8 bits such that no saved pixel is more than the whole part of the budget away from x."""
        most, x = math.floor(self.budget), self._pixels.astype(np.int16)
        levels = ((self.images + 1) / LEVEL).round().permute(0, 2, 3, 1).cpu().numpy().astype(np.int16)
        return np.clip(levels, np.maximum(x - most, 0), np.minimum(x + most, 255)).astype(np.uint8)

    def _project(self, x: Tensor) -> Tensor:
        epsilon = self.budget * LEVEL
        return torch.clamp(torch.minimum(torch.maximum(x, self.clean - epsilon), self.clean + epsilon), -1, 1).detach()


class Draws:
    """Noise and time steps of perturbed pictures: each has a stream of its own, so none depends on its neighbours.

    Parameters
    ----------
    captions : sequence of str
        One a picture.
    seed : int

    Attributes
    ----------
    steps : sequence of Tensor of int64, or None
        The time steps that each picture's t is drawn from; None: all from 0 to T - 1.
    streams : list of torch.Generator
        On the CPU, one a picture, for further draws of the same kind.
    """

    def __init__(self, captions: Sequence[str], seed: int) -> None:
        self.captions = tuple(captions)
        self.steps: Sequence[Tensor] | None = None
        self.streams = [torch.Generator().manual_seed(derive_seed(seed, "draw", i)) for i in range(len(self.captions))]
        self._conditions: dict[int, Tensor] = {}
        current().register("draws", self)

    def live(self) -> dict[str, Tensor]:
        """Return nothing; see `loops.Stateful`."""
        return {}

    def rest(self) -> tuple[dict[str, Tensor], Any]:
        """Return where each picture's stream is."""
        return {str(i): stream.get_state() for i, stream in enumerate(self.streams)}, None

    def take(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Go on from what `rest` gave."""
        for i, stream in enumerate(self.streams):
            stream.set_state(tensors[str(i)])

    def timesteps(self, model: LatentDiffusion, rows: Tensor) -> Tensor:
        """Draw t for some of the pictures, shape (b,)."""
        every = torch.arange(model.noising.config.num_train_timesteps)
        allowed = [every if self.steps is None else self.steps[i] for i in rows.tolist()]
        drawn = (torch.randint(len(own), (1,), generator=self.streams[i]) for own, i in zip(allowed, rows, strict=True))
        return torch.cat([own[index] for own, index in zip(allowed, drawn, strict=True)])

    def batch(self, model: LatentDiffusion, x: Tensor, rows: Tensor, timesteps: Tensor | None = None) -> Batch:
        """Draw epsilon and t for some of the pictures.

        Parameters
        ----------
        model : LatentDiffusion
        x : Tensor, shape (b, 3, height, width)
            In [-1, 1]; the batch's latents have gradient to it.
        rows : Tensor of int64, shape (b,)
            Which pictures they are.
        timesteps : Tensor of int64, shape (b,), optional
            Theirs, if they are not to be drawn.
        """
        z = model.latents(x)
        t = self.timesteps(model, rows) if timesteps is None else timesteps
        noise = torch.stack([torch.randn(z.shape[1:], generator=self.streams[i]) for i in rows.tolist()])
        if id(model) not in self._conditions:  # once, not a step; a text side that learns reads the captions
            self._conditions[id(model)] = model.condition(self.captions)
        condition = self._conditions[id(model)][rows.to(z.device)]
        captions = tuple(self.captions[i] for i in rows.tolist())
        return Batch(z, condition, noise.to(z.device), t.to(z.device), captions)
