"""Trains the upscaler of the embedded world: ``python -m immunebench.mini.train_upscaler --work .training``.

Draws pictures of a stream of its own at the world's drawing size of 128 pixels, makes them smaller as the world does,
adds noise, and trains a network to give the drawing back. Resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from immunebench.mini import world
from immunebench.mini.judges import to_input
from immunebench.mini.train_judges import export
from immunebench.mini.training.log import Curve, Progress, load_checkpoint, save_checkpoint
from immunebench.mini.training.schedule import autocast, cosine
from immunebench.mini.upscaler import FACTOR, FILE, WEIGHTS, UpscalerNet
from immunebench.weights import write_sums

SEED, PICTURES, STEPS, BATCH, LEARNING_RATE = 211, 6_000, 8_000, 24, 2e-3
#: Noise that is added, of a pixel in [0, 1]: around what the purifier adds, for a perturbation comes on top of it.
SIGMA = (0.08, 0.12)
_CHUNK = 250


def _chunk(start: int) -> NDArray[np.uint8]:
    drawn = (world.draw("train", index, group="upscaler", reduce=1) for index in range(start, start + _CHUNK))
    return np.stack([picture.pixels for picture in drawn])


def drawings(file: Path, count: int, workers: int) -> NDArray[np.uint8]:
    """Training pictures uint8 (count, 128, 128, 3); drawn on the first call, then read back."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(workers) as pool, Progress("render", count, "pictures") as progress:
            parts = []
            for part in pool.map(_chunk, range(0, count, _CHUNK)):
                parts.append(part)
                progress.advance(len(part))
        np.save(file, np.concatenate(parts))
    found: NDArray[np.uint8] = np.load(file)
    return found


def batch(pixels: NDArray[np.uint8], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noisy pictures (n, 3, 64, 64) and what they were drawn as (n, 3, 128, 128), both in [-1, 1]."""
    target = to_input(pixels[rng.integers(len(pixels), size=BATCH)])
    if rng.random() < 0.5:
        target = target.flip(3)
    picture = F.avg_pool2d(target, FACTOR)
    sigma = 2 * rng.uniform(*SIGMA, (BATCH, 1, 1, 1))
    noise = torch.from_numpy((sigma * rng.standard_normal(picture.shape)).astype(np.float32))
    return (picture + noise).clamp(-1, 1), target


def loss(network: UpscalerNet, noisy: Tensor, target: Tensor) -> Tensor:
    """L1 to the drawing, and to the picture that it is made smaller to."""
    with autocast(torch.device("cpu")):
        made = network(noisy.contiguous(memory_format=torch.channels_last)).float()
    return F.l1_loss(made, target) + F.l1_loss(F.avg_pool2d(made, FACTOR), F.avg_pool2d(target, FACTOR))


def train(network: UpscalerNet, pixels: NDArray[np.uint8], folder: Path, steps: int) -> None:
    """Train or resume to the last step; step ``i`` draws from the seed and ``i`` alone."""
    step, tensors = load_checkpoint(folder / "checkpoint.safetensors")
    if tensors:
        network.load_state_dict(tensors)
    network.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters())
    curve = Curve(folder / "loss.jsonl", step)
    with Progress("upscaler", steps, done=step) as progress:
        while step < steps:
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * cosine(step, steps, warmup=100)
            value = loss(network, *batch(pixels, np.random.default_rng([SEED, step])))
            torch.autograd.backward(value)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            progress.advance(loss=value.item())
            if step % 100 == 0:
                curve.add(step, loss=progress.means["loss"])
            if step % 500 == 0 or step == steps:
                save_checkpoint(folder / "checkpoint.safetensors", step, network.state_dict())


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".training"), help="checkpoints and drawn pictures")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps instead of the recipe's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin, folder = time.monotonic(), options.work / "upscaler"
    pixels = drawings(folder / "drawings.npy", PICTURES, options.workers)
    torch.manual_seed(SEED)
    network = UpscalerNet()
    train(network, pixels, folder, options.steps)
    export(network, options.out / FILE)
    note = {"steps": options.steps, "seed": SEED, "learning_rate": LEARNING_RATE, "torch": torch.__version__,
            "minutes": round((time.monotonic() - begin) / 60, 1)}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(note, indent=2))
    write_sums(options.out.parent)


if __name__ == "__main__":
    main()
