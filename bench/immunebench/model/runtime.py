"""Seeds, precision policy and memory limit; torch is imported only where needed."""

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
    """Return the torch dtype of a name in a profile (`float16` or `fp16`, ...).

    Raises
    ------
    StageError
        If the name is unknown.
    """
    import torch

    dtypes = {
        "float32": torch.float32, "fp32": torch.float32,
        "float16": torch.float16, "fp16": torch.float16,
        "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    }  # fmt: skip
    if name not in dtypes:
        raise StageError("error", f"profile: unknown dtype {name!r}; one of {', '.join(sorted(dtypes))}")
    return dtypes[name]


def prepare_process(numerics: Numerics) -> None:
    """Set the number of threads and select deterministic kernels, as the profile requires.

    Raises
    ------
    StageError
        If the profile computes in bfloat16 and the GPU, or the GPU that it emulates, does not support it.
    """
    # cuBLAS reads this once, when its first handle is created.
    if numerics.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # It would break the lines of our own progress report.
    torch.set_num_threads(numerics.threads)
    # Flash attention and cuDNN attention need Ampere; a newer GPU that emulates an older one must not use them either.
    torch.backends.cuda.enable_flash_sdp(not lacks_ampere(numerics.compute_capability))
    torch.backends.cuda.enable_cudnn_sdp(not lacks_ampere(numerics.compute_capability))
    _check_bfloat16(numerics)
    if numerics.device == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Uninitialised memory is never read here, and filling it takes an additional kernel for each tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


@contextmanager
def deterministic() -> Iterator[None]:
    """Require deterministic kernels inside the block, if `prepare_process` selected them on CUDA.

    Outside the block, an operation without a deterministic kernel only warns, because gradients with respect to
    pictures may pass through bilinear upsampling or reflection padding. In that mode, however, the backward pass of
    attention uses its faster kernel with an undefined order of summation, and two training runs differ.

    Raises
    ------
    RuntimeError
        For an operation without a deterministic kernel inside the block. The networks of a base have no such operation:
        they use convolutions, matrix products, attention, norms, nearest-neighbour upsampling, embeddings and indexing.
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
    """Refuse bfloat16 on a GPU without hardware support for it, or that emulates such a GPU."""
    import torch

    fields = ("frozen_dtype", "trained_dtype", "vae_dtype")
    asked = [name for name in fields if dtype(getattr(numerics, name)) is torch.bfloat16]
    if numerics.device != "cuda" or not asked:
        return
    if numerics.compute_capability and lacks_ampere(numerics.compute_capability):
        card = f"a GPU of compute capability {numerics.compute_capability}"
    elif not torch.cuda.is_bf16_supported(including_emulation=False):
        card = torch.cuda.get_device_name()
    else:
        return
    raise StageError("error", f"profile: {asked[0]}: {card} has no bfloat16; float16 or float32")


@dataclass(slots=True)
class MemoryReport:
    """Peak memory of a stage in GiB; `reserved` is that of torch's CUDA allocator, 0 on a CPU."""

    cap: float
    reserved: float = 0.0
    process: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the values rounded to 1 MiB, as in the stage's manifest."""
        return {
            "memory_cap_gib": self.cap,
            "peak_reserved_gib": round(self.reserved, 3),
            "peak_process_gib": round(self.process, 3),
        }

    def add(self, earlier: Spent) -> None:
        """Include the peaks of the attempts that this one resumes: the cap applies to the whole stage."""
        self.reserved = max(self.reserved, earlier.peak_reserved_gib)
        self.process = max(self.process, earlier.peak_process_gib)


@contextmanager
def memory_guard(numerics: Numerics) -> Iterator[MemoryReport]:
    """Enforce the profile's memory cap on a stage and measure its peak memory.

    On CUDA the caching allocator is limited to the cap, so that a larger GPU emulates a smaller one. The limit does not
    include the CUDA context, so the reserved peak is compared with the cap as well. On a CPU memory cannot be limited,
    and the peak of the process is compared with the cap at the end of the stage.

    Yields
    ------
    MemoryReport
        Filled in when the block ends.

    Raises
    ------
    StageError
        Kind `oom` if an allocation failed, `over_memory` if the peak exceeded the cap without a failure; the message
        has both peaks.
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
        raise StageError("over_memory", f"memory exceeded the cap of {report.cap:g} GiB: {figures}")


@contextmanager
def training(
    parameters: Mapping[str, nn.Parameter],
) -> Iterator[None]:
    """Enable gradients for these parameters inside the block, with deterministic kernels."""
    chosen = list(parameters.values())
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        with deterministic():
            yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(False)
