"""Attacks against plain PyTorch: their objectives, and what they train and leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from exact import Exact, PaperAdamW, assert_equal, copied, denoising_loss, exact_model, low_rank_weights, moved
from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Params, Weights
from immunebench.methods.adapters import LowRank, install
from immunebench.methods.context import Context
from immunebench.model.diffusion import LatentDiffusion
from tiny import tiny_context, tiny_model, tiny_pictures

DREAMBOOTH = {
    "train": "networks", "text_encoder": False, "rank": 2, "steps": 2, "batch": 3, "lr": 1e-3, "weight_decay": 1e-2,
    "prior_weight": 0.7, "prior_batch": 2, "decay": 0.0, "saves": [2],
}  # fmt: skip
LORA = {"rank": 2, "steps": 3, "batch": 4, "lr": 1e-2, "weight_decay": 1e-2, "saves": [3]}
INVERSION = {
    "num_vectors": 2, "initializer": "m", "steps": 2, "batch": 4, "lr": 1e-2, "weight_decay": 1e-2, "saves": [2],
}  # fmt: skip


def attack(name: str, model: Any, params: dict[str, Any], out: Path, *, prior: bool = False) -> Context:
    """Run an attack on eight pictures captioned "a q"; the placeholder is q, the noun m."""
    ctx = context(model, out, prior=prior)
    load_catalog().attack(name).function("adapt")(model, tiny_pictures(8, "a q"), Params(params), ctx)
    return ctx


def context(model: Any, out: Path, *, prior: bool) -> Context:
    ctx = tiny_context(model, out, seed=4)
    ctx.token, ctx.noun = "q", "m"
    ctx.prior = tiny_pictures(6, "a m", seed=1) if prior else None
    return ctx


@pytest.mark.parametrize(("lam", "decay"), [(0.7, 0.0), (0.0, 0.5)])
def test_dreambooth_descends_its_loss_with_prior_preservation(tmp_path: Path, lam: float, decay: float) -> None:
    """L(x, c) + lambda L(x_pr, c_pr), eq. 2, over every tensor of the UNet."""
    model = exact_model()
    params = {**DREAMBOOTH, "prior_weight": lam, "decay": decay}
    ctx = attack("dreambooth", model, params, tmp_path, prior=lam > 0)
    found = copied(model.unet_tensors("all"))
    model.restore()
    again = context(model, tmp_path, prior=lam > 0)
    prior = again.prior_batches(model, 2) if lam else None
    theta = {n: t.requires_grad_() for n, t in copied(model.unet_tensors("all")).items()}
    optimiser = PaperAdamW(1e-3)
    given = again.steps(2, model, model.prepare(tiny_pictures(8, "a q")), batch=3)
    for (step, batch), row in zip(given, ctx.rows, strict=True):
        own = denoising_loss(model, theta, batch, batch.condition)
        classes = next(prior) if prior else None
        kept = denoising_loss(model, theta, classes, classes.condition) if classes else torch.zeros(())
        assert row["step"] == step
        assert (row["loss"], row["prior"]) == pytest.approx((own.item(), kept.item()), abs=1e-12)
        optimiser.lr = 1e-3 * (1 - decay * step / 2)
        optimiser.descend(list(theta.values()), torch.autograd.grad(own + lam * kept, list(theta.values())))
    assert_equal(found, theta)
    assert moved(found, copied(tiny_model().unet_tensors("all"))) > 1e-3


def test_dreambooth_trains_the_text_encoder_where_it_is_told_to(tmp_path: Path) -> None:
    for text_encoder in (False, True):
        model = tiny_model()
        before = copied(model.text.encoder.state_dict())
        params = {**DREAMBOOTH, "prior_weight": 0.0, "text_encoder": text_encoder}
        attack("dreambooth", model, params, tmp_path)
        assert (moved(model.text.encoder.state_dict(), before) > 1e-4) == text_encoder


def test_lora_trains_b_a_on_frozen_weights(tmp_path: Path) -> None:
    """The trained adapter, its checkpoint's loss and a loop on W + B A agree: alpha = r."""
    model = exact_model()
    attack("lora", model, LORA, tmp_path)
    found, loss_of = LowRank(model, 2).snapshot(), _loss(model)
    carried = loss_of(model)
    model.restore()
    again = context(model, tmp_path, prior=False)
    theta = copied(model.unet_tensors("all"))
    phi = LowRank.attach(model, rank=2, seed=again.seed_of("lora")).snapshot()
    phi = {n: t.requires_grad_() for n, t in phi.items()}
    model.restore()
    optimiser = PaperAdamW(1e-2)
    for _, batch in again.steps(3, model, model.prepare(tiny_pictures(8, "a q")), batch=4):
        loss = denoising_loss(model, low_rank_weights(theta, phi), batch, batch.condition)
        optimiser.descend(list(phi.values()), torch.autograd.grad(loss, list(phi.values())))
    assert_equal(found, phi)
    assert moved(copied(model.unet_tensors("all")), theta) == 0
    with torch.no_grad():
        for name, w in low_rank_weights(theta, phi).items():
            model.unet_tensors("all")[name].copy_(w)
    assert loss_of(model) == pytest.approx(carried, abs=1e-9)


