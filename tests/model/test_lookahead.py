"""AdamW's next steps as functions: the values of torch's own, the derivative of finite differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from immunebench.core.types import Numerics, StageError
from immunebench.model.lookahead import Lookahead
from immunebench.model.optim import AdamW, adamw

LR = 0.03


def parameters(dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 2), "b": (4,)}
    return {n: nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for n, shape in shapes.items()}


def optimiser(of: dict[str, nn.Parameter], *, released: bool = False) -> AdamW:
    return adamw(of, LR, 1e-2, Numerics(release_gradients=released), lambda figures: None)


def loss(values: Sequence[Tensor], t: float) -> Tensor:
    """Couples all parameters, so that no second derivative is 0."""
    a, b = values
    return (t * a.sum() * b).sin().sum() + (a**2).sum() + 0.1 * (b**4).sum()


def ahead(made: AdamW, values: Sequence[Tensor], clip: float | None) -> list[Tensor]:
    steps, now = Lookahead(made, clip), list(values)
    for t in (0.3, 0.7):
        now = steps.step(now, torch.autograd.grad(loss(now, t), now, create_graph=True))
    return now


@pytest.mark.parametrize(("released", "clip"), [(False, None), (False, 0.5), (True, None)])
def test_steps_ahead_have_the_values_of_the_steps_that_are_taken(released: bool, clip: float | None) -> None:
    # Released gradients are single precision, and clipped by the norm of the step before.
    own = parameters(torch.float32 if released else torch.float64)
    made = optimiser(own, released=released)
    for t in (0.1, 0.2):
        made.step(loss(list(own.values()), t), clip)
    before = [p.detach().clone() for p in own.values()]
    found = ahead(made, [p.detach().clone().requires_grad_() for p in own.values()], clip)
    assert all(torch.equal(p, old) for p, old in zip(own.values(), before, strict=True)), "nothing moved"
    for t in (0.3, 0.7):
        made.step(loss(list(own.values()), t), clip)
    for p, value in zip(own.values(), found, strict=True):
        torch.testing.assert_close(p.detach(), value.detach(), rtol=0, atol=1e-6 if released else 1e-12)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_their_derivative_is_that_of_finite_differences(clip: float | None) -> None:
    """With respect to where the steps begin, and to what scales the second term of the losses they descend."""
    own = parameters()
    made = optimiser(own)
    made.step(loss(list(own.values()), 0.1), clip)

    def end(weight: Tensor, shift: Tensor) -> Tensor:
        steps, now = Lookahead(made, clip), [p.detach() + shift for p in own.values()]
        for t in (0.3, 0.7):
            descended = loss(now, t) + weight * (now[0] ** 3).sum()
            now = steps.step(now, torch.autograd.grad(descended, now, create_graph=True))
        return now[0].sin().sum() + now[1].sin().sum()

    at, h = torch.tensor([1.0, 0.0], dtype=torch.float64), 1e-5
    x = at.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(end(x[0], x[1]), x)
    for i in (0, 1):
        high, low = (at.clone().index_add_(0, torch.tensor([i]), at.new_tensor([step])) for step in (h, -h))
        high, low = (y.requires_grad_() for y in (high, low))
        numeric = (end(high[0], high[1]) - end(low[0], low[1])) / (2 * h)
        assert slopes[i].item() == pytest.approx(numeric.item(), rel=1e-5)
        assert abs(slopes[i].item()) > 1e-4


def test_a_gradient_of_exactly_zero_has_a_derivative_and_none_leaves_the_value() -> None:
    own = parameters()
    a, b = (p.detach().requires_grad_() for p in own.values())
    after = Lookahead(optimiser(own), 1.0).step([a, b], [0 * a, None])
    (slope,) = torch.autograd.grad(after[0].sum(), a)
    assert torch.isfinite(slope).all()
    assert after[1] is b


def test_moments_that_are_quantised_cannot_be_looked_through() -> None:
    own = parameters()
    made = optimiser(own)
    first = next(iter(own.values()))
    made._adamw.state[first] = {"step": 1, "state1": torch.zeros(3)}
    with pytest.raises(StageError, match="the moments can be read in float32 only"):
        Lookahead(made, None)


@pytest.mark.parametrize("released", [False, True])
def test_a_step_along_a_gradient_is_the_step_of_its_loss(released: bool) -> None:
    kind = torch.float32 if released else torch.float64
    one, two = parameters(kind), parameters(kind)
    direct, along = optimiser(one, released=released), optimiser(two, released=released)
    for t in (0.1, 0.2, 0.3):
        direct.step(loss(list(one.values()), t), None)
        gradient = along.gradient(loss(list(two.values()), t))
        assert all(p.grad is None for p in two.values())
        assert math.isfinite(float(sum(g.norm() for g in gradient)))
        along.descend(gradient, None)
    for p, q in zip(one.values(), two.values(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6 if released else 1e-12)
    lone = optimiser({"b": two["b"]}).gradient((two["a"] ** 2).sum() + 0 * two["b"].sum())
    assert torch.equal(lone[0], torch.zeros(4, dtype=kind))
