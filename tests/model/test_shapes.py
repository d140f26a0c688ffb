"""Architectures of full-size bases: their sizes as published, and a narrow one that really draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from immunebench.bases.skeleton import networks, tokenizer
from immunebench.core.types import Numerics
from immunebench.declared.architecture import SHAPES
from immunebench.model.shapes import build, weights_gib

#: Parameters of the published checkpoints: UNet, autoencoder, text encoder, and the second one of Stable Diffusion XL.
PUBLISHED = {
    "sd14": (859_520_964, 83_653_863, 123_060_480),
    "sd21-base": (865_910_724, 83_653_863, 340_387_840),
    "sdxl": (2_567_463_684, 83_653_863, 123_060_480, 694_659_840),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        parts = networks(SHAPES[name])
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    counted = [sum(p.numel() for p in parts[part].parameters()) for part in names if part in parts]
    assert tuple(counted) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["sd14", "sd14-narrow"])
def test_the_attention_projections_are_160_tensors(name: str) -> None:
    with torch.device("meta"):
        unet = networks(SHAPES[name])["unet"]
    names = [n for n, _ in unet.named_parameters() if any(f".{part}." in n for part in ("to_q", "to_k", "to_v"))]
    out = [n for n, _ in unet.named_parameters() if ".to_out." in n]
    assert (len(names), len(out)) == (96, 64)


def test_the_attention_projections_have_as_many_values_as_imma_changes() -> None:
    with torch.device("meta"):
        unet = networks(SHAPES["sd14"])["unet"]
    projections = (".to_q.", ".to_k.", ".to_v.", ".to_out.")
    assert sum(p.numel() for n, p in unet.named_parameters() if any(x in n for x in projections)) == 93_536_640


def test_weights_are_costed_under_the_precision_policy() -> None:
    half = Numerics(frozen_dtype="float16", vae_dtype="float32")
    unet, vae, text = PUBLISHED["sd14"]
    assert weights_gib(SHAPES["sd14"], half) == pytest.approx((2 * unet + 2 * text + 4 * vae) / 2**30)
    unet, vae, text, second = PUBLISHED["sdxl"]
    assert weights_gib(SHAPES["sdxl"], half) == pytest.approx((2 * (unet + text + second) + 4 * vae) / 2**30)


def test_the_tokenizer_is_that_of_clip() -> None:
    ids = tokenizer()("a photo of sks dog").input_ids
    assert ids == [49406, 320, 1125, 539, 48136, 1929, 49407]
    for pad, number in (("<|endoftext|>", 49407), ("!", 0)):
        ids = tokenizer(pad)("dog", padding="max_length", max_length=5).input_ids
        assert ids == [49406, 1929, 49407, number, number]


@pytest.mark.parametrize(("name", "tensors"), [("sd14-narrow", 160), ("sdxl-narrow", 700)])
def test_a_narrow_model_draws_and_its_selection_of_tensors_is_complete(name: str, tensors: int) -> None:
    model = build(SHAPES[name], Numerics(resolution=64, batch=1, sampling_steps=2))
    drawn = model.sample(["a dog", "a dog"], [1, 2])
    assert drawn.pixels.shape == (2, 64, 64, 3)
    assert not np.array_equal(drawn.pixels[0], drawn.pixels[1])
    assert len(model.unet_tensors("attention")) == tensors


def test_one_seed_gives_one_model() -> None:
    one, same, other = (build(SHAPES["sd14-narrow"], Numerics(), seed) for seed in (3, 3, 4))
    weight = "conv_in.weight"
    assert torch.equal(one.unet.state_dict()[weight], same.unet.state_dict()[weight])
    assert not torch.equal(one.unet.state_dict()[weight], other.unet.state_dict()[weight])
