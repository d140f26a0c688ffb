"""Image-to-image against diffusers' own pipeline, and what it must not depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from immunebench.core.types import Numerics, Pictures, StageError
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.sampling import make_sampler
from tiny import tiny_folder, tiny_model, tiny_pictures

SEEDS = (11, 12, 13)


def pictures() -> Pictures:
    """Three different pictures with different captions."""
    return Pictures(tiny_pictures(3).pixels, ("a q", "b", "a c"))


@pytest.mark.parametrize(
    ("sampler", "strength", "negative"),
    [("ddim", 0.3, ""), ("ddim", 0.75, "z"), ("ddim", 1.0, ""), ("dpm++", 0.5, "z"), ("pndm", 0.5, "")],
)
def test_it_is_the_pipeline_of_diffusers(sampler: str, strength: float, negative: str) -> None:
    """Same latents, noise, scheduler and prompts: the same picture."""
    from diffusers import StableDiffusionImg2ImgPipeline

    given = pictures()
    model = LatentDiffusion.load(tiny_folder(), Numerics(resolution=32, sampler=sampler))
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_folder(), safety_checker=None)
    pipe.scheduler = make_sampler(model.numerics.sampler, model.schedule)
    pipe.set_progress_bar_config(disable=True)
    # Latents go in, for the pipeline would draw them from the posterior where we take its mean.
    expected = pipe(
        prompt=list(given.captions), negative_prompt=[negative] * 3, image=model.encode(given.pixels),
        strength=strength, num_inference_steps=8, guidance_scale=3.0, output_type="np",
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
    ).images  # fmt: skip
    found = model.image_to_image(given, SEEDS, strength=strength, steps=8, guidance=3.0, negative=negative)
    assert found.captions == given.captions
    # Rounding to 8 bits is all that may lie between them.
    assert np.abs(found.pixels / 255 - expected).max() < 0.51 / 255 + 1e-5
    assert np.abs(found.pixels.astype(int) - given.pixels).max() > 20


def test_strength_0_is_the_round_trip_and_more_strength_goes_further() -> None:
    model, given = tiny_model(), pictures()

    def drawn(strength: float) -> np.ndarray:
        return model.image_to_image(given, SEEDS, strength=strength, steps=10, guidance=1.0).pixels.astype(int)

    round_trip = model.decode(model.encode(given.pixels)).astype(int)
    assert np.abs(drawn(0.0) - round_trip).max() <= 1
    far = [np.abs(drawn(strength) - round_trip).mean() for strength in (0.1, 0.5, 1.0)]
    assert far[0] < far[1] < far[2]


def test_a_picture_depends_on_its_own_seed_and_caption_alone() -> None:
    model, given = tiny_model(), pictures()
    settings = {"strength": 0.5, "steps": 6, "guidance": 2.0}
    together = model.image_to_image(given, SEEDS, **settings).pixels
    alone = model.image_to_image(Pictures(given.pixels[2:], given.captions[2:]), SEEDS[2:], **settings).pixels
    assert np.array_equal(together[2:], alone)
    model.numerics = replace(model.numerics, batch=2)
    split = model.image_to_image(given, SEEDS, **settings).pixels
    model.numerics = replace(model.numerics, batch=4)
    assert np.abs(split.astype(int) - together).max() <= 1
    other = model.image_to_image(given, (11, 12, 99), **settings).pixels
    assert np.array_equal(other[:2], together[:2])
    assert not np.array_equal(other[2], together[2])


def test_pictures_of_another_size_than_the_profile_s() -> None:
    given = Pictures(tiny_pictures(1, side=64).pixels[:, :, :48], ("a",))
    assert tiny_model().image_to_image(given, (0,), strength=0.5, steps=2, guidance=1.0).pixels.shape == (1, 64, 48, 3)


@pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan")])
def test_a_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(StageError, match="strength"):
        tiny_model().image_to_image(pictures(), SEEDS, strength=strength, steps=4, guidance=1.0)
