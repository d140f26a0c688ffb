"""How much the host has to do for a training step in half precision: operations by arithmetic, milliseconds on a CPU.

    python benchmarks/launches.py [--shape sd14] [--entry lora ...] [--json FILE] [--repeats 9]

Three ways of the same step on a speed preset: `casts` (autocast casts weights and activations at each use, AdamW by
lists of tensors: the engine's way until `masters`), `masters` (the network computes with half-precision copies of the
fp32 weights, fused AdamW) and `graphs` (as `masters`, with the denoiser's two passes replayed as CUDA graphs; what is
counted is what stays outside).

Operations are those that the host dispatches in the entry's own step on tensors without values; views and allocations
are none, one on a list of tensors counts once. No GPU is needed and none is measured. Milliseconds are processor time
of one thread on the narrow shape, which has all tensors and operations of SD 1.4 and next to no arithmetic, in
bfloat16; of `graphs` a replay launches nothing here, so that what is left is the host's own share. The three take
turns, step by step, so that a busy machine slows them alike. Norms are in fp32 under autocast, as on CUDA.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tabulate import tabulate

from immunebench.catalog.loading import default_catalog
from immunebench.core import machine
from immunebench.core.types import Numerics
from immunebench.declared.architecture import SHAPES
from immunebench.hardware.capacity import Job, kind_of, made_up
from immunebench.hardware.estimate import estimate, norms_in_fp32
from immunebench.methods.adapters import Adapter, Dense, LowRank, Words
from immunebench.methods.context import Context
from immunebench.model import optim, runtime
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.graphs import FIRST, Graphs
from immunebench.model.runtime import training
from immunebench.model.shapes import build

PROFILE = "a100-40g"
WAYS: dict[str, dict[str, Any]] = {
    "casts": {"masters": False, "fused": False}, "masters": {}, "graphs": {"replayed": True},
}  # fmt: skip
TRAINED: dict[str, Callable[[LatentDiffusion], Adapter]] = {
    "lora": lambda model: LowRank.attach(model, rank=4, seed=0),
    "dreambooth": lambda model: Dense.attach(model),
    "textual-inversion": lambda model: Words.attach(model, token="sks", initializer="mug"),
}


class Nothing:
    """Records passes whose replay launches nothing, so that the host's own work is left."""

    def warm_up(self, function: Callable[[], object]) -> None:
        """Do nothing."""

    def record(self, function: Callable[[], object], pool: Any) -> Callable[[], None]:
        """Run the function for the tensors that it makes."""
        function()
        return lambda: None

    def pool(self) -> None:
        """Return nothing."""

    def give_up(self) -> None:
        """Do nothing."""


def operations(entry: str, shape: str) -> dict[str, Any]:
    """Return operations and casts of a step, and the peak of live tensors, of each way."""
    found: dict[str, Any] = {}
    for way, options in WAYS.items():
        steps = FIRST + 2 if way == "graphs" else 3
        job = Job(entry, kind_of(default_catalog(), entry), PROFILE, None, shape, steps)
        done = estimate(job, **options)
        parts = 2 if entry.startswith("imma") else 1  # An inner and an outer step take turns.
        found[way] = {"operations": list(done.operations[-parts:]), "casts": list(done.casts[-parts:])}
        if way != "graphs":
            found[way]["peak GiB"] = done.peak_gib
        print(f"{entry}, {way}: {found[way]}", flush=True)
    return found


def stepper(name: str, way: str) -> Callable[[], float]:
    """Return a training step that returns its processor time in seconds."""
    numerics = Numerics(
        resolution=SHAPES["sd14-narrow"].resolution, batch=1, attention="sdpa", frozen_dtype="bfloat16",
        masters=way != "casts",
    )  # fmt: skip
    runtime.prepare_process(numerics)
    model = build(SHAPES["sd14-narrow"], numerics)
    if way == "graphs":
        model._half_network().graphs = Graphs(Nothing())
    ctx = Context(numerics, 0, Path(), lambda *_: None)
    data = model.prepare(made_up(1, numerics.resolution, "a photo of a mug"))
    phi = TRAINED[name](model)
    kind: dict[str, Any] = {"foreach": True} if way == "casts" else {"fused": True}
    with mock.patch.object(optim, "_maker", lambda _: lambda p, **options: torch.optim.AdamW(p, **kind, **options)):
        optimiser = ctx.adamw(phi.parameters, lr=1e-6)

    def step() -> float:
        start = time.process_time()
        batch = model.draw(data, [0], ctx.generator)
        with norms_in_fp32(), training(phi.parameters):
            optimiser.step(model.loss(batch))
        return time.process_time() - start

    return step


def milliseconds(name: str, repeats: int) -> dict[str, float]:
    """Return the median processor time of a step of each way, in ms."""
    steps = {way: stepper(name, way) for way in WAYS}
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(FIRST + 2 + repeats):
        for way, step in steps.items():
            seconds = step()
            if turn >= FIRST + 2:
                taken[way].append(1e3 * seconds)
    return {way: round(statistics.median(times), 1) for way, times in taken.items()}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Lay the figures out as Markdown."""
    rows = []
    for entry, own in found.items():
        for way in WAYS:
            counts = own["operations"][way]
            share = max(
                n / m for n, m in zip(counts["operations"], own["operations"]["casts"]["operations"], strict=True)
            )
            rows.append([
                entry, way, ", ".join(f"{n:,}" for n in counts["operations"]), ", ".join(map(str, counts["casts"])),
                f"{share:.1%}", counts.get("peak GiB", ""), own.get("milliseconds", {}).get(way, ""),
            ])  # fmt: skip
    head = ("entry", "way", "operations", "of them casts", "of `casts`", "peak GiB", "host ms, narrow")
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def main() -> None:
    """Count, time, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="sd14", choices=tuple(SHAPES))
    parser.add_argument("--entry", action="append", help="may be repeated; lora, dreambooth, textual-inversion")
    parser.add_argument("--repeats", type=int, default=9, help="steps that are timed; 0 only counts")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    found: dict[str, dict[str, Any]] = {}
    for entry in options.entry or TRAINED:
        found[entry] = {}
        if options.repeats and entry in TRAINED:
            found[entry]["milliseconds"] = milliseconds(entry, options.repeats)
            print(f"{entry}: host ms a step {found[entry]['milliseconds']}", flush=True)
        found[entry]["operations"] = operations(entry, options.shape)
        if options.json:
            about = {"shape": options.shape, "profile": PROFILE, "environment": machine.environment("cpu")}
            options.json.write_text(json.dumps({**about, "entries": found}, indent=1) + "\n", "utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
