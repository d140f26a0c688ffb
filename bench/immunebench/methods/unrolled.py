"""`unrolled`: a simulated attacker's next steps as a function of the weights that it adapts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from immunebench.core.types import StageError
from immunebench.methods.adapters import Adapter
from immunebench.model.batch import Batch
from immunebench.model.lookahead import Lookahead
from immunebench.model.optim import AdamW


@contextmanager
def unrolled(phi: Adapter, optimiser: AdamW, batches: Sequence[Batch], clip: float | None) -> Iterator[None]:
    """Hold phi_k(theta) in the place of phi while the block runs: phi after one step of its optimiser on each batch.

    A gradient that is taken inside the block passes through these k steps to the parameters that `training` enabled
    (truncated unrolling; Shaban et al. 2019, sec. 3). Afterwards phi and its optimiser are as they were. Without
    batches it does nothing.

    Parameters
    ----------
    phi : Adapter
    optimiser : AdamW
        Of phi.
    batches : sequence of Batch
        Those of the k steps.
    clip : float or None
        Of the attacker's steps, as in `AdamW.step`.

    Raises
    ------
    StageError
        If the model runs in half precision, where gradients of gradients underflow.
    """
    if not batches:
        yield
        return
    if phi.model.dtype in (torch.float16, torch.bfloat16):
        raise StageError(
            "error", f"unroll: the attacker's steps are differentiated in float32 only, not {phi.model.dtype}"
        )
    # Where phi holds what is trained outside (DreamBooth), the steps begin from those very tensors.
    values = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in phi.parameters.items()}
    ahead = Lookahead(optimiser, clip)
    with sdpa_kernel(SDPBackend.MATH):  # The fused kernels have no second derivative.
        for batch in batches:
            with phi.replaced(values):
                loss = phi.model.loss(batch)
            gradients = torch.autograd.grad(loss, [*values.values()], create_graph=True, allow_unused=True)
            values = dict(zip(values, ahead.step([*values.values()], gradients), strict=True))
        with phi.replaced(values):
            yield
