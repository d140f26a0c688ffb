"""`View`: what a process in a box sees, and how much it may take."""

from __future__ import annotations

import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from immunebench.box.landlock import carved

PACKAGE = Path(__file__).resolve().parents[1]
#: Of the package: what grades, the judges' and all other weights, and whatever names tasks, suites and other entries.
HIDDEN = ("metrics", "mini/weights", "_entries", "suites")
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/localtime")
#: What libraries read of the machine. Below /proc only of processors and memory, and of the process itself.
_MACHINE = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory", "/sys/devices/system")


@dataclass(frozen=True)
class View:
    """The files of one process in a box.

    Attributes
    ----------
    read
        Files and folders that are readable beside Python and the package.
    write
        Folders that it may fill.
    bytes
        How much that may be, all together; and the size of one file.
    files
        How many files and folders.
    gpu
        Whether the devices of a GPU are there.
    memory
        How many bytes of memory one of its processes may take, by its peak; None: as many as there are.
    """

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    bytes: int = 1 << 30
    files: int = 10_000
    gpu: bool = False
    memory: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the values as JSON has them."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> View:
        """Return what `as_dict` gave."""
        return cls(**{**values, "read": tuple(values["read"]), "write": tuple(values["write"])})


def python() -> list[Path]:
    """Return the folders of Python, of its installed libraries and of the system's, and this package."""
    named = [sys.prefix, sys.base_prefix, *(sysconfig.get_paths()[name] for name in ("purelib", "platlib")), *_SYSTEM]
    sites = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    found = {Path(path) for path in [*named, *sites]} | {Path(path).resolve() for path in [*named, *sites]}
    return sorted(path for path in {*found, PACKAGE} if path.exists() and path != Path("/"))


def hidden() -> list[Path]:
    """Return what of the package no box shows, but for what a view names."""
    return [PACKAGE / name for name in HIDDEN if (PACKAGE / name).exists()]


def readable(view: View) -> tuple[list[Path], list[Path]]:
    """Return the files and folders that may be read, and those of which names may be listed, for Landlock."""
    roots, without = python(), hidden()
    parts = [part for root in roots for part in carved(root, without)]
    return [*parts, *map(Path, view.read), *map(Path, _MACHINE), Path("/proc/self")], roots


def gpu_devices() -> list[Path]:
    """Return the device files of NVIDIA's driver."""
    return sorted(Path("/dev").glob("nvidia*"))
