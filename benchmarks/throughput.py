"""Seconds of a training step of the LoRA attack and of IMMA, split into its parts, beside two plain loops.

    python benchmarks/throughput.py [--base FOLDER] [--steps 30] [--batch 4] [--threads 1] [--json FILE]

`engine` is what a stage runs: latents and text embeddings are computed once. `naive` is a loop that encodes
pictures and captions at each step. `bare` is forward, backward and AdamW of the same parameters on a fixed
batch, with nothing around it: the floor. All run in turn, step by step, so that a busy machine slows them
alike. Without `--base` a random UNet of the embedded base's form is measured; values do not change the time.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from immunebench.core.types import Numerics, Pictures
from immunebench.methods.adapters import LowRank
from immunebench.methods.context import Context, distance
from immunebench.model.batch import Batch
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.runtime import prepare_process, training

PARTS = ("encode", "text", "draw", "forward", "backward", "optimiser", "log")
Split = dict[str, float]


class Clock:
    """Adds up the seconds since the last mark, by part."""

    cpu_time = False

    def __init__(self, device: str) -> None:
        self.device = device
        self.split: Split = dict.fromkeys(PARTS, 0.0)
        self.last = self._now()

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.cpu_time else time.perf_counter()

    def mark(self, part: str) -> None:
        """Charge the time since the last mark to a part."""
        now = self._now()
        self.split[part] += now - self.last
        self.last = now


def engine_step(model: LatentDiffusion, adapter: LowRank, ctx: Context, pictures: Pictures) -> Iterator[Split]:
    """Yield the split of each step of the LoRA attack as `attacks/lora` runs it."""
    optimiser = ctx.adamw(adapter.parameters, lr=1e-6)
    data = model.prepare(pictures)
    clock = Clock(model.numerics.device)
    for step, batch in ctx.steps(1 << 30, model, data):
        clock.mark("draw")
        with training(adapter.parameters):
            loss = model.loss(batch)
            clock.mark("forward")
            optimiser.backward(loss)
            clock.mark("backward")
            optimiser.update(clip=1.0)
            clock.mark("optimiser")
        ctx.log(step, loss=loss)
        clock.mark("log")
        yield clock.split
        clock = Clock(model.numerics.device)


def imma_step(model: LatentDiffusion, adapter: LowRank, ctx: Context, pictures: Pictures) -> Iterator[Split]:
    """Yield the split of each pair of IMMA's steps, halved, as `defenses/imma-lora` runs them."""
    theta = model.unet_tensors("attention")
    theta_0 = [tensor.detach().clone() for tensor in theta.values()]
    data = model.prepare(pictures)
    sides = [
        (adapter.parameters, ctx.adamw(adapter.parameters, lr=1e-6), 1.0),
        (theta, ctx.adamw(theta, lr=1e-7), -1.0),
    ]
    clock = Clock(model.numerics.device)
    for step, batch in ctx.steps(1 << 30, model, data):
        clock.mark("draw")
        parameters, optimiser, sign = sides[step % 2]
        with training(parameters):
            loss = model.loss(batch)
            clock.mark("forward")
            optimiser.backward(sign * loss)
            clock.mark("backward")
            optimiser.update(clip=1.0)
            clock.mark("optimiser")
        ctx.log(step, loss=loss, shift=distance(list(theta.values()), theta_0))
        clock.mark("log")
        if step % 2 == 1:
            yield {part: seconds / 2 for part, seconds in clock.split.items()}
            clock = Clock(model.numerics.device)


def naive_step(model: LatentDiffusion, adapter: LowRank, ctx: Context, pictures: Pictures) -> Iterator[Split]:
    """Yield the split of each step of a loop that encodes pictures and captions at each step."""
    parameters = list(adapter.parameters.values())
    optimiser = torch.optim.AdamW(parameters, lr=1e-6)
    while True:
        clock = Clock(model.numerics.device)
        chosen = ctx.rng.choice(len(pictures), model.numerics.batch, replace=False)
        latents = model.encode(pictures.pixels[chosen])
        clock.mark("encode")
        condition = torch.cat([model.condition([pictures.captions[i]]) for i in chosen])
        clock.mark("text")
        noise = torch.randn(latents.shape, generator=ctx.generator).to(model.device)
        steps = torch.randint(1000, (len(chosen),), generator=ctx.generator).to(model.device)
        clock.mark("draw")
        with training(adapter.parameters):
            loss = model.loss(Batch(latents, condition, noise, steps))
            clock.mark("forward")
            torch.autograd.backward(loss)
            clock.mark("backward")
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        clock.mark("optimiser")
        yield clock.split


