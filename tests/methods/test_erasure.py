"""ESD against plain PyTorch, and the way part of the way to a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from exact import Exact, PaperAdamW, assert_equal, copied, exact_model, moved
from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Concept, Params
from tiny import tiny_context, tiny_pictures

STEPS, GUIDANCE, SEED = 4, 3.0, 6
ESD = {
    "tensors": "cross-attention", "eta": 1.5, "steps": 3, "batch": 2, "lr": 1e-2, "lr_style": 1e-2,
    "sampling_steps": STEPS, "guidance": GUIDANCE,
}  # fmt: skip
#: The time steps of a DDIM sampler of four steps over 1000, with Stable Diffusion's offset of 1, descending.
TIMES = [751, 501, 251, 1]


def ddim(model: Exact, weights: dict[str, Tensor], noise: Tensor, c: Tensor, taken: int) -> Tensor:
    """Song et al. 2021, eq. 12 with sigma = 0, and classifier-free guidance."""
    z, alphas = noise.double(), model.noise_scheduler.alphas_cumprod
    nothing = model.condition([""]).expand_as(c)
    for i in range(taken):
        t, before = TIMES[i], TIMES[i + 1]
        e_0, e_c = (predict(model, weights, z, t, x) for x in (nothing, c))
        e = e_0 + GUIDANCE * (e_c - e_0)
        x_0 = (z - (1 - alphas[t]).sqrt() * e) / alphas[t].sqrt()
        z = alphas[before].sqrt() * x_0 + (1 - alphas[before]).sqrt() * e
    return z


def predict(model: Exact, weights: dict[str, Tensor], z: Tensor, t: int, c: Tensor) -> Tensor:
    when = torch.full((len(z),), t)
    return functional_call(model.unet, weights, (z.double(), when, c.double())).sample  # type: ignore[no-any-return]


@pytest.mark.parametrize("left", range(STEPS))
def test_partial_sampling_ends_at_the_time_step_that_it_names(left: int) -> None:
    model = exact_model()
    c = model.condition(["a m", "a q"])
    z, t = model.sample_partially(c, left, torch.Generator().manual_seed(0), steps=STEPS, guidance=GUIDANCE)
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    assert t == TIMES[STEPS - 1 - left]
    with torch.no_grad():
        torch.testing.assert_close(z, ddim(model, {}, noise, c, STEPS - 1 - left), rtol=0, atol=1e-6, check_dtype=False)


def transcribed(model: Exact, form: str, folder: Path, captions: list[str], width: int = 2) -> list[dict[str, Tensor]]:
    """theta after each step, by the equation of the form: paper eq. 5-6, or that of the authors' later code."""
    ctx = tiny_context(model, folder, seed=SEED)
    theta_0 = copied(model.unet_tensors("cross-attention"))
    theta = {n: t.clone().requires_grad_() for n, t in theta_0.items()}
    words, nothing = model.condition(captions), model.condition([""] * width)
    optimiser, states = PaperAdamW(1e-2, decay=0.0, clip=None), []
    for _ in range(3):
        c = words[ctx.rng.integers(len(words), size=width)]
        left = int(ctx.rng.integers(STEPS))
        noise = torch.randn((width, 4, 8, 8), generator=ctx.generator)
        with torch.no_grad():
            z = ddim(model, theta if form == "paper" else theta_0, noise, c, STEPS - 1 - left)
            t = 250 * left + int(ctx.rng.integers(250)) if form == "paper" else TIMES[STEPS - 1 - left]
            e_0, e_c = predict(model, theta_0, z, t, nothing), predict(model, theta_0, z, t, c)
            target = (e_0 if form == "paper" else e_c) - 1.5 * (e_c - e_0)
        loss = ((predict(model, theta, z, t, c) - target) ** 2).mean()
        optimiser.descend(list(theta.values()), torch.autograd.grad(loss, list(theta.values())))
        states.append(copied(theta))
    return states


@pytest.mark.parametrize("form", ["paper", "port"])
def test_esd_descends_the_published_equation(tmp_path: Path, form: str) -> None:
    model = exact_model()
    before = copied(model.unet_tensors("all"))
    owner = tiny_pictures(4, "a m")
    owner = type(owner)(owner.pixels, ("a m", "the m", "a m", "m"))
    ctx, states = tiny_context(model, tmp_path, seed=SEED), []
    ctx.report = lambda what, done, total: states.append(copied(model.unet_tensors("cross-attention")))
    released = esd(model, owner, ctx, form=form)
    after = copied(model.unet_tensors("all"))
    model.restore()
    expected = transcribed(model, form, tmp_path, list(owner.captions))
    for found, own in zip(states, expected, strict=True):
        assert_equal(found, own)
    assert released.keys() == expected[-1].keys()
    untouched = after.keys() - released.keys()
    assert all(torch.equal(after[name], before[name]) for name in untouched)


def test_the_forms_draw_from_different_models_and_aim_elsewhere(tmp_path: Path) -> None:
    model = exact_model()
    states = {form: transcribed(model, form, tmp_path, ["a m"])[-1] for form in ("paper", "port")}
    assert moved(states["paper"], states["port"]) > 1e-3


def esd(model: Exact, owner: Any, ctx: Any, **params: Any) -> dict[str, Tensor]:
    concept = Concept("relearn-m", "relearn", "m", "m", owner.captions[0], owner)
    hook = load_catalog().defense("esd").layers[0].function("protect_model")
    return dict(hook(model, (concept,), Params({**ESD, **params}), ctx).tensors)


def test_variants_are_the_papers_selections_of_layers() -> None:
    catalog = load_catalog()
    assert catalog.defense("esd").params("other")["tensors"] == "cross-attention"
    for name in ("esd-u", "esd-u-port"):
        params = catalog.defense(name).params("other")
        assert params["tensors"] == "no-cross-attention"
        assert params["form"] == ("port" if name.endswith("port") else "paper")
    model = exact_model()
    chosen = model.unet_tensors("no-cross-attention").keys()
    assert not {n for n in chosen if ".attn2." in n or n.startswith(("conv_out.", "time_embedding."))}
    assert {n for n in chosen if ".attn1." in n} and "conv_in.weight" in chosen


def test_esd_sees_words_alone_and_no_picture(tmp_path: Path) -> None:
    model = exact_model()
    results = []
    for seed in (0, 1):
        model.restore()
        owner = tiny_pictures(2, "a m", seed=seed)
        results.append(copied(esd(model, owner, tiny_context(model, tmp_path, seed=SEED), form="paper")))
    assert not np.array_equal(tiny_pictures(2, seed=0).pixels, tiny_pictures(2, seed=1).pixels)
    assert moved(*results) == 0


@pytest.mark.parametrize(("noun", "moves"), [("style", True), ("cat", False)])
def test_a_style_is_erased_at_a_rate_of_its_own(noun: str, moves: bool, tmp_path: Path) -> None:
    model = exact_model()
    before = copied(model.unet_tensors("cross-attention"))
    concept = Concept("t", "relearn", noun, "m", "a m", tiny_pictures(2, "a m"))
    params = Params({**ESD, "form": "paper", "lr": 0.0})
    weights = (
        load_catalog()
        .defense("esd")
        .function("protect_model")(model, (concept,), params, tiny_context(model, tmp_path))
    )
    assert any(not torch.equal(t, before[name]) for name, t in weights.tensors.items()) is moves
