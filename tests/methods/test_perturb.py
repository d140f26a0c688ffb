"""`Perturbation`: the ball, the rounding, the gradient, and pictures that do not know of each other."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from immunebench import LatentDiffusion, Pictures, StageError
from immunebench.core.types import Numerics
from immunebench.methods.perturb import LEVEL, Perturbation
from immunebench.model.batch import Batch
from tiny import tiny_folder, tiny_model

MODEL = tiny_model()


def pixels(count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def denoising(model: LatentDiffusion, x: Tensor, rows: Tensor) -> Tensor:
    z = model.latents(x)
    noise = torch.stack([torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(int(r))) for r in rows])
    return model.losses(Batch(z, model.condition(["a m"] * len(rows)), noise, 10 * rows + 5))


@settings(max_examples=25, deadline=None)
@given(st.floats(0.3, 40), st.floats(0.1, 90), st.integers(0, 99), st.sampled_from(["zero", "random"]))
def test_saved_pictures_never_leave_the_budget(budget: float, alpha: float, seed: int, start: str) -> None:
    x = pixels(2, seed)
    delta = Perturbation(MODEL, x, budget, seed=seed, start=start)  # type: ignore[arg-type]
    weights = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    for _ in range(3):
        delta.ascend(lambda images, rows: (images * weights[rows]).sum(dim=(1, 2, 3)), alpha)
    moved = np.abs(delta.pictures().astype(int) - x.astype(int)).max()
    assert moved <= math.floor(budget)
    assert delta.images.min() >= -1 and delta.images.max() <= 1


def test_ascent_on_a_plane_ends_in_the_corner_of_the_ball() -> None:
    x = pixels()
    signs = np.where(np.random.default_rng(1).random(x.shape) < 0.5, -1, 1)
    plane = torch.from_numpy(signs).permute(0, 3, 1, 2).float()
    delta = Perturbation(MODEL, x, 8)
    for _ in range(4):
        delta.ascend(lambda images, rows: (images * plane[rows]).sum(dim=(1, 2, 3)), 3)
    assert np.array_equal(delta.pictures(), np.clip(x.astype(int) + 8 * signs, 0, 255))


def test_a_step_is_alpha_of_255_along_the_sign() -> None:
    x = np.full((1, 32, 32, 3), 100, np.uint8)
    delta = Perturbation(MODEL, x, 8)
    values = delta.ascend(lambda images, rows: (-images).sum(dim=(1, 2, 3)), 2)
    assert np.unique(delta.pictures()).tolist() == [98]
    assert values.tolist() == pytest.approx([-(100 / 127.5 - 1) * 3 * 32 * 32], rel=1e-5)


def test_a_random_start_fills_the_ball_evenly() -> None:
    x = np.full((2, 32, 32, 3), 128, np.uint8)
    delta = (Perturbation(MODEL, x, 16, seed=1, start="random").images - Perturbation(MODEL, x, 16).images) / LEVEL
    assert -16.001 <= delta.min() < -15.9 and 15.9 < delta.max() <= 16.001
    assert float(delta.std()) == pytest.approx(16 / 3**0.5, rel=0.02)
    assert not torch.equal(delta[0], delta[1])


def test_gradients_of_the_denoising_loss_are_the_slope_of_it() -> None:
    """Against a central difference, in double precision."""
    model = LatentDiffusion.load(tiny_folder(), Numerics(resolution=32, sampling_steps=3))
    model.unet.double()
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = Batch(z, model.condition(["a m"]).double(), torch.randn_like(z), torch.tensor([300]))
    direction = torch.randn_like(z)

    def value(step: float) -> Tensor:
        moved = z + step * direction
        noised = model.noise_scheduler.add_noise(moved, batch.noise, batch.timesteps)
        return (model.unet(noised, batch.timesteps, batch.condition).sample - batch.noise).square().mean()

    model.predict = lambda noised, t, c: model.unet(noised, t, c).sample  # type: ignore[method-assign]
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.losses(replace(batch, latents=leaf)).sum(), leaf)
    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-5)


def test_losses_are_the_terms_of_the_loss_and_latents_those_of_encode() -> None:
    data = MODEL.to_images(pixels())
    assert torch.equal(MODEL.latents(data), MODEL.encode(pixels()))
    prepared = MODEL.prepare(Pictures(pixels(), ("a", "m", "a m")))
    batch = MODEL.draw(prepared, [0, 1, 2], torch.Generator().manual_seed(0))
    assert float(MODEL.losses(batch).mean()) == pytest.approx(float(MODEL.loss(batch)), rel=1e-5)


def test_a_picture_is_the_same_alone_and_among_others() -> None:
    """Micro-batches and neighbours reach it through rounding alone."""
    x = pixels(4)
    whole, single = (Perturbation(MODEL, x, 8, seed=3, start="random", micro_batch=n) for n in (4, 1))
    (alone,) = [Perturbation(MODEL, x[:1], 8, seed=3, start="random")]

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        return denoising(MODEL, images, rows)

    g, one, mine = (p.gradient(loss)[0] for p in (whole, single, alone))
    torch.testing.assert_close(g, one, rtol=1e-3, atol=1e-3 * float(g.abs().max()))
    torch.testing.assert_close(g[:1], mine, rtol=1e-3, atol=1e-3 * float(g.abs().max()))


def test_micro_batches_give_the_same_pictures() -> None:
    """A sign step turns rounding into whole steps where a gradient is near 0: almost all pixels agree, not all."""
    saved = []
    for size in (1, 8):
        x = Perturbation(MODEL, pixels(8), 8, seed=3, start="random", micro_batch=size)
        for _ in range(3):
            x.ascend(lambda images, rows: denoising(MODEL, images, rows), 2)
        saved.append(x.pictures().astype(int))
    assert (saved[0] == saved[1]).mean() > 0.99
    assert (saved[0][0] == saved[0][1]).mean() < 0.1


def test_an_objective_may_give_the_sum_of_its_micro_batch() -> None:
    x = Perturbation(MODEL, pixels(3), 8, micro_batch=2)
    summed, sums = x.gradient(lambda images, rows: images.square().sum())
    each, values = x.gradient(lambda images, rows: images.square().sum(dim=(1, 2, 3)))
    torch.testing.assert_close(summed, each)
    torch.testing.assert_close(summed, 2 * x.clean)
    assert sums.tolist() == pytest.approx([*[float(values[0] + values[1])] * 2, float(values[2])])


def test_half_precision_does_not_lose_small_gradients() -> None:
    """2^-26 is 0 in fp16, and so is a step along its sign."""

    def tiny(images: Tensor, rows: Tensor) -> Tensor:
        return images.half().float().sum(dim=(1, 2, 3)) * 2.0**-26

    grey = np.full((1, 32, 32, 3), 100, np.uint8)
    moved = Perturbation(LatentDiffusion.load(tiny_folder(), Numerics(frozen_dtype="float16")), grey, 8)
    moved.ascend(tiny, 3)
    assert np.unique(moved.pictures()).tolist() == [103]
    assert float(moved.gradient(tiny)[0].max()) == pytest.approx(2.0**-26)
    lost = Perturbation(MODEL, grey, 8)
    lost.ascend(tiny, 3)
    assert np.unique(lost.pictures()).tolist() == [100]


def test_ascent_raises_the_denoising_loss() -> None:
    delta = Perturbation(MODEL, pixels(), 8)
    values = [delta.ascend(lambda x, rows: denoising(MODEL, x, rows), 1) for _ in range(12)]
    assert (values[-1] > values[0]).all()


def test_a_gradient_that_is_no_number_is_an_error_and_nothing_moves() -> None:
    delta = Perturbation(MODEL, pixels(), 8)
    before = delta.images.clone()
    with pytest.raises(StageError, match="not finite"):
        delta.ascend(lambda x, rows: x.sum(dim=(1, 2, 3)) * float("nan"), 1)
    assert torch.equal(delta.images, before)


@pytest.mark.parametrize("budget", [0, -1, 256, float("nan")])
def test_a_budget_outside_its_range_is_refused(budget: float) -> None:
    with pytest.raises(StageError, match="budget must be over 0"):
        Perturbation(MODEL, pixels(), budget)
