"""Measured memory and time of an entry on a profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Demand:
    """Measured memory and time of one entry on one profile; memory in GiB.

    Attributes
    ----------
    allocator_gib
        Peak of the memory reserved by the allocator; 0 on a CPU.
    process_gib
        Peak of the process' resident memory.
    seconds
        Seconds per step, without the first two steps; None with fewer than three steps.
    emulated
        Whether a larger GPU was used in place of the profile's.
    """

    entry: str
    kind: str
    profile: str
    model: str
    cap_gib: float
    status: Literal["fits", "oom", "over_memory", "error", "killed"]
    allocator_gib: float = 0.0
    process_gib: float = 0.0
    seconds: float | None = None
    batch: int = 0
    device: str = ""
    emulated: bool = False
    reason: str = ""

    @property
    def peak_gib(self) -> float:
        """The peak that is compared with the memory limit: the allocator's on a GPU, the process' on a CPU."""
        return self.allocator_gib or self.process_gib
