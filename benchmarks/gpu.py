"""What ImmuneBench takes on one CUDA GPU: peak memory under each cap, speed beside plain code, the memory guard.

    python benchmarks/gpu.py --out docs/gpu [--base ID] [--steps 100] [--minutes 25]
    python benchmarks/gpu.py --device cpu --shape sd14-narrow --out /tmp/gpu      # self-check: does the script run?

Weights are random unless `--base` names a base of `immunebench list bases`: memory and time do not depend on them, loss
curves do. One folder gets `gpu.md`, `gpu.json` and `gpu.png`. What does not fit in `--minutes` is named as not run.

- Memory: every attack that trains and each kind of defense of the model, a few real steps each in a process of its own,
  under the smallest cap of each kind of profile (`immunebench capacity`).
- IMMA against DreamBooth, seconds a step and loss: as the reference writes it (fp32, batch 1, autoencoder and text
  encoder at each step), in the speed preset and in the memory preset; the same pictures, time steps and noise for all
  three, and other noise for a fourth, which shows how far curves lie apart by chance.
- Share of the card's own rate of matrix products that a full training step of the UNet reaches, at batch 1 and 4.
- The guard: a stage over its cap ends as `oom`, and the next one runs.
- torch.compile of the UNet: what it costs and gains.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import logging
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from immunebench import capacity, runtime
from immunebench.adapters import Dense
from immunebench.capacity import Job, made_up
from immunebench.context import AttackHandle, Context
from immunebench.diffusion import Batch, LatentDiffusion, training
from immunebench.entry import default_catalog
from immunebench.errors import UsageError
from immunebench.shapes import SHAPES, build
from immunebench.stages import Simulated, call_hook
from immunebench.types import Concept, Numerics, Params, StageError

SELF_CHECK = "Self-check of the script on a CPU: no figure of a GPU, and none to cite."
#: The smallest cap of each kind of profile: a peak is the same under all caps of a kind.
KINDS = ("t4-16g", "v100-32g", "a10-24g", "a100-40g")
PRESETS = {"speed": "a100-40g", "memory": "t4-16g"}
SEED, WARM_UP = 0, 4
Figures = dict[str, Any]


class Bench:
    """The options, the clock that ends the run in time, and the networks that everything is measured on."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device: str = options.device
        self.base: str | None = options.base
        self.shape: str = options.shape
        self.steps: int = options.steps
        self.ticks: list[float] = []
        self.compiles: bool = options.compile
        self.ends = time.monotonic() + 60 * options.minutes

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return bool(time.monotonic() > self.ends)

    def numerics(self, profile: str, **changes: Any) -> Numerics:
        """Return a profile's numerics with the whole card as the cap; on a CPU in fp32, which it computes in."""
        found = Numerics.of(default_catalog().profile(profile).numerics(sampling=True))
        gib = torch.cuda.get_device_properties(0).total_memory / runtime.GIB if self.device == "cuda" else 64.0
        changes = {"memory_gib": gib, "resolution": SHAPES[self.shape].resolution, **changes}
        if self.device == "cpu":
            changes |= {"device": "cpu", "frozen_dtype": "float32", "compute_capability": "", "threads": 1}
        return dataclasses.replace(found, **changes)

    def model(self, numerics: Numerics) -> LatentDiffusion:
        """Return untouched networks, after those before them are gone."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        runtime.prepare_process(numerics)
        if self.base is not None:
            return LatentDiffusion.load(default_catalog().base_folder(self.base), numerics)
        return build(SHAPES[self.shape], numerics, SEED)

    def now(self) -> float:
        """Return the time at which the device is done with all that it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


# ---------------------------------------------------------------- memory


