"""APDM against plain PyTorch: the path, the protection's gradients along it, and what the release leaves in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from exact import Exact, PaperAdamW, assert_equal, copied, exact_model, moved
from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Concept, Params, StageError
from immunebench.methods.context import Context
from tiny import tiny_context, tiny_pictures

SEED, LR, LR_IN, BETA, PRIOR = 8, 1e-3, 4e-3, 0.7, 0.5
PARAMS = {
    "form": "paper", "steps": 2, "inner_steps": 2, "batch": 2, "lr": LR, "lr_in": LR_IN, "prior_weight": PRIOR,
    "beta": BETA,
}  # fmt: skip


def context(model: Exact, folder: Path) -> Context:
    ctx = tiny_context(model, folder, seed=SEED)
    ctx.prior = tiny_pictures(5, "a m", seed=2)
    return ctx


def apdm(model: Exact, ctx: Context, **params: Any) -> dict[str, Tensor]:
    concept = Concept("object-mug", "object", "m", "q", "a q", tiny_pictures(4, "a q"))
    hook = load_catalog().defense("apdm-paper").layers[0].function("protect_model")
    return copied(hook(model, (concept,), Params({**PARAMS, **params}), ctx).tensors)


def transcribed(model: Exact, ctx: Context, *, form: str) -> dict[str, Tensor]:
    """Two steps of theta, each by the sum over a path of two, by the equations alone."""
    assert ctx.prior is not None
    x, prior = model.prepare(tiny_pictures(4, "a q")), model.prepare(ctx.prior)
    c = model.condition(["a q", "a q"]).double()
    theta = {name: t.detach().clone() for name, t in model.unet_tensors("all").items()}
    ref = copied(theta)
    orders = [ctx.orders(len(data), 2) for data in (x, prior, x, prior, prior)]
    alphas = model.noise_scheduler.alphas_cumprod.double()
    protect = PaperAdamW(LR, clip=None)

    def errors(w: dict[str, Tensor], z: Tensor, eps: Tensor, t: Tensor, words: Tensor) -> Tensor:
        a = alphas[t].view(-1, 1, 1, 1)
        found = functional_call(model.unet, w, (a.sqrt() * z + (1 - a).sqrt() * eps, t, words.double())).sample
        return (found - eps) ** 2

    for _ in range(2):
        w = {name: t.clone().requires_grad_() for name, t in theta.items()}
        personalise, total = PaperAdamW(LR_IN, clip=None), [torch.zeros_like(t) for t in theta.values()]
        for _ in range(2):
            drawn = [
                model.draw(data, next(o), ctx.generator)
                for data, o in zip((x, prior, x, prior, prior), orders, strict=True)
            ]
            subject, kept, minus, plus, again = drawn
            # The subject and the class share their time steps, the subject and its pair the noise too.
            l_db = errors(w, subject.latents, subject.noise, subject.timesteps, c).mean()
            l_db = l_db + PRIOR * errors(w, kept.latents, kept.noise, subject.timesteps, kept.condition).mean()
            g_db = torch.autograd.grad(l_db, list(w.values()))
            personalise.descend(list(w.values()), g_db)
            rise = [
                errors(w, pair.latents, minus.noise, minus.timesteps, c)
                - errors(ref, pair.latents, minus.noise, minus.timesteps, c)
                for pair in (plus, minus)
            ]
            dpo = torch.log1p(torch.exp(BETA * (rise[0] - rise[1]))).mean()
            l_pr = PRIOR * errors(w, again.latents, again.noise, again.timesteps, again.condition).mean() + dpo
            g_pr = torch.autograd.grad(l_pr, list(w.values()))
            for i, g in enumerate(g_pr):
                total[i] += g + (g_db[i] if form == "code" else 0)
        protect.descend(list(theta.values()), total)
    return theta


@pytest.mark.parametrize("form", ["paper", "code"])
def test_theta_steps_by_the_gradients_along_the_path(tmp_path: Path, form: str) -> None:
    model = exact_model()
    start = copied(model.unet_tensors("all"))
    found = apdm(model, context(model, tmp_path), form=form)
    model.restore()
    expected = transcribed(model, context(model, tmp_path), form=form)
    assert_equal(found, expected)
    # The path is taken back: theta moved by its own two steps alone, at most one rate each.
    assert LR / 2 < moved(found, start) < 2.1 * LR


def test_what_the_release_leaves_in_changes_its_step(tmp_path: Path) -> None:
    model = exact_model()
    forms = {}
    for form in ("paper", "code"):
        model.restore()
        forms[form] = apdm(model, context(model, tmp_path), form=form, steps=1)
    assert moved(forms["paper"], forms["code"]) > LR / 2
    for name, form in (("apdm-paper", "paper"), ("apdm-code", "code"), ("apdm", "paper")):
        assert load_catalog().defense(name).params("mini")["form"] == form


def test_the_reference_is_the_base_so_that_the_first_preference_is_a_coin(tmp_path: Path) -> None:
    """Along a path of rate 0 both models are equal: -log sigmoid(0) = log 2."""
    model = exact_model()
    ctx = context(model, tmp_path)
    apdm(model, ctx, steps=1, inner_steps=1, lr_in=1e-12, prior_weight=0.0)
    assert ctx.rows[0]["protection"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_stage_without_class_pictures_is_told_what_the_manifest_lacks(tmp_path: Path) -> None:
    model = exact_model()
    with pytest.raises(StageError, match='the manifest lacks needs = \\["prior"\\]'):
        apdm(model, tiny_context(model, tmp_path))
