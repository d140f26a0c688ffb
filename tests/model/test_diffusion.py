"""The model behind every method: coding, objective, sampling, weights, adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from immunebench.core.types import Numerics, Pictures, StageError, Weights
from immunebench.methods.adapters.low_rank import LowRank, merge
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.runtime import training
from tiny import tiny_base, tiny_context, tiny_folder, tiny_model, tiny_pictures


def state(model: LatentDiffusion) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}


def trained_adapter(model: LatentDiffusion, out: Path) -> Path:
    """Save an adapter whose B is not zero and return its file."""
    adapter = LowRank.attach(model, rank=4, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    tiny_context(model, out).checkpoint(7, adapter)
    return out / "adapter-00007.safetensors"


def test_pictures_survive_saving(tmp_path: Path) -> None:
    pictures = Pictures(tiny_pictures(3).pixels, ("a", "b", "c"))
    pictures.save(tmp_path)
    loaded = Pictures.load(tmp_path)
    assert np.array_equal(loaded.pixels, pictures.pixels)
    assert loaded.captions == ("a", "b", "c")


def test_encode_is_the_scaled_mean_and_ignores_the_batch() -> None:
    model = tiny_model()
    pictures = tiny_pictures(5)
    latents = model.encode(pictures.pixels)
    assert latents.shape == (5, 4, 8, 8)
    x = torch.from_numpy(pictures.pixels[4:5]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = 0.5 * model.vae.encode(x).latent_dist.mean
    torch.testing.assert_close(latents[4:5], expected, rtol=1e-4, atol=1e-5)


def test_decode_gives_pictures() -> None:
    pixels = tiny_model().decode(torch.zeros(2, 4, 8, 8))
    assert pixels.shape == (2, 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels[0], pixels[1])


def test_equal_prompts_have_equal_embeddings() -> None:
    embedded = tiny_model().condition(["a mug", "a tree", "a mug"])
    assert torch.equal(embedded[0], embedded[2])
    assert not torch.equal(embedded[0], embedded[1])


def test_the_loss_follows_the_prediction_type(tmp_path: Path) -> None:
    for prediction_type in ("epsilon", "v_prediction"):
        folder = tiny_base(tmp_path / prediction_type, prediction_type=prediction_type)
        model = LatentDiffusion.load(folder, Numerics(resolution=32))
        batch = model.draw(model.prepare(tiny_pictures(2)), [0, 1], torch.Generator().manual_seed(0))
        alpha = model.noise_scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
        noised = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
        with torch.no_grad():
            prediction = model.unet(noised, batch.timesteps, batch.condition).sample
            loss = model.loss(batch)
        velocity = alpha.sqrt() * batch.noise - (1 - alpha).sqrt() * batch.latents
        target = batch.noise if prediction_type == "epsilon" else velocity
        torch.testing.assert_close(loss, ((prediction - target) ** 2).mean())


def test_a_picture_depends_on_its_prompt_and_seed_alone() -> None:
    model = tiny_model()
    many = model.sample(["a mug"] * 3 + ["a tree"] * 3, [1, 2, 3, 4, 5, 6]).pixels
    alone = model.sample(["a tree"], [5]).pixels
    assert np.abs(many[4].astype(int) - alone[0].astype(int)).max() <= 1
    assert not np.array_equal(many[0], many[1])


def test_the_sampling_batch_changes_float_noise_only() -> None:
    model = tiny_model()
    prompts, seeds = ["a mug"] * 3, [1, 2, 3]
    four = model.sample(prompts, seeds).pixels
    model.numerics = replace(model.numerics, batch=2)
    two = model.sample(prompts, seeds).pixels
    model.numerics = replace(model.numerics, batch=4)
    assert np.abs(four.astype(int) - two.astype(int)).max() <= 1
    assert np.array_equal(four, model.sample(prompts, seeds).pixels)


def test_attention_backends_agree() -> None:
    data = tiny_model().prepare(tiny_pictures(2))
    losses = []
    for attention in ("eager", "sdpa"):
        model = LatentDiffusion.load(tiny_folder(), Numerics(resolution=32, attention=attention))
        batch = model.draw(data, [0, 1], torch.Generator().manual_seed(0))
        with torch.no_grad():
            losses.append(model.loss(batch))
    torch.testing.assert_close(*losses)


def test_tensors_are_named_as_in_the_base_with_and_without_an_adapter() -> None:
    model = tiny_model()
    both, cross = model.unet_tensors("attention"), model.unet_tensors("cross-attention")
    assert len(both) == 70
    assert {name for name in both if ".attn2." in name} == cross.keys()
    assert both.keys() <= model.unet.state_dict().keys()
    LowRank.attach(model, rank=2, seed=0)
    assert model.unet_tensors("attention").keys() == both.keys()
    with pytest.raises(StageError, match="unknown 'attn'"):
        model.unet_tensors("attn")


def test_restore_is_exact_after_overlay_adapter_and_training(tmp_path: Path) -> None:
    model = tiny_model()
    before = state(model)
    model.apply(Weights({name: t + 1 for name, t in model.unet_tensors("all").items()}))
    adapter = LowRank.attach(model, rank=2, seed=0)
    ctx = tiny_context(model, tmp_path)
    optimiser = ctx.adamw(adapter.parameters, lr=0.1)
    for _, batch in ctx.steps(2, model, model.prepare(tiny_pictures(4))):
        with training(adapter.parameters):
            optimiser.step(model.loss(batch))
    model.restore()
    after = state(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def test_weights_that_do_not_fit_are_refused_in_one_line() -> None:
    model = tiny_model()
    name, tensor = next(iter(model.unet_tensors().items()))
    wrong = {
        "nearest": {name.replace("to_q", "to_qq"): tensor},
        "shape": {name: tensor[:1]},
        "not finite": {name: tensor * float("nan")},
    }
    for message, tensors in wrong.items():
        with pytest.raises(StageError, match=message) as caught:
            model.apply(Weights(tensors))
        assert "\n" not in str(caught.value)


def test_a_fresh_adapter_changes_nothing_and_is_seeded() -> None:
    model = tiny_model()
    batch = model.draw(model.prepare(tiny_pictures(2)), [0, 1], torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.loss(batch)
        first = LowRank.attach(model, rank=4, seed=5)
        torch.testing.assert_close(model.loss(batch), plain)
    drawn = first.snapshot()
    model.restore()
    again = LowRank.attach(model, rank=4, seed=5).snapshot()
    assert all(torch.equal(again[name], tensor) for name, tensor in drawn.items())
    spread = torch.cat([t.flatten() for name, t in drawn.items() if "lora_A" in name]).std()
    assert abs(spread.item() - 1 / 4) < 0.01


def test_an_adapter_equals_its_merged_dense_weights(tmp_path: Path) -> None:
    model = tiny_model()
    file = trained_adapter(model, tmp_path)
    batch = model.draw(model.prepare(tiny_pictures(2)), [0, 1], torch.Generator().manual_seed(0))
    parameters = next(iter(model.unet_tensors())).removesuffix(".weight")
    module = model.unet.get_submodule(parameters)
    dense = module.base_layer.weight + module.lora_B["default"].weight @ module.lora_A["default"].weight
    with torch.no_grad():
        carried = model.loss(batch)
        model.restore()
        plain = model.loss(batch)
        merge(model, file)
        merged = model.loss(batch)
    torch.testing.assert_close(model.unet.get_submodule(parameters).weight, dense)
    torch.testing.assert_close(merged, carried, rtol=1e-4, atol=1e-6)
    assert not torch.isclose(plain, carried, rtol=1e-3)


def test_a_plain_pipeline_reads_the_adapter(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    model = tiny_model()
    file = trained_adapter(model, tmp_path)
    batch = model.draw(model.prepare(tiny_pictures(2)), [0, 1], torch.Generator().manual_seed(0))
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder(), safety_checker=None)
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    noised = model.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    with torch.no_grad():
        expected = model.predict(noised, batch.timesteps, batch.condition)
        found = pipe.unet(noised, batch.timesteps, batch.condition).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_base_without_its_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no folder 'unet'"):
        LatentDiffusion.load(tmp_path, Numerics())
