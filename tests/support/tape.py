"""A recorder of passes on any device: like a CUDA graph it repeats operations on fixed memory and runs no Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
#: What needs a value on the host: CUDA refuses it while it captures.
READS = (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.item.default)


class Tape(TorchDispatchMode):
    """Notes each operation with the very tensors that it took and gave; a read back or an upload is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **given)
        tensors = [t for t in tree_leaves((args, given, result)) if isinstance(t, Tensor)]
        if len({t.device.type for t in tensors}) > 1:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func} between devices")
        self.calls.append((func, args, given, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Do the same operations again, their results in the same memory."""
        for func, args, kwargs, result in self.calls:
            if func.is_view:
                continue
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Tapes:
    """See `immunebench.model.graphs.Recorder`; `refuses` makes each attempt fail as CUDA would."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.tapes: list[Tape] = []
        self.refuses = refuses
        self.gave_up = 0

    def warm_up(self, function: Callable[[], object]) -> None:
        function()

    def record(self, function: Callable[[], object], pool: Any) -> Callable[[], None]:
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        tape = Tape()
        with tape:
            function()
        self.tapes.append(tape)
        return tape.replay

    def pool(self) -> None:
        return None

    def give_up(self) -> None:
        self.gave_up += 1
