"""PGD steps a second on pictures, batched against one picture at a time, and the memory that micro-batching holds.

    python benchmarks/pgd.py [--base FOLDER] [--pictures 8] [--rounds 15] [--device cpu] [--json FILE]

A step moves every picture once along the sign of its gradient. `encoder`: the distance of the latents to a
target's, as in Mist's textural mode. `encoder + unet`: the denoising loss from the pixels, as in its semantic
mode. Both loops are `Perturbation`, of all pictures or of each alone, and run in turn, round by round, so that a
busy machine slows them alike; figures are medians over rounds. On the CPU the processor's time stands beside the
clock's, because one thread's does not count what others take. Memory is the peak while 8 to 64 pictures
are perturbed in micro-batches of 8, and with all 64 in one graph.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from immunebench.catalog.loading import default_catalog
from immunebench.core.machine import GIB, environment, process_peak, reset_process_peak
from immunebench.core.types import Numerics
from immunebench.methods.perturb import Draws, Objective, Perturbation
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.runtime import prepare_process

MICRO_BATCH = 8
COUNTS = (8, 16, 32, 64)
TARGETS = {"encoder": 2.0, "encoder + unet": 1.5}
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def objectives(model: LatentDiffusion, target: Pixels, count: int) -> dict[str, Objective]:
    """The two ways from pixels to a value."""
    z_y = model.encode(target)
    draws = Draws(["a painting"] * count, seed=0)

    def encoder(x: Tensor, rows: Tensor) -> Tensor:
        return -(model.latents(x) - z_y).square().mean(dim=(1, 2, 3))

    def unet(x: Tensor, rows: Tensor) -> Tensor:
        return model.losses(draws.batch(model, x, rows))

    return {"encoder": encoder, "encoder + unet": unet}


def seconds(step: Callable[[], object], device: str) -> tuple[float, float]:
    """Time one call by the clock and, on the CPU, by the processor's time of this process."""
    clock, processor = time.perf_counter(), time.process_time()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - processor


def speed(model: LatentDiffusion, pixels: Pixels, rounds: int) -> list[dict[str, Any]]:
    """Take steps on all pictures at once and on each alone, in turn."""
    rows = []
    device, count = model.numerics.device, len(pixels)
    for path, objective in objectives(model, pixels[:1], count).items():
        batched = Perturbation(model, pixels, 8, start="random", micro_batch=count)
        single = [Perturbation(model, pixels[i : i + 1], 8, start="random", micro_batch=1) for i in range(count)]

        def together(x: Perturbation = batched, f: Objective = objective) -> None:
            x.ascend(f, 0.5)

        def one_by_one(each: list[Perturbation] = single, f: Objective = objective) -> None:
            for x in each:
                x.ascend(f, 0.5)

        taken: dict[str, list[tuple[float, float]]] = {"batched": [], "one by one": []}
        for turn in range(rounds + 2):
            for name, loop in (("batched", together), ("one by one", one_by_one)):
                found = seconds(loop, device)
                if turn >= 2:
                    taken[name].append(found)
        row: dict[str, Any] = {"path": path, "pictures": count, "rounds": rounds}
        for i, unit in enumerate(("clock", "processor") if device == "cpu" else ("clock",)):
            fast, slow = (statistics.median(pair[i] for pair in taken[name]) for name in ("batched", "one by one"))
            ratios = statistics.median(b[i] / a[i] for a, b in zip(taken["batched"], taken["one by one"], strict=True))
            row[unit] = {"batched": 1 / fast, "one by one": 1 / slow, "ratio": slow / fast, "paired ratio": ratios}
        rows.append(row)
    return rows


def memory(model: LatentDiffusion, pixels: Pixels) -> list[dict[str, Any]]:
    """Peak memory of two steps through encoder and UNet, in GiB."""
    rows = []
    for count, micro_batch in (*((n, MICRO_BATCH) for n in COUNTS), (COUNTS[-1], COUNTS[-1])):
        many = np.resize(pixels, (count, *pixels.shape[1:]))
        objective = objectives(model, pixels[:1], count)["encoder + unet"]
        x = Perturbation(model, many, 8, micro_batch=micro_batch)
        gc.collect()
        if model.numerics.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        reset_process_peak()
        for _ in range(2):
            x.ascend(objective, 0.5)
        row = {"pictures": count, "micro-batch": micro_batch, "process": process_peak() / GIB}
        if model.numerics.device == "cuda":
            row["gpu"] = torch.cuda.max_memory_allocated() / GIB
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="diffusers pipeline folder; the embedded `mini` by default")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--side", type=int, default=64, help="of the pictures, in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    numerics = Numerics(
        device=options.device, threads=options.threads, resolution=options.side, attention=options.attention
    )
    prepare_process(numerics)
    model = LatentDiffusion.load(options.base or default_catalog().base_folder("mini"), numerics)
    pixels = np.random.default_rng(0).integers(0, 256, (options.pictures, options.side, options.side, 3), np.uint8)
    steps, peaks = speed(model, pixels, options.rounds), memory(model, pixels)
    print(f"{options.pictures} pictures of {options.side}x{options.side}, {options.device}, "
          f"{options.threads} thread(s), {options.attention} attention: steps on all pictures a second")  # fmt: skip
    print(f"{'':16}{'':>10}{'one by one':>12}{'batched':>10}{'ratio':>8}{'target':>8}")
    for row in steps:
        for unit in ("clock", "processor"):
            if unit in row:
                print(f"{row['path']:16}{unit:>10}{row[unit]['one by one']:12.3f}{row[unit]['batched']:10.3f}"
                      f"{row[unit]['ratio']:8.2f}{TARGETS[row['path']]:8.1f}")  # fmt: skip
    print("\nPeak memory of a step through encoder and UNet, GiB")
    for row in peaks:
        gpu = f", GPU {row['gpu']:.3f}" if "gpu" in row else ""
        print(f"{row['pictures']:4} pictures in micro-batches of {row['micro-batch']:2}: {row['process']:.3f}{gpu}")
    if options.json:
        found = {"options": {k: str(v) for k, v in vars(options).items()}, "environment": environment(options.device),
                 "steps": steps, "memory": peaks}  # fmt: skip
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
