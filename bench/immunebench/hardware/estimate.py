"""Estimate of the peak memory of an entry's training step on a profile, by arithmetic: no GPU, no weights.

The entry's own code takes a few steps on tensors that have a shape and no values (PyTorch's fake tensors), and a ledger
adds up the storages that are alive. An allocator's fragmentation, the workspaces of kernels and the CUDA context are
not in it.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest import mock

from immunebench.catalog.loading import default_catalog
from immunebench.core.machine import GIB
from immunebench.core.types import Numerics
from immunebench.declared.architecture import SHAPES
from immunebench.hardware.capacity import Job, parameters, shortened, take_steps
from immunebench.model.graphs import Graphs
from immunebench.model.shapes import build

if TYPE_CHECKING:
    from torch import Tensor, nn

    from immunebench.model.offload import Resident

#: CUDA's allocator rounds every allocation up to a multiple of this many bytes.
BLOCK = 512
#: Values of an 8-bit moment that share a scale, and the size below which moments stay in fp32.
_QUANTISED, _LEAST = 256, 4096


@dataclass(frozen=True)
class Estimate:
    """Memory of one entry on one profile by arithmetic, in GiB.

    Attributes
    ----------
    peak_gib
        Largest sum of the live tensors on the device, from encoding the pictures to the last step.
    steps_gib
        The same from the second training step on.
    operations
        Operations that the host dispatches in each step from the second on; views and allocations do not count, and
        one on a list of tensors counts once.
    casts
        Those of them that only convert a tensor to another dtype.
    """

    entry: str
    kind: str
    profile: str
    model: str
    cap_gib: float
    peak_gib: float
    steps_gib: float
    operations: tuple[int, ...]
    casts: tuple[int, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the peak is at most the profile's cap."""
        return self.peak_gib <= self.cap_gib


def estimate(job: Job, *, replayed: bool = False, fused: bool = True, **changes: Any) -> Estimate:
    """Let an entry take its steps without values and return the peak of its live tensors.

    Parameters
    ----------
    job : Job
        With a shape.
    replayed : bool
        Whether passes of the denoiser are replayed as graphs from the third step on, see `model.graphs`: what they
        launch does not count as operations, and their memory is not in the peaks.
    fused : bool
        Whether a GPU's AdamW with fp32 moments is one operation, as it is now, or one for each kind of operation.
    **changes
        Fields of `Numerics` that differ from the profile's.

    Returns
    -------
    Estimate
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert job.shape is not None, "weights are not read"
    catalog = default_catalog()
    profile = catalog.profile(job.profile)
    # A fake CUDA tensor has no backward pass without a GPU, so the device is the CPU. Half precisions take 2 bytes.
    halves = {"float16": "bfloat16", "fp16": "bfloat16"}
    numerics = Numerics.of(profile.numerics(sampling=True))
    numerics = dataclasses.replace(
        numerics, device="cpu", compute_capability="", resolution=SHAPES[job.shape].resolution,
        **{n: halves.get(getattr(numerics, n), getattr(numerics, n)) for n in ("frozen_dtype", "vae_dtype")}, **changes,
    )  # fmt: skip
    entry = catalog.attack(job.entry) if job.kind == "attack" else catalog.defense(job.entry).layers[0]
    params = shortened(parameters(catalog, entry, job), job.steps)
    ledger = _ledger()
    with ExitStack() as stack:
        out = Path(stack.enter_context(TemporaryDirectory()))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(ledger)
        stack.enter_context(_imitated(profile.device, ledger.follow, fused=fused))
        if replayed:
            made = lambda device: Graphs(_Unwatched(ledger))  # noqa: E731
            stack.enter_context(mock.patch("immunebench.model.diffusion.graphs", made))
        model = build(SHAPES[job.shape], numerics)
        ledger.begin([p.data for p in model.unet.parameters()])

        def report(what: str, done: int, total: int) -> None:
            ledger.mark(last=done == total)

        take_steps(catalog, entry, job, model, params, out, report)
    peaks = [peak / GIB for peak in ledger.peaks]
    # The first phase ends with the first step.
    return Estimate(
        job.entry, job.kind, job.profile, job.model, profile.memory_gib, round(max(peaks), 4), round(max(peaks[1:]), 4),
        tuple(ledger.operations[1:]), tuple(ledger.casts[1:]),
    )  # fmt: skip


def _ledger() -> Any:
    """Return a dispatch mode that adds up the bytes of live storages; torch is imported here and no earlier."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    aten = torch.ops.aten
    allocations = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)

    class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Bytes of live storages, their largest sum in each phase, and the operations of each phase."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.live: dict[int, int] = {}
            self.away: dict[int, int] = {}
            self.now = 0
            self.counts = False
            self.peaks: list[int] = []
            self.operations: list[int] = []
            self.casts: list[int] = []

        def begin(self, tensors: list[Tensor]) -> None:
            """Start the first phase with these tensors on the device."""
            self.counts = True
            self._phase()
            for tensor in tensors:
                self._hold(tensor)

        def mark(self, *, last: bool) -> None:
            """End a step; what comes after the last one (saving) is not counted."""
            if self.counts:
                self.counts = not last
                if not last:
                    self._phase()

        def follow(self, resident: Resident) -> None:
            """Count a network while it is on the device."""
            size = sum(_rounded(t.numel() * t.element_size()) for t in resident.network.parameters())
            before = self.away.get(id(resident), 0)
            self.away[id(resident)] = after = size if resident.on_device else 0
            self._add(after - before)

        def _phase(self) -> None:
            self.peaks.append(self.now)
            self.operations.append(0)
            self.casts.append(0)

        def _add(self, size: int) -> None:
            self.now += size
            if self.counts:
                self.peaks[-1] = max(self.peaks[-1], self.now)

        def _hold(self, tensor: Tensor) -> None:
            storage = tensor.untyped_storage()
            key = id(storage)
            if key not in self.live:
                self.live[key] = _rounded(storage.nbytes())
                self._add(self.live[key])
                weakref.finalize(storage, self._drop, key)

        def _drop(self, key: int) -> None:
            self.now -= self.live.pop(key, 0)

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.prim.device.default:  # Most calls by far; the short way saves a third of the time.
                return args[0].fake_device
            # Values are asked for in checks (finite?) and logs alone: every one is 1, or true.
            if func is aten._local_scalar_dense.default:
                return 1.0
            if func is aten.equal.default:
                return True
            result = func(*args, **(kwargs or {}))
            if self.counts:
                self.operations[-1] += not func.is_view and func.overloadpacket not in allocations
                self.casts[-1] += func is aten._to_copy.default and result.dtype is not args[0].dtype
                for value in tree_leaves(result):
                    if isinstance(value, torch.Tensor):
                        self._hold(value)
            return result

    return Ledger()


