"""The training of the embedded bases, on recipes of a few steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from immunebench.mini import train
from immunebench.mini.training import denoiser, export, schedule
from immunebench.mini.training.recipe import RECIPES
from immunebench.mini.training.tokens import train_tokenizer

CAPTIONS = [
    ["a red mug in plain style", "a mug in plain style"],
    ["a blue cat in mosaic style", "a cat in mosaic style"],
]
RECIPE = replace(RECIPES["mini"], unet_channels=(16, 16), text_width=16, unet_steps=4, unet_batch=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    return train_tokenizer((c for w in CAPTIONS for c in w), tmp_path_factory.mktemp("tokenizer"))


def test_placeholders_are_one_token_and_the_end_token_is_last(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.tokenize("a sks mug") == ["a</w>", "sks</w>", "mug</w>"]
    assert tokenizer.eos_token_id == len(tokenizer) - 1


def test_an_interrupted_run_ends_where_an_undisturbed_one_does(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    latents = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    captions = CAPTIONS * 3
    device = torch.device("cpu")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected, _ = denoiser.train(RECIPE, latents, captions, tokenizer, whole, device)
    steps = [denoiser.train(RECIPE, latents, captions, tokenizer, parts, device, stop_at=0.0)[1] for _ in range(3)]
    resumed, step = denoiser.train(RECIPE, latents, captions, tokenizer, parts, device)
    assert steps == [1, 2, 3] and step == 4
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_schedule_warms_up_and_ends_low() -> None:
    factors = [schedule.cosine(step, 100, warmup=10) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == 1.0 and factors[-1] == pytest.approx(0.02)


def test_min_snr_weights() -> None:
    """SNR of alpha-bar 0.5 is 1, so its weight is 1; of 0.99 it is 99, so 5 / 99."""
    weights = schedule.min_snr(torch.tensor([0.5, 0.99]))
    assert weights.tolist() == pytest.approx([1.0, 5 / 99], rel=1e-4)


def _train(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--base", "mini-b", "--device", "cpu", *map(str, options)])
    train.main()


def test_a_released_base_is_trained_on_and_all_but_its_denoiser_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(RECIPE, pictures=500, vae_channels=(8, 8, 8), vae_steps=2, vae_batch=2, decoder_steps=1)
    monkeypatch.setattr(train, "RECIPES", {"mini-b": small})
    drawn: list[Path] = []
    monkeypatch.setattr(export, "sample_grid", lambda pipeline, file: drawn.append(file))
    out = tmp_path / "out"
    # The time is over after one step, before any sample is drawn: what was learned is released all the same.
    _train(monkeypatch, "--work", tmp_path / "first", "--out", out, "--minutes", 1e-6)
    base = out / "mini-b"
    assert (json.loads((base / "run.json").read_text())["denoiser_steps_done"], drawn) == (1, [])
    before = {file.relative_to(base): file.read_bytes() for file in base.rglob("*") if file.is_file()}

    _train(monkeypatch, "--work", tmp_path / "second", "--out", out, "--extend", "--steps", 3)
    assert json.loads((base / "run.json").read_text())["denoiser_steps_done"] == 3
    after = {file.relative_to(base): file.read_bytes() for file in base.rglob("*") if file.is_file()}
    changed = {name.parts[0] for name in after if before.get(name) != after[name]}
    # The reconstructions are drawn again, now by the weights as released, which are in half precision.
    assert changed - {"reconstructions.png"} == {"unet", "text_encoder", "run.json", "loss.png"}
    assert all(str(tmp_path).encode() not in content for content in after.values())
    assert len(drawn) == 1
