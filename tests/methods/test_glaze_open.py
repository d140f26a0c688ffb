"""glaze-open on the tiny base: its objective, its target style, its bound."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Concept, Params, Pictures, StageError
from immunebench.methods.bound import distances
from immunebench.methods.context import Context
from tiny import tiny_context, tiny_model, tiny_pictures

PARAMS = {
    "perceptual_budget": 0.2, "steps": 1, "lr": 0.1, "alpha": 30.0, "strength": 0.5, "sampling_steps": 2,
    "guidance": 1.0, "drawing_steps": 2, "prompt": "{content} {style}", "contents": ["a"], "styles": ["k", "l", "m"],
}  # fmt: skip
STYLES = {"a": 100, "b": 110, "c": 130, "d": 160, "e": 200}


def function(name: str) -> Any:
    """Return a function of the entry's file."""
    return load_catalog().defense("glaze-open").function("protect_images").__globals__[name]


def published(count: int) -> Pictures:
    """Different pictures away from black and white, with captions of their own."""
    return Pictures(tiny_pictures(count).pixels, tuple(f"a {chr(98 + i)}" for i in range(count)))


def context(out: Path, weight: float = 1.0, seed: int = 4) -> Context:
    ctx = tiny_context(tiny_model(), out, seed)
    ctx.distance = lambda x, y: weight * ((x - y) / 2).square().mean((1, 2, 3))
    return ctx


def protect(out: Path, given: Pictures, weight: float = 1.0, seed: int = 4, **params: Any) -> tuple[Pictures, Context]:
    ctx = context(out, weight, seed)
    owner = tiny_pictures(3, seed=9)
    concept = Concept("style-a", "style", "style", "q", "a q", owner)
    return function("protect_images")(tiny_model(), concept, given, Params(PARAMS | params), ctx), ctx


def begun(given: Pictures, ctx: Context) -> Tensor:
    """delta_0 ~ U(-p, p), from a stream for each picture."""
    draws = [torch.Generator().manual_seed(ctx.seed_of("start", i)) for i in range(len(given))]
    uniform = torch.stack([torch.rand((3, 32, 32), generator=draw) for draw in draws])
    return (2 * uniform - 1) * 0.2


def target(given: Pictures, ctx: Context, style: str) -> Tensor:
    """Phi(Omega(x, T)) by the model's own words."""
    asked = Pictures(given.pixels, tuple(f"{caption} {style}" for caption in given.captions))
    seeds = [ctx.seed_of("transfer", i) for i in range(len(given))]
    omega = tiny_model().image_to_image(asked, seeds, strength=0.5, steps=2, guidance=1.0)
    return tiny_model().encode(omega.pixels)


def assert_moved(found: Pictures, given: Pictures, delta: Tensor) -> None:
    """Hold saved pixels to x + delta, up to the half steps of rounding where a gradient is next to nothing."""
    levels = (given.pixels + delta.permute(0, 2, 3, 1).numpy() * 127.5).round().clip(0, 255)
    assert (np.abs(found.pixels - levels) <= 1).mean() > 0.999


