"""`Lookahead`: AdamW's next steps as differentiable functions of where they start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from immunebench.model.optim import EPSILON, AdamW

B1, B2 = 0.9, 0.999


class Lookahead:
    """The steps that an optimiser would take next, with gradients through them; the optimiser itself does not move.

    Parameters
    ----------
    optimiser : AdamW
        Its rate, weight decay and present moments are used; the moments are constants.
    clip : float or None
        Largest norm of the gradient over all parameters together; None does not clip.

    Raises
    ------
    StageError
        If the optimiser's moments are quantised.
    """

    def __init__(self, optimiser: AdamW, clip: float | None) -> None:
        self._lr, self._decay, self._clip = optimiser.lr, optimiser.weight_decay, clip
        self._moments = [optimiser.moments(p) for p in optimiser.parameters]

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """Return the parameters after one step (Loshchilov & Hutter 2019, alg. 2).

        Parameters
        ----------
        values : sequence of Tensor
            In the order of the optimiser's parameters.
        gradients : sequence of Tensor or None
            Of the loss at `values`, with their own graph. A value without one stays as it is.
        """
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients if g is not None]))
        scale = 1.0 if self._clip is None else (self._clip / (norm + 1e-6)).clamp(max=1.0)
        after = []
        for i, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
            if gradient is None:
                after.append(value)
                continue
            t, m, v = self._moments[i]
            g = gradient * scale
            t, m, v = t + 1, B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g.square()
            self._moments[i] = t, m, v
            # The root's derivative is infinite at 0, where LoRA's A has its gradients while B is 0.
            root = torch.where(v > 0, torch.where(v > 0, v, 1.0).sqrt(), 0.0)
            update = m / (1 - B1**t) / (root / (1 - B2**t) ** 0.5 + EPSILON)
            after.append((1 - self._lr * self._decay) * value - self._lr * update)
        return after