def memory(bench: Bench) -> Iterator[Figures]:
    """Yield what each entry takes under the smallest cap of each kind of profile."""
    if bench.device == "cpu":
        # In this process: a new one for each entry would take longer than the entry.
        jobs = [Job(e, k, "cpu", None, bench.shape, 3) for e, k in (("lora", "attack"), ("imma-dreambooth", "defense"))]  # type: ignore[arg-type]
        yield from (vars(capacity.run(job)) for job in jobs)
        return
    shape = None if bench.base else bench.shape
    catalog = default_catalog()
    gib = torch.cuda.get_device_properties(0).total_memory / runtime.GIB
    kinds = [kind for kind in KINDS if catalog.profile(kind).memory_gib <= gib]
    for job in capacity.jobs(catalog, kinds, base=bench.base, shape=shape, entries=()):
        if bench.late:
            yield {"entry": job.entry, "profile": job.profile, "status": "not run", "reason": "the time was up"}
            continue
        (demand,) = capacity.measure([job])
        yield vars(demand)


# ---------------------------------------------------------------- IMMA against DreamBooth


def reference(bench: Bench, params: Params, out: Path, seed: int) -> Iterator[float]:
    """Yield the losses of IMMA's loop as plain code: fp32 throughout, pictures and captions encoded at each step."""
    numerics = bench.numerics("a100-40g", frozen_dtype="float32", trained_dtype="float32", batch=1)
    model, ctx = bench.model(numerics), Context(numerics, seed, out, lambda *_: None)
    pictures = made_up(capacity._PICTURES, numerics.resolution, "a photo of sks mug")
    data = model.prepare(pictures)  # Only for its shape: noise and time steps are drawn as the engine draws them.
    order = ctx.orders(len(pictures), 1)
    everything, theta = model.unet_tensors("all"), model.unet_tensors(params.tensors)
    rate: Any = params.lr_in or default_catalog().attack("dreambooth").params(bench.base or bench.shape)["lr"]
    sides = [
        (tensors, torch.optim.AdamW(tensors.values(), lr=lr), sign)
        for tensors, lr, sign in ((everything, rate, 1.0), (theta, params.lr_out, -1.0))
    ]
    for step in range(params.steps):
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
        yield loss.item()


def engine(bench: Bench, params: Params, out: Path, seed: int, preset: str) -> Iterator[float]:
    """Yield the losses of the entry as a stage runs it, in a preset, batch 1."""
    catalog = default_catalog()
    numerics = bench.numerics(PRESETS[preset])
    model, bench.ticks = bench.model(numerics), []
    attacks: dict[str, AttackHandle] = {}
    ctx = Context(numerics, seed, out, lambda *_: bench.ticks.append(bench.now()), attacks, token="sks", noun="mug")
    attack = catalog.attack("dreambooth")
    attacks["dreambooth"] = Simulated(attack, Params(attack.params(bench.base or bench.shape)), ctx)
    own = made_up(capacity._PICTURES, numerics.resolution, "a photo of sks mug")
    (entry,) = catalog.defense("imma-dreambooth").layers
    concept = Concept("gpu", "object", "mug", "sks", own.captions[0], own)
    call_hook(entry, "protect_model", model, (concept,), params, ctx)
    ctx.check()
    yield from (row["loss"] for row in ctx.rows)


def imma(bench: Bench) -> Iterator[Figures]:
    """Yield seconds a step, peak and losses of the four runs."""
    values = default_catalog().defense("imma-dreambooth").layers[0].params(bench.base or bench.shape)
    params = Params({**values, "steps": bench.steps, "batch": 1})
    runs: dict[str, tuple[Callable[..., Iterator[float]], tuple[Any, ...]]] = {
        "reference": (reference, (SEED,)),
        "speed": (engine, (SEED, "speed")),
        "memory": (engine, (SEED, "memory")),
        "speed, other noise": (engine, (SEED + 1, "speed")),
    }
    for name, (run, arguments) in runs.items():
        if bench.late:
            yield {"run": name, "status": "not run"}
            continue
        with TemporaryDirectory() as out, guarded(bench.numerics("a100-40g")) as found:
            ticks, losses = [], []
            for loss in run(bench, params, Path(out), *arguments):
                ticks.append(bench.now())
                losses.append(loss)
            ticks = bench.ticks if run is engine else ticks
            seconds = [b - a for a, b in zip(ticks[WARM_UP - 1 :], ticks[WARM_UP:], strict=False)]
            found |= {"seconds a step": round(statistics.median(seconds), 4), "losses": losses}
        yield {"run": name, **found}


