"""`Halves`: a denoiser in half precision whose trained weights stay in fp32, without a cast at each use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from immunebench.model.graphs import Graphs

#: Weights that are converted together; CUDA's kernel for lists of pairs takes as many tensors in one launch.
_GROUP = 64
#: Values to whose multiple the parts of an allocation are rounded up, so that kernels may read several at once.
_ALIGNED = 64
#: Holds the copies of the pass that runs, for blocks that are to run again in the backward pass.
_held: ContextVar[Callable[[], AbstractContextManager[None]]] = ContextVar("held", default=nullcontext)


class Halves:
    """Runs a network with half-precision copies of its fp32 weights (the masters) in their place.

    Autocast casts a weight at each use and keeps norms in fp32: nearly half of the operations of a training step. Here
    all weights that changed since the last pass are copied together, and all inputs and outputs in the network have
    half precision; norms still sum in fp32 inside their kernels. Gradients reach the masters in fp32, so methods and
    optimisers see fp32 parameters and nothing else.

    Parameters
    ----------
    network : Module
        A diffusers UNet. Its weights in `dtype` are used as they are.
    dtype : torch.dtype
        float16 or bfloat16.
    graphs : Graphs, optional
        Records passes and replays them, see there.

    Notes
    -----
    Whether a master changed is read from its version counter, which every in-place operation of torch advances.
    Optimisers with kernels of their own advance it themselves, see `optim.AdamW.update`.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, graphs: Graphs | None = None) -> None:
        self.network, self.dtype, self.graphs = network, dtype, graphs
        #: Holder of a parameter, its name there, the master; None before they are looked for.
        self._places: list[tuple[dict[str, Any], str, Tensor]] | None = None
        self._copies: dict[int, Tensor] = {}
        self._versions: dict[int, int] = {}

    def reset(self) -> None:
        """Forget the copies: modules, or the dtype or memory of weights changed."""
        self._places = None
        self._copies.clear()
        self._versions.clear()
        if self.graphs is not None:
            self.graphs.clear()

    def __call__(self, noised: Tensor, timesteps: Tensor, tokens: Tensor, added: Mapping[str, Tensor]) -> Tensor:
        """Run the network; latents and tokens are cast once, and the output is fp32."""
        weights = self._weights(self._masters())
        # The network casts additional conditions itself, after it has embedded the sizes among them in fp32.
        inputs = [noised.to(self.dtype), timesteps, tokens.to(self.dtype), *added.values()]

        def run(inputs: Sequence[Tensor], weights: Mapping[int, Tensor]) -> Tensor:
            z, t, c, *rest = inputs
            more = {"added_cond_kwargs": dict(zip(added, rest, strict=True))} if added else {}
            with self._placed(weights):
                found: Tensor = self.network(z, t, c, return_dict=False, **more)[0]
            return found

        if self.graphs is None:
            return run(inputs, weights).float()
        return self.graphs.run(self.network, run, inputs, weights).float()

    def _masters(self) -> list[Tensor]:
        """Return the parameters that are not in half precision."""
        if self._places is None or not all(holder.get(name) is p for holder, name, p in self._places):
            self.reset()
            self._places = [
                (module._parameters, name, p)
                for module in self.network.modules()
                for name, p in module._parameters.items()
                if p is not None and p.is_floating_point() and p.dtype is not self.dtype
            ]
        return list({id(p): p for _, _, p in self._places}.values())

    def _weights(self, masters: Sequence[Tensor]) -> dict[int, Tensor]:
        """Return the copies by the masters' ids, up to date and differentiable where a master is."""
        changed = [p for p in masters if self._versions.get(id(p)) != p._version]
        if changed:
            for p in changed:
                if id(p) not in self._copies:
                    self._copies[id(p)] = torch.empty_like(p, dtype=self.dtype, requires_grad=False)
                self._versions[id(p)] = p._version
            with torch.no_grad():
                torch._foreach_copy_([self._copies[id(p)] for p in changed], [p.detach() for p in changed])
        found = {id(p): self._copies[id(p)] for p in masters}
        live = [p for p in masters if p.requires_grad] if torch.is_grad_enabled() else []
        for first in range(0, len(live), _GROUP):
            group = live[first : first + _GROUP]
            cast = _Cast.apply([self._copies[id(p)] for p in group], *group)
            found |= {id(p): half for p, half in zip(group, cast, strict=True)}
        return found

    @contextmanager
    def _placed(self, weights: Mapping[int, Tensor]) -> Iterator[None]:
        """Hold these tensors in the place of the masters."""
        places = self._places or []
        token = _held.set(lambda: self._placed(weights))
        before = [holder[name] for holder, name, _ in places]
        for holder, name, p in places:
            holder[name] = weights[id(p)]
        try:
            yield
        finally:
            _held.reset(token)
            for (holder, name, _), p in zip(places, before, strict=True):
                holder[name] = p


def recomputed(block: nn.Module, *arguments: Any) -> Any:
    """Run a block without keeping its activations (gradient checkpointing), as diffusers calls it.

    In the backward pass it runs again, with the copies of weights that it had.
    """
    held = _held.get()
    # The networks use no random numbers (there is no dropout), so the RNG state need not be preserved.
    again: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return checkpoint(block, *arguments, **again, context_fn=lambda: (nullcontext(), held()))


class _Cast(torch.autograd.Function):
    """Half-precision copies as functions of their masters: gradients are converted to fp32 together."""

    @staticmethod
    def forward(ctx: Any, copies: list[Tensor], *masters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = masters[0].dtype
        return tuple(copy.detach() for copy in copies)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [g for g in gradients if g is not None]
        full = iter(_together(there, ctx.dtype))
        return None, *(None if g is None else next(full) for g in gradients)


def _together(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return contiguous copies in a dtype, in one allocation and one operation."""
    if not tensors:
        return []
    sizes = [-(-t.numel() // _ALIGNED) * _ALIGNED for t in tensors]
    parts = torch.split(torch.empty(sum(sizes), dtype=dtype, device=tensors[0].device), sizes)
    copies = [part[: t.numel()].view(t.shape) for part, t in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(copies, list(tensors))
    return copies