def bare_step(model: LatentDiffusion, trained: dict[str, torch.nn.Parameter], batch: Batch) -> Iterator[Split]:
    """Yield the split of each forward, backward and AdamW step on one fixed batch."""
    parameters = list(trained.values())
    optimiser = torch.optim.AdamW(parameters, lr=1e-7, foreach=True)
    noised = model.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    while True:
        for parameter in parameters:
            parameter.requires_grad_(True)
        clock = Clock(model.numerics.device)
        prediction = model.unet(noised, batch.timesteps, batch.condition, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction, batch.noise)
        clock.mark("forward")
        torch.autograd.backward(loss)
        clock.mark("backward")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        clock.mark("optimiser")
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield clock.split


def bare_pair(model: LatentDiffusion, adapter: LowRank, batch: Batch) -> Iterator[Split]:
    """Yield the mean split of a bare step on the adapter and one on the attention weights."""
    pair = [bare_step(model, p, batch) for p in (adapter.parameters, model.unet_tensors("attention"))]
    for one, other in zip(*pair, strict=True):
        yield {part: (one[part] + other[part]) / 2 for part in PARTS}


def measure(numerics: Numerics, folder: Path, steps: int) -> dict[str, Split]:
    """Run all loops in turn and return the median seconds of each part."""
    prepare_process(numerics)
    model = LatentDiffusion.load(folder, numerics)
    rng = np.random.default_rng(0)
    side = numerics.resolution
    pixels = rng.integers(0, 256, (16, side, side, 3), dtype=np.uint8)
    pictures = Pictures(pixels, ("a picture",) * 16)
    quiet: Callable[[str, int, int], None] = lambda what, done, total: None  # noqa: E731
    ctx = Context(numerics, 0, folder, quiet)
    adapter = LowRank.attach(model, rank=4, seed=0)
    batch = model.draw(model.prepare(pictures), range(numerics.batch), ctx.generator)
    loops = {
        "bare": bare_step(model, adapter.parameters, batch),
        "lora (engine)": engine_step(model, adapter, ctx, pictures),
        "lora (naive)": naive_step(model, adapter, ctx, pictures),
        "bare, imma's sets": bare_pair(model, adapter, batch),
        "imma (engine)": imma_step(model, adapter, ctx, pictures),
    }
    runs: dict[str, list[Split]] = {name: [] for name in loops}
    for step in range(steps + 3):
        for name, loop in loops.items():
            split = next(loop)
            if step >= 3:
                runs[name].append(split)
    return {
        name: {part: statistics.median(split[part] for split in splits) for part in PARTS}
        | {"total": statistics.median(sum(split.values()) for split in splits)}
        for name, splits in runs.items()
    }


def random_base(folder: Path) -> Path:
    """Write a random pipeline of the embedded base's form: 64x64 pictures, 16x16x4 latents."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
    from tiny import mini_shaped_base  # type: ignore[import-not-found]

    base: Path = mini_shaped_base(folder)
    return base


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="diffusers pipeline folder")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--attention", choices=("eager", "sdpa", "both"), default="eager")
    parser.add_argument("--json", type=Path, help="write the seconds here")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the processor's time: for one thread on a busy machine"
    )
    options = parser.parse_args()
    Clock.cpu_time = options.cpu_time
    logging.disable(logging.WARNING)
    numerics = Numerics(
        device=options.device,
        memory_gib=64,
        threads=options.threads,
        batch=options.batch,
        resolution=options.resolution,
    )
    found: dict[str, dict[str, Split]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.base or random_base(Path(scratch))
        for attention in ("eager", "sdpa") if options.attention == "both" else (options.attention,):
            result = measure(replace(numerics, attention=attention), folder, options.steps)
            found[attention] = result
            print(
                f"\n{attention} attention, batch {options.batch}, {options.threads} thread(s), ms a step",
                flush=True,
            )
            print(f"{'':20}" + "".join(f"{part:>10}" for part in (*PARTS, "total")))
            for name, split in result.items():
                print(f"{name:20}" + "".join(f"{1000 * split[part]:10.1f}" for part in (*PARTS, "total")))
            lora = result["lora (engine)"]["total"] / result["bare"]["total"]
            imma = result["imma (engine)"]["total"] / result["bare, imma's sets"]["total"]
            naive = result["lora (naive)"]["total"] / result["lora (engine)"]["total"]
            print(f"engine over bare: lora {lora:.2f}, imma {imma:.2f}; naive over engine: {naive:.2f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
