"""Purifiers that run the base: diffpure on the tiny one, impress on the tiny and the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Numerics, Params, Pictures
from immunebench.methods.context import Context
from immunebench.mini.judges import load_public_distance
from immunebench.mini.world import concept_pictures
from immunebench.model.diffusion import LatentDiffusion
from tiny import tiny_context, tiny_model, tiny_pictures

DIFFPURE = {"strength": 0.5, "sampling_steps": 4, "guidance": 2.0, "prompt": "{content}", "negative": ""}
IMPRESS = {"steps": 8, "lr": 0.02, "lr_last": 1e-5, "alpha": 0.1, "epsilon": 10.0, "start": 0.0}


def context(model: LatentDiffusion, out: Path) -> Context:
    ctx = tiny_context(model, out)
    ctx.token, ctx.noun = "q", "m"
    ctx.distance = load_public_distance("cpu")
    return ctx


def purify(name: str, model: LatentDiffusion, given: Pictures, params: dict[str, Any], out: Path) -> Pictures:
    cleaned = load_catalog().attack(name).function("purify")(model, given, Params(params), context(model, out))
    assert cleaned.captions == given.captions
    assert isinstance(cleaned, Pictures)
    return cleaned


def pictures() -> Pictures:
    return Pictures(tiny_pictures(5).pixels, ("a {subject}", "b", "c {subject} d", "e", "f"))


def test_diffpure_is_image_to_image_under_the_filled_caption(tmp_path: Path) -> None:
    model, given = tiny_model(), pictures()
    cleaned = purify("diffpure", model, given, DIFFPURE, tmp_path)
    asked = Pictures(given.pixels, ("a m", "b", "c m d", "e", "f"))
    seeds = [context(model, tmp_path).seed_of("diffpure", i) for i in range(5)]
    expected = model.image_to_image(asked, seeds, strength=0.5, steps=4, guidance=2.0)
    assert np.array_equal(cleaned.pixels, expected.pixels)
    blind = purify("diffpure", model, given, {**DIFFPURE, "prompt": ""}, tmp_path)
    assert not np.array_equal(blind.pixels, cleaned.pixels)
    refused = purify("diffpure", model, given, {**DIFFPURE, "negative": "z"}, tmp_path)
    assert not np.array_equal(refused.pixels, cleaned.pixels)
    fewer = purify("diffpure", model, Pictures(given.pixels[:2], given.captions[:2]), DIFFPURE, tmp_path)
    assert np.array_equal(fewer.pixels, cleaned.pixels[:2])


def test_impress_descends_its_objective_picture_by_picture(tmp_path: Path) -> None:
    """Adam's first step is lr g / (|g| + 1e-5), g the gradient of the mean of (x - D(E(x)))^2, taken here by hand."""
    model, given = tiny_model(), pictures()
    once = purify("impress", model, given, {**IMPRESS, "steps": 1}, tmp_path)
    x = (torch.from_numpy(given.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).requires_grad_()
    trip = model.vae.decode(model.vae.encode(x).latent_dist.mean).sample
    (gradient,) = torch.autograd.grad((x - trip).square().mean((1, 2, 3)).sum(), x)
    levels = ((x - 0.02 * gradient / (gradient.abs() + 1e-5)).clamp(-1, 1).detach() + 1).permute(
        0, 2, 3, 1
    ).numpy() * 127.5
    assert (np.abs(once.pixels - levels) <= 1).mean() > 0.999
    cleaned = purify("impress", model, given, IMPRESS, tmp_path)
    fewer = purify("impress", model, Pictures(given.pixels[:2], given.captions[:2]), IMPRESS, tmp_path)
    assert np.abs(cleaned.pixels[:2].astype(int) - fewer.pixels).max() <= 1


def test_the_hinge_of_impress_costs_nothing_below_epsilon_and_holds_pictures_back_above(tmp_path: Path) -> None:
    model, given = tiny_model(), pictures()
    free = purify("impress", model, given, {**IMPRESS, "alpha": 0.0}, tmp_path).pixels
    assert np.array_equal(purify("impress", model, given, {**IMPRESS, "alpha": 1e3}, tmp_path).pixels, free)
    held = purify("impress", model, given, {**IMPRESS, "alpha": 1e3, "epsilon": 0.0}, tmp_path).pixels
    moved = [np.abs(pixels - given.pixels.astype(int)).mean() for pixels in (held, free)]
    assert moved[0] < 0.7 * moved[1]
    noisy = purify("impress", model, given, {**IMPRESS, "steps": 1, "lr": 0.0, "start": 0.1}, tmp_path).pixels
    inside = (given.pixels > 60) & (given.pixels < 195)
    # Noise of 0.1 in [-1, 1] is 12.75 levels.
    assert abs((noisy - given.pixels.astype(float))[inside].std() - 12.75) < 0.5


def test_impress_makes_a_perturbed_picture_consistent_with_the_autoencoder(tmp_path: Path) -> None:
    base = load_catalog().base_folder("mini")
    model = LatentDiffusion.load(base, Numerics())
    clean, _ = concept_pictures("object/umbrella", "published", 2)
    sign = np.random.default_rng(0).choice([-16, 16], clean.shape)
    perturbed = Pictures((clean + sign).clip(0, 255).astype(np.uint8), ("a", "b"))
    cleaned = purify("impress", model, perturbed, {**IMPRESS, "steps": 10}, tmp_path)

    def trip(pixels: np.ndarray) -> np.ndarray:
        return np.square(model.decode(model.encode(pixels)).astype(float) - pixels).mean((1, 2, 3))

    assert (trip(cleaned.pixels) < 0.7 * trip(perturbed.pixels)).all()
    nearer = [np.abs(pixels.astype(float) - clean).mean() for pixels in (cleaned.pixels, perturbed.pixels)]
    assert nearer[0] < nearer[1]
