"""Adapters: what restore takes back, what files give back, and what stays out of each other's way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exact import copied
from immunebench.core.types import StageError
from immunebench.methods.adapters import Adapter, Dense, LowRank, Words, install
from immunebench.model.batch import Batch
from immunebench.model.diffusion import LatentDiffusion
from tiny import tiny_context, tiny_folder, tiny_model, tiny_pictures

Attach = Callable[[LatentDiffusion], Adapter]
KINDS: dict[str, Attach] = {
    "low-rank": lambda model: LowRank.attach(model, rank=2, seed=1),
    "dense": Dense.attach,
    "dense with text": lambda model: Dense.attach(model, text=True),
    "word": lambda model: Words.attach(model, token="q", initializer="m"),
    "word of three vectors": lambda model: Words.attach(model, token="q", initializer="m", num_vectors=3),
}
PROMPTS = ["a q", "a q m", "the m", ""]


def trained(model: LatentDiffusion, attach: Attach, seed: int = 2) -> Adapter:
    """Attach an adapter and move every value of it."""
    adapter = attach(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapter


def batch_of(model: LatentDiffusion) -> Batch:
    data = model.prepare(tiny_pictures(4, "a q m"))
    return model.draw(data, [0, 1, 2, 3], torch.Generator().manual_seed(0))


def loss_of(model: LatentDiffusion, batch: Batch) -> float:
    with torch.no_grad():
        return float(model.loss(batch))


def everything(model: LatentDiffusion) -> dict[str, Tensor]:
    """Every tensor of the networks, and what the tokenizer and the encoder make of prompts."""
    states = {f"unet.{n}": t for n, t in model.unet.state_dict().items()}
    states |= {f"text.{n}": t for n, t in model.text.encoder.state_dict().items()}
    states |= {"ids": model.text.tokens(PROMPTS), "condition": model.condition(PROMPTS)}
    return copied(states)


@pytest.mark.parametrize("kind", KINDS)
def test_restore_returns_networks_words_and_behaviour_bit_by_bit(kind: str) -> None:
    model = tiny_model()
    before, vocabulary = everything(model), len(model.text._tokenizer)
    batch = batch_of(model)
    plain = loss_of(model, batch)
    trained(model, KINDS[kind])
    assert loss_of(model, batch) != plain
    model.restore()
    after = everything(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], t) and after[n].dtype == t.dtype for n, t in before.items())
    assert loss_of(model, batch) == plain
    assert len(model.text._tokenizer) == vocabulary
    assert not any(p.requires_grad for net in (model.unet, model.text.encoder) for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_predicts_what_the_trained_one_did(tmp_path: Path, kind: str) -> None:
    model = tiny_model()
    batch = batch_of(model)
    adapter = trained(model, KINDS[kind])
    tiny_context(model, tmp_path).checkpoint(7, adapter)
    expected, drawn = loss_of(model, batch), model.sample(["a q m"], [1]).pixels
    model.restore()
    install(model, tmp_path, 7)
    exact = kind != "low-rank"  # Merging rounds W + B A once.
    assert loss_of(model, batch) == pytest.approx(expected, rel=0 if exact else 1e-5, abs=0)
    difference = model.sample(["a q m"], [1]).pixels.astype(int) - drawn
    assert abs(difference).max() <= (0 if exact else 1)


def test_a_dense_file_holds_the_networks_that_were_trained(tmp_path: Path) -> None:
    for text, networks in ((False, {"unet"}), (True, {"unet", "text_encoder"})):
        model = tiny_model()
        trained(model, KINDS["dense with text" if text else "dense"]).save(tmp_path / "a.safetensors")
        saved = load_file(tmp_path / "a.safetensors")
        assert {name.partition(".")[0] for name in saved} == networks
        own = dict(model.unet.named_parameters())
        assert all(torch.equal(saved[f"unet.{name}"], p) for name, p in own.items())


def test_a_disabled_adapter_has_no_influence() -> None:
    """Two adapters on one model, as for a defense against several attacks."""
    model = tiny_model()
    batch = batch_of(model)
    alone = {"none": loss_of(model, batch)}
    for kind in ("low-rank", "word"):
        trained(model, KINDS[kind])
        alone[kind] = loss_of(model, batch)
        model.restore()
    assert len(set(alone.values())) == 3
    adapters = {kind: trained(model, KINDS[kind]) for kind in ("low-rank", "word")}
    for adapter in adapters.values():
        adapter.enable(False)
    assert loss_of(model, batch) == alone["none"]
    for kind, adapter in adapters.items():
        with adapter.active():
            assert loss_of(model, batch) == alone[kind]
        assert loss_of(model, batch) == alone["none"]
    adapters["word"].enable(True)
    assert torch.equal(model.text.tokens(["a m"]), tiny_model().text.tokens(["a m"]))


def test_plain_diffusers_reads_learned_words(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    for kind in ("word", "word of three vectors"):
        model = tiny_model()
        trained(model, KINDS[kind]).save(tmp_path / "learned_embeds.safetensors")
        pipe = StableDiffusionPipeline.from_pretrained(tiny_folder(), safety_checker=None)
        pipe.load_textual_inversion(tmp_path / "learned_embeds.safetensors", token="<q>")
        found, _ = pipe.encode_prompt("a <q> m", "cpu", 1, do_classifier_free_guidance=False)
        expected = model.condition(["a q m"])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        model.restore()
        assert (model.condition(["a q m"]) - expected).abs().max() > 1e-3


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    model = tiny_model()
    name = next(iter(model.unet_tensors("all")))
    cases = {
        "diffusers-dense": ({"unet.nowhere": torch.zeros(1)}, "not a tensor of the base"),
        "diffusers-textual-inversion": ({"<q>": torch.full((1, 16), float("nan"))}, "must hold finite"),
        "pickle": ({name: torch.zeros(1)}, "unknown format 'pickle'; one of"),
    }
    for kind, (tensors, message) in cases.items():
        (tmp_path / "adapter.json").write_text(json.dumps({"format": kind}))
        save_file(tensors, tmp_path / "adapter-00001.safetensors")
        with pytest.raises(StageError, match=message) as caught:
            install(model, tmp_path, 1)
        assert "\n" not in str(caught.value)
        model.restore()


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_is_not_finite_is_never_saved(tmp_path: Path, kind: str) -> None:
    model = tiny_model()
    adapter = KINDS[kind](model)
    with torch.no_grad():
        next(iter(adapter.parameters.values())).view(-1)[0] = float("inf")
    with pytest.raises(StageError, match="not finite"):
        adapter.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_word_of_no_vectors_or_of_several_tokens_to_begin_with_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(StageError, match="num_vectors must be at least 1, not 0"):
        Words.attach(model, token="q", initializer="m", num_vectors=0)
    with pytest.raises(StageError, match="initializer 'mug' is 3 tokens, not one"):
        Words.attach(model, token="q", initializer="mug")
    with pytest.raises(StageError, match="already has a low-rank adapter"):
        for seed in (0, 1):
            LowRank.attach(model, rank=1, seed=seed)
