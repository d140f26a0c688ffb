"""`Graphs`: passes of a network recorded once and replayed, as CUDA graphs; off unless the environment asks for them.

Of a training step the forward and the backward pass of the denoiser are one graph each: together nearly all of its
launches. What a method does with the prediction (its loss, or the sum of several) and the optimiser's step stay
outside, so no method knows of graphs.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

#: ``1`` in this variable of the environment records passes on CUDA. Results do not depend on it.
VARIABLE = "IMMUNEBENCH_CUDA_GRAPH"
#: Passes of one form that run as usual before the next one is recorded.
FIRST = 2
#: Forms of a pass that are recorded, and recordings of one form whose backward passes are to come (two losses a step).
FORMS, AT_ONCE = 8, 2

log = logging.getLogger(__name__)
#: Maps inputs and weights (by the ids of their masters) to the output.
Function = Callable[[Sequence[Tensor], Mapping[int, Tensor]], Tensor]


class Recorder(Protocol):
    """Records what a function launches on the device."""

    def warm_up(self, function: Callable[[], object]) -> None:
        """Run the function before it is recorded, so that libraries have set up what they need."""
        ...

    def record(self, function: Callable[[], object], pool: Any) -> Callable[[], None]:
        """Record the function; the result runs the same kernels on the same memory again."""
        ...

    def pool(self) -> Any:
        """Return new memory for recordings that follow each other."""
        ...

    def give_up(self) -> None:
        """Free what an attempt that failed left behind."""
        ...


class CudaGraphs:
    """Records CUDA graphs (``torch.cuda.graph``)."""

    def warm_up(self, function: Callable[[], object]) -> None:
        """Run the function on a side stream, as capturing needs it."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function()
        torch.cuda.current_stream().wait_stream(side)

    def record(self, function: Callable[[], object], pool: Any) -> Callable[[], None]:
        """Capture the function's launches; nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            function()
        replay: Callable[[], None] = graph.replay
        return replay

    def pool(self) -> Any:
        """Return a memory pool of its own: passes of different recordings may be under way at the same time."""
        return torch.cuda.graph_pool_handle()

    def give_up(self) -> None:
        """Return unused memory to the device."""
        torch.cuda.empty_cache()


def graphs(device: torch.device) -> Graphs | None:
    """Return a place for recordings on a GPU if the environment asks for them."""
    asked = device.type == "cuda" and os.environ.get(VARIABLE) == "1"
    return Graphs(CudaGraphs()) if asked else None


class Graphs:
    """The recorded passes of one network.

    A pass is recorded for each form: shapes and dtypes of the inputs, what is differentiated, which adapters are on and
    which kernels are allowed. It runs as usual for the first `FIRST` times, and always where it cannot be recorded:

    - a module has hooks (methods that watch inner layers or collect their outputs),
    - the network recomputes activations in the backward pass (gradient checkpointing),
    - CUDA refuses to capture an operation, or memory does not suffice for the recording,
    - more than `FORMS` forms, or more than `AT_ONCE` passes of a form whose backward passes are to come.

    Noise and time steps are drawn outside and copied in, and the networks use no random numbers.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.replays = 0
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, list[Recorded]] = {}
        self._refused: set[Hashable] = set()
        self._parts: _Parts | None = None

    def clear(self) -> None:
        """Forget all recordings: the network or the memory of its weights changed."""
        self._seen.clear()
        self._recorded.clear()
        self._refused.clear()
        self._parts = None

    def run(
        self, network: nn.Module, function: Function, inputs: Sequence[Tensor], weights: Mapping[int, Tensor]
    ) -> Tensor:
        """Return the function of inputs and weights, from a recording where there is or can be one."""
        form = self._form(network, inputs, weights)
        if form is None or form in self._refused:
            return function(inputs, weights)
        self._seen[form] += 1
        if self._seen[form] <= FIRST:
            return function(inputs, weights)
        mine = self._recorded.setdefault(form, [])
        free = next((recorded for recorded in mine if not recorded.under_way), None)
        if free is None:
            if len(mine) == AT_ONCE or len(self._recorded) > FORMS:
                return function(inputs, weights)
            try:
                free = Recorded(self.recorder, function, inputs, weights)
            except RuntimeError as error:  # torch.OutOfMemoryError too
                self._refused.add(form)
                self.recorder.give_up()
                log.warning("a pass is not recorded as a CUDA graph: %s", " ".join(str(error).split())[:200])
                return function(inputs, weights)
            mine.append(free)
        self.replays += 1
        return free(inputs, weights)

    def _form(self, network: nn.Module, inputs: Sequence[Tensor], weights: Mapping[int, Tensor]) -> Hashable:
        """Return what decides the operations of a pass, None where they cannot be known."""
        parts = self._parts = self._parts or _Parts(network)
        if any(parts.hooks) or (torch.is_grad_enabled() and any(m.gradient_checkpointing for m in parts.recomputing)):
            return None
        switches = tuple(bool(m._disable_adapters) for m in parts.adapted)
        return (
            torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            tuple((tuple(x.shape), x.dtype, x.requires_grad) for x in inputs),
            tuple((key, weight.requires_grad) for key, weight in weights.items()), switches,
        )  # fmt: skip


