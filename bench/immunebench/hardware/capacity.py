"""Measurement of the peak memory and time per step of attacks and model defenses on a profile, from a few real steps.

Each runs in its own process, so that peaks do not affect each other.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from immunebench.bases import base_folder
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.catalog.loading import default_catalog
from immunebench.core.errors import UsageError
from immunebench.core.types import Concept, Numerics, Params, Pictures, StageError, Weights
from immunebench.declared.architecture import SHAPES, Shape
from immunebench.declared.profile import Profile
from immunebench.hardware.doctor import Gpu, cuda_devices, shortfall
from immunebench.model.shapes import weights_gib
from immunebench.records.demand import Demand

if TYPE_CHECKING:
    from immunebench.methods.context import AttackHandle, Context, Report
    from immunebench.model.diffusion import LatentDiffusion

#: Measured by default: every attack that trains, and each kind of model defense.
DEFAULT_ENTRIES = (
    "lora", "textual-inversion", "dreambooth-lora", "dreambooth", "imma-lora", "imma-ti", "imma-dreambooth", "esd",
)  # fmt: skip
PICTURES = 5


@dataclass(frozen=True)
class Job:
    """One measurement: an entry on a profile, with a base or a shape. It is sent to another process."""

    entry: str
    kind: Literal["attack", "defense"]
    profile: str
    base: str | None
    shape: str | None
    steps: int

    @property
    def model(self) -> str:
        """Return the name of the base or of the shape."""
        return self.base or f"shape of {self.shape}"


def jobs(
    catalog: Catalog, profiles: Sequence[str], *, base: str | None, shape: str | None, entries: Sequence[str],
    steps: int = 4, measured: bool = True,
) -> list[Job]:  # fmt: skip
    """Return the measurements, after checking that this machine can run all of them.

    With `measured` False they are only estimated, for which any machine will do.

    Raises
    ------
    UsageError
        An unknown name, an entry that trains no model, a base and a shape or neither, a profile that the machine
        cannot emulate, or a memory cap below the weights alone.
    """
    if not measured and shape is None:
        raise UsageError("an estimate needs a shape:", field="--shape-of", choices=SHAPES)
    if (base is None) == (shape is None):
        raise UsageError("exactly one of the two is required", field="--base, --shape-of")
    if steps < 3:
        raise UsageError("must be at least 3: the first two are warm-up, not", field="--steps", value=steps)
    if shape is not None and shape not in SHAPES:
        raise UsageError("unknown shape", field="--shape-of", value=shape, choices=SHAPES)
    folder = None if base is None else catalog.base_folder(base)
    found = [catalog.profile(name, field="PROFILE") for name in profiles]
    kinds = [(entry, kind_of(catalog, entry)) for entry in entries or DEFAULT_ENTRIES]
    for profile in found:
        if measured:
            _check_machine(profile)
        if shape is not None:
            _check_cap(profile, SHAPES[shape])
        if folder is not None:
            base_folder.check(str(base), folder, profile)
    return [
        Job(entry, kind, profile.id, base, shape, steps) for profile in found for entry, kind in kinds
    ]  # fmt: skip


def kind_of(catalog: Catalog, name: str) -> Literal["attack", "defense"]:
    """Return whether a name is an attack that trains, or a defense that changes the model.

    Raises
    ------
    UsageError
        It is neither.
    """
    names = {kind: {n for k, n in catalog.names if k == kind} for kind in ("attack", "defense")}
    if name in names["attack"] and catalog.attack(name).hooks == ("adapt",):
        return "attack"
    if name in names["defense"] and "protect_model" in catalog.defense(name).hooks:
        return "defense"
    known = names["attack"] | names["defense"]
    if name in known:
        raise UsageError("trains no model, so there are no steps to measure:", field="--entry", value=name)
    raise UsageError("unknown attack or defense", field="--entry", value=name, choices=sorted(known))


def _check_machine(profile: Profile) -> None:
    """Refuse a profile with more memory than the GPU; one with less is emulated."""
    reasons = shortfall(cuda_devices(), profile.memory_gib) if profile.device == "cuda" else []
    if reasons:
        raise UsageError(f"cannot be measured here, {reasons[0]}:", field="PROFILE", value=profile.id)


def _check_cap(profile: Profile, shape: Shape) -> None:
    """Refuse a memory cap below the weights alone."""
    least = weights_gib(shape, Numerics.of(profile.numerics(sampling=True)))
    if least > profile.memory_gib:
        why = f"caps memory at {profile.memory_gib:g} GiB, and the weights alone take {least:.1f}:"
        raise UsageError(why, field="PROFILE", value=profile.id)


def measure(planned: Sequence[Job]) -> Iterator[Demand]:
    """Run the jobs one after another, each in a new process, and yield their results."""
    for job in planned:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                yield pool.submit(run, job).result()
            except BrokenProcessPool:
                cap = default_catalog().profile(job.profile).memory_gib
                yield Demand(job.entry, job.kind, job.profile, job.model, cap, "killed",
                             reason="the process was killed, usually because memory ran out")  # fmt: skip


def run(job: Job) -> Demand:
    """Run a few steps of one entry with the memory limit of its profile; a shape uses its own resolution."""
    from immunebench.model import runtime

    catalog = default_catalog()
    profile = catalog.profile(job.profile)
    numerics = Numerics.of(profile.numerics(sampling=True))
    if job.shape is not None:
        numerics = dataclasses.replace(numerics, resolution=SHAPES[job.shape].resolution)
    runtime.prepare_process(numerics)
    entry: Entry
    if job.kind == "attack":
        entry = catalog.attack(job.entry)
    else:
        (entry,) = catalog.defense(job.entry).layers
    params = shortened(parameters(catalog, entry, job), job.steps)
    clock = _Clock(numerics.device)
    card = cuda_devices()[0] if numerics.device == "cuda" else Gpu("cpu", 0.0)
    done = Demand(
        job.entry, job.kind, job.profile, job.model, numerics.memory_gib, "fits", batch=params.get("batch", 0),
        device=card.name, emulated=card.memory_gib > 1.15 * numerics.memory_gib,
    )  # fmt: skip
    try:
        with TemporaryDirectory() as out, runtime.memory_guard(numerics) as report:
            _, made = take_steps(catalog, entry, job, _load(catalog, job, numerics), params, Path(out), clock)
            if made is not None:
                made.save(Path(out) / "weights.safetensors")
    except StageError as error:
        status: Any = error.kind if error.kind in ("oom", "over_memory") else "error"
        done = dataclasses.replace(done, status=status, reason=str(error))
    return dataclasses.replace(
        done, allocator_gib=round(report.reserved, 3), process_gib=round(report.process, 3), seconds=clock.step()
    )


def parameters(catalog: Catalog, entry: Entry, job: Job) -> Mapping[str, Any]:
    """Return an entry's parameters on the job's base; for a shape, those on the base of the same name."""
    return catalog.params(entry, job.base) if job.base is not None else entry.params(str(job.shape))


def shortened(values: Mapping[str, Any], steps: int) -> Params:
    """Return parameters with the given number of steps, and a checkpoint at the last one."""
    short: dict[str, Any] = {"steps": steps} | ({"saves": [steps]} if "saves" in values else {})
    return Params({**values, **short})


def take_steps(
    catalog: Catalog, entry: Entry, job: Job, model: LatentDiffusion, params: Params, out: Path, report: Report,
    seed: int = 0,
) -> tuple[Context, Weights | None]:  # fmt: skip
    """Call the entry's hook as its stage would, on random pictures, whose values affect neither time nor memory.

    Returns
    -------
    ctx : Context
        With the log of each step.
    made : Weights or None
        The weights that a defense releases.
    """
    from immunebench.execution.hooks import Simulated, call_hook
    from immunebench.methods.context import Context

    numerics = model.numerics
    own = made_up(PICTURES, numerics.resolution, "a photo of sks mug")
    drawn = made_up(PICTURES, numerics.resolution, "a photo of a mug")
    attacks: dict[str, AttackHandle] = {}
    ctx = Context(numerics, seed, out, report, attacks, public=drawn, prior=drawn, token="sks", noun="mug")
    for name in entry.against:
        attack = catalog.attack(name)
        attacks[attack.id] = Simulated(attack, Params(parameters(catalog, attack, job)), ctx)
    if job.kind == "attack":
        call_hook(entry, "adapt", model, own, params, ctx)
        return ctx, None
    concept = Concept("capacity", "object", "mug", "sks", own.captions[0], own)
    made: Weights = call_hook(entry, "protect_model", model, (concept,), params, ctx)
    return ctx, made


def _load(catalog: Catalog, job: Job, numerics: Numerics) -> LatentDiffusion:
    from immunebench.model.diffusion import LatentDiffusion
    from immunebench.model.shapes import build

    if job.shape is not None:
        return build(SHAPES[job.shape], numerics)
    return LatentDiffusion.load(catalog.base_folder(str(job.base)), numerics)


def made_up(count: int, side: int, caption: str) -> Pictures:
    """Return random pictures from a fixed seed, all with one caption."""
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Pictures(pixels, (caption,) * count)


class _Clock:
    """Progress callback that records the time of each step, after synchronising with the device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def step(self) -> float | None:
        """Return the mean seconds per step from the third on; up to two optimisers allocate state in the first two."""
        times = self.times[1:]
        return round((times[-1] - times[0]) / (len(times) - 1), 4) if len(times) > 1 else None