@contextmanager
def guarded(numerics: Numerics) -> Iterator[Figures]:
    """Hold a block to a cap; its status and peaks are in what this gives when the block is over."""
    found: Figures = {"status": "fits"}
    try:
        with runtime.memory_guard(numerics) as report:
            yield found
    except StageError as error:
        found |= {"status": error.kind, "reason": str(error)}
    finally:
        gc.collect()
    found |= {"allocator GiB": round(report.reserved, 2), "process GiB": round(report.process, 2)}


# ---------------------------------------------------------------- rates


def matrix_rate(bench: Bench, dtype: torch.dtype) -> float:
    """Best rate of a square matrix product, in floating-point operations a second."""
    side = 8192 if bench.device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        start = bench.now()
        a @ b
        best = max(best, 2 * side**3 / (bench.now() - start))
    return best


def training_step(bench: Bench, numerics: Numerics, *, compiled: bool = False) -> tuple[Callable[[], None], float]:
    """Return a full training step of the UNet, and what it computes in floating-point operations."""
    model = bench.model(numerics)
    if compiled:
        model.unet.compile()
    ctx = Context(numerics, SEED, Path(), lambda *_: None)
    pictures = made_up(numerics.batch, numerics.resolution, "a photo of a mug")
    batch = model.draw(model.prepare(pictures), range(numerics.batch), ctx.generator)
    phi = Dense.attach(model)
    optimiser = ctx.adamw(phi.parameters, lr=1e-6)

    def step() -> None:
        with training(phi.parameters):
            optimiser.step(model.loss(batch))

    if compiled:
        return step, 0.0
    with FlopCounterMode(display=False) as counter:
        step()
    return step, float(counter.get_total_flops())


def seconds_of(bench: Bench, step: Callable[[], None]) -> float:
    """Median seconds of a step after a warm-up."""
    warm_up, count = (3, 10) if bench.device == "cuda" else (1, 3)
    for _ in range(warm_up):
        step()
    taken = []
    for _ in range(count):
        start = bench.now()
        step()
        taken.append(bench.now() - start)
    return statistics.median(taken)


def shares(bench: Bench) -> Iterator[Figures]:
    """Yield the share of the card's rate at batch 1 and 4, and with the UNet compiled."""
    numerics = bench.numerics(PRESETS["speed"])
    rate = matrix_rate(bench, runtime.dtype(numerics.frozen_dtype))
    counted: dict[int, float] = {}
    for batch, compiled in ((1, False), (4, False), *(((1, True), (4, True)) if bench.compiles else ())):
        row: Figures = {"batch": batch, "compiled": compiled, "matrix products TFLOP/s": round(rate / 1e12, 2)}
        if bench.late:
            yield row | {"status": "not run"}
            continue
        start = time.perf_counter()
        try:
            step, operations = training_step(bench, dataclasses.replace(numerics, batch=batch), compiled=compiled)
            counted.setdefault(batch, operations)
            seconds = seconds_of(bench, step)
        except Exception as error:  # a compiler may fail in any way, and the rest of the table is to be written
            yield row | {"status": "error", "reason": " ".join(str(error).split())[:200]}
            continue
        took = {"first steps s": round(time.perf_counter() - start, 1)}
        achieved = counted[batch] / seconds
        yield row | took | {"seconds a step": round(seconds, 4), "TFLOP/s": round(achieved / 1e12, 5),
                            "share": round(achieved / rate, 3), "status": "ran"}  # fmt: skip


