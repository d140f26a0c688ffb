"""Concept Ablation against plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from exact import Exact, PaperAdamW, assert_equal, copied, exact_model, moved
from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Concept, Params
from immunebench.methods.context import Context
from tiny import tiny_context, tiny_pictures

SEED, LR = 9, 1e-2
PARAMS = {
    "form": "model", "anchors": ["a p", "the p"], "anchors_style": ["a s"], "pictures": 3, "steps": 3, "batch": 2,
    "lr": LR, "lr_style": 0.0,
}  # fmt: skip


def ablate(model: Exact, ctx: Context, noun: str = "m", **params: Any) -> dict[str, Tensor]:
    concept = Concept("relearn-m", "relearn", noun, "m", "a m", tiny_pictures(2, "a m"))
    entry = load_catalog().defense("concept-ablation")
    assert entry.erases
    hook = entry.layers[0].function("protect_model")
    return copied(hook(model, (concept,), Params({**PARAMS, **params}), ctx).tensors)


def transcribed(model: Exact, ctx: Context, form: str) -> dict[str, Tensor]:
    """theta after three steps of |eps_theta(x_t, c*) - sg eps_theta(x_t, c)|^2, or with the noise for the teacher."""
    prompts = ["a p", "the p", "a p"]
    x = model.prepare(model.sample(prompts, ctx.seeds(3, "anchor")))
    start = model.unet_tensors("all")
    theta = {n: t.detach().clone().requires_grad_() for n, t in start.items() if "attn2.to_k" in n or "attn2.to_v" in n}
    named = model.condition(["a m", "a m"]).double()
    orders, optimiser = ctx.orders(3, 2), PaperAdamW(LR, clip=None)
    for _ in range(3):
        batch = model.draw(x, next(orders), ctx.generator)
        a = model.noise_scheduler.alphas_cumprod.double()[batch.timesteps].view(-1, 1, 1, 1)
        x_t = a.sqrt() * batch.latents + (1 - a).sqrt() * batch.noise
        found, teacher = (
            functional_call(model.unet, theta, (x_t, batch.timesteps, c.double())).sample
            for c in (named, batch.condition)
        )
        aim = teacher.detach() if form == "model" else batch.noise
        loss = ((found - aim) ** 2).mean()
        optimiser.descend(list(theta.values()), torch.autograd.grad(loss, list(theta.values())))
    return theta


@pytest.mark.parametrize("form", ["model", "noise"])
def test_its_first_updates_are_those_of_the_published_equation(tmp_path: Path, form: str) -> None:
    model = exact_model()
    found = ablate(model, tiny_context(model, tmp_path, seed=SEED), form=form)
    model.restore()
    expected = transcribed(model, tiny_context(model, tmp_path, seed=SEED), form)
    assert_equal(found, expected)
    model.restore()
    assert moved(found, model.unet_tensors("all")) > LR


def test_a_style_has_anchors_and_a_rate_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact_model()
    before, asked = copied(model.unet_tensors("all")), []
    sample = model.sample
    monkeypatch.setattr(model, "sample", lambda prompts, seeds: (asked.append(prompts), sample(prompts, seeds))[1])
    assert moved(ablate(model, tiny_context(model, tmp_path), noun="style"), before) == 0
    assert asked == [["a s"] * 3]


def test_the_owners_pictures_are_not_looked_at(tmp_path: Path) -> None:
    model = exact_model()
    results = []
    for seed in (0, 1):
        model.restore()
        concept = Concept("relearn-m", "relearn", "m", "m", "a m", tiny_pictures(2, "a m", seed=seed))
        hook = load_catalog().defense("concept-ablation").layers[0].function("protect_model")
        results.append(copied(hook(model, (concept,), Params(PARAMS), tiny_context(model, tmp_path)).tensors))
    assert moved(*results) == 0
