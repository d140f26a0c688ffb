"""`Surrogate`: the model that a protector of pictures trains as the attacker would, copies and brings back."""

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
    """f: a model, what an attack trains on it, and the attack's own loss.

    Parameters
    ----------
    model : LatentDiffusion
        It carries f; one model holds one surrogate.
    attack : AttackHandle
        What is simulated: its rate, batch, weight decay and, for DreamBooth, lambda and the class pictures.
    ctx : Context
    lr : float
        Rate in place of the attack's; 0 keeps that.
    weights : str
        `float32` leaves the trained tensors as they are; `bfloat16` rounds them after each step, as if there were no
        other copy of them. It has 8 significant bits: a step of AdamW leaves values above 512 lr as they were.
    """

    def __init__(
        self, model: LatentDiffusion, attack: AttackHandle, ctx: Context, *, lr: float = 0.0, weights: str = "float32"
    ) -> None:
        own = attack.params
        self.model, self.attack, self.ctx = model, attack, ctx
        self.lr = lr or own.lr
        self.weights = dtype(weights)
        self.prior_weight = own.get("prior_weight", 0.0)
        # Before anything is attached: a learned word would change the captions.
        self._prior = ctx.prior_batches(model, own.prior_batch) if self.prior_weight else None
        self.phi = attack.attach(model)
        self._round()
        ctx.loops.register("surrogate", self)

    def live(self) -> dict[str, nn.Parameter]:
        """Return what is trained; see `loops.Stateful`."""
        return self.phi.parameters

    def rest(self) -> tuple[dict[str, Tensor], Any]:
        """Return nothing: every call of `train` begins with a fresh optimiser and a fresh order."""
        return {}, None

    def take(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Do nothing."""

    def train(self, pictures: Pictures, steps: int) -> None:
        """Descend L(x, c) + lambda L(x_pr, c_pr) with a fresh optimiser (Ruiz et al. 2023, eq. 2).

        Parameters
        ----------
        pictures : Pictures
            x with their captions c, drawn in a new random order.
        steps : int
        """
        own = self.attack.params
        data = self.model.prepare(pictures)
        orders = self.ctx.orders(len(data), min(own.batch, len(data)))
        optimiser = self.ctx.adamw(self.phi.parameters, lr=self.lr, weight_decay=own.weight_decay)
        for _ in range(steps):
            with training(self.phi.parameters):
                loss = self.model.loss(self.model.draw(data, next(orders), self.ctx.generator))
                kept = self.model.loss(next(self._prior)) if self._prior else 0.0
                optimiser.step(loss + self.prior_weight * kept, clip=1.0)
            self._round()

    def state(self) -> dict[str, Tensor]:
        """Copy what is trained to the host's memory, which holds a pool of states where a GPU's does not."""
        return {name: tensor.cpu() for name, tensor in self.phi.snapshot().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Return to a state."""
        self.phi.reset(state)

    @contextmanager
    def copied(self) -> Iterator[None]:
        """Work on f' = copy(f) while the block runs; f itself stays as it was."""
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
    """Keep what modules put out while the block runs, with its gradient, in the order in which they ran."""
    seen: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _, __, output: seen.append(output)) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
