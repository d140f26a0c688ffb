"""Sampling: schedulers, classifier-free guidance, and batches in which pictures do not depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from immunebench.core.types import Numerics, Pictures, StageError

SAMPLERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}


class Model(Protocol):
    """The part of `LatentDiffusion` that sampling needs."""

    numerics: Numerics
    device: torch.device
    schedule: dict[str, Any]

    def predict(self, noised: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Run the denoiser."""
        ...

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts."""
        ...

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Decode latents to pixels."""
        ...


def make_sampler(name: str, schedule: Mapping[str, Any]) -> Any:
    """Return a diffusers scheduler on a base's noise schedule.

    Raises
    ------
    StageError
        The sampler is not one of `SAMPLERS`.
    """
    import diffusers

    if name not in SAMPLERS:
        raise StageError("error", f"profile: sampler: unknown {name!r}; one of {', '.join(SAMPLERS)}")
    kind, options = SAMPLERS[name]
    return getattr(diffusers, kind).from_config(schedule, **options)


@torch.no_grad()
def draw(
    model: Model,
    prompts: Sequence[str],
    begin: Callable[[Sequence[int]], Tensor],
    *,
    negative: str,
    guidance: float,
    steps: int,
    progress: Callable[[int], None],
    start: int = 0,
) -> Pictures:
    """Sample one picture per prompt from the latents that `begin` returns for a batch's rows, from step `start` on.

    All batches have the profile's size, the last one padded with repeats: kernels are selected by batch size, and
    otherwise a picture could depend on the number and order of the prompts.
    """
    size = model.numerics.batch
    wanted = len(prompts)
    order = [min(i, wanted - 1) for i in range(-(-wanted // size) * size)]
    condition = model.condition(prompts)
    unconditional = model.condition([negative])
    pixels = []
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        z = denoise(model, begin(rows), condition[rows], unconditional, guidance=guidance, steps=steps, start=start)
        pixels.append(model.decode(z))
        progress(min(first + size, wanted))
    return Pictures(np.concatenate(pixels)[:wanted], tuple(prompts))


@torch.no_grad()
def denoise(
    model: Model,
    noise: Tensor,
    condition: Tensor,
    unconditional: Tensor,
    *,
    guidance: float,
    steps: int,
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    """Take the sampling steps from `start` to `stop` with classifier-free guidance (Ho and Salimans 2022, eq. 6)."""
    scheduler = make_sampler(model.numerics.sampler, model.schedule)
    scheduler.set_timesteps(steps)
    if start and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    x: Tensor = noise.to(model.device) * scheduler.init_noise_sigma
    both = torch.cat([unconditional.expand_as(condition), condition])
    for t in scheduler.timesteps[start:stop]:
        model_input = scheduler.scale_model_input(x, t)
        when = t.to(model.device).expand(len(x))
        if guidance == 1:
            prediction = model.predict(model_input, when, condition)
        else:
            without, given = model.predict(model_input.repeat(2, 1, 1, 1), when.repeat(2), both).chunk(2)
            prediction = without + guidance * (given - without)
        x = scheduler.step(prediction, t, x, return_dict=False)[0]
    return x