class _Parts:
    """What of a network's modules decides whether a pass can be recorded, looked for once."""

    def __init__(self, network: nn.Module) -> None:
        modules = list(network.modules())
        # The dictionaries themselves: a hook that is registered later is in them.
        self.hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
        self.recomputing: list[Any] = [m for m in modules if hasattr(m, "gradient_checkpointing")]
        self.adapted: list[Any] = [m for m in modules if hasattr(m, "_disable_adapters")]


class Recorded:
    """One recorded pass: inputs, output and gradients in memory that stays, a forward and a backward recording.

    Raises
    ------
    RuntimeError
        If an operation cannot be recorded, or memory does not suffice.
    """

    def __init__(
        self, recorder: Recorder, function: Function, inputs: Sequence[Tensor], weights: Mapping[int, Tensor]
    ) -> None:
        self.under_way = False
        self.inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        # Copies of the masters lie in memory that stays, so they are not copied again.
        self.weights = {key: weight.detach().requires_grad_(weight.requires_grad) for key, weight in weights.items()}
        self._wanted = [x for x in (*self.inputs, *self.weights.values()) if x.requires_grad]
        differentiated = torch.is_grad_enabled() and bool(self._wanted)
        self.gradients: tuple[Tensor | None, ...] = ()

        def forward() -> Tensor:
            return function(self.inputs, self.weights)

        def backward(output: Tensor, along: Tensor) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(output, self._wanted, along, allow_unused=True)

        def whole() -> None:
            output = forward()
            if differentiated:
                backward(output, torch.ones_like(output))

        recorder.warm_up(whole)
        pool = recorder.pool()
        found: list[Tensor] = []
        self.forward = recorder.record(lambda: found.append(forward()), pool)
        (output,) = found
        self.backward: Callable[[], None] | None = None
        if differentiated:
            self.along = torch.ones_like(output)
            gradients: list[tuple[Tensor | None, ...]] = []
            self.backward = recorder.record(lambda: gradients.append(backward(output, self.along)), pool)
            (self.gradients,) = gradients
        self.output = output.detach()

    def __call__(self, inputs: Sequence[Tensor], weights: Mapping[int, Tensor]) -> Tensor:
        """Return the output for these inputs, differentiable like the function; valid until the next call."""
        if self.backward is None:
            self.load(inputs)
            self.forward()
            return self.output
        wanted = [x for x in (*inputs, *weights.values()) if x.requires_grad]
        output: Tensor = _Replay.apply(self, inputs, *wanted)
        return output

    def load(self, inputs: Sequence[Tensor]) -> None:
        """Copy inputs to where the recording reads them."""
        with torch.no_grad():
            for own, given in zip(self.inputs, inputs, strict=True):
                own.copy_(given)


class _UnderWay:
    """Marks a recording as in use until its backward pass, or until nothing refers to its output."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        recorded.under_way = True

    def __del__(self) -> None:
        self.recorded.under_way = False


class _Replay(torch.autograd.Function):
    """A recorded pass as one node of the graph of gradients."""

    @staticmethod
    def forward(ctx: Any, recorded: Recorded, inputs: Sequence[Tensor], *wanted: Tensor) -> Tensor:
        recorded.load(inputs)
        recorded.forward()
        ctx.under_way = _UnderWay(recorded)
        return recorded.output.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, along: Tensor) -> tuple[Any, ...]:
        if ctx.under_way is None:
            raise RuntimeError(f"a recorded pass has one backward pass; {VARIABLE}=0 runs without recordings")
        recorded: Recorded = ctx.under_way.recorded
        recorded.along.copy_(along)
        assert recorded.backward is not None
        recorded.backward()
        ctx.under_way = None
        # Those of weights are read by the next node of the backward pass; others may be kept as a leaf's gradient.
        given = sum(x.requires_grad for x in recorded.inputs)
        found = [
            None if g is None else g.clone() if i < given else g.detach() for i, g in enumerate(recorded.gradients)
        ]
        return None, None, *found
