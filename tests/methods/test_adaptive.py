"""Attackers who adapt: what their adapters reach, and what they make of their pictures; restored weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from exact import copied, moved
from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Params, Pictures, Weights
from immunebench.execution import stages
from immunebench.methods.adapters import TARGETS, install
from immunebench.model.diffusion import LatentDiffusion
from immunebench.store.graph import StageSpec
from tiny import tiny_context, tiny_model, tiny_pictures


def adapt(model: LatentDiffusion, out: Path, pictures: Pictures, **params: Any) -> dict[str, Any]:
    """Run `adaptive-wide` as its manifest has it, for two steps; return its parameters."""
    own = load_catalog().attack("adaptive-wide").params("mini")
    full = {**own, "rank": 2, "steps": 2, "saves": [2], "lr": 1e-2, **params}
    ctx = tiny_context(model, out)
    ctx.token, ctx.noun = "q", "m"
    load_catalog().attack("adaptive-wide").function("adapt")(model, pictures, Params(full), ctx)
    return full


def test_every_kind_of_layer_gets_an_adapter_that_its_file_gives_back(tmp_path: Path) -> None:
    model = tiny_model()
    before = copied(model.unet_tensors("all"))
    adapt(model, tmp_path, tiny_pictures(4, "a q m"))
    saved = load_file(tmp_path / "adapter-00002.safetensors")
    for part in ("attn1.to_q", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv_shortcut", "proj_in"):
        assert any(f".{part}.lora" in name for name in saved), part
    batch = model.draw(model.prepare(tiny_pictures(4, "a q m")), [0, 1], torch.Generator().manual_seed(0))
    attacked = float(model.loss(batch).detach())
    model.restore()
    install(model, tmp_path, 2)
    assert abs(float(model.loss(batch).detach()) - attacked) < 1e-5
    reached = {name for name, t in model.unet_tensors("all").items() if not torch.equal(t, before[name])}
    assert any(".resnets." in name for name in reached) and any(".ff." in name for name in reached)
    model.restore()
    assert moved(copied(model.unet_tensors("all")), before) == 0


def test_with_lora_s_targets_and_nothing_else_it_is_lora(tmp_path: Path) -> None:
    model = tiny_model()
    given = adapt(model, tmp_path, tiny_pictures(4, "a q m"), targets=list(TARGETS))
    wide = load_file(tmp_path / "adapter-00002.safetensors")
    model.restore()
    load_catalog().attack("lora").function("adapt")(
        model, tiny_pictures(4, "a q m"), Params(given), tiny_context(model, tmp_path)
    )
    plain = load_file(tmp_path / "adapter-00002.safetensors")
    assert wide.keys() == plain.keys() and all(torch.equal(wide[name], plain[name]) for name in wide)


def test_a_caption_and_a_palette_of_the_attackers_own(tmp_path: Path, monkeypatch: Any) -> None:
    model, seen = tiny_model(), []
    prepare = model.prepare
    monkeypatch.setattr(model, "prepare", lambda pictures: (seen.append(pictures), prepare(pictures))[1])
    rng = np.random.default_rng(0)
    pictures = Pictures(rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), ("a q m near b",) * 3)
    for name in ("adaptive-wide", "adaptive-caption", "adaptive-rendering"):
        params = load_catalog().attack(name).params("mini")
        adapt(model, tmp_path, pictures, **{key: params[key] for key in ("caption", "colours", "targets")})
        model.restore()
    own, bare, few = seen
    assert own is pictures
    assert bare.captions == ("q m",) * 3 and np.array_equal(bare.pixels, pictures.pixels)
    assert few.captions == pictures.captions
    assert all(len(np.unique(x.reshape(-1, 3), axis=0)) <= 16 for x in few.pixels)
    assert 0 < abs(few.pixels.astype(int) - pictures.pixels).mean() < 64


def test_restoring_leaves_out_the_attentions_and_keeps_the_rest(tmp_path: Path) -> None:
    model = tiny_model()
    released = {name: t.detach() + 1 for name, t in model.unet_tensors("all").items()}
    given, out = tmp_path / "given", tmp_path / "out"
    for folder in (given, out):
        folder.mkdir()
    save_file(released, given / "weights.safetensors")
    spec = StageSpec("restore", {"tensors": "attention"}, {"weights": "0" * 64})
    found = stages.run_stage(spec, {"weights": given}, out, lambda what, done, total: None)
    kept = Weights.load(out / "weights.safetensors").tensors
    gone = released.keys() - kept.keys()
    assert gone == model.unet_tensors("attention").keys()
    assert found["restored"] == len(gone)
    assert all(torch.equal(t, released[name]) for name, t in kept.items())
