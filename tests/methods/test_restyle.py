"""Controls of equal visible change: they reach the perceptual bound, in the direction that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Concept, Params, Pictures
from immunebench.methods.bound import distances
from tiny import tiny_context, tiny_model, tiny_pictures

PARAMS = {
    "perceptual_budget": 0.002, "form": "style", "radius": 2.0, "strength": 0.5, "sampling_steps": 2, "guidance": 1.0,
    "prompt": "{content} {style}", "styles": ["k", "l"],
}  # fmt: skip


def rough(count: int) -> Pictures:
    """Pictures of which a blur leaves little."""
    pixels = np.random.default_rng(0).integers(60, 200, (count, 32, 32, 3), dtype=np.uint8)
    return Pictures(pixels, tuple(f"a {chr(98 + i)}" for i in range(count)))


def protect(out: Path, given: Pictures, **params: Any) -> tuple[Pictures, np.ndarray]:
    ctx = tiny_context(tiny_model(), out, 4)
    ctx.distance = lambda x, y: ((x - y) / 2).square().mean((1, 2, 3))
    concept = Concept("style-a", "style", "style", "q", "a q", tiny_pictures(3, seed=9))
    hook = load_catalog().defense("restyle").function("protect_images")
    found = hook(tiny_model(), concept, given, Params(PARAMS | params), ctx)
    return found, distances(given, found, ctx)


@pytest.mark.parametrize("form", ["style", "blur"])
def test_each_picture_goes_as_far_as_the_bound_allows(tmp_path: Path, form: str) -> None:
    found, far = protect(tmp_path, rough(3), form=form)
    assert (far <= 0.002).all() and (far > 0.0015).all()
    assert found.captions == rough(3).captions


def test_blur_lowers_the_contrast_of_neighbours_and_a_free_bound_gives_pillows_own(tmp_path: Path) -> None:
    from PIL import Image, ImageFilter

    given = rough(2)
    found, _ = protect(tmp_path, given, form="blur", perceptual_budget=1.0)
    blurred = [Image.fromarray(x).filter(ImageFilter.GaussianBlur(2.0)) for x in given.pixels]
    assert np.array_equal(found.pixels, np.stack([np.asarray(picture) for picture in blurred]))
    bounded, _ = protect(tmp_path, given, form="blur")
    roughness = [np.abs(np.diff(x.pixels.astype(int), axis=2)).mean() for x in (given, bounded, found)]
    assert roughness[0] > roughness[1] > roughness[2]


@pytest.mark.parametrize("form", ["style", "blur"])
def test_no_picture_depends_on_its_neighbours(tmp_path: Path, form: str) -> None:
    given = rough(3)
    found, _ = protect(tmp_path, given, form=form)
    alone, _ = protect(tmp_path, Pictures(given.pixels[:1], given.captions[:1]), form=form)
    assert np.array_equal(alone.pixels[0], found.pixels[0])
