"""Purifiers on pictures whose content is known: what goes, what stays, and what decides it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from immunebench.catalog.loading import default_catalog
from immunebench.core.types import Numerics, Params, Pictures
from immunebench.methods.restoration import denoised, noised
from immunebench.metrics.pixels import psnr
from immunebench.mini import upscaler, world
from immunebench.mini.judges import load_public_distance
from tiny import tiny_context, tiny_model, tiny_pictures


def module(name: str) -> dict[str, Any]:
    """The names of an attack's file."""
    entry = default_catalog().attack(name)
    return entry.function(entry.hooks[0]).__globals__


def purify(name: str, pixels: np.ndarray, out: Path, *, seed: int = 0, **params: Any) -> np.ndarray:
    """What a purifier makes of pictures on the tiny model, with its parameters for `mini`."""
    entry, model = default_catalog().attack(name), tiny_model()
    ctx = tiny_context(model, out, seed)
    ctx.upscaler, ctx.distance, ctx.noun = upscaler.load(model.numerics), load_public_distance("cpu"), "mug"
    given = Pictures(pixels, ("a {subject}",) * len(pixels))
    cleaned = entry.function("purify")(model, given, Params({**entry.params("mini"), **params}), ctx)
    assert cleaned.captions == given.captions
    found: np.ndarray = cleaned.pixels
    return found


