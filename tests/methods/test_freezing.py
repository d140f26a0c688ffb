"""FreezeAsGuard against plain PyTorch and finite differences, and random freezing, its control."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from exact import Exact, PaperAdamW, assert_equal, copied, exact_model
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError
from immunebench.core.mask import Mask
from immunebench.core.types import Concept, Params, Pictures, StageError
from immunebench.methods.context import Context
from tiny import tiny_context, tiny_model, tiny_pictures

SEED, T, LR = 4, 0.2, 1e-3
FREEZE: dict[str, Any] = {
    "form": "paper", "rho": 0.3, "innocents": 4, "user_steps": 2, "lr_user": 0.0, "steps": 5, "every": 2, "batch": 5,
    "lr_mask": 50.0, "lr_inner": 0.5, "penalty": 0.05, "temperature": T, "against": ["dreambooth"],
}  # fmt: skip


def module() -> ModuleType:
    function = load_catalog().defense("freeze-as-guard").layers[0].function("freeze")
    return sys.modules[function.__module__]


def owner() -> Pictures:
    return tiny_pictures(6, "a q", seed=1)


class DreamBooth:
    """The attack as the engine hands it to a defense."""

    params = Params({"lr": LR, "batch": 3})

    def attach(self, model: Exact) -> None:
        raise AssertionError("the user is trained by the defense itself")


def context(model: Any, folder: Path, public: int = 4) -> Context:
    ctx = tiny_context(model, folder, seed=SEED)
    ctx.attacks = {"dreambooth": DreamBooth()}  # type: ignore[dict-item]
    ctx.public = tiny_pictures(6, "a r", seed=2)
    ctx.public = Pictures(ctx.public.pixels[:public], ctx.public.captions[:public])
    return ctx


def freeze(model: Any, ctx: Context, entry: str = "freeze-as-guard", **params: Any) -> Mask:
    concept = Concept("object-mug", "object", "m", "q", "a q", owner())
    hook = load_catalog().defense(entry).layers[0].function("freeze")
    made: Mask = hook(model, (concept,), Params({**FREEZE, **params}), ctx)
    return made


def per_picture(model: Exact, weights: dict[str, Tensor], batch: Any) -> Tensor:
    alpha = model.noise_scheduler.alphas_cumprod.double()[batch.timesteps].view(-1, 1, 1, 1)
    z_t = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
    prediction = functional_call(model.unet, weights, (z_t, batch.timesteps, batch.condition.double())).sample
    return ((prediction - batch.noise) ** 2).flatten(1).mean(1)


def transcribed(model: Exact, folder: Path) -> tuple[list[dict[str, Tensor]], Tensor]:
    """theta after each step, and x: theta(x) = pre - (1 - m(x)) D, differentiated by autograd in x itself."""
    ctx = context(model, folder)
    pictures, innocent = owner(), ctx.public
    assert innocent is not None
    both = Pictures(
        torch.cat([torch.tensor(pictures.pixels), torch.tensor(innocent.pixels)]).numpy(),
        (*pictures.captions, *innocent.captions),
    )
    data = model.prepare(both)
    pre = copied(model.unet_tensors("all"))
    ft = {name: t.clone().requires_grad_() for name, t in pre.items()}
    states, optimiser = [], PaperAdamW(LR)
    for _, batch in ctx.steps(2, model, data, batch=3):
        loss = per_picture(model, ft, batch).mean()
        optimiser.descend(list(ft.values()), torch.autograd.grad(loss, list(ft.values())))
        states.append(copied(ft))
    D = {name: pre[name] - ft[name].detach() for name in pre}
    N = len(D)
    x = torch.zeros(N, dtype=torch.float64)
    order = ctx.orders(10, 5)
    for step in range(5):
        rows = next(order)
        batch = model.draw(data, rows, ctx.generator)
        x.requires_grad_()
        m = torch.sigmoid(x / T)
        # Ten pictures make two batches an epoch, so that every = 2 gives the publisher the even steps.
        if step % 2 == 0:
            theta = {name: pre[name] - (1 - m[i]) * D[name] for i, name in enumerate(D)}
            losses = per_picture(model, theta, batch)
            hostile = torch.tensor(rows < 6)
            parts = [losses[side].sum() / (side.sum() + 1e-5) for side in (~hostile, hostile)]
            # lr_mask weighs the data alone; c = 0.05 N.
            goal = 50.0 * (parts[0] - parts[1]) / 2 + 0.05 * N * (0.3 - m.mean()) ** 2
            x = (x - torch.autograd.grad(goal, x)[0]).detach()
        else:
            share = (1 - m).detach()
            theta = {name: (pre[name] - share[i] * D[name]).detach().requires_grad_() for i, name in enumerate(D)}
            gradients = torch.autograd.grad(per_picture(model, theta, batch).mean(), list(theta.values()))
            for i, (name, g) in enumerate(zip(D, gradients, strict=True)):
                D[name] = D[name] + 0.5 * share[i] * g
        m = torch.sigmoid(x / T).detach()
        states.append({name: pre[name] - (1 - m[i]) * D[name] for i, name in enumerate(D)})
    return states, x.detach()


def test_the_first_updates_are_those_of_the_published_equations(tmp_path: Path) -> None:
    model = exact_model()
    ctx, states = context(model, tmp_path), []
    ctx.report = lambda what, done, total: states.append(copied(model.unet_tensors("all")))
    mask = freeze(model, ctx)
    model.restore()
    expected, x = transcribed(model, tmp_path)
    assert len(states) == len(expected) == 7
    for found, own in zip(states, expected, strict=True):
        assert_equal(found, own)
    names = list(mask.frozen)
    count = round(0.3 * len(names))
    assert mask.names == {names[i] for i in x.argsort(descending=True)[:count].tolist()}
    # The data, not the penalty alone, which moves all alike, decided.
    assert float(x.std()) > 1e-3


def test_the_gradient_of_the_mask_equals_finite_differences() -> None:
    code = module()
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (4,), (2, 2, 2), (1,)]
    D, ft, aim = ([torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(3))
    x, c, rho = torch.randn(4, generator=generator, dtype=torch.float64) / 5, 3.0, 0.25

    def tensors(x: Tensor) -> list[Tensor]:
        return [f + m * d for f, m, d in zip(ft, torch.sigmoid(x / T), D, strict=True)]

    def loss(w: list[Tensor]) -> Tensor:
        return sum(((a - b).sin() ** 2).sum() * (1 + i) for i, (a, b) in enumerate(zip(w, aim, strict=True)))  # type: ignore[return-value]

    theta = [w.requires_grad_() for w in tensors(x)]
    gradients = torch.autograd.grad(loss(theta), theta)
    m = torch.sigmoid(x / T)
    found = {"data": code.mask_gradient(D, gradients, m, T), "penalty": code.penalty_gradient(m, rho, c, T)}
    with torch.no_grad():
        for i in range(4):
            step = torch.zeros(4, dtype=torch.float64)
            step[i] = 1e-6
            ends = [loss(tensors(x + s)) for s in (step, -step)]
            assert float(found["data"][i]) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-6)
            far = [c * (rho - torch.sigmoid((x + s) / T).mean()) ** 2 for s in (step, -step)]
            assert float(found["penalty"][i]) == pytest.approx(float(far[0] - far[1]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize(("tensors", "least", "most"), [(686, 0.5, 0.7), (170, 0.8, 0.95), (60, 0.99, 1.0)])
def test_the_script_s_penalty_saturates_the_mask_at_once_and_the_scaled_one_at_no_size(
    tensors: int, least: float, most: float
) -> None:
    code = module()

    def moved(x: Tensor, c: float) -> Tensor:
        return torch.sigmoid((x - code.penalty_gradient(torch.sigmoid(x / T), 0.2, c, T)) / T)

    m = moved(torch.rand(tensors, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 5e3)
    assert least <= float(((m < 1e-3) | (m > 0.999)).double().mean()) <= most
    # Saturated ones have no gradient left: on a small network nothing will be frozen.
    assert tensors > 60 or int((m > 0.5).sum()) == 0
    scaled = moved(torch.zeros(tensors, dtype=torch.float64), 0.05 * tensors)
    assert bool(((scaled > 0.4) & (scaled < 0.5)).all())


@pytest.mark.parametrize("entry", ["freeze-as-guard", "random-freeze"])
@pytest.mark.parametrize("rho", [0.0, 0.2, 1.0])
def test_the_share_of_frozen_tensors_is_rho_and_one_always_stays_free(tmp_path: Path, entry: str, rho: float) -> None:
    model = tiny_model()
    mask = freeze(model, context(model, tmp_path), entry, rho=rho, steps=1, user_steps=1, pick="random")
    count = len(model.unet_tensors("all"))
    assert list(mask.frozen) == list(model.unet_tensors("all"))
    assert len(mask.names) == min(round(rho * count), count - 1)


def test_an_empty_innocent_set_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    model = tiny_model()
    before = copied(model.unet_tensors("all"))
    with pytest.raises(StageError, match="the innocent set is empty"):
        freeze(model, context(model, tmp_path, public=0))
    assert all(torch.equal(t, before[name]) for name, t in model.unet_tensors("all").items())


@pytest.mark.parametrize(("name", "value"), [("rho", -0.1), ("rho", 1.5), ("innocents", 0)])
def test_a_parameter_outside_its_range_breaks_the_entry_when_it_is_listed(
    tmp_path: Path, name: str, value: float
) -> None:
    from immunebench.catalog.loading import default_catalog
    from immunebench.declared import schema
    from immunebench.declared.manifest import DefenseManifest

    text = default_catalog().defense("freeze-as-guard").path.read_text()
    file = tmp_path / "defense.toml"
    file.write_text(text.replace("[limits]", f"[presets.other]\n{name} = {value}\n[limits]"))
    with pytest.raises(UsageError, match=rf"presets\.other\.{name} must be at"):
        schema.load(file, DefenseManifest)


def test_random_masks_follow_the_seed(tmp_path: Path) -> None:
    model = tiny_model()
    masks = []
    for seed in (0, 0, 1):
        ctx = tiny_context(model, tmp_path, seed=seed)
        masks.append(freeze(model, ctx, "random-freeze", rho=0.5, pick="random").names)
    assert masks[0] == masks[1] != masks[2]


def test_the_largest_are_those_with_most_parameters(tmp_path: Path) -> None:
    model = tiny_model()
    sizes = {name: tensor.numel() for name, tensor in model.unet_tensors("all").items()}
    frozen = freeze(model, tiny_context(model, tmp_path), "random-freeze", rho=0.1, pick="largest").names
    assert min(sizes[name] for name in frozen) >= max(size for name, size in sizes.items() if name not in frozen)
