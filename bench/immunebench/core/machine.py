"""Probes of the machine and the process: processor, GPU, library versions, peak memory.

torch is imported only where a GPU is probed.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

GIB = 1 << 30
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow", "bitsandbytes")


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reset_process_peak() -> None:
    """Reset the peak of resident memory, where the system allows it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def process_peak() -> int:
    """Return the peak resident memory of this process in bytes, since the last reset where the system has one."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def environment(device: str = "cpu") -> dict[str, Any]:
    """Describe the machine and the libraries for a stage's manifest; it is no part of a stage's cache key.

    Returns
    -------
    dict
        `python`, `platform`, `processor`, `cpus`, `device`, `libraries`; `instructions` where torch is loaded; on CUDA
        also `gpu`, `gpu_memory_gib`, `cuda`.
    """
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    probe: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "device": device,
        "libraries": libraries,
    }
    if "torch" in sys.modules:
        import torch

        # The same name of a processor stands for several sets of instructions, which round differently.
        probe["instructions"] = torch.backends.cpu.get_cpu_capability()
    if device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(0)
        probe |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / GIB, 2),
            "cuda": torch.version.cuda,
        }
    return probe


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
