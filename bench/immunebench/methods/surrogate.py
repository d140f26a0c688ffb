"""`Surrogate`: the model that an image defense trains as the attacker would, with copies and restores of its state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from immunebench.core.types import Pictures
from immunebench.methods.context import AttackHandle, Context
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.runtime import dtype, training


class Surrogate:
    """A surrogate model f with the adapter and the loss of a simulated attack.

    Parameters
    ----------
    model : LatentDiffusion
        The model to which the adapter is attached; it can have one surrogate only.
    attack : AttackHandle
        The simulated attack: its learning rate, batch size, weight decay and, for DreamBooth, lambda and the class
        pictures are used.
    ctx : Context
    lr : float
        Learning rate instead of the attack's; 0 uses the attack's.
    weights : str
        `float32` does not round the trained tensors; `bfloat16` rounds them after each step, as if there were no
        master copy in higher precision. With its 8 significant bits, a step of AdamW does not change values above
        512 lr.
    """

    def __init__(
        self, model: LatentDiffusion, attack: AttackHandle, ctx: Context, *, lr: float = 0.0, weights: str = "float32"
    ) -> None:
        own = attack.params
        self.model, self.attack, self.ctx = model, attack, ctx
        self.lr = lr or own.lr
        self.weights = dtype(weights)
        self.prior_weight = own.get("prior_weight", 0.0)
        # Embedded before the adapter is attached, as a learned word would change the captions' embeddings.
        self._prior = ctx.prior_batches(model, own.prior_batch) if self.prior_weight else None
        self.phi = attack.attach(model)
        self._round()
        ctx.loops.register("surrogate", self)

    def state_tensors(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters; see `loops.Stateful`."""
        return self.phi.parameters

    def extra_state(self) -> tuple[dict[str, Tensor], Any]:
        """Return nothing, as every call of `train` starts with a new optimiser and a new order."""
        return {}, None

    def load_extra_state(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Do nothing."""

    def train(self, pictures: Pictures, steps: int) -> None:
        """Descend L(x, c) + lambda L(x_pr, c_pr) with a new optimiser (Ruiz et al. 2023, eq. 2).

        Parameters
        ----------
        pictures : Pictures
            x with their captions c, used in a new random order.
        steps : int
        """
        own = self.attack.params
        data = self.model.prepare(pictures)
        orders = self.ctx.orders(len(data), min(own.batch, len(data)))
        optimiser = self.ctx.adamw(self.phi.parameters, lr=self.lr, weight_decay=own.weight_decay)
        for _ in range(steps):
            with training(self.phi.parameters):
                loss = self.model.loss(self.model.draw(data, next(orders), self.ctx.generator))
                preservation = self.model.loss(next(self._prior)) if self._prior else 0.0
                optimiser.step(loss + self.prior_weight * preservation, clip=1.0)
            self._round()

    def state(self) -> dict[str, Tensor]:
        """Copy the trained parameters to CPU memory, which unlike a GPU's has room for a pool of states."""
        return {name: tensor.cpu() for name, tensor in self.phi.snapshot().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load a state that `state` returned."""
        self.phi.reset(state)

    @contextmanager
    def copied(self) -> Iterator[None]:
        """Use a copy f' of f inside the block; f is restored afterwards."""
        f = self.phi.snapshot()
        try:
            yield
        finally:
            self.phi.reset(f)

    @torch.no_grad()
    def _round(self) -> None:
        for parameter in self.phi.parameters.values() if self.weights is not torch.float32 else ():
            parameter.copy_(parameter.to(self.weights))


@contextmanager
def watched(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the outputs of modules inside the block, differentiable and in the order of their forward passes."""
    seen: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _, __, output: seen.append(output)) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
