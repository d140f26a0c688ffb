"""Stable Diffusion XL: the engine against diffusers' own pipeline, and what trains on two text encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Concept, Numerics, Params, Pictures, StageError
from immunebench.core.wording import recaption
from immunebench.execution.hooks import Simulated
from immunebench.methods.adapters import Dense, LowRank, Words, install, saved_file
from immunebench.methods.bound import distances
from immunebench.methods.context import Context
from immunebench.mini import upscaler
from immunebench.mini.judges import load_public_distance
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.runtime import training
from tiny import tiny_context, tiny_pictures, tiny_xl_base, tiny_xl_folder, tiny_xl_model

CATALOG = load_catalog()
PROMPTS = ["a q m", "the m!", "q q q q q q q q q q q q q q q q q q q q"]
#: Of the two encoders and of the pooled vector.
WIDTHS, PROJECTION, LENGTH = (16, 24), 20, 16


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """The same folder, read by diffusers."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    found = StableDiffusionXLPipeline.from_pretrained(tiny_xl_folder(), add_watermarker=False)
    found.scheduler = DDIMScheduler.from_config(found.scheduler.config, clip_sample=False)
    found.set_progress_bar_config(disable=True)
    return found


def state(model: LatentDiffusion) -> dict[str, Tensor]:
    networks = {"unet": model.unet, **model.text.networks}
    return {f"{part}.{name}": t.clone() for part, net in networks.items() for name, t in net.state_dict().items()}


def changed(model: LatentDiffusion, before: dict[str, Tensor]) -> set[str]:
    return {name for name, t in state(model).items() if not torch.equal(t, before[name])}


@torch.no_grad()
def test_conditions_are_those_of_the_pipeline(pipeline: Any) -> None:
    model = tiny_xl_model()
    words, nothing, pooled, none = pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=True)
    found = model.condition(PROMPTS)
    assert found.shape == (3, LENGTH + 1, sum(WIDTHS))
    ours, vector = model.text.split(found)
    torch.testing.assert_close(ours, words, rtol=0, atol=1e-5)
    torch.testing.assert_close(vector, pooled, rtol=0, atol=1e-5)
    assert not torch.equal(ours[0], ours[1]) and ours.abs().max() > 0.1
    assert not found[:, -1, PROJECTION:].any()
    # No prompt at all is zeros, and diffusers' too.
    ours, vector = model.text.split(model.condition(["", "a"]))
    assert not nothing.any() and not none.any()
    assert not ours[0].any() and vector is not None and not vector[0].any() and vector[1].any()


