"""AdamW for a profile's precision policy: the usual step, or updates per tensor during the backward pass."""

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

#: Consecutive steps without an overflow after which the loss scale doubles, as in torch's GradScaler.
GROWTH_INTERVAL = 2000
#: Consecutive steps without a finite gradient after which training fails: the loss scale 2^16 is below 1 by then.
PATIENCE = 20
FIRST_SCALE = 65536.0
#: AdamW's epsilon, torch's default.
EPSILON = 1e-8
#: Metadata key of the autograd node that concatenates micro-batches, whose backward passes must run one by one.
MICRO_BATCHES = "micro-batches"


Log = Callable[[dict[str, Any]], None]


class AdamW:
    """AdamW with gradient clipping and, for fp16 profiles, loss scaling as in torch's GradScaler.

    Parameters
    ----------
    parameters : mapping of str to Parameter
    lr : float
    weight_decay : float
    numerics : Numerics
    log : callable
        Called at each step with values for the training log, as numbers or as tensors that are still being computed.
        For networks in fp16 or bf16: the number of tensors whose gradient is not finite (`overflowed`; with loss
        scaling a single one skips the step for all tensors, without it the next loss is not finite either) and of those
        whose gradient is zero everywhere (`zero`). Nothing in fp32.

    Raises
    ------
    StageError
        If the profile's `optimiser_state` is not supported or its library is not installed.

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
        log: Log = lambda values: None,
    ) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        self.parameters = list(parameters.values())
        self._log = log
        self._counts = dtype(numerics.frozen_dtype) is not torch.float32
        self._masters = numerics.masters
        make = functools.partial(_maker(numerics), lr=lr, weight_decay=weight_decay)
        self._set_up(make, numerics.device, scales=_scales(numerics))

    def _set_up(self, make: Callable[..., torch.optim.Optimizer], device: str, *, scales: bool) -> None:
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
            Largest norm of the gradient over all parameters together; None does not clip.

        Raises
        ------
        StageError
            If no tensor had a finite gradient in `PATIENCE` consecutive steps; checked every `PATIENCE` steps, and not
            in fp32.
        """
        self.backward(loss)
        self.update(clip)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradient of a loss."""
        torch.autograd.backward(self._scaler.scale(loss))

    def update(self, clip: float | None = 1.0) -> None:
        """Clip the gradient, update the parameters and clear the gradient."""
        self._scaler.unscale_(self._adamw)
        if self._counts:
            self._count()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, clip, foreach=True)
        self._scaler.step(self._adamw)
        self._scaler.update()
        if self._masters:
            # Fused and 8-bit kernels do not count as in-place operations, by which `halves` sees that weights changed.
            torch.autograd.graph.increment_version(self.parameters)
        self._adamw.zero_grad(set_to_none=True)

    def _count(self) -> None:
        """Log the numbers of gradients that are not finite and that are zero, without synchronising the GPU."""
        largest = torch.stack(torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None], math.inf))
        finite = torch.isfinite(largest)
        self._log({"overflowed": (~finite).sum(), "zero": (largest == 0).sum()})
        self._finite.append(finite.any())
        if len(self._finite) == PATIENCE:
            self._read()

    def _read(self) -> None:
        """Count the consecutive steps without a finite gradient, over the steps since the last count."""
        for finite in torch.stack(self._finite).tolist() if self._finite else ():
            self._idle = 0 if finite else self._idle + 1
            if self._idle == PATIENCE:
                raise _no_gradient()
        self._finite.clear()

    def set_lr_factor(self, factor: float) -> None:
        """Set the learning rate to `factor` times the initial one."""
        for group in self._adamw.param_groups:
            group["lr"] = self.lr * factor

    def reset_moments(self) -> None:
        """Clear the moments, as in a new optimiser."""
        self._adamw.state.clear()

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """Return the gradient of a loss, 0 where the loss does not depend on a parameter; nothing is stored."""
        found = torch.autograd.grad(self._scaled_loss(loss), self.parameters, allow_unused=True)
        scale = self._loss_scale()
        return [torch.zeros_like(p) if g is None else g / scale for p, g in zip(self.parameters, found, strict=True)]

    def descend(self, gradient: Sequence[Tensor], clip: float | None = 1.0) -> None:
        """Take a step along a gradient such as `gradient` returns; see `step`."""
        scale = self._loss_scale()
        for p, g in zip(self.parameters, gradient, strict=True):
            p.grad = g * scale
        self.update(clip)

    def _scaled_loss(self, loss: Tensor) -> Tensor:
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def _loss_scale(self) -> float:
        # The scaler is set up when it first scales something.
        self._scaler.scale(torch.zeros((), device=self.parameters[0].device))
        return float(self._scaler.get_scale())

    def moments(self, p: nn.Parameter) -> tuple[int, Tensor, Tensor]:
        """Return the number of a parameter's steps and its first and second moment (no copies).

        Raises
        ------
        StageError
            If the moments are quantised.
        """
        state = self._holder(p).state.get(p, {})
        if not state:
            return 0, torch.zeros_like(p), torch.zeros_like(p)
        if "exp_avg" not in state:
            raise StageError("error", "profile: optimiser_state: the moments can be read in float32 only")
        return int(state["step"]), state["exp_avg"], state["exp_avg_sq"]

    def _holder(self, p: nn.Parameter) -> torch.optim.Optimizer:
        """Return torch's optimiser that updates a parameter."""
        return self._adamw

    def state_bytes(self) -> int:
        """Return the bytes of the moments."""
        return sum(tensor.nbytes for tensor in self.extra_state()[0].values())

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the parameters; see `methods.loops.Stateful`."""
        return {str(i): parameter for i, parameter in enumerate(self.parameters)}

    def extra_state(self) -> tuple[dict[str, Tensor], Any]:
        """Return the moments, the learning rate, the loss scale and the counts of finite gradients."""
        tensors, numbers = _state(self._adamw, self.parameters)
        rate = self._adamw.param_groups[0]["lr"]
        seen = [bool(finite) for finite in self._finite]
        saved = {
            "lr": rate, "numbers": numbers, "scaler": self._scaler.state_dict(), "idle": self._idle, "finite": seen,
        }  # fmt: skip
        return tensors, saved

    def load_extra_state(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Restore what `extra_state` returned."""
        _restore(self._adamw, self.parameters, tensors, value["numbers"])
        self._adamw.param_groups[0]["lr"] = value["lr"]
        self._scaler.load_state_dict(value["scaler"])
        self._idle = value["idle"]
        self._finite = [torch.tensor(finite) for finite in value["finite"]]