def guard(bench: Bench) -> Iterator[Figures]:
    """Yield the status of a stage whose cap is too small and of the same stage after it, under the whole card."""
    for name, cap in (("cap too small", 0.05 if bench.device == "cpu" else 4.0), ("the next stage", None)):
        numerics = bench.numerics(PRESETS["speed"], **({} if cap is None else {"memory_gib": cap}), batch=1)
        with guarded(numerics) as found:
            step, _ = training_step(bench, numerics)
            step()
            del step
        yield {"stage": name, "cap GiB": round(numerics.memory_gib, 2), **found}


# ---------------------------------------------------------------- the page


def table(rows: list[Figures], leave_out: tuple[str, ...] = ("losses", "reason", "kind", "model", "device")) -> str:
    """Lay rows out as Markdown, all their columns."""
    head = list(dict.fromkeys(name for row in rows for name in row if name not in leave_out))
    return tabulate([[row.get(name, "") for name in head] for row in rows], head, tablefmt="github")


def plot(runs: list[Figures], title: str, path: Path) -> None:
    """Draw the loss curves on one plot, and beside it how far each lies from the reference's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (curves, apart) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    first: list[float] = next((run["losses"] for run in runs if run.get("losses")), [])
    for run in runs:
        losses = run.get("losses", [])
        style = "--" if "other" in run["run"] else "-"
        curves.plot(losses, style, alpha=0.8, label=run["run"])
        if losses is not first:
            apart.plot([abs(a - b) + 1e-7 for a, b in zip(losses, first, strict=False)], style, label=run["run"])
        else:
            apart.plot([])  # keeps the colours of the two plots alike
    curves.set(xlabel="step", ylabel="denoising loss")
    apart.set(xlabel="step", ylabel="distance from the reference's loss", yscale="log")
    curves.legend(frameon=False)
    figure.suptitle(textwrap.fill(title, 90))
    for axes in (curves, apart):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="sd14")
    parser.add_argument("--base", help="a base of `immunebench list bases`, in the place of random weights")
    parser.add_argument("--steps", type=int, help="of IMMA, 100 by default")
    parser.add_argument("--minutes", type=float, default=25.0, help="what does not fit is not run")
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.md, gpu.json and gpu.png")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: no CUDA device here; --device cpu --shape sd14-narrow checks that the script runs")
    on_gpu = options.device == "cuda"
    options.steps, options.compile = options.steps or (100 if on_gpu else 6), on_gpu
    if options.steps < WARM_UP + 2:
        sys.exit(f"error: --steps: must be at least {WARM_UP + 2}, not {options.steps}")
    logging.disable(logging.WARNING)
    options.out.mkdir(parents=True, exist_ok=True)
    bench, started = Bench(options), time.monotonic()
    found: Figures = {
        "what": f"{options.base or 'shape of ' + options.shape}" + ("" if on_gpu else f". {SELF_CHECK}"),
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "seed": SEED, "environment": runtime.environment(options.device),
    }  # fmt: skip
    sections: dict[str, Callable[[Bench], Iterator[Figures]]] = {
        "Memory": memory, "IMMA against DreamBooth": imma, "Training step of the whole UNet": shares, "Guard": guard,
    }  # fmt: skip
    page = [f"# {found['what']}", "", f"{found['date']}, seed {SEED}, {json.dumps(found['environment'])}", ""]
    for title, section in sections.items():
        rows = []
        try:
            for row in section(bench):
                rows.append(row)
                print(f"{title}: {', '.join(f'{k} {v}' for k, v in row.items() if k != 'losses')}", flush=True)
        except UsageError as error:
            sys.exit(f"error: {error}")
        found[title] = rows
        page += [f"## {title}", "", table(rows), "", *[f"- {r['reason']}" for r in rows if r.get("reason")], ""]
    plot(found["IMMA against DreamBooth"], found["what"], options.out / "gpu.png")
    found["minutes"] = round((time.monotonic() - started) / 60, 2)
    (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "gpu.md").write_text("\n".join([*page, f"{found['minutes']} minutes in all.", ""]))


if __name__ == "__main__":
    main()
