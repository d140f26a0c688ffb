"""AdamW under a profile's precision policy: at once as usual, or tensor by tensor inside the backward pass."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from immunebench.core.types import Numerics, StageError
from immunebench.model.runtime import dtype

#: Steps in a row in which no tensor may overflow for the loss scale to double, as in torch's GradScaler.
GROWTH_INTERVAL = 2000
#: Steps in a row without one finite gradient after which training is given up: 2^16 has halved to below 1 by then.
PATIENCE = 20
FIRST_SCALE = 65536.0
#: Marks, in its metadata, the node where micro-batches meet whose backward passes go one after another.
IN_TURN = "micro-batches"


Tell = Callable[[dict[str, Any]], None]


class AdamW:
    """AdamW with gradient clipping and, for fp16 profiles, loss scaling.

    Parameters
    ----------
    parameters : mapping of str to Parameter
    lr : float
    weight_decay : float
    numerics : Numerics
    tell : callable
        Is given figures of each step that the log should hold, as numbers or as tensors that nobody has to wait for:
        where a network runs in fp16 or bf16, how many tensors had a gradient that was not finite (`overflowed`; with a
        loss scale one such leaves the step out for all, without one the next loss is not finite either) or zero
        everywhere (`zero`). In fp32 there are none.

    Raises
    ------
    StageError
        If the profile's `optimiser_state` is not offered or its library is not installed.

    Notes
    -----
    Decoupled weight decay as in Loshchilov & Hutter 2019, alg. 2; beta = (0.9, 0.999), epsilon = 1e-8.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        lr: float,
        weight_decay: float,
        numerics: Numerics,
        tell: Tell = lambda figures: None,
    ) -> None:
        self.lr = lr
        self.parameters = list(parameters.values())
        self._tell = tell
        self._counts = dtype(numerics.frozen_dtype) is not torch.float32
        make = functools.partial(_maker(numerics), lr=lr, weight_decay=weight_decay)
        self._begin(make, numerics.device, scales=_scales(numerics))

    def _begin(self, make: Callable[..., torch.optim.Optimizer], device: str, *, scales: bool) -> None:
        self._adamw = make(self.parameters)
        self._scaler = torch.amp.GradScaler(device, enabled=scales)
        self._idle = 0
        self._finite: list[Tensor] = []

    def step(self, loss: Tensor, clip: float | None = 1.0) -> None:
        """Descend `loss` by one step (pass `-loss` to ascend).

        Parameters
        ----------
        loss : Tensor, scalar
        clip : float or None
            Largest norm of the gradient over all parameters together.

        Raises
        ------
        StageError
            If no tensor's gradient was finite in `PATIENCE` steps in a row, which is looked at once in as many steps.
            In fp32 nothing is counted.
        """
        self.backward(loss)
        self.update(clip)

    def backward(self, loss: Tensor) -> None:
        """Take the gradient of a loss."""
        torch.autograd.backward(self._scaler.scale(loss))

    def update(self, clip: float | None = 1.0) -> None:
        """Clip the gradient, move the parameters along it and drop it."""
        self._scaler.unscale_(self._adamw)
        if self._counts:
            self._count()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, clip, foreach=True)
        self._scaler.step(self._adamw)
        self._scaler.update()
        self._adamw.zero_grad(set_to_none=True)

    def _count(self) -> None:
        """Tell how many gradients are not finite and how many vanished; what a GPU has still to compute is not read."""
        largest = torch.stack(torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None], math.inf))
        finite = torch.isfinite(largest)
        self._tell({"overflowed": (~finite).sum(), "zero": (largest == 0).sum()})
        self._finite.append(finite.any())
        if len(self._finite) == PATIENCE:
            self._read()

    def _read(self) -> None:
        """Count the steps in a row without a finite gradient among those that nobody has looked at yet."""
        for finite in torch.stack(self._finite).tolist() if self._finite else ():
            self._idle = 0 if finite else self._idle + 1
            if self._idle == PATIENCE:
                raise _no_gradient()
        self._finite.clear()

    def set_rate(self, fraction: float) -> None:
        """Take steps of this part of the rate from now on."""
        for group in self._adamw.param_groups:
            group["lr"] = self.lr * fraction

    def forget(self) -> None:
        """Drop the moments, as a fresh optimiser would have none."""
        self._adamw.state.clear()

    def live(self) -> dict[str, Tensor]:
        """Return the parameters; see `methods.loops.Stateful`."""
        return {str(i): parameter for i, parameter in enumerate(self.parameters)}

    def rest(self) -> tuple[dict[str, Tensor], Any]:
        """Return the moments of the parameters that have some, the rate, the loss scale and what was counted."""
        tensors, numbers = _state(self._adamw, self.parameters)
        rate = self._adamw.param_groups[0]["lr"]
        seen = [bool(finite) for finite in self._finite]
        kept = {"lr": rate, "numbers": numbers, "scaler": self._scaler.state_dict(), "idle": self._idle, "finite": seen}
        return tensors, kept

    def take(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Go on from what `rest` gave."""
        _restore(self._adamw, self.parameters, tensors, value["numbers"])
        self._adamw.param_groups[0]["lr"] = value["lr"]
        self._scaler.load_state_dict(value["scaler"])
        self._idle = value["idle"]
        self._finite = [torch.tensor(finite) for finite in value["finite"]]


class ReleasedAdamW(AdamW):
    """AdamW that moves each tensor as soon as its gradient is there and drops the gradient: memory holds one at a time.

    Takes the parameters of `AdamW`. `step` does this; `backward` and `update`, called by themselves, do the same
    arithmetic on gradients that are kept.

    Attributes
    ----------
    norm : float
        Norm of the last step's gradient over all tensors that moved; 0 before the first.
    scale : float
        What the loss is multiplied by before the backward pass; 1 where nothing runs in fp16.
    skipped, zero : int
        Tensors of the last step whose gradient was not finite, and was zero everywhere.

    Notes
    -----
    The norm of a gradient is known when its last tensor is, too late to clip the first by it. Each tensor g is clipped
    by the larger of the previous step's norm and its own instead, g <- g min(1, clip / max(norm, |g|)): so no tensor
    passes `clip`, and at the first step each is clipped by its own norm, which AdamW's first step does not see.
    A tensor whose gradient is not finite keeps its values and its moments, while the others move; torch's GradScaler
    would leave out the step for all. The scale halves after a step with such a tensor and doubles after 2,000 without.
    """

    _KEPT = ("norm", "scale", "skipped", "zero", "_clean", "_idle")

    def _begin(self, make: Callable[..., torch.optim.Optimizer], device: str, *, scales: bool) -> None:
        self._each = {p: make([p]) for p in self.parameters}
        self._scaled = scales
        self.scale = FIRST_SCALE if scales else 1.0
        self.norm = 0.0
        self.skipped = self.zero = self._clean = self._idle = 0
        self._moved: list[tuple[nn.Parameter, bool, Tensor]] = []

    def step(self, loss: Tensor, clip: float | None = 1.0) -> None:
        """Descend `loss` by one step, each tensor during the backward pass; see `AdamW.step`.

        Raises
        ------
        StageError
            If no tensor's gradient was finite in `PATIENCE` steps in a row.
        """
        interleave(loss)
        # Hooks live for this pass alone: another optimiser may train the same tensors (IMMA does).
        move: Any = lambda p: self._move(p, clip)  # noqa: E731
        live: list[Any] = [p for p in self.parameters if p.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(move) for p in live]
        try:
            self.backward(loss)
        finally:
            for hook in hooks:
                hook.remove()
        self._settle()

    def backward(self, loss: Tensor) -> None:
        """Take the gradient of a loss."""
        torch.autograd.backward(loss * self.scale if self._scaled else loss)

    def update(self, clip: float | None = 1.0) -> None:
        """Clip the gradient, move the parameters along it and drop it."""
        for p in self.parameters:
            if p.grad is not None:
                self._move(p, clip)
        self._settle()

    def set_rate(self, fraction: float) -> None:
        """Take steps of this part of the rate from now on."""
        for optimiser in self._each.values():
            for group in optimiser.param_groups:
                group["lr"] = self.lr * fraction

    def forget(self) -> None:
        """Drop the moments and the norm, as a fresh optimiser would have none."""
        self.norm = 0.0
        for optimiser in self._each.values():
            optimiser.state.clear()

    def rest(self) -> tuple[dict[str, Tensor], Any]:
        """Return the moments of the parameters that have some, the rate, the norm, the loss scale and the counts."""
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, float] = {}
        for i, p in enumerate(self.parameters):
            own, counts = _state(self._each[p], [p])
            tensors |= {f"{i}.{name}": tensor for name, tensor in own.items()}
            numbers |= {f"{i}.{name}": count for name, count in counts.items()}
        rate = self._each[self.parameters[0]].param_groups[0]["lr"] / self.lr if self.lr else 1.0
        kept = {name: getattr(self, name) for name in self._KEPT}
        return tensors, {"rate": rate, "numbers": numbers, "kept": kept}

    def take(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Go on from what `rest` gave."""
        for i, p in enumerate(self.parameters):
            start = f"{i}."
            own = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
            counts = {n.removeprefix(start): c for n, c in value["numbers"].items() if n.startswith(start)}
            _restore(self._each[p], [p], own, counts)
        self.set_rate(value["rate"])
        for name, number in value["kept"].items():
            setattr(self, name, number)

    @torch.no_grad()
    def _move(self, p: nn.Parameter, clip: float | None) -> None:
        """Move one tensor; nothing is read back, so that a GPU is not made to wait for each of them."""
        g = p.grad
        if g is None:
            return
        norm = torch.linalg.vector_norm(g, dtype=torch.float32) / self.scale
        if clip is not None:
            g.mul_((clip / (norm.clamp(min=self.norm) + 1e-6)).clamp(max=1.0) / self.scale)
        elif self._scaled:
            g.div_(self.scale)
        optimiser = self._each[p]
        # Copies of one tensor and its moments: what is not finite is known on the device alone, after the update.
        before = {name: t.clone() for name, t in _tensors(optimiser.state[p]).items()}
        values = p.clone()
        optimiser.step()
        p.grad = None
        finite = torch.isfinite(norm)
        p.copy_(torch.where(finite, p, values))
        after = _tensors(optimiser.state[p])
        for name, old in before.items():
            after[name].copy_(torch.where(finite, after[name], old))
        self._moved.append((p, not before, norm))

    def _settle(self) -> None:
        """Read the norms of the step at once, correct the count of the skipped tensors and set the loss scale."""
        if not self._moved:
            return
        norms = torch.stack([norm for *_, norm in self._moved]).tolist()
        whole = [norm for norm in norms if math.isfinite(norm)]
        for (p, fresh, _), norm in zip(self._moved, norms, strict=True):
            if not math.isfinite(norm):
                state = self._each[p].state
                if fresh:
                    state.clear()
                else:
                    state[p]["step"] = state[p]["step"] - 1
        self._moved.clear()
        self.norm = math.hypot(*whole) if whole else self.norm
        self.skipped, self.zero = len(norms) - len(whole), whole.count(0.0)
        loss_scale = {"loss_scale": self.scale} if self._scaled else {}
        self._tell({"skipped": self.skipped, "zero": self.zero, **loss_scale})
        self._clean = 0 if self.skipped else self._clean + 1
        self._idle = 0 if whole else self._idle + 1
        if self._idle == PATIENCE:
            raise _no_gradient()
        if self._scaled and self.skipped:
            self.scale /= 2
            if self.scale < 1:
                raise StageError("error", "a gradient overflows at every loss scale down to 1")
        elif self._scaled and self._clean and self._clean % GROWTH_INTERVAL == 0:
            self.scale *= 2


def adamw(
    parameters: Mapping[str, nn.Parameter], lr: float, weight_decay: float, numerics: Numerics, tell: Tell
) -> AdamW:
    """Return AdamW in the form that a profile asks for."""
    return (ReleasedAdamW if numerics.release_gradients else AdamW)(parameters, lr, weight_decay, numerics, tell)


def interleave(loss: Tensor) -> None:
    """Let the backward passes of a sum of losses go layer by layer together, not one after another.

    Autograd runs the newest node first. With two passes through one network every tensor's gradient from the one would
    then wait for the other's: a whole gradient in memory. Here nodes run by their distance from the sum, so that the
    two parts of a tensor's gradient come one shortly after the other. The result is the same sum.
    """
    root: Any = loss.grad_fn
    if root is None or not hasattr(root, "_set_sequence_nr") or not _is_sum(root):
        return
    waiting, children = {root: 0}, [root]
    while children:
        for child, _ in children.pop().next_functions:
            if child is not None:
                children += [child] if child not in waiting else []
                waiting[child] = waiting.get(child, 0) + 1
    if any(IN_TURN in node.metadata for node in waiting if type(node).__name__ == "CatBackward0"):
        return  # Micro-batches: their activations must not live together.
    level, ready = {root: 0}, [root]
    while ready:
        node = ready.pop()
        for child, _ in node.next_functions:
            if child is not None:
                level[child] = max(level.get(child, 0), level[node] + 1)
                waiting[child] -= 1
                ready += [child] if not waiting[child] else []
    last = max(level.values())
    for node, depth in level.items():
        # Leaves keep the number that puts them before everything else.
        if type(node).__name__ != "AccumulateGrad":
            node._set_sequence_nr(last - depth)


def _is_sum(node: Any) -> bool:
    """Whether more than one loss meets at a node, or at one behind factors and signs."""
    while True:
        behind = [child for child, _ in node.next_functions if child is not None]
        if len(behind) != 1 or not type(node).__name__.startswith(("Mul", "Neg", "Rsub", "Sub", "Add")):
            return len(behind) > 1 and type(node).__name__.startswith(("Add", "Sub", "Rsub"))
        (node,) = behind


def _state(
    optimiser: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return an optimiser's tensors and plain numbers by the parameter's place and their own name."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for i, p in enumerate(parameters):
        for name, value in optimiser.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{i}.{name}"] = value
            else:
                numbers[f"{i}.{name}"] = value
    return tensors, numbers


def _restore(
    optimiser: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, float],
) -> None:
    """Give an optimiser what `_state` returned; the count of updates stays on the CPU, where torch keeps it."""
    optimiser.state.clear()
    for name, value in {**tensors, **numbers}.items():
        i, _, own = name.partition(".")
        p = parameters[int(i)]
        moved = value.to(p.device) if isinstance(value, Tensor) and own != "step" else value
        optimiser.state[p][own] = moved


def _no_gradient() -> StageError:
    return StageError("error", f"no gradient was finite in {PATIENCE} steps in a row")


def _scales(numerics: Numerics) -> bool:
    """Whether gradients pass through fp16, where small ones vanish unless the loss is scaled up."""
    return numerics.device == "cuda" and dtype(numerics.frozen_dtype) is torch.float16


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the moments of a tensor: all that an update changes but the count of updates."""
    return {n: t for n, t in state.items() if isinstance(t, Tensor) and n != "step" and not n.startswith("qmap")}


def _maker(numerics: Numerics) -> Callable[..., torch.optim.Optimizer]:
    """Return what makes the optimiser of a profile's precision.

    `8bit` is AdamW with block-wise quantised moments (Dettmers et al. 2022, sec. 2): blocks of 256 values, dynamic
    quantisation, fp32 arithmetic; tensors below 4,096 values keep fp32 moments.
    """
    if numerics.optimiser_state in ("float32", "fp32"):
        # One tensor has nothing to go with: the loop is then the same and takes less memory.
        return lambda p, **options: torch.optim.AdamW(p, foreach=not numerics.release_gradients, **options)
    if numerics.optimiser_state != "8bit":
        known = "float32 or 8bit"
        raise StageError("error", f"profile: optimiser_state: {numerics.optimiser_state!r} is not offered; {known}")
    if importlib.util.find_spec("bitsandbytes") is None:
        how = "pip install 'immunebench[low-memory]'"
        raise StageError("error", f"profile: optimiser_state: 8bit needs bitsandbytes: {how}")
    return _eight_bit()


@functools.cache
def _eight_bit() -> Callable[..., torch.optim.Optimizer]:
    """Return bitsandbytes' AdamW without its wait for the device after each tensor: 686 in a backward pass of SD 1.4.

    Its kernels go to the stream that torch's go to, one after another; the arithmetic is the same.
    """
    import bitsandbytes

    class AdamW8bit(bitsandbytes.optim.AdamW8bit):  # type: ignore[misc]
        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            for i, group in enumerate(self.param_groups):
                for j, p in enumerate(group["params"]):
                    if p.grad is None:
                        continue
                    if not self.state[p]:
                        self.init_state(group, p, i, j)
                    self.update_step(group, p, i, j)

    return AdamW8bit
