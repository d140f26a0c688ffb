"""What one entry was measured to take on one profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Demand:
    """What one entry took on one profile; memory in GiB.

    Attributes
    ----------
    allocator_gib
        The allocator's reserved peak; 0 on a CPU.
    process_gib
        Peak of the process' resident memory.
    seconds
        Of a step, the first two left out; None where no third was taken.
    emulated
        Whether a larger card stood in for the profile's.
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
        """What is held against a cap: the allocator's peak on a GPU, that of the process on a CPU."""
        return self.allocator_gib or self.process_gib
