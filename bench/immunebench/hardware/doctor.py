"""Probing the machine: what is installed, and which profiles it can run."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from immunebench.bases import base_folder
from immunebench.box import choice
from immunebench.catalog.catalog import Catalog
from immunebench.core.machine import GIB, cores
from immunebench.declared.profile import Profile
from immunebench.store.artifacts import versions

_NEEDED = ("torch", "diffusers", "transformers", "peft", "open_clip", "lpips", "torchmetrics", "safetensors")
# Enough for a base, the artifacts of one stage and a contact sheet.
_DISK_GIB = 1.0


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its name and its memory in GiB."""

    name: str
    memory_gib: float


@dataclass(frozen=True)
class Verdict:
    """Whether the machine can run a profile, with reasons if it cannot."""

    profile: str
    reasons: tuple[str, ...]

    @property
    def qualifies(self) -> bool:
        """Whether the machine can run the profile."""
        return not self.reasons


@dataclass(frozen=True)
class Machine:
    """Properties of the machine; memory and disk in GiB."""

    python: str
    platform: str
    cores: int
    memory_gib: float
    disk_free_gib: float
    store: str
    versions: dict[str, str]
    missing: tuple[str, ...]
    gpus: tuple[Gpu, ...] = ()
    weights: dict[str, bool] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    box: str = ""

    def as_dict(self, verdicts: list[Verdict]) -> dict[str, object]:
        """Return values for `--json`."""
        profiles = {v.profile: {"qualifies": v.qualifies, "reasons": list(v.reasons)} for v in verdicts}
        return {**asdict(self), "profiles": profiles}


def examine(catalog: Catalog, store: Path) -> tuple[Machine, list[Verdict]]:
    """Probe the machine and compare it with every profile.

    Parameters
    ----------
    catalog
        Its profiles and bases are checked.
    store
        Root of the store, whose free disk space is measured.
    """
    import psutil

    available = {
        name: base_folder.is_available(name, spec, catalog.models_path) for name, spec in catalog.models.bases.items()
    }
    machine = Machine(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cores=cores(),
        memory_gib=round(psutil.virtual_memory().total / GIB, 1),
        disk_free_gib=round(shutil.disk_usage(_existing(store)).free / GIB, 1),
        store=str(store),
        versions=versions(),
        missing=tuple(name for name in _NEEDED if importlib.util.find_spec(name) is None),
        gpus=cuda_devices(),
        weights=available,
        broken=tuple(f"{b.kind} {b.id}: {b.reason}" for b in catalog.broken),
        box=choice.described(),
    )
    return machine, [judge(machine, profile) for profile in catalog.profiles.values()]


def judge(machine: Machine, profile: Profile) -> Verdict:
    """Compare a machine with one profile.

    On a CPU the profile's memory is an upper limit for the process, so at least half of it is required; on a GPU the
    device must have all of it.
    """
    reasons = []
    if machine.missing:
        reasons.append(f"not installed: {', '.join(machine.missing)}")
    if machine.disk_free_gib < _DISK_GIB:
        reasons.append(f"{machine.disk_free_gib} GiB free at {machine.store}, needs {_DISK_GIB:g}")
    if profile.device == "cpu" and machine.memory_gib < profile.memory_gib / 2:
        reasons.append(f"{machine.memory_gib} GiB of memory, needs {profile.memory_gib / 2:g}")
    if profile.device == "cuda":
        reasons += shortfall(machine.gpus, profile.memory_gib)
    return Verdict(profile.id, tuple(reasons))


def shortfall(gpus: Sequence[Gpu], memory_gib: float) -> list[str]:
    """Return why no device can emulate a GPU with a profile's memory; empty if one can."""
    largest = max((gpu.memory_gib for gpu in gpus), default=0.0)
    if not gpus:
        return ["no CUDA device"]
    if largest < 0.95 * memory_gib:  # the driver reserves some of the nominal memory
        return [f"{largest:g} GiB of GPU memory, needs {memory_gib:g}"]
    return []


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def cuda_devices() -> tuple[Gpu, ...]:
    """Return the CUDA devices of this machine; none if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return ()
    import torch

    if not torch.cuda.is_available():
        return ()
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return tuple(Gpu(p.name, round(p.total_memory / GIB, 1)) for p in found)