@torch.no_grad()
def test_predictions_are_those_of_the_unet_with_pooled_text_and_sizes(pipeline: Any) -> None:
    model = tiny_xl_model()
    generator = torch.Generator().manual_seed(1)
    words, _, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=True)
    times = torch.tensor([3, 500, 999])
    for height, width in ((32, 32), (64, 32)):
        z = torch.randn(3, 4, height // 4, width // 4, generator=generator)
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * 3)
        expected = pipeline.unet(z, times, words, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
        found = model.predict(z, times, model.condition(PROMPTS))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        for text, size in ((pooled.flip(0), sizes), (pooled, sizes + 8)):
            added = {"text_embeds": text, "time_ids": size}
            differs = pipeline.unet(z, times, words, added_cond_kwargs=added).sample
            assert (differs - expected).abs().max() > 1e-4


@pytest.mark.parametrize("negative", ["", "a q"])
def test_pictures_are_those_of_the_pipeline(pipeline: Any, negative: str) -> None:
    model = tiny_xl_model()
    seeds = [5, 6]
    noise = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    expected = pipeline(
        PROMPTS[:2], negative_prompt=[negative] * 2 if negative else None, latents=noise, num_inference_steps=4,
        guidance_scale=6.0, height=32, width=32, output_type="np",
    ).images  # fmt: skip
    found = model.sample(PROMPTS[:2], seeds, steps=4, guidance=6.0, negative=negative).pixels
    assert np.abs(found - expected * 255).max() <= 0.6
    other = model.sample(PROMPTS[:2], seeds, steps=4, guidance=6.0, negative="m q" if negative else "a").pixels
    assert (other != found).any()


def test_a_caption_s_embedding_has_no_neighbours_and_live_is_the_same() -> None:
    model = tiny_xl_model()
    many = model.condition(PROMPTS)
    assert torch.equal(many[1], model.condition([PROMPTS[1]])[0])
    torch.testing.assert_close(model.text.embed(PROMPTS), many, rtol=1e-5, atol=1e-6)


def context(model: LatentDiffusion, out: Path) -> Context:
    ctx = tiny_context(model, out, seed=4)
    ctx.token, ctx.noun = "q", "m"
    ctx.prior = tiny_pictures(4, "a m", seed=1)
    ctx.public = tiny_pictures(4, "a z", seed=2)
    return ctx


def params(name: str, kind: str, **values: Any) -> Params:
    entry: Any = getattr(CATALOG, kind)(name)
    entry = entry if kind == "attack" else entry.layers[0]
    own: dict[str, Any] = {**entry.params("mini"), "steps": 2, **values}
    return Params({**own, "saves": [2]} if "saves" in own else own)


ATTACKS = {
    "lora": {},
    "dreambooth": {"prior_weight": 0.5},
    "dreambooth with text": {"prior_weight": 0.0, "text_encoder": True, "lr": 1e-3},
    "dreambooth-lora": {"prior_weight": 0.5},
    "textual-inversion": {"num_vectors": 2},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_train_what_they_say_and_are_installed_as_they_were(tmp_path: Path, name: str) -> None:
    model, entry = tiny_xl_model(), name.split()[0]
    before = state(model)
    ctx = context(model, tmp_path)
    attack = CATALOG.attack(entry).function("adapt")
    attack(model, tiny_pictures(4, "a q"), params(entry, "attack", **ATTACKS[name]), ctx)
    parts = {n.split(".")[0] for n in changed_base(model, before)}
    assert parts == {"dreambooth": {"unet"}, "dreambooth with text": {"unet", "text_encoder", "text_encoder_2"}}.get(
        name, set()
    )
    saved = load_file(tmp_path / saved_file(2))
    assert saved and all(t.isfinite().all() for t in saved.values())
    trained = model.sample(["a q"], [1], steps=2).pixels
    model.restore()
    assert not changed(model, before)
    plain = model.sample(["a q"], [1], steps=2).pixels
    install(model, tmp_path, 2)
    installed = model.sample(["a q"], [1], steps=2).pixels
    assert np.abs(installed.astype(int) - trained).max() <= 1
    assert (installed != plain).any()
    model.restore()


def changed_base(model: LatentDiffusion, before: dict[str, Tensor]) -> set[str]:
    """Tensors of the base that are others now, under whatever name an adapter gives them."""
    now = {n.replace(".base_layer.", ".").replace(".table.", "."): t for n, t in state(model).items()}
    return {name for name, t in before.items() if not torch.equal(now[name], t)}


def test_a_word_is_taught_to_both_encoders_and_the_text_still_ends_where_it_did() -> None:
    model = tiny_xl_model()
    text: Any = model.text
    rows = torch.arange(80.0).reshape(2, 40) / 80
    plain = model.condition(["a m"])
    parameter = text.add_word("q", rows)
    for side, columns in ((text, slice(16)), (text.second, slice(16, None))):
        ids = side.tokens(["a q m"])
        assert torch.equal(side.encoder.get_input_embeddings()(ids)[0, 2:4], rows[:, columns])
        assert len(side._table.weight) == 56
    ids = text.second.tokens(["a q m"])
    # The new words are larger than the end of the text, which the pooled vector is read at.
    end = int((ids[0] == 55).int().argmax())
    assert ids[0].argmax() != end
    hidden = text.second.encoder.text_model(ids).last_hidden_state
    pooled = text.second.encoder.text_projection(hidden[0, end])
    _, vector = text.split(model.condition(["a q m"]))
    torch.testing.assert_close(vector[0], pooled, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.condition(["a m"]), plain)
    parameter.requires_grad_(True)
    text.embed(["a q m"]).square().sum().backward()
    assert (parameter.grad[:, :16].abs().sum() > 0) and (parameter.grad[:, 16:].abs().sum() > 0)
    text.use_learned(False)
    assert text.second.tokens(["a q"]).max() == 55 and text.tokens(["a q"]).max() == 55
    assert text.vectors("m").shape == (1, 40)
    model.restore()


@pytest.mark.parametrize("name", [n for n, e in CATALOG.defenses.items() if e.code == "imma-lora"])
def test_imma_moves_its_tensors_against_every_attack(tmp_path: Path, name: str) -> None:
    model = tiny_xl_model()
    before = state(model)
    (entry,) = CATALOG.defense(name).layers
    ctx = context(model, tmp_path)
    own = entry.params("mini")
    values = Params({**own, "steps": own["inner_steps"] + 1})
    for other in entry.against:
        attack = CATALOG.attack(other)
        own = {**attack.params("mini"), "prior_weight": 0.0} if "dreambooth" in other else attack.params("mini")
        ctx.attacks[attack.id] = Simulated(attack, Params(own), ctx)  # type: ignore[index]
    # Two batches an epoch: some variants begin each with the attacker's step.
    concept = Concept("object-mug", "object", "m", "q", "a q", tiny_pictures(2 * values.batch, "a q"))
    weights = entry.function("protect_model")(model, (concept,), values, ctx)
    model.check(weights)
    # The steps of the attacker, one of the publisher.
    assert weights.tensors and all(".attn" in n for n in weights.tensors)
    still = {n for n, t in weights.tensors.items() if torch.equal(t, before[f"unet.{n}"])}
    assert len(still) < len(weights.tensors) / 4, still
    model.restore()
    assert not changed(model, before)


def test_esd_u_leaves_alone_what_reads_the_prompt() -> None:
    model = tiny_xl_model()
    left = model.unet_tensors("all").keys() - model.unet_tensors("no-cross-attention").keys()
    outside = {name.split(".")[0] for name in left if ".attn2." not in name}
    assert outside == {"add_embedding", "time_embedding", "conv_norm_out", "conv_out"}
    assert len([name for name in left if name.startswith("add_embedding.")]) == 4


#: What decides how long an entry takes, and words that the tiny vocabulary has.
LEAST: dict[str, Any] = {
    "steps": 2, "batch": 2, "sampling_steps": 4, "drawing_steps": 1, "saves": [2],
    "rounds": 2, "train_steps": 1, "pgd_steps": 1, "deletions": 1, "candidates": 2,
    "trials": 1, "inner_steps": 1, "pictures": 2, "states": 2, "apart": 1, "unroll": 1, "advance": 1,
    "contents": ["a"], "styles": ["k", "l", "m"],
}  # fmt: skip


def least(entry: Any) -> Params:
    """An entry's settings as a plan takes them on the base, with as few steps as there can be."""
    own = entry.params("sdxl", "sd14")
    bounds = {"budget": entry.budget, "perceptual_budget": entry.perceptual_budget} if entry.kind == "defense" else {}
    return Params({**own, **{name: value for name, value in LEAST.items() if name in own}, **bounds})


def lent(model: LatentDiffusion, out: Path) -> Context:
    """All that a manifest can ask for: the attack that is simulated, and the embedded world's networks."""
    ctx = context(model, out)
    dreambooth = CATALOG.attack("dreambooth")
    ctx.attacks = {"dreambooth": Simulated(dreambooth, least(dreambooth), ctx)}  # type: ignore[dict-item]
    ctx.distance, ctx.upscaler = load_public_distance("cpu"), upscaler.load(model.numerics)
    ctx.captioned = lambda pictures: recaption(pictures, "{content}", token="q", noun="m")
    return ctx


def speckled() -> Pictures:
    """Noisy gradients, in which every purifier finds something to change."""
    noise = np.random.default_rng(6).normal(0, 5, (2, 32, 32, 3))
    pixels = (tiny_pictures(2).pixels + noise).clip(0, 255).round().astype(np.uint8)
    return Pictures(pixels, ("a {subject}", "b"))


def offering(hook: str) -> list[str]:
    """Every entry with a hook, but those that name further bases: none of those draws pictures of this size."""
    entries = {**CATALOG.defenses, **CATALOG.attacks}
    return [name for name, entry in entries.items() if hook in entry.hooks and not entry.surrogates]


@pytest.mark.parametrize("name", offering("protect_images"))
def test_every_defense_of_pictures_changes_them_inside_its_bound(tmp_path: Path, name: str) -> None:
    model = tiny_xl_model()
    before = state(model)
    entry = CATALOG.defenses[name]
    ctx, given = lent(model, tmp_path), speckled()
    concept = Concept("object-mug", "object", "m", "q", "a q", tiny_pictures(2, "a q"))
    protected = entry.function("protect_images")(model, concept, given, least(entry), ctx)
    assert protected.captions == given.captions and protected.pixels.shape == given.pixels.shape
    moved = np.abs(protected.pixels.astype(int) - given.pixels).max(axis=(1, 2, 3))
    assert (moved > 0).all()
    if entry.budget is None:
        assert (distances(given, protected, ctx) <= entry.perceptual_budget).all()
    else:
        # The control of grey squares is there to be rejected.
        assert (moved.max() <= entry.budget) == (name != "blank")
    model.restore()
    assert not changed(model, before)


@pytest.mark.parametrize("name", offering("purify"))
def test_every_purifier_changes_pictures_and_keeps_their_size(tmp_path: Path, name: str) -> None:
    model = tiny_xl_model()
    before = state(model)
    entry, ctx, given = CATALOG.attack(name), lent(model, tmp_path), speckled()
    for hook in sorted({"purify", "clean_samples"}.intersection(entry.hooks)):
        cleaned = entry.function(hook)(model, given, least(entry), ctx)
        assert cleaned.captions == given.captions and cleaned.pixels.shape == given.pixels.shape
        assert (cleaned.pixels != given.pixels).any(axis=(1, 2, 3)).all()
    assert not changed(model, before)


@pytest.mark.parametrize("name", [n for n in offering("protect_model") if not n.startswith("imma")])
def test_every_other_defense_of_weights_moves_the_tensors_that_it_names(tmp_path: Path, name: str) -> None:
    model = tiny_xl_model()
    before = state(model)
    entry = CATALOG.defenses[name]
    concept = Concept("relearn-m", "relearn", "m", "m", "a m", tiny_pictures(2, "a m"))
    weights = entry.function("protect_model")(model, (concept,), least(entry), lent(model, tmp_path))
    model.check(weights)
    named = least(entry).get("tensors", {"apdm-paper": "all"}.get(entry.code, "cross-attention"))
    keys_alone = entry.code in ("uce-paper", "concept-ablation")
    chosen = {n for n in model.unet_tensors(named) if not keys_alone or ".to_k." in n or ".to_v." in n}
    assert weights.tensors.keys() == chosen
    assert any(not torch.equal(t, before[f"unet.{n}"]) for n, t in weights.tensors.items())
    model.restore()
    assert not changed(model, before)


def test_micro_batches_and_offloading_change_no_number(tmp_path: Path) -> None:
    """Conditions are split and joined by rows, and both encoders leave the device and come back."""
    usual = tiny_xl_model()
    numerics = Numerics(resolution=32, sampling_steps=3, micro_batch=1, offload=True)
    sparing = LatentDiffusion.load(tiny_xl_folder(), numerics)
    second: Any = sparing.text
    second = second.second
    assert not second.resident.on_device
    for attach in (
        lambda m: LowRank.attach(m, rank=2, seed=0),
        lambda m: Dense.attach(m, text=True),
        lambda m: Words.attach(m, token="q", initializer="m"),
    ):
        found = []
        for model in (usual, sparing):
            phi: Any = attach(model)
            data = model.prepare(tiny_pictures(3, "a q"))
            batch = model.draw(data, [0, 1, 2], torch.Generator().manual_seed(2))
            with training(phi.parameters):
                loss = model.loss(batch)
                loss.backward()
            found.append((loss.item(), {n: p.grad for n, p in phi.parameters.items() if p.grad is not None}))
            model.restore()
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
        assert found[0][1].keys() == found[1][1].keys() and found[0][1]
        for name, gradient in found[0][1].items():
            torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-3, atol=1e-6)
        assert not second.resident.on_device


def test_a_pipeline_without_its_second_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tiny_xl_base(tmp_path / "base")
    (folder / "tokenizer_2").rename(tmp_path / "gone")
    with pytest.raises(StageError, match="base base: no folder 'tokenizer_2'"):
        LatentDiffusion.load(folder, Numerics())
