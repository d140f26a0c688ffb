"""Mist: what each mode moves, next to random pixels of the same budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from immunebench import Concept, LatentDiffusion, Params, Pictures
from immunebench.catalog.loading import load_catalog
from immunebench.methods.perturb import Draws
from tiny import tiny_context, tiny_model, tiny_pictures

BUDGET = 8
PARAMS = {"semantic": 0.61, "textural": 1.0, "steps": 25, "alpha": 1 / 16, "budget": BUDGET}


def perturbed(entry: str, tmp_path: Path, pictures: Pictures, seed: int = 0, **own: float) -> Pictures:
    model = tiny_model()
    hook = load_catalog().defense(entry).function("protect_images")
    concept = Concept("x", "style", "style", "q", "a picture of q", tiny_pictures(2, seed=9))
    changed: Pictures = hook(model, concept, pictures, Params({**PARAMS, **own}), tiny_context(model, tmp_path, seed))
    return changed


def difficulty(model: LatentDiffusion, pictures: Pictures) -> float:
    """Denoising loss over 32 draws that the defense did not see."""
    draws, rows = Draws(["a painting"] * len(pictures), seed=12345), torch.arange(len(pictures))
    with torch.no_grad():
        batches = [draws.batch(model, model.to_images(pictures.pixels), rows) for _ in range(32)]
        return float(torch.stack([model.losses(batch).mean() for batch in batches]).mean())


@pytest.mark.parametrize("entry", ["mist", "mist-semantic", "mist-textural"])
def test_saved_pictures_keep_the_budget_and_fill_it(entry: str, tmp_path: Path) -> None:
    clean = tiny_pictures(3)
    own = {k: v for k, v in load_catalog().defense(entry).params("mini").items() if k in ("semantic", "textural")}
    changed = perturbed(entry, tmp_path, clean, **own)
    moved = np.abs(changed.pixels.astype(int) - clean.pixels.astype(int))
    assert moved.max() == BUDGET and moved.mean() > BUDGET / 2
    assert changed.captions == clean.captions


def test_textural_mode_moves_the_latent_to_the_pattern_and_noise_does_not(tmp_path: Path) -> None:
    clean, model = tiny_pictures(3), tiny_model()
    pattern = load_catalog().defense("mist").function("protect_images").__globals__["pattern"]
    z_y = model.encode(pattern((32, 32))[None])

    def distance(pictures: Pictures) -> float:
        return float((model.encode(pictures.pixels) - z_y).square().mean())

    before = distance(clean)
    textural = before - distance(perturbed("mist", tmp_path, clean, semantic=0.0))
    noise = before - distance(perturbed("noise", tmp_path, clean))
    assert textural > 0 and textural > 5 * abs(noise)


def test_semantic_mode_makes_denoising_harder_than_noise_does(tmp_path: Path) -> None:
    clean, model = tiny_pictures(3), tiny_model()
    before = difficulty(model, clean)
    semantic = difficulty(model, perturbed("mist", tmp_path, clean, textural=0.0, semantic=1.0)) - before
    noise = difficulty(model, perturbed("noise", tmp_path, clean)) - before
    assert semantic > 2 * abs(noise)


def test_a_picture_is_perturbed_alike_alone_and_among_others(tmp_path: Path) -> None:
    """Sign steps turn rounding into whole levels where a gradient is near 0, so almost all pixels agree, not all."""
    clean = tiny_pictures(3)
    together = perturbed("mist", tmp_path, clean, steps=8).pixels[0].astype(int)
    alone = perturbed("mist", tmp_path, Pictures(clean.pixels[:1], clean.captions[:1]), steps=8).pixels[0].astype(int)
    assert (together == alone).mean() > 0.99
    other = perturbed("mist", tmp_path, clean, seed=1, steps=8).pixels[0].astype(int)
    assert (together == other).mean() < 0.9


def test_the_pattern_is_half_black_with_fine_detail() -> None:
    pattern = load_catalog().defense("mist").function("protect_images").__globals__["pattern"]((64, 96))
    assert pattern.shape == (64, 96, 3) and set(np.unique(pattern)) == {0, 255}
    assert 0.4 < (pattern == 0).mean() < 0.6
    edges = (np.diff(pattern[..., 0].astype(int), axis=1) != 0).mean()
    assert edges > 0.1
