"""`Surrogate`: the model that a protector of pictures trains as the attacker would, copies and brings back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from immunebench.context import AttackHandle, Context
from immunebench.diffusion import Batch, LatentDiffusion, training
from immunebench.runtime import dtype
from immunebench.types import Pictures


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
        Dtype that the trained tensors are rounded to after each step. In `bfloat16`, which has 8 significant
        bits, a step of AdamW at rate lr leaves every value above about 512 lr as it was.
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
        for parameter in self.phi.parameters.values():
            parameter.copy_(parameter.to(self.weights))


class Draws:
    """Noise and time steps of perturbed pictures: each has a stream of its own, so none depends on its neighbours.

    Parameters
    ----------
    captions : sequence of str
        One a picture.
    ctx : Context

    Attributes
    ----------
    steps : sequence of Tensor of int64, or None
        The time steps that each picture's t is drawn from; None: all from 0 to T - 1.
    streams : list of torch.Generator
        On the CPU, one a picture, for further draws of the same kind.
    """

    def __init__(self, captions: Sequence[str], ctx: Context) -> None:
        self.captions = tuple(captions)
        self.steps: Sequence[Tensor] | None = None
        self._conditions: dict[LatentDiffusion, Tensor] = {}
        self.streams = [torch.Generator().manual_seed(ctx.seed_of("draw", i)) for i in range(len(self.captions))]

    def timesteps(self, model: LatentDiffusion, rows: Tensor) -> Tensor:
        """Draw t for some of the pictures, shape (b,)."""
        every = torch.arange(model.noising.config.num_train_timesteps)
        allowed = [every if self.steps is None else self.steps[i] for i in rows.tolist()]
        drawn = (torch.randint(len(own), (1,), generator=self.streams[i]) for own, i in zip(allowed, rows, strict=True))
        return torch.cat([own[index] for own, index in zip(allowed, drawn, strict=True)])

    def batch(self, model: LatentDiffusion, x: Tensor, rows: Tensor, timesteps: Tensor | None = None) -> Batch:
        """Draw epsilon and t for some of the pictures.

        Parameters
        ----------
        model : LatentDiffusion
        x : Tensor, shape (b, 3, h, w)
            In [-1, 1]; the batch's latents have gradient to it.
        rows : Tensor of int64, shape (b,)
            Which pictures they are.
        timesteps : Tensor of int64, shape (b,), optional
            Theirs, if they are not to be drawn.
        """
        z = model.latents(x)
        t = self.timesteps(model, rows) if timesteps is None else timesteps
        noise = torch.stack([torch.randn(z.shape[1:], generator=self.streams[i]) for i in rows.tolist()])
        captions = tuple(self.captions[i] for i in rows.tolist())
        if model not in self._conditions:
            self._conditions[model] = model.condition(self.captions)
        return Batch(z, self._conditions[model][rows.to(z.device)], noise.to(z.device), t.to(z.device), captions)


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
