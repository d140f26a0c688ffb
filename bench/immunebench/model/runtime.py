"""Seeds, precision policy and memory guard. Imports no torch until it is asked to."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from immunebench.core import machine
from immunebench.core.machine import GIB
from immunebench.core.types import Numerics, StageError
from immunebench.declared.profile import lacks_ampere

if TYPE_CHECKING:
    import torch
    from torch import nn

    from immunebench.store.bookmark import Spent


def derive_seed(*parts: object) -> int:
    """Map names and numbers to a seed by SHA-256.

    Parameters
    ----------
    *parts : object
        Strings and integers; their order matters, and `("a", "bc")` differs from `("ab", "c")`.

    Returns
    -------
    int
        At least 0 and below 2**63.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def dtype(name: str) -> torch.dtype:
    """Translate a profile's word (`float16` or `fp16`, ...) into a torch dtype.

    Raises
    ------
    StageError
        If the word is unknown.
    """
    import torch

    words = {
        "float32": torch.float32, "fp32": torch.float32,
        "float16": torch.float16, "fp16": torch.float16,
        "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    }  # fmt: skip
    if name not in words:
        raise StageError("error", f"profile: unknown dtype {name!r}; one of {', '.join(sorted(words))}")
    return words[name]


def prepare_process(numerics: Numerics) -> None:
    """Fix the threads and the kernels that the profile promises.

    Raises
    ------
    StageError
        If the profile computes in bfloat16 and the card, or the card that it stands in for, has none.
    """
    # Read once, when the first handle of cuBLAS is made.
    if numerics.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # The engine reports its own progress; loading bars would tear its lines.
    torch.set_num_threads(numerics.threads)
    # Flash attention and cuDNN's need Ampere; a newer card that stands in for an older one must not use them either.
    torch.backends.cuda.enable_flash_sdp(not lacks_ampere(numerics.compute_capability))
    torch.backends.cuda.enable_cudnn_sdp(not lacks_ampere(numerics.compute_capability))
    _check_bfloat16(numerics)
    if numerics.device == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Fresh memory is never read here; filling it costs one more kernel for each tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


@contextmanager
def deterministic() -> Iterator[None]:
    """Let the block run deterministic kernels alone, in a process that `prepare_process` asked for them on CUDA.

    Outside, an operation that has none only warns: the gradient to a picture may pass a bilinear enlargement or a
    reflecting border. But under a warning the backward pass of attention takes its faster kernel, which adds in
    any order, and two trainings differ.

    Raises
    ------
    RuntimeError
        Within the block, of an operation without a deterministic kernel. The networks of a base have none:
        convolutions, matrix products, attention, norms, enlargement to the nearest pixel, embeddings, indexing by rows.
    """
    import torch

    softened = torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    if softened:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        if softened:
            torch.use_deterministic_algorithms(True, warn_only=True)


def _check_bfloat16(numerics: Numerics) -> None:
    """Refuse bfloat16 where a card only emulates it, or stands in for one that does."""
    import torch

    fields = ("frozen_dtype", "trained_dtype", "vae_dtype")
    asked = [name for name in fields if dtype(getattr(numerics, name)) is torch.bfloat16]
    if numerics.device != "cuda" or not asked:
        return
    if numerics.compute_capability and lacks_ampere(numerics.compute_capability):
        card = f"a card of compute capability {numerics.compute_capability}"
    elif not torch.cuda.is_bf16_supported(including_emulation=False):
        card = torch.cuda.get_device_name()
    else:
        return
    raise StageError("error", f"profile: {asked[0]}: {card} has no bfloat16; float16 or float32")


@dataclass(slots=True)
class MemoryReport:
    """Peaks of a guarded stage, in GiB; `reserved` is the allocator's, 0 on a CPU."""

    cap: float
    reserved: float = 0.0
    process: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the figures rounded to 1 MiB, as the stage's manifest keeps them."""
        return {
            "memory_cap_gib": self.cap,
            "peak_reserved_gib": round(self.reserved, 3),
            "peak_process_gib": round(self.process, 3),
        }

    def add(self, earlier: Spent) -> None:
        """Count the peaks of attempts that this one goes on from: the cap holds for all of a stage."""
        self.reserved = max(self.reserved, earlier.peak_reserved_gib)
        self.process = max(self.process, earlier.peak_process_gib)


@contextmanager
def memory_guard(numerics: Numerics) -> Iterator[MemoryReport]:
    """Hold a stage to the profile's memory cap and measure what it took.

    On CUDA the caching allocator is limited to the cap, so a larger GPU stands in for a smaller one;
    the allocator counts no CUDA context, so its reserved peak is checked against the cap as well.
    On a CPU nothing can be withheld, and the peak of the process is judged when the stage is done.

    Yields
    ------
    MemoryReport
        Filled in when the block ends.

    Raises
    ------
    StageError
        Kind `oom` if an allocation failed, `over_memory` if the peak passed the cap unhindered;
        the message names both figures.
    """
    report = MemoryReport(numerics.memory_gib)
    on_gpu = numerics.device == "cuda"
    machine.reset_process_peak()
    if on_gpu:
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, numerics.memory_gib * GIB / total))
        torch.cuda.reset_peak_memory_stats()
    out_of_memory = False
    try:
        yield report
    except Exception as error:
        out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if not out_of_memory:
            raise
    finally:
        report.process = max(report.process, machine.process_peak() / GIB)
        if on_gpu:
            report.reserved = max(report.reserved, torch.cuda.max_memory_reserved() / GIB)
    figures = f"reserved peak {report.reserved:.2f} GiB, process peak {report.process:.2f} GiB"
    if out_of_memory:
        raise StageError("oom", f"out of memory under a cap of {report.cap:g} GiB: {figures}")
    if (report.reserved if on_gpu else report.process) > report.cap:
        raise StageError("over_memory", f"memory passed the cap of {report.cap:g} GiB: {figures}")


@contextmanager
def training(
    parameters: Mapping[str, nn.Parameter],
) -> Iterator[None]:
    """Switch gradients on for these parameters only while the block runs, and let it repeat to the byte."""
    chosen = list(parameters.values())
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        with deterministic():
            yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(False)