class _Unwatched:
    """Stands in for CUDA graphs: what is recorded runs once, uncounted, and replaying it launches nothing."""

    def __init__(self, ledger: Any) -> None:
        self.ledger = ledger

    def warm_up(self, function: Callable[[], object]) -> None:
        """Do nothing."""

    def record(self, function: Callable[[], object], pool: Any) -> Callable[[], None]:
        """Run the function for the tensors that it makes."""
        counts, self.ledger.counts = self.ledger.counts, False
        function()
        self.ledger.counts = counts
        return lambda: None

    def pool(self) -> None:
        """Return nothing."""

    def give_up(self) -> None:
        """Do nothing."""


def _rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


@contextmanager
def _imitated(device: str, follow: Callable[[Resident], None], *, fused: bool) -> Iterator[None]:
    """Let the CPU do what the profile's device would: offloading, 8-bit moments, the operations kept in fp32."""
    import numpy as np
    import torch

    from immunebench.methods.context import Context
    from immunebench.model import diffusion, optim
    from immunebench.model.offload import Resident

    maker = optim._maker

    def made(numerics: Numerics) -> Any:
        if numerics.optimiser_state == "8bit":
            return _eight_bit()
        if device == "cuda" and fused:
            return lambda p, **options: torch.optim.AdamW(p, fused=True, **options)
        return maker(numerics)

    with ExitStack() as stack:

        def change(where: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(where, name, value))

        change(torch.nn.Module, "_apply", _apply)
        change(Resident, "_move", lambda resident: follow(resident))
        change(optim, "_maker", made)
        change(Context, "checkpoint", lambda *_: None)  # There are no values that could be saved, or be drawn.
        change(diffusion, "to_pixels", lambda x: np.zeros((len(x), *x.shape[2:], 3), np.uint8))
        if device == "cuda":
            stack.enter_context(norms_in_fp32())
        yield


@contextmanager
def norms_in_fp32() -> Iterator[None]:
    """Keep norms in fp32 under autocast inside the block, as CUDA's does and the CPU's does not."""
    import torch
    from torch.nn import functional as F

    def single(x: Any) -> Any:
        return x.float() if isinstance(x, torch.Tensor) and torch.is_autocast_enabled("cpu") else x

    group, layer = F.group_norm, F.layer_norm
    with (
        mock.patch.object(F, "group_norm", lambda x, n, *rest: group(single(x), n, *map(single, rest))),
        mock.patch.object(F, "layer_norm", lambda x, n, *rest: layer(single(x), n, *map(single, rest))),
    ):
        yield


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Convert a module's tensors; torch's own way exchanges the contents of two tensors, which fake ones refuse."""
    import torch

    for child in self.children():
        child._apply(fn)  # type: ignore[no-untyped-call]
    for name, p in self._parameters.items():
        if p is not None:
            with torch.no_grad():
                moved = fn(p)
            if moved is not p:
                self._parameters[name] = torch.nn.Parameter(moved, p.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def _eight_bit() -> Any:
    """Return an optimiser with the state of bitsandbytes' AdamW8bit: its sizes, not its arithmetic."""
    import torch

    class AdamW8bit(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
            super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

        @torch.no_grad()
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    for name in ("1", "2"):
                        if p.numel() < _LEAST:
                            state[f"state{name}"] = torch.zeros_like(p)
                            continue
                        state[f"state{name}"] = torch.zeros_like(p, dtype=torch.uint8)
                        state[f"absmax{name}"] = torch.zeros(-(-p.numel() // _QUANTISED))
                state["step"] += 1
                p.add_(p.grad, alpha=-1e-6)

    return AdamW8bit
