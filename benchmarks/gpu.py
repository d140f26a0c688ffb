"""What ImmuneBench takes on one CUDA GPU: peak memory under each cap, speed beside plain code, the memory guard.

    python benchmarks/gpu.py --out docs/gpu --minutes 3 [--base ID] [--steps 8] [--resume]
    python benchmarks/gpu.py --device cpu --shape sd14-narrow --out /tmp/gpu      # self-check: does the script run?

Weights are random unless `--base` names a base of `immunebench list bases`: memory and time do not depend on them. One
process measures all; the networks are made once, on the device, and brought back between two measurements as into fresh
memory. What matters most comes first. Each figure is in `gpu.jsonl` of the folder as soon as there is one, a failure is
such a line too, and from these lines come `gpu.md`, `gpu.json` and `gpu.png`. `--minutes` counts from the start of the
process; what does not fit is named as not run. `--resume` goes on from the lines that are there, but repeats what
failed; with `--minutes 0` it only writes the page, which needs no GPU.

- IMMA against DreamBooth under the cap of a T4 and beside the reference as plain code (fp32, batch 1, autoencoder and
  text encoder at each step): with torch's own choice of kernels (TF32 in cuDNN, none deterministic) and without TF32.
  The same pictures, time steps and noise for all.
- The peak of each attack that trains and each kind of defense of the model under the cap of a T4.
- Share of the card's own rate of matrix products that a training step of the whole UNet reaches, at batch 1 and 4, with
  the passes of the denoiser launched one by one and replayed as CUDA graphs.
- Attacks with casts at each use, with fp32 masters and half-precision copies, and with graphs besides.
- The guard: a stage over its cap ends as `oom`, and the next one runs.
- Two equal runs: are the bytes of the weights equal, also of one with graphs and one without?
- Sampling, the other profiles, other noise (how far loss curves lie apart by chance), and torch.compile of the UNet.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from immunebench.catalog.loading import default_catalog
from immunebench.core import machine
from immunebench.core.errors import UsageError
from immunebench.core.types import Numerics, Params, StageError
from immunebench.declared.architecture import SHAPES
from immunebench.hardware import capacity
from immunebench.hardware.capacity import PICTURES, Job, made_up
from immunebench.methods.adapters import Dense
from immunebench.methods.context import Context
from immunebench.model import graphs, runtime
from immunebench.model.batch import Batch
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.halves import recomputed
from immunebench.model.offload import Resident
from immunebench.model.runtime import training
from immunebench.model.shapes import build

SELF_CHECK = "Self-check of the script on a CPU: no figure of a GPU, and none to cite."
IMMA, PEAKS, SHARE = "IMMA against DreamBooth", "Peaks under t4-16g", "Training step of the whole UNet"
GUARD, EQUAL, SAMPLING, OTHERS, COMPILED, HOST = (
    "Guard", "Two equal runs", "Sampling", "Other entries and profiles", "Compiled UNet", "Casts, masters, graphs",
)  # fmt: skip
MATRIX = "matrix products"
SPEED, MEMORY = "a100-40g", "t4-16g"
SEED = 0
PROBE = """
import sys, torch, bitsandbytes
p = torch.nn.Parameter(torch.zeros(8192, device=sys.argv[1]))
p.grad = torch.ones_like(p)
bitsandbytes.optim.AdamW8bit([p], lr=1.0).step()
sys.exit(not p.sum().item() < 0)
"""
Figures = dict[str, Any]


class LateError(Exception):
    """The time is up in the middle of a measurement."""


@dataclass(frozen=True)
class Task:
    """One measurement: one line of `gpu.jsonl` and one row of a table."""

    section: str
    name: str
    run: Callable[[Bench], Figures]


class Bench:
    """The options, the clock that ends the run in time, the lines so far, and the networks that are measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device: str = options.device
        self.base: str | None = options.base
        self.shape: str = options.shape
        self.steps: int = options.steps
        self.warm_up = 3 if self.on_gpu else 1
        # Imports count, where the system says when the process began (a sandbox may not).
        began, now = psutil.Process().create_time(), time.time()
        self.ends = (began if 0 <= now - began < 300 else now) + 60 * options.minutes
        self.lines = Lines(options.out / "gpu.jsonl", resume=options.resume)
        self._model: LatentDiffusion | None = None
        self._probe: subprocess.Popen[str] | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is measured."""
        return self.device == "cuda"

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return bool(time.time() > self.ends)

    def numerics(self, profile: str, **changes: Any) -> Numerics:
        """Return a profile's numerics; on a CPU in fp32, which it computes in."""
        found = Numerics.of(default_catalog().profile(profile).numerics(sampling=True))
        changes = {"resolution": SHAPES[self.shape].resolution, **changes} if self.base is None else changes
        if found.optimiser_state == "8bit" and not self.eight_bit:
            changes["optimiser_state"] = "float32"
        if not self.on_gpu:
            computed = changes.get("frozen_dtype", "float32")
            changes |= {"device": "cpu", "frozen_dtype": computed, "compute_capability": "", "threads": 1}
        return dataclasses.replace(found, **changes)

    def begin(self) -> None:
        """Make the networks, and try bitsandbytes in another process meanwhile."""
        self._probe = subprocess.Popen(
            [sys.executable, "-c", PROBE, self.device], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.model(self.numerics(SPEED))
        gc.freeze()  # What stays is not looked through again before each measurement.

    def end(self) -> None:
        """End what was begun and nobody waited for."""
        if self._probe is not None:
            self._probe.kill()
            self._probe.communicate()

    @functools.cached_property
    def eight_bit(self) -> bool:
        """Whether bitsandbytes is there and moves a tensor on the device; else fp32 moments are measured, and said so.

        A process of its own tried it: on a card that its kernels are not made for the library ends the process.
        """
        assert self._probe is not None
        said, _ = self._probe.communicate(timeout=90)
        works = self._probe.returncode == 0
        self._probe = None
        if not works:
            print(f"no moments in eight bits, fp32 in their place: {' '.join(said.split())[-300:]}", flush=True)
        return works

    def whole_card(self) -> float:
        """Return the memory of the card in GiB."""
        return torch.cuda.get_device_properties(0).total_memory / machine.GIB if self.on_gpu else 64.0

    def model(self, numerics: Numerics) -> LatentDiffusion:
        """Return the networks as a profile has them, untouched, and in memory as if nothing had run before.

        They are made once. Their weights come back from the host's memory after all that is on the device has gone:
        between what is left of other measurements they would hold more blocks of the allocator than they fill.
        """
        if self.on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
        runtime.prepare_process(numerics)
        model = self._model
        if model is None:
            if self.base is not None:
                model = LatentDiffusion.load(default_catalog().base_folder(self.base), numerics)
            else:
                model = build(SHAPES[self.shape], numerics, SEED)
            if self.on_gpu:
                model._pristine = {name: tensor.pin_memory() for name, tensor in model._pristine.items()}
            self._model = model
        model.restore()
        model._halves = None  # Made anew with or without graphs, as the environment says then.
        texts = [text for text in (model.text, getattr(model.text, "second", None)) if text is not None]
        for network in (model.vae, *(text.encoder for text in texts)):
            network.to("cpu")
        model.vae.to(runtime.dtype(numerics.vae_dtype))
        own = model.unet_tensors("all")
        for name, parameter in own.items():
            parameter.grad, parameter.data = None, model._pristine[name]
        self.clean()
        model.numerics, model.dtype = numerics, runtime.dtype(numerics.frozen_dtype)
        for name, parameter in own.items():
            # A copy on a CPU too: what is trained must not be the pristine weights.
            parameter.data = model._pristine[name].to(model.device, model.dtype, copy=True)
        if numerics.checkpointing:
            model.unet.enable_gradient_checkpointing(recomputed)
        else:
            model.unet.disable_gradient_checkpointing()
        model.autoencoder = Resident(model.vae, model.device, offload=numerics.offload)
        for text in texts:
            text.encoder.to(model.dtype)
            text.resident = Resident(text.encoder, model.device, offload=numerics.offload)
        return model

    def clean(self) -> None:
        """Give back the memory of what is gone."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def now(self) -> float:
        """Return the time at which the device is done with all that it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


class Lines:
    """The file of figures: one JSON object a line, on the disk before the next measurement begins."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.rows: dict[tuple[str, str], Figures] = {}
        self.about: Figures = {}
        if not resume:
            path.write_text("")
        kept = []
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            try:
                found = json.loads(line)
            except ValueError:  # cut off while it was written
                continue
            kept.append(line)
            self._take(found)
        path.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def add(self, found: Figures) -> None:
        """Append a line and see it on the disk."""
        self._take(found)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _take(self, found: Figures) -> None:
        if "section" in found:
            self.rows[found["section"], found["name"]] = found
        else:
            self.about = found

    def done(self, task: Task) -> bool:
        """Whether a task's figures are there; what failed is to be tried again."""
        found = self.rows.get((task.section, task.name))
        return found is not None and bool(found["status"] != "error")


# ---------------------------------------------------------------- what is common to the measurements


class Clock:
    """Is told of each step that is done, and waits for the device before it looks at the time."""

    def __init__(self, bench: Bench, warm_up: int = 0) -> None:
        self.bench = bench
        self.warm_up = max(bench.warm_up, warm_up)
        self.start = bench.now()
        self.times: list[float] = []

    def __call__(self, *_: object) -> None:
        self.times.append(self.bench.now())
        if self.bench.late:
            raise LateError

    def figures(self, parts: Sequence[str] = ()) -> Figures:
        """Return the mean seconds of a step after the warm-up, and those of each kind that steps take in turn."""
        if len(self.times) <= self.warm_up:
            return {}
        ends = [self.start, *self.times]
        taken = [b - a for a, b in zip(ends, self.times, strict=False)]
        figures: Figures = {"seconds a step": round(statistics.mean(taken[self.warm_up :]), 4)}
        for i, part in enumerate(parts):
            mine = [s for step, s in enumerate(taken) if step >= self.warm_up and step % len(parts) == i]
            figures[part] = round(statistics.mean(mine), 4) if mine else ""
        return figures | {"first step s": round(taken[0], 2)}


@contextmanager
def guarded(bench: Bench, numerics: Numerics) -> Iterator[Figures]:
    """Hold a block to a cap; its status and peaks are in what this gives when the block is over."""
    found: Figures = {"cap GiB": round(numerics.memory_gib, 2), "status": "fits"}
    report = runtime.MemoryReport(numerics.memory_gib)
    try:
        with runtime.memory_guard(numerics) as report:
            yield found
    except StageError as error:
        found |= {"status": error.kind, "reason": str(error)}
    if bench.on_gpu:
        free, total = torch.cuda.mem_get_info()
        found["allocated GiB"] = round(torch.cuda.max_memory_allocated() / machine.GIB, 3)
        found["reserved GiB"] = round(report.reserved, 3)
        # With the context and the kernels of CUDA, which the allocator does not count.
        found["on the card GiB"] = round((total - free) / machine.GIB, 3)
    found["host process GiB"] = round(report.process, 2)
    bench.clean()


@contextmanager
def recording(bench: Bench, *, on: bool) -> Iterator[None]:
    """Let passes of the denoiser be recorded and replayed as CUDA graphs, or not."""
    before = os.environ.get(graphs.VARIABLE)
    os.environ[graphs.VARIABLE] = "1" if on else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[graphs.VARIABLE]
        else:
            os.environ[graphs.VARIABLE] = before
        if on and bench._model is not None:
            bench._model._weights_changed()  # Memory of recordings belongs to nobody else's peak.


def replays(bench: Bench) -> Figures:
    """Return how many passes were replayed, where they could be."""
    halves = None if bench._model is None else bench._model._halves
    return {} if halves is None or halves.graphs is None else {"replays": halves.graphs.replays}


def as_torch_has_it(*, tf32: bool) -> None:
    """Choose kernels as torch does where nobody asks for anything; without TF32 in cuDNN if wanted."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_cudnn_sdp(True)


def stage(
    bench: Bench, entry: str, profile: str, *, steps: int | None = None, seed: int = SEED, plain: bool = False,
    losses: bool = False, replay: bool = False, **changes: Any,
) -> Figures:  # fmt: skip
    """Return what an entry takes on a profile, run as a stage runs it; nothing is saved.

    With `replay` passes are replayed as graphs; `changes` are fields of `Numerics`.
    """
    catalog = default_catalog()
    kind = capacity.kind_of(catalog, entry)
    parts = ("inner", "outer") if entry.startswith("imma") else ()
    # Each kind of step is recorded when it comes for the third time.
    first = (graphs.FIRST + 1) * max(1, len(parts)) if replay else 0
    steps = max(bench.warm_up, first) + (steps or bench.steps)
    found_entry = catalog.attack(entry) if kind == "attack" else catalog.defense(entry).layers[0]
    job = Job(entry, kind, profile, bench.base, None if bench.base else bench.shape, steps)
    values = dict(capacity.parameters(catalog, found_entry, job))
    params = Params({**values, "steps": steps, **({"saves": [steps]} if "saves" in values else {})})
    numerics = bench.numerics(profile, **changes)
    model = bench.model(numerics)
    if plain:
        as_torch_has_it(tf32=True)
    clock = Clock(bench, first)
    with TemporaryDirectory() as out, recording(bench, on=replay), guarded(bench, numerics) as found:
        ctx, _ = capacity.take_steps(catalog, found_entry, job, model, params, Path(out), clock, seed)
        # Steps left out for all tensors or for some, whose moments may be missing from a peak.
        found["overflows"] = sum(bool(row.get("overflowed") or row.get("skipped")) for row in ctx.rows)
        if losses:
            found["losses"] = [row["loss"] for row in ctx.rows]
        found |= replays(bench)
        del ctx, _
    return {"moments": numerics.optimiser_state, "batch": params.get("batch", ""), **found, **clock.figures(parts)}


# ---------------------------------------------------------------- IMMA against DreamBooth


def reference(bench: Bench, *, tf32: bool) -> Figures:
    """Return what IMMA's loop takes as plain code: fp32 throughout, pictures and captions encoded at each step."""
    catalog = default_catalog()
    params = Params(catalog.defense("imma-dreambooth").layers[0].params(bench.base or bench.shape))
    rate: Any = params.lr_in or catalog.attack("dreambooth").params(bench.base or bench.shape)["lr"]
    numerics = bench.numerics(SPEED, frozen_dtype="float32", batch=1, memory_gib=bench.whole_card())
    model = bench.model(numerics)
    as_torch_has_it(tf32=tf32)
    losses: list[float] = []
    clock = Clock(bench)
    with TemporaryDirectory() as out, guarded(bench, numerics) as found:
        ctx = Context(numerics, SEED, Path(out), lambda *_: None)
        pictures = made_up(PICTURES, numerics.resolution, "a photo of sks mug")
        data = model.prepare(pictures)  # Only for its shape: noise and time steps are drawn as the engine draws them.
        order = ctx.orders(len(pictures), 1)
        everything, theta = model.unet_tensors("all"), model.unet_tensors(params.tensors)
        sides = [
            (tensors, torch.optim.AdamW(tensors.values(), lr=lr), sign)
            for tensors, lr, sign in ((everything, rate, 1.0), (theta, params.lr_out, -1.0))
        ]
        clock.start = bench.now()
        for step in range(bench.warm_up + bench.steps):
            tensors, optimiser, sign = sides[step % 2]
            rows = next(order)
            drawn = model.draw(data, rows, ctx.generator)
            latents, words = model.encode(pictures.pixels[rows]), model.condition([pictures.captions[i] for i in rows])
            with training(tensors):
                loss = model.loss(Batch(latents, words, drawn.noise, drawn.timesteps))
                torch.autograd.backward(sign * loss)
            torch.nn.utils.clip_grad_norm_(tensors.values(), params.clip)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
            clock()
        del sides, optimiser, loss
    return {"moments": "float32", "batch": 1, **found, **clock.figures(("inner", "outer")), "losses": losses}


# ---------------------------------------------------------------- rates


def matrix_rate(bench: Bench) -> Figures:
    """Return the best rate of a square matrix product in the dtype of the networks."""
    numerics = bench.numerics(SPEED)
    runtime.prepare_process(numerics)
    side = 8192 if bench.on_gpu else 512
    a, b = (torch.randn(side, side, device=bench.device).to(runtime.dtype(numerics.frozen_dtype)) for _ in range(2))
    best = 0.0
    for _ in range(20):
        start = bench.now()
        a @ b
        best = max(best, 2 * side**3 / (bench.now() - start))
    return {"status": "ran", "TFLOP/s": round(best / 1e12, 5)}


def training_step(bench: Bench, numerics: Numerics) -> tuple[LatentDiffusion, Callable[[], None]]:
    """Return the networks and a full training step of the UNet."""
    model = bench.model(numerics)

    def made() -> Callable[[], None]:
        ctx = Context(numerics, SEED, Path(), lambda *_: None)
        pictures = made_up(numerics.batch, numerics.resolution, "a photo of a mug")
        batch = model.draw(model.prepare(pictures), range(numerics.batch), ctx.generator)
        phi = Dense.attach(model)
        optimiser = ctx.adamw(phi.parameters, lr=1e-6)

        def step() -> None:
            with training(phi.parameters):
                optimiser.step(model.loss(batch))

        return step

    steps: list[Callable[[], None]] = []

    def step() -> None:
        # The first makes what it needs, within the guard that it is called in.
        if not steps:
            steps.append(made())
        steps[0]()

    return model, step


def share(bench: Bench, batch: int, *, compiled: bool = False, replay: bool = False) -> Figures:
    """Return the share of the card's rate that a training step of the whole UNet reaches."""
    with recording(bench, on=replay):
        return _share(bench, batch, compiled=compiled)


def _share(bench: Bench, batch: int, *, compiled: bool) -> Figures:
    # A compiled network looks its weights up where they are; it casts them at each use, in few kernels.
    changes: Figures = {"masters": False} if compiled else {}
    numerics = bench.numerics(SPEED, batch=batch, memory_gib=bench.whole_card(), **changes)
    model, step = training_step(bench, numerics)
    found: Figures = {"status": "ran"}
    one = bench.lines.rows.get((SHARE, "batch 1"), {}).get("TFLOP a step")
    start = bench.now()
    if compiled:
        model.unet.compile()
    try:
        if one is None and not compiled:
            with FlopCounterMode(display=False) as counter:
                step()
            one = counter.get_total_flops() / 1e12 / batch
        clock = Clock(bench)
        for _ in range(bench.warm_up + (10 if bench.on_gpu else 2)):
            step()
            clock()
    finally:
        model.unet._compiled_call_impl = None
    found |= clock.figures() | {"with warm-up s": round(bench.now() - start, 1)} | replays(bench)
    rate = bench.lines.rows.get((SHARE, MATRIX), {}).get("TFLOP/s")
    if one is not None:
        achieved = one * batch / found["seconds a step"]
        found |= {"TFLOP a step": round(one * batch, 6), "TFLOP/s": round(achieved, 5)}
        found |= {"share": round(achieved / rate, 4)} if rate else {}
    return found


def guard(bench: Bench, cap: float | None) -> Figures:
    """Return how a stage under a cap ends; under the whole card where there is none."""
    numerics = bench.numerics(SPEED, batch=1, memory_gib=cap or bench.whole_card())
    _, step = training_step(bench, numerics)
    with guarded(bench, numerics) as found:
        step()
        del step
    return found


def equal(bench: Bench, profile: str, *, replay: bool = False) -> Figures:
    """Train twice from the same seed, the second time with graphs if wanted, and compare the weights."""
    steps = graphs.FIRST + 1 if replay else 1
    found: Figures = {}
    first: list[torch.Tensor] = []
    for again in (False, True):
        options: dict[str, Any] = {"steps": steps}
        if again and replay:  # As many steps with graphs as without.
            options = {"replay": True, "steps": steps - max(0, graphs.FIRST + 1 - bench.warm_up)}
        found = stage(bench, "dreambooth", profile, **options)
        assert bench._model is not None
        weights = [p.detach() for p in bench._model.unet.parameters()]
        if found["status"] != "fits":
            break
        if not first:
            first = [p.clone() for p in weights]
            continue
        apart = [float((a.float() - b.float()).abs().max()) for a, b in zip(first, weights, strict=True)]
        differ = sum(not torch.equal(a, b) for a, b in zip(first, weights, strict=True))
        moved = not torch.equal(first[0].cpu(), next(iter(bench._model._pristine.values())).to(first[0].dtype))
        # Peaks hold the first run's weights too: none to show.
        found = {name: found[name] for name in ("status", "moments", "seconds a step")}
        found |= {"equal bytes": differ == 0, "tensors that differ": differ, "of": len(first),
                  "largest difference": max(apart), "moved at all": moved, "steps": steps + bench.warm_up}  # fmt: skip
    return found


def sampling(bench: Bench, profile: str, batch: int, *, replay: bool = False, **changes: Any) -> Figures:
    """Return the seconds of a picture; with `replay` the denoiser's passes are replayed as graphs."""
    with recording(bench, on=replay):
        return _sampling(bench, bench.numerics(profile, batch=batch, **changes))


def _sampling(bench: Bench, numerics: Numerics) -> Figures:
    model, batch = bench.model(numerics), numerics.batch
    steps = numerics.sampling_steps if bench.on_gpu else 2
    prompts, seeds = ["a photo of a mug"] * batch, list(range(batch))
    with guarded(bench, numerics) as found:
        model.sample(prompts, seeds, steps=graphs.FIRST + 1 if bench.on_gpu else 2, guidance=7.5)
        start = bench.now()
        model.sample(prompts, seeds, steps=steps, guidance=7.5)
        found |= {"batch": batch, "steps": steps, "seconds a picture": round((bench.now() - start) / batch, 3)}
        found |= replays(bench)
    return found


# ---------------------------------------------------------------- the plan


def plan(bench: Bench) -> list[Task]:
    """Return what is measured, what matters most first."""

    def of(section: str, entries: Sequence[str], profile: str, **options: Any) -> list[Task]:
        named = (lambda e: e) if section == PEAKS else (lambda e: f"{e}, {profile}")
        return [Task(section, named(e), functools.partial(_stage, e, profile, options)) for e in entries]

    def ways(entry: str, **options: Any) -> list[Task]:
        # The rehearsal computes in half precision too, without graphs.
        half = {} if bench.on_gpu else {"frozen_dtype": "bfloat16"}
        kinds = {"casts at each use": {"masters": False}, "masters": {}, "masters and graphs": {"replay": True}}
        return [
            Task(HOST, f"{entry}, {way}", functools.partial(_stage, entry, SPEED, {**options, **half, **own}))
            for way, own in kinds.items()
            if bench.on_gpu or "graphs" not in way
        ]

    imma = functools.partial(stage, entry="imma-dreambooth", losses=True)
    sizes = (1, 4) if bench.on_gpu else ()
    graphed = [
        Task(IMMA, f"speed preset, {SPEED}, {name}", functools.partial(imma, profile=SPEED, **how))
        for name, how in (("graphs", {"replay": True}), ("casts at each use", {"masters": False}))
        if bench.on_gpu
    ]
    small = {"steps": 3 if bench.on_gpu else 1}
    tasks = [
        Task(IMMA, f"memory preset, {MEMORY}", lambda b: imma(b, profile=MEMORY)),
        Task(IMMA, "reference", lambda b: reference(b, tf32=True)),
        Task(IMMA, "reference, no TF32", lambda b: reference(b, tf32=False)),
        Task(IMMA, f"speed preset, {SPEED}", lambda b: imma(b, profile=SPEED)),
        Task(IMMA, f"speed preset, {SPEED}, torch's kernels", lambda b: imma(b, profile=SPEED, plain=True)),
        *graphed,
        *of(PEAKS, ("dreambooth", "imma-lora", "imma-ti", "lora", "textual-inversion"), MEMORY, **small),
        Task(SHARE, MATRIX, matrix_rate),
        Task(SHARE, "batch 1", lambda b: share(b, 1)),
        Task(SHARE, "batch 4", lambda b: share(b, 4)),
        *(Task(SHARE, f"batch {n}, graphs", functools.partial(share, batch=n, replay=True)) for n in sizes),
        *ways("lora", **small),
        Task(GUARD, "cap too small", lambda b: guard(b, 4.0 if b.on_gpu else 0.05)),
        Task(GUARD, "the next stage", lambda b: guard(b, None)),
        Task(EQUAL, f"speed preset, {SPEED}", lambda b: equal(b, SPEED)),
        Task(EQUAL, f"memory preset, {MEMORY}", lambda b: equal(b, MEMORY)),
        *(Task(EQUAL, f"graphs on and off, {SPEED}", lambda b: equal(b, SPEED, replay=True)) for _ in sizes[:1]),
        Task(SAMPLING, f"{SPEED}, batch 4", lambda b: sampling(b, SPEED, 4)),
        Task(SAMPLING, f"{MEMORY}, batch 1", lambda b: sampling(b, MEMORY, 1)),
        *(Task(SAMPLING, f"{SPEED}, batch 4, graphs", lambda b: sampling(b, SPEED, 4, replay=True)) for _ in sizes[:1]),
        Task(IMMA, "speed preset, other noise", lambda b: imma(b, profile=SPEED, seed=SEED + 1)),
    ]
    if bench.on_gpu:
        tasks += [*ways("textual-inversion", **small), *ways("dreambooth", **small)]
        tasks += of(PEAKS, ("esd", "dreambooth-lora"), MEMORY, **small)
        for profile in (SPEED, "a10-24g", "v100-32g"):
            tasks += of(OTHERS, ("dreambooth", "lora", "imma-dreambooth", "imma-lora", "imma-ti", "textual-inversion",
                                 "dreambooth-lora", "esd"), profile, **small)  # fmt: skip
        tasks += [
            Task(COMPILED, f"batch {n}", functools.partial(share, batch=n, compiled=True)) for n in (1, 4)
        ]  # fmt: skip
        # The last: the autoencoder's weights are rounded from here on.
        tasks.append(
            Task(SAMPLING, f"{SPEED}, batch 4, autoencoder in bfloat16",
                 lambda b: sampling(b, SPEED, 4, vae_dtype="bfloat16"))
        )  # fmt: skip
    return tasks


def _stage(entry: str, profile: str, options: Figures, bench: Bench) -> Figures:
    return stage(bench, entry, profile, **options)


def one_line(error: Exception) -> str:
    """Return an error's kind and words."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def measure(bench: Bench, tasks: Sequence[Task]) -> None:
    """Run what has no line yet, until the time is up."""
    for task in tasks:
        if bench.late or bench.lines.done(task):
            continue
        start = time.perf_counter()
        try:
            found = task.run(bench)
        except LateError:
            return
        except UsageError:
            raise
        except Exception as error:  # one measurement may fail in any way; the others are to be had
            found = {"status": "error", "reason": one_line(error)}
        found = {"section": task.section, "name": task.name, **found, "took s": round(time.perf_counter() - start, 1)}
        bench.lines.add(found)
        said = ", ".join(f"{k} {v}" for k, v in found.items() if k not in ("section", "name", "losses"))
        print(f"{bench.ends - time.time():6.1f} s left. {task.section}: {task.name}: {said}", flush=True)
        bench.clean()


# ---------------------------------------------------------------- the page


def table(rows: list[Figures], leave_out: tuple[str, ...] = ("section", "losses", "reason")) -> str:
    """Lay rows out as Markdown, all their columns."""
    head = list(dict.fromkeys(name for row in rows for name in row if name not in leave_out))
    return tabulate([[row.get(name, "") for name in head] for row in rows], head, tablefmt="github")


def plot(runs: list[Figures], title: str, path: Path) -> None:
    """Draw the loss curves on one plot, and beside it how far each lies from the reference's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (curves, apart) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    first: list[float] = next((run["losses"] for run in runs if run["name"] == "reference" and run.get("losses")), [])
    for run in runs:
        losses = run.get("losses", [])
        style = "--" if "other" in run["name"] else "-"
        curves.plot(losses, style, alpha=0.8, label=run["name"])
        if losses is not first:
            apart.plot([abs(a - b) + 1e-7 for a, b in zip(losses, first, strict=False)], style, label=run["name"])
        else:
            apart.plot([])  # keeps the colours of the two plots alike
    curves.set(xlabel="step", ylabel="denoising loss")
    apart.set(xlabel="step", ylabel="distance from the reference's loss", yscale="log" if first else "linear")
    if runs:
        curves.legend(frameon=False)
    figure.suptitle(textwrap.fill(title, 90))
    for axes in (curves, apart):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write(lines: Lines, out: Path) -> None:
    """Make the page, the table of all figures and the plot from the lines."""
    about = lines.about
    rows = list(lines.rows.values())
    sections = [name for name in about.get("plan", {}) if any(row["section"] == name for row in rows)]
    page = [f"# {about['what']}", "", f"{about['date']}, seed {SEED}, {json.dumps(about['environment'])}", ""]
    for title in sections:
        mine = [row for row in rows if row["section"] == title]
        reasons = [f"- {row['name']}: {row['reason']}" for row in mine if row.get("reason")]
        page += [f"## {title}", "", table(mine), "", *reasons, *([""] if reasons else [])]
    left = [f"{s}: {n}" for s, names in about["plan"].items() for n in names if (s, n) not in lines.rows]
    page += [f"Not run: {'; '.join(left)}.", ""] if left else []
    page.append(f"{sum(row['took s'] for row in rows) / 60:.2f} minutes of measuring in all.\n")
    (out / "gpu.md").write_text("\n".join(page), "utf-8")
    (out / "gpu.json").write_text(json.dumps({**about, "rows": rows, "not run": left}, indent=1) + "\n", "utf-8")
    plot([row for row in rows if row["section"] == IMMA and row.get("losses")], about["what"], out / "gpu.png")


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="sd14")
    parser.add_argument("--base", help="a base of `immunebench list bases`, in the place of random weights")
    parser.add_argument("--steps", type=int, help="of IMMA after the warm-up, 8 by default (2 on a CPU)")
    parser.add_argument("--minutes", type=float, default=25.0, help="from the start; what does not fit is not run")
    parser.add_argument("--resume", action="store_true", help="go on from the gpu.jsonl that is there")
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.jsonl, gpu.md, gpu.json and gpu.png")
    given = parser.parse_args(arguments)
    given.steps = given.steps or (8 if given.device == "cuda" else 2)
    if given.steps < 2:
        sys.exit(f"error: --steps: must be at least 2, not {given.steps}")
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    given = options(arguments)
    on_gpu = given.device == "cuda"
    page_only = given.resume and given.minutes == 0
    if on_gpu and not page_only and not torch.cuda.is_available():
        sys.exit("error: no CUDA device here; --device cpu --shape sd14-narrow checks that the script runs")
    logging.disable(logging.WARNING)
    bench = Bench(given)
    if not page_only:
        tasks = plan(bench)
        named: dict[str, list[str]] = {}
        for task in tasks:
            named.setdefault(task.section, []).append(task.name)
        about: Figures = {
            "what": f"{given.base or 'shape of ' + given.shape}" + ("" if on_gpu else f". {SELF_CHECK}"),
            "date": f"{datetime.now(UTC):%Y-%m-%d}", "seed": SEED, "plan": named,
            "environment": machine.environment(given.device),
        }  # fmt: skip
        earlier = bench.lines.about
        for name in ("what", "environment"):
            if earlier and earlier[name] != about[name]:
                sys.exit(f"error: --resume: the lines there have another {name}: {earlier[name]}")
        if not earlier:
            bench.lines.add(about)
        try:
            if not all(bench.lines.done(task) for task in tasks):
                bench.begin()
            measure(bench, tasks)
        except UsageError as error:
            sys.exit(f"error: {error}")
        finally:
            bench.end()
    if not bench.lines.about:
        sys.exit("error: --resume: there are no lines to make a page of")
    write(bench.lines, given.out)


if __name__ == "__main__":
    main()