class ReleasedAdamW(AdamW):
    """AdamW that updates each tensor in the backward pass, as soon as its gradient is computed, and frees the gradient.

    Memory then holds one gradient at a time instead of all. Takes the parameters of `AdamW`. `step` works this way;
    `backward` and `update`, called separately, do the same arithmetic on stored gradients.

    Attributes
    ----------
    norm : float
        Norm of the last step's gradient over all tensors that were updated; 0 before the first step.
    scale : float
        The loss scale; 1 if nothing runs in fp16.
    skipped, zero : int
        Number of tensors in the last step whose gradient was not finite, and zero everywhere.

    Notes
    -----
    The norm of the whole gradient is known only after its last tensor, too late to clip the first. Each tensor g is
    clipped by the larger of the previous step's norm and its own norm instead, g <- g min(1, clip / max(norm, |g|)). So
    no tensor exceeds `clip`, and in the first step each is clipped by its own norm, to which AdamW's first step is
    invariant. A tensor whose gradient is not finite retains its values and moments, while the others are updated;
    torch's GradScaler would skip the step for all. The scale halves after a step with such a tensor and doubles after
    2,000 without.
    """

    _SAVED = ("norm", "scale", "skipped", "zero", "_clean", "_idle")

    def _set_up(self, make: Callable[..., torch.optim.Optimizer], device: str, *, scales: bool) -> None:
        self._each = {p: make([p]) for p in self.parameters}
        self._scaled = scales
        self.scale = FIRST_SCALE if scales else 1.0
        self.norm = 0.0
        self.skipped = self.zero = self._clean = self._idle = 0
        self._moved: list[tuple[nn.Parameter, bool, Tensor]] = []

    def step(self, loss: Tensor, clip: float | None = 1.0) -> None:
        """Descend `loss` by one step, updating each tensor during the backward pass; see `AdamW.step`.

        Raises
        ------
        StageError
            If no tensor had a finite gradient in `PATIENCE` consecutive steps.
        """
        interleave(loss)
        # Hooks are removed after this pass, as another optimiser may train the same tensors (in IMMA).
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
        """Compute the gradient of a loss."""
        torch.autograd.backward(loss * self.scale if self._scaled else loss)

    def update(self, clip: float | None = 1.0) -> None:
        """Clip the gradient, update the parameters and clear the gradient."""
        for p in self.parameters:
            if p.grad is not None:
                self._move(p, clip)
        self._settle()

    def set_lr_factor(self, factor: float) -> None:
        """Set the learning rate to `factor` times the initial one."""
        for optimiser in self._each.values():
            for group in optimiser.param_groups:
                group["lr"] = self.lr * factor

    def reset_moments(self) -> None:
        """Clear the moments and the norm, as in a new optimiser."""
        self.norm = 0.0
        for optimiser in self._each.values():
            optimiser.state.clear()

    def _scaled_loss(self, loss: Tensor) -> Tensor:
        return loss * self.scale

    def _loss_scale(self) -> float:
        return self.scale

    def _holder(self, p: nn.Parameter) -> torch.optim.Optimizer:
        return self._each[p]

    def extra_state(self) -> tuple[dict[str, Tensor], Any]:
        """Return the moments, the learning rate, the norm, the loss scale and the counts."""
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, float] = {}
        for i, p in enumerate(self.parameters):
            own, counts = _state(self._each[p], [p])
            tensors |= {f"{i}.{name}": tensor for name, tensor in own.items()}
            numbers |= {f"{i}.{name}": count for name, count in counts.items()}
        rate = self._each[self.parameters[0]].param_groups[0]["lr"] / self.lr if self.lr else 1.0
        saved = {name: getattr(self, name) for name in self._SAVED}
        return tensors, {"rate": rate, "numbers": numbers, "kept": saved}

    def load_extra_state(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Restore what `extra_state` returned."""
        for i, p in enumerate(self.parameters):
            start = f"{i}."
            own = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
            counts = {n.removeprefix(start): c for n, c in value["numbers"].items() if n.startswith(start)}
            _restore(self._each[p], [p], own, counts)
        self.set_lr_factor(value["rate"])
        for name, number in value["kept"].items():
            setattr(self, name, number)

    @torch.no_grad()
    def _move(self, p: nn.Parameter, clip: float | None) -> None:
        """Update one tensor; nothing is copied to the CPU, which would synchronise the GPU for each tensor."""
        g = p.grad
        if g is None:
            return
        norm = torch.linalg.vector_norm(g, dtype=torch.float32) / self.scale
        if clip is not None:
            g.mul_((clip / (norm.clamp(min=self.norm) + 1e-6)).clamp(max=1.0) / self.scale)
        elif self._scaled:
            g.div_(self.scale)
        optimiser = self._each[p]
        # Whether the gradient is finite is known on the device only, so the update is undone there from copies.
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
        """Read all norms of the step, undo the step count of skipped tensors and adjust the loss scale."""
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
        self._log({"skipped": self.skipped, "zero": self.zero, **loss_scale})
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
    parameters: Mapping[str, nn.Parameter], lr: float, weight_decay: float, numerics: Numerics, log: Log
) -> AdamW:
    """Return the AdamW variant of a profile."""
    return (ReleasedAdamW if numerics.release_gradients else AdamW)(parameters, lr, weight_decay, numerics, log)


def interleave(loss: Tensor) -> None:
    """Run the backward passes of a sum of losses layer by layer together, instead of one after the other.

    Autograd runs the most recent node first. With two forward passes through one network, the gradients of all tensors
    from one pass would then be in memory until those from the other are computed. Here nodes are ordered by their
    distance from the sum, so that the two parts of a tensor's gradient follow each other closely. The sum is the same.
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
    if any(MICRO_BATCHES in node.metadata for node in waiting if type(node).__name__ == "CatBackward0"):
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
        # The sequence number of leaves already puts them first.
        if type(node).__name__ != "AccumulateGrad":
            node._set_sequence_nr(last - depth)


def _is_sum(node: Any) -> bool:
    """Whether a node adds several losses, itself or after multiplications by constants and signs."""
    while True:
        behind = [child for child, _ in node.next_functions if child is not None]
        if len(behind) != 1 or not type(node).__name__.startswith(("Mul", "Neg", "Rsub", "Sub", "Add")):
            return len(behind) > 1 and type(node).__name__.startswith(("Add", "Sub", "Rsub"))
        (node,) = behind


def _state(
    optimiser: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return an optimiser's state, tensors and numbers apart, by the parameter's index and the state's name."""
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
    """Load what `_state` returned into an optimiser; the step count stays on the CPU, as in torch, unless fused."""
    optimiser.state.clear()
    fused = bool(optimiser.param_groups[0].get("fused"))
    for name, value in {**tensors, **numbers}.items():
        i, _, own = name.partition(".")
        p = parameters[int(i)]
        moved = value.to(p.device) if isinstance(value, Tensor) and (fused or own != "step") else value
        optimiser.state[p][own] = moved


def _no_gradient() -> StageError:
    return StageError("error", f"no gradient was finite in {PATIENCE} consecutive steps")


def _scales(numerics: Numerics) -> bool:
    """Whether gradients are computed in fp16, where small ones underflow without loss scaling."""
    return numerics.device == "cuda" and dtype(numerics.frozen_dtype) is torch.float16


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the moments in a tensor's optimiser state, without the step count and quantisation maps."""
    return {n: t for n, t in state.items() if isinstance(t, Tensor) and n != "step" and not n.startswith("qmap")}


def _maker(numerics: Numerics) -> Callable[..., torch.optim.Optimizer]:
    """Return the optimiser class for a profile's `optimiser_state`.

    `8bit` is AdamW with block-wise quantised moments (Dettmers et al. 2022, sec. 2): blocks of 256 values, dynamic
    quantisation, fp32 arithmetic; tensors below 4,096 values keep fp32 moments.
    """
    if numerics.optimiser_state in ("float32", "fp32"):
        # Fused on a GPU, which also takes the loss scale's verdict on the device. On a CPU foreach; but with one tensor
        # per optimiser, it has no advantage and takes more memory.
        if numerics.device == "cuda":
            return lambda p, **options: torch.optim.AdamW(p, fused=True, **options)
        return lambda p, **options: torch.optim.AdamW(p, foreach=not numerics.release_gradients, **options)
    if numerics.optimiser_state != "8bit":
        known = "float32 or 8bit"
        raise StageError("error", f"profile: optimiser_state: {numerics.optimiser_state!r} is not supported; {known}")
    if importlib.util.find_spec("bitsandbytes") is None:
        how = "pip install 'immunebench[low-memory]'"
        raise StageError("error", f"profile: optimiser_state: 8bit needs bitsandbytes: {how}")
    return _eight_bit()


@functools.cache
def _eight_bit() -> Callable[..., torch.optim.Optimizer]:
    """Return bitsandbytes' AdamW without its device synchronisation after each tensor (686 per step for SD 1.4).

    Its kernels run in order on torch's stream anyway; the arithmetic is the same.
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