def halves(count: int = 1, side: int = 32) -> np.ndarray:
    """Grey pictures, dark on the left and light on the right."""
    pixels = np.full((count, side, side, 3), 60, np.uint8)
    pixels[:, :, side // 2 :] = 190
    return pixels


def rendered(count: int, *, reduce: int = 2) -> np.ndarray:
    """Pictures of the world that no network was trained on."""
    return np.stack([world.draw("unseen", i, group="purifiers", reduce=reduce).pixels for i in range(count)])


def test_noise_has_its_deviation_and_each_picture_its_own() -> None:
    grey = np.full((3, 48, 48, 3), 128, np.uint8)
    made = noised(grey, 0.1, [4, 5, 4]) / 255
    assert made.std() == pytest.approx(0.1, rel=0.03) and made.mean() == pytest.approx(128 / 255, abs=0.003)
    assert (made[0] == made[2]).all() and (made[0] != made[1]).mean() > 0.9


def test_denoising_takes_the_noise_and_leaves_the_edge(tmp_path: Path) -> None:
    clean = halves()
    noisy = noised(clean, 0.1, [3]).astype(float)
    found = purify("gaussian10-denoise", clean, tmp_path)[0].astype(float)
    left, right = found[:, :16], found[:, 16:]
    # 0.1 of 255 is a deviation of 25.5; an average of n pixels has 1 / n of the variance, and 121 are looked at.
    assert noisy[0, :, :16].std() == pytest.approx(25.5, rel=0.05)
    assert left.var() < 25.5**2 / 20 and right.var() < 25.5**2 / 20
    assert found[:, 16].mean() - found[:, 15].mean() == pytest.approx(130, abs=13)
    assert left.mean() == pytest.approx(60, abs=3) and right.mean() == pytest.approx(190, abs=3)


def test_a_denoiser_that_is_told_of_no_noise_changes_nothing() -> None:
    pixels = rendered(1)
    assert (denoised(pixels, 0.0) == pixels).all()
    assert (denoised(pixels, 1e-4) == pixels).mean() > 0.99


def test_the_objective_of_total_variation_is_that_of_the_paper() -> None:
    """Of one channel: z = [[0, 3], [4, 3]], x = 0, both left pixels kept."""
    objective = module("tvm")["objective"]
    z = torch.tensor([[0.0, 3.0], [4.0, 3.0]], dtype=torch.float64)[..., None]
    kept = torch.tensor([[1, 0], [1, 0]], dtype=torch.bool)[..., None]
    # |z - x| over the kept is 4; rows differ by (4, 0), columns by (3, -1).
    for norm, variation in ((2, 4 + 10**0.5), (1, 4 + 4)):
        values = {"norm": norm, "weight": 0.5}
        plain = objective(z, torch.zeros_like(z), kept, Params({**values, "square": False}))
        square = objective(z, torch.zeros_like(z), kept, Params({**values, "square": True}))
        assert plain.item() == pytest.approx(4 + 0.5 * variation)
        assert square.item() == pytest.approx(8 + 0.5 * variation)


def test_dropped_pixels_are_filled_from_those_that_are_kept(tmp_path: Path) -> None:
    clean = tiny_pictures(1, seed=2).pixels
    seeds = tiny_context(tiny_model(), tmp_path).seeds(1, "tvm")
    kept = np.random.default_rng(seeds[0]).random(clean[0].shape) < 0.3
    assert kept.mean() == pytest.approx(0.3, abs=0.03)
    hurt = np.where(kept, clean[0], 255)[None].astype(np.uint8)
    found, again = (purify("tvm", pixels, tmp_path) for pixels in (clean, hurt))
    assert (found == again).all(), "what a dropped pixel held reaches no picture"
    off = np.abs(found[0].astype(int) - clean[0])[~kept]
    assert off.mean() < 8, "a smooth picture is smooth where its pixels were dropped"
    assert np.abs(255 - clean[0].astype(int))[~kept].mean() > 80


def test_total_variation_falls_and_a_step_stays(tmp_path: Path) -> None:
    def variation(x: np.ndarray) -> float:
        return float(np.abs(np.diff(x.astype(int), axis=0)).mean() + np.abs(np.diff(x.astype(int), axis=1)).mean())

    noisy = noised(halves(), 0.05, [1])
    found = purify("tvm-metacloak", noisy, tmp_path, weight=0.1)[0]
    assert variation(found) < variation(noisy[0]) / 3
    assert found[:, 20:].mean() - found[:, :12].mean() == pytest.approx(130, abs=8)


def test_the_upscaler_beats_enlarging_by_more_than_a_decibel(tmp_path: Path) -> None:
    drawings = rendered(12, reduce=1)
    clean = np.stack([np.asarray(Image.fromarray(x).reduce(2)) for x in drawings])
    noisy = noised(clean, 0.1, range(12))

    def enlarged(pixels: np.ndarray) -> np.ndarray:
        return np.stack([np.asarray(Image.fromarray(x).resize((128, 128), Image.Resampling.BICUBIC)) for x in pixels])

    blurred = [noisy, *(gaussian_filter(noisy, (0, width, width, 0)) for width in (0.5, 0.7, 1.0))]
    by_bicubic = max(psnr(enlarged(x), drawings).mean() for x in blurred)
    assert psnr(upscaler.load(Numerics())(noisy), drawings).mean() > by_bicubic + 1
    found = purify("noisy-upscale", clean, tmp_path)
    assert psnr(found, clean).mean() > max(psnr(x, clean).mean() for x in blurred) + 1


def test_the_upscaler_gives_a_drawing_of_the_world_not_of_its_neighbours() -> None:
    network, pixels = upscaler.load(Numerics()), rendered(3)
    together = network(pixels)
    assert together.shape == (3, 128, 128, 3)
    assert all((network(pixels[i : i + 1])[0] == together[i]).all() for i in range(3))


@pytest.mark.parametrize("name", ["gaussian-denoise", "tvm", "tvm-metacloak", "noisy-upscale", "impress-pp"])
def test_a_picture_never_depends_on_how_many_there_are(tmp_path: Path, name: str) -> None:
    pixels = tiny_pictures(6, seed=3).pixels
    few = {"steps": 3} if name.startswith(("impress", "tvm")) else {}
    all_of_them, first = purify(name, pixels, tmp_path, **few), purify(name, pixels[:1], tmp_path, **few)
    assert np.abs(all_of_them[0].astype(int) - first[0]).max() <= 1
    assert (all_of_them[0] != purify(name, pixels, tmp_path, seed=1, **few)[0]).any()
    assert (all_of_them == purify(name, pixels, tmp_path, **few)).all()


def test_equal_pictures_get_noise_of_their_own(tmp_path: Path) -> None:
    one, other = purify("noisy-upscale", halves(2), tmp_path)
    assert (one != other).any()


def test_impress_pp_begins_from_noise_and_nears_the_autoencoder(tmp_path: Path) -> None:
    """With no steps that move, what is left is the noise; with some, the round trip changes less."""
    clean, model = tiny_pictures(2, seed=4).pixels, tiny_model()

    def trip(pixels: np.ndarray) -> float:
        return float(((model.decode(model.encode(pixels)) / 255 - pixels / 255) ** 2).mean())

    still = purify("impress-pp", clean, tmp_path, steps=1, lr=0.0, lr_last=0.0)
    seeds = tiny_context(model, tmp_path).seeds(2, "impress-pp")
    assert np.abs(still.astype(int) - noised(clean, 0.05, seeds)).max() <= 1
    assert trip(purify("impress-pp", clean, tmp_path, steps=20)) < 0.9 * trip(still)


def test_impress_pp_cleans_drawn_pictures_at_its_own_deviation(tmp_path: Path) -> None:
    entry, model = default_catalog().attack("impress-pp"), tiny_model()
    grainy = Pictures(noised(halves(), 0.02, [5]), ("a",))
    params = Params(entry.params("mini"))
    found = entry.function("clean_samples")(model, grainy, params, tiny_context(model, tmp_path))
    assert found.pixels[0, :, :16].var() < grainy.pixels[0, :, :16].var() / 10