def _loss(model: Exact) -> Any:
    batch = model.draw(model.prepare(tiny_pictures(4, "a q")), [0, 1, 2, 3], torch.Generator().manual_seed(0))

    @torch.no_grad()
    def value(model: Exact) -> float:
        return float(model.loss(batch))

    return value


@pytest.mark.parametrize("num_vectors", [1, 2, 4])
def test_textual_inversion_trains_its_rows_alone(tmp_path: Path, num_vectors: int) -> None:
    model = tiny_model()
    table = model.text.encoder.get_input_embeddings().weight.detach().clone()
    unet, encoder = copied(model.unet.state_dict()), copied(model.text.encoder.state_dict())
    ctx = attack("textual-inversion", model, {**INVERSION, "num_vectors": num_vectors}, tmp_path)
    assert ctx.saved == [2]
    (rows,) = (rows for _, rows in model.text._learned.values())
    assert rows.shape == (num_vectors, 16)
    (m,) = model.text.tokens(["m"])[0, 1:2].tolist()
    assert not torch.isclose(rows.detach(), table[m].expand_as(rows)).all(dim=1).any()
    now = {name.replace(".table.", "."): t for name, t in model.text.encoder.state_dict().items()}
    assert all(torch.equal(now[name], t) for name, t in encoder.items())
    assert all(torch.equal(model.unet.state_dict()[name], t) for name, t in unet.items())


def test_textual_inversion_begins_from_the_noun_without_an_initializer(tmp_path: Path) -> None:
    model = tiny_model()
    ctx = context(model, tmp_path, prior=False)
    module = load_catalog().attack("textual-inversion").function("adapt").__globals__
    phi = module["attach"](model, Params({**INVERSION, "initializer": ""}), ctx)
    expected = model.text.vectors("m").repeat(2, 1)
    assert torch.equal(phi.rows.detach(), expected)


def test_the_blind_rung_is_lora_at_another_rate() -> None:
    catalog = load_catalog()
    for base in ("mini", "other"):
        plain, fast = (catalog.attack(n).params(base) for n in ("lora", "lora-lr-x3"))
        assert fast == {**plain, "lr": pytest.approx(3 * plain["lr"])}  # type: ignore[operator]


TUNED = {**LORA, "rates": [0.01, 1.0, 1000.0], "probe_steps": 3, "steps": 4, "saves": [2, 4]}


def rescaled(model: LatentDiffusion, factor: float) -> None:
    """Multiply to_q and to_v and divide to_k and to_out: the same function in other weights."""
    for name, tensor in model.unet_tensors("attention").items():
        part = name.split(".to_")[1]
        if part in ("q.weight", "v.weight"):
            tensor.data.mul_(factor)
        elif part in ("k.weight", "out.0.weight"):
            tensor.data.div_(factor)


def predicted(model: LatentDiffusion) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 8, 8, generator=generator)
    with torch.no_grad():
        return model.predict(z, torch.tensor([10, 700]), model.condition(["a q", "a m"]))


@pytest.mark.parametrize("name", ["lora", "lora-tuned"])
def test_weights_that_compute_the_same_are_attacked_the_same_by_the_tuned_attack_alone(
    tmp_path: Path, name: str
) -> None:
    found = {}
    for factor in (1.0, 64.0):
        model, out = tiny_model(), tmp_path / f"{factor:g}"
        out.mkdir()
        rescaled(model, factor)
        before = predicted(model)
        weights = Weights({n: t.detach().clone() for n, t in model.unet_tensors("attention").items()})
        attack(name, model, TUNED, out)
        model.restore()
        model.apply(weights)
        assert torch.allclose(predicted(model), before, atol=1e-5)
        install(model, out, 4)
        found[factor] = before, predicted(model)
    assert torch.allclose(found[1.0][0], found[64.0][0], atol=1e-4), "the same function"
    moved_by = {factor: float((after - before).abs().max()) for factor, (before, after) in found.items()}
    same = torch.allclose(found[1.0][1], found[64.0][1], atol=0.05 * moved_by[1.0])
    assert moved_by[1.0] > 1e-3 and same == (name == "lora-tuned")


def test_the_tuned_attack_takes_the_rate_of_lowest_loss(tmp_path: Path) -> None:
    for rates in ([1e-4, 1.0], [1.0, 1e30]):
        ctx = attack("lora-tuned", tiny_model(), {**TUNED, "rates": rates}, tmp_path)
        assert {row["lr"] for row in ctx.rows} == {1e-2}, "one rate learns nothing in three steps, one overflows"
        assert ctx.saved == [2, 4]