@pytest.mark.parametrize("hinged", [True, False])
def test_the_first_step_descends_the_published_objective(tmp_path: Path, hinged: bool) -> None:
    """Adam's first step is lr against the sign of the gradient: of the hinge over p, of the features below it."""
    given = published(2)
    # 1 / 3 of (0.2 / 2)^2, times 100 over p = 0.2 and times 1 below it.
    found, ctx = protect(tmp_path, given, weight=100.0 if hinged else 1.0, alpha=1e6, styles=["k", "k", "k"])
    delta = begun(given, ctx)
    if hinged:
        assert ctx.rows[0]["perceptual"] == pytest.approx(100 * 0.2**2 / 12, rel=0.05)
        gradient = delta
    else:
        x = (torch.from_numpy(given.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1 + delta).requires_grad_()
        phi = 0.5 * tiny_model().vae.encode(x).latent_dist.mean
        (gradient,) = torch.autograd.grad((phi - target(given, ctx, "k")).square().sum(), x)
    assert_moved(found, given, delta - 0.1 * gradient.sign())


def test_alpha_costs_nothing_below_p_and_holds_pictures_back_above(tmp_path: Path) -> None:
    given = published(2)
    free, _ = protect(tmp_path, given, alpha=0.0, steps=3)
    same, _ = protect(tmp_path, given, alpha=1e3, steps=3)
    assert np.array_equal(free.pixels, same.pixels)
    seen = {alpha: protect(tmp_path, given, 100.0, alpha=alpha, steps=12)[1].rows for alpha in (0.0, 10.0)}
    # A soft hinge: somewhat above p = 0.2, where without it they are further than twice that.
    assert seen[10.0][-1]["perceptual"] < 0.3 < 0.5 * seen[0.0][-1]["perceptual"]


def test_the_bound_holds_on_saved_pixels_where_the_hinge_is_too_weak(tmp_path: Path) -> None:
    given = published(3)
    found, ctx = protect(tmp_path, given, 100.0, alpha=0.0, steps=12)
    assert ctx.rows[-1]["perceptual"] > 0.3
    far = distances(given, found, ctx)
    assert (far <= 0.2).all()
    assert (far > 0.15).all()


def test_it_is_seeded_and_no_picture_depends_on_its_neighbours(tmp_path: Path) -> None:
    given = published(5)
    found, _ = protect(tmp_path, given, 100.0, steps=5)
    again, _ = protect(tmp_path, given, 100.0, steps=5)
    other, _ = protect(tmp_path, given, 100.0, steps=5, seed=5)
    fewer, _ = protect(tmp_path, Pictures(given.pixels[:2], given.captions[:2]), 100.0, steps=5)
    assert np.array_equal(found.pixels, again.pixels)
    assert not np.array_equal(found.pixels, other.pixels)
    assert np.abs(found.pixels[:2].astype(int) - fewer.pixels).max() <= 1
    assert found.captions == given.captions


def test_features_move_to_the_target_s_further_than_noise_of_equal_distance_does(tmp_path: Path) -> None:
    given = published(4)
    found, ctx = protect(tmp_path, given, 100.0, steps=40, lr=0.02, styles=["k", "k", "k"])
    aim = target(given, ctx, "k")
    change = np.random.default_rng(0).normal(size=given.pixels.shape)
    own = np.sqrt(np.square(found.pixels - given.pixels.astype(float)).mean((1, 2, 3), keepdims=True))
    noisy = (given.pixels + own * change).round().clip(0, 255).astype(np.uint8)
    assert distances(given, Pictures(noisy, given.captions), ctx) == pytest.approx(
        distances(given, found, ctx), rel=0.1
    )

    def left(pixels: np.ndarray) -> Tensor:
        return (tiny_model().encode(pixels) - aim).square().sum((1, 2, 3))

    before = left(given.pixels)
    assert (left(found.pixels) < 0.9 * before).all()
    assert (left(found.pixels) < 0.9 * left(noisy)).all()


def test_the_target_lies_from_the_50th_to_the_75th_percentile() -> None:
    within_band = function("within_band")

    def drawn(distances: list[float]) -> set[int]:
        return {within_band(distances, np.random.default_rng(seed)) for seed in range(40)}

    assert drawn([10.0, 0.0, 9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0]) == {10, 8, 6}  # 5, 6 and 7 of 0 to 10
    assert drawn([3.0, 1.0, 2.0]) == {2}
    assert drawn([4.0]) == {0}
    with pytest.raises(StageError, match="none of 2 lies"):
        within_band([1.0, 2.0], np.random.default_rng(0))


def test_a_style_is_as_far_as_the_centroid_of_what_the_base_draws_in_it(tmp_path: Path) -> None:
    """An artist of level 100 is 0, 10, 30, 60 and 100 from five styles: 30 and 60 lie in the band."""

    def flat(levels: list[int]) -> np.ndarray:
        return np.stack([np.full((1, 1, 3), level, np.uint8) for level in levels])

    def sample(prompts: list[str], seeds: list[int], **settings: Any) -> Pictures:
        # The two pictures of a style lie about its level: only their mean is at it.
        return Pictures(flat([STYLES[prompts[0][-1]] - 40, STYLES[prompts[1][-1]] + 40]), tuple(prompts))

    def encode(pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(pixels[:, 0, 0, :1].astype(np.float32))

    owner = Pictures(flat([90, 110]), ("", ""))
    concept = Concept("style-a", "style", "style", "q", "a q", owner)
    model = SimpleNamespace(sample=sample, encode=encode)
    params = Params({**PARAMS, "contents": ["a house", "a tree"], "styles": list(STYLES)})
    chosen = {function("target_style")(model, concept, params, context(tmp_path, seed=seed)) for seed in range(20)}
    assert chosen == {"c", "d"}
