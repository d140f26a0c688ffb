"""Learning rate schedule, precision, loss weighting and the shared training loop of the embedded world's networks."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from immunebench.mini.training.log import Curve, Progress, load_checkpoint, save_checkpoint


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return autocast to bfloat16 if the device computes it fast; weights stay in float32."""
    fast = device.type == "cuda" or "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()
    # A CUDA graph must not cache casts of weights between replays.
    return torch.autocast(device.type, torch.bfloat16, enabled=fast, cache_enabled=device.type != "cuda")


def _cpu_flags() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else ""


def min_snr(alphas_cumprod: torch.Tensor, gamma: float = 5.0) -> torch.Tensor:
    """Return min-SNR weights min(SNR, gamma) / SNR of an epsilon loss for T timesteps (Hang et al. 2023, eq. 7)."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / snr


def stable_then_decay(done: float, *, warmup: float = 0.02, decay: float = 0.3) -> float:
    """Return the learning rate factor after a fraction ``done`` of the training: warm-up, plateau, 1 - sqrt decay.

    The plateau allows training to be extended (Hu et al. 2024, section 4; Hägele et al. 2024, eq. 2).
    """
    if done < warmup:
        return max(done / warmup, 1e-3)
    return 1.0 if done < 1 - decay else max(1 - math.sqrt((done - (1 - decay)) / decay), 0.005)


class Budget:
    """The progress of a training, by steps or by seconds, whichever is further."""

    def __init__(self, steps: int, seconds: float | None, spent: float = 0.0) -> None:
        self.steps, self.seconds, self.begin = steps, seconds, time.monotonic() - spent

    def done(self, step: int) -> float:
        """Return the fraction in [0, 1] that is done after ``step`` steps."""
        by_time = self.spent / self.seconds if self.seconds else 0.0
        return min(1.0, max(step / self.steps, by_time))

    @property
    def spent(self) -> float:
        """Return the seconds of training over all calls."""
        return time.monotonic() - self.begin


class Stepper:
    """Runs one training step repeatedly, on a GPU as a CUDA graph.

    Small networks spend most time on launching kernels, which a graph launches together. ``step`` must draw its batch
    on the device, from generators registered with the graph, and update the weights. A step that cannot be captured
    raises CUDA's error; ``IMMUNEBENCH_CUDA_GRAPH=0`` in the environment runs it without a graph.
    """

    def __init__(self, step: Callable[[], torch.Tensor], device: torch.device) -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self.captured = ""
        if device.type == "cuda" and os.environ.get("IMMUNEBENCH_CUDA_GRAPH") != "0":
            self._capture()

    def _capture(self) -> None:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        # A step clears its gradients first, so replays overwrite those in the graph's memory instead of accumulating.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loss = self._step()
        self._graph, self.captured = graph, "one CUDA graph a step"

    def __call__(self) -> torch.Tensor:
        """Run one step; return its loss, a scalar on the device."""
        if self._graph is None:
            return self._step()
        self._graph.replay()
        return self._loss


class Descent:
    """One optimiser step of a loss, with all changing state on the device.

    Parameters
    ----------
    loss
        Draws a batch and returns its loss.
    params
        The trained parameters.
    rate, decay, betas
        AdamW's (Loshchilov & Hutter 2019); ``rate`` is multiplied by :meth:`set_lr_factor`'s factor.
    """

    def __init__(
        self, loss: Callable[[], torch.Tensor], params: list[torch.nn.Parameter], device: torch.device, *,
        rate: float, decay: float = 1e-2, betas: tuple[float, float] = (0.9, 0.99), clip: float = 1.0,
    ) -> None:  # fmt: skip
        self.loss, self.params, self.rate, self.clip = loss, params, rate, clip
        on_gpu = device.type == "cuda"
        self.lr = torch.tensor(rate, device=device) if on_gpu else rate
        groups = [{"params": [p for p in params if p.ndim > 1], "weight_decay": decay},
                  {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
        self.optimiser = torch.optim.AdamW(groups, lr=self.lr, betas=betas, fused=on_gpu, capturable=on_gpu)

    def set_lr_factor(self, factor: float) -> None:
        """Set the learning rate to ``factor`` times the recipe's."""
        if isinstance(self.lr, torch.Tensor):
            self.lr.fill_(self.rate * factor)
            for group in self.optimiser.param_groups:
                group["lr"] = self.lr
        else:
            for group in self.optimiser.param_groups:
                group["lr"] = self.rate * factor

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self.optimiser.zero_grad(set_to_none=True)

    def __call__(self) -> torch.Tensor:
        """Take one step; return the loss before it."""
        self.zero_grad()
        loss = self.loss()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.params, self.clip)
        self.optimiser.step()
        return loss.detach()


def descend(
    name: str, descent: Descent, module: torch.nn.Module, folder: Path, device: torch.device, budget: Budget, *,
    seed: int, batch: int, averaged: torch.nn.Module | None = None, ema: float = 0.999,
    refresh: Callable[[], object] | None = None,
) -> Iterator[int]:  # fmt: skip
    """Train until the budget is used, resuming from ``folder/<name>.safetensors``; yield regularly and at the end.

    A checkpoint has the weights, their average and the step. Adam's moments are not saved, so a hundred warm-up steps
    follow after resuming.
    """
    checkpoint, every = folder / f"{name}.safetensors", 30.0
    step, tensors = load_checkpoint(checkpoint)
    if tensors:
        module.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("raw.")})
        if averaged is not None:
            averaged.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    curve, first, saved = Curve(folder / f"{name}-loss.jsonl", step), step, time.monotonic()
    torch.manual_seed(seed * 1_000_003 + step)
    descent.set_lr_factor(1e-3)
    run = Stepper(descent, device)
    if run.captured:
        print(f"{name}: {run.captured}", flush=True)
    pairs: list[list[torch.Tensor]] = []
    if averaged is not None:
        pairs = [list(averaged.parameters()), list(module.parameters())]
    with Progress(name, budget.steps, done=step) as progress:
        while (done := budget.done(step)) < 1:
            descent.set_lr_factor(stable_then_decay(done) * min(1.0, (step - first + 1) / 100))
            loss = run()
            step += 1
            if pairs and step % 4 == 0:
                weight = 1 - min(ema**4, (1 + step) / (40 + step))
                torch._foreach_lerp_(pairs[0], [p.detach() for p in pairs[1]], weight)
            if step % 25 == 0:
                progress.advance(25, loss=loss.item())
                if refresh is not None:
                    refresh()
            if step % 100 == 0:
                curve.add(step, loss=progress.means["loss"], pictures=step * batch)
            if time.monotonic() - saved > every:
                _save(checkpoint, step, module, averaged)
                saved = time.monotonic()
                yield step
        progress.advance(step - progress.done)
    _save(checkpoint, step, module, averaged)
    yield step


def _save(file: Path, step: int, module: torch.nn.Module, averaged: torch.nn.Module | None) -> None:
    tensors = {f"raw.{k}": v for k, v in module.state_dict().items()}
    if averaged is not None:
        tensors |= {f"ema.{k}": v for k, v in averaged.state_dict().items()}
    save_checkpoint(file, step, tensors)
