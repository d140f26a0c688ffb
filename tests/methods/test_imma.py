"""IMMA against plain PyTorch: the published equations, without adapters, wrappers or engine loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from exact import Exact, PaperAdamW, assert_equal, copied, denoising_loss, exact_model, low_rank_weights, moved
from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Concept, Params, Pictures
from immunebench.methods.adapters import Adapter, Dense, LowRank, Words
from immunebench.methods.context import Context
from immunebench.model.batch import Batch
from tiny import tiny_context, tiny_pictures

LR_IN, LR_OUT, SEED = 1e-2, 1e-3, 3
#: theta_S and the phi of each attack.
State = tuple[dict[str, Tensor], list[dict[str, Tensor]]]
PARAMS = {
    "tensors": "attention", "inner": True, "inner_reset": "never", "phase": "global", "batch": 4,
    "lr_in": LR_IN, "lr_out": LR_OUT, "retain": 0.0, "clip": 1.0,
}  # fmt: skip


class Simulated:
    """An attack as the engine hands it to a defense."""

    def __init__(self, attach: Callable[[Exact], Adapter]) -> None:
        self._attach = attach
        self.params = Params({"lr": LR_IN})

    def attach(self, model: Exact) -> Adapter:
        self.phi = self._attach(model)
        return self.phi


ATTACKS: dict[str, Callable[[Exact], Adapter]] = {
    "lora": lambda model: LowRank.attach(model, rank=2, seed=1),
    "dreambooth": Dense.attach,
    "ti": lambda model: Words.attach(model, token="q", initializer="m", num_vectors=2),
}


def owner() -> Pictures:
    return tiny_pictures(8, "a q")


def immunise(steps: int, folder: Path, against: list[str], **params: Any) -> tuple[list[State], Context, Exact]:
    """Run the entry in double precision; return theta_S and phi after each step, and what they were made with."""
    model = exact_model()
    ctx = tiny_context(model, folder, seed=SEED)
    attacks = {name: Simulated(ATTACKS[name]) for name in against}
    states: list[State] = []
    ctx.attacks = attacks  # type: ignore[assignment]
    ctx.report = lambda what, done, total: states.append(
        (copied(model.unet_tensors("attention")), [attack.phi.snapshot() for attack in attacks.values()])
    )
    concept = Concept("object-mug", "object", "m", "q", "a q", owner())
    hook = load_catalog().defense("imma-lora").layers[0].function("protect_model")
    hook(model, (concept,), Params({**PARAMS, "steps": steps, "against": against, **params}), ctx)
    return states, ctx, model


def batches(model: Exact, folder: Path, steps: int) -> list[Batch]:
    """The batches that the entry's seed gives."""
    ctx = tiny_context(model, folder, seed=SEED)
    return [batch for _, batch in ctx.steps(steps, model, model.prepare(owner()), batch=4)]


def leaves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}


def alternate(
    loss: Callable[[Batch], Tensor],
    given: list[Batch],
    phi: dict[str, Tensor],
    theta: dict[str, Tensor],
    *,
    clip: float | None,
) -> list[State]:
    """phi <- phi - lr_in dL/dphi on even steps, theta_S <- theta_S + lr_out dL/dtheta_S on odd ones."""
    sides = [
        (list(phi.values()), PaperAdamW(LR_IN, clip=clip), 1),
        (list(theta.values()), PaperAdamW(LR_OUT, clip=clip), -1),
    ]
    states: list[State] = []
    for k, batch in enumerate(given):
        tensors, optimiser, sign = sides[k % 2]
        optimiser.descend(tensors, torch.autograd.grad(sign * loss(batch), tensors, allow_unused=True))
        states.append((copied(theta), [copied(phi)]))
    return states


def transcribed(attack: str, given: list[Batch], model: Exact, *, clip: float | None) -> list[State]:
    """theta_S and phi after each update, by the equations alone."""
    theta = leaves(model.unet_tensors("attention"))

    def loss(batch: Batch) -> Tensor:
        return denoising_loss(model, tensors(), batch, condition(batch))

    def condition(batch: Batch) -> Tensor:
        return batch.condition

    if attack == "lora":
        phi = leaves(LowRank.attach(model, rank=2, seed=1).snapshot())
        model.restore()

        def tensors() -> dict[str, Tensor]:
            return low_rank_weights(theta, phi)

    elif attack == "dreambooth":
        # phi is the whole network: theta_S are the same leaves, with a second pair of moments.
        phi = {name: theta.get(name, t) for name, t in leaves(model.unet_tensors("all")).items()}

        def tensors() -> dict[str, Tensor]:
            return phi

    else:
        encoder = model.text.encoder
        (name,) = (n for n, _ in encoder.named_parameters() if "token_embedding" in n)
        table = encoder.get_input_embeddings().weight.detach()
        ids = model.text.tokens(["a m"])
        phi = leaves({"q": table[ids[0, 2]].float().repeat(2, 1)})
        # "a q" with two vectors: begin, a, v1, v2, then ends; v1 and v2 are the rows above the table.
        ids[0, 2:4] = torch.tensor([len(table), len(table) + 1])

        def tensors() -> dict[str, Tensor]:
            return theta

        def condition(batch: Batch) -> Tensor:
            rows = torch.cat([table, phi["q"].double()])
            embedded: Tensor = functional_call(encoder, {name: rows}, (ids,))[0]
            return embedded.float().expand(4, -1, -1)

    return alternate(loss, given, phi, theta, clip=clip)


@pytest.mark.parametrize(("attack", "clip"), [("lora", 1.0), ("dreambooth", 1.0), ("ti", 0.0)])
def test_the_first_updates_are_those_of_the_published_equations(tmp_path: Path, attack: str, clip: float) -> None:
    found, _, model = immunise(4, tmp_path, [attack], clip=clip)
    model.restore()
    start = copied(model.unet_tensors("attention"))
    expected = transcribed(attack, batches(model, tmp_path, 4), model, clip=clip or None)
    for (theta, (phi,)), (own_theta, (own_phi,)) in zip(found, expected, strict=True):
        assert_equal(theta, own_theta)
        assert_equal(phi, own_phi)
    # Where phi holds theta_S, descent moves it too: DreamBooth's first step already.
    assert (moved(found[0][0], start) > 0) == (attack == "dreambooth")
    assert moved(found[1][0], found[0][0]) > LR_OUT / 2


def test_without_inner_steps_only_theta_ascends(tmp_path: Path) -> None:
    found, _, model = immunise(3, tmp_path, ["lora"], inner=False)
    model.restore()
    theta = leaves(model.unet_tensors("attention"))
    ascend = PaperAdamW(LR_OUT)
    for batch in batches(model, tmp_path, 3):
        loss = -denoising_loss(model, theta, batch, batch.condition)
        ascend.descend(list(theta.values()), torch.autograd.grad(loss, list(theta.values())))
    assert_equal(found[-1][0], theta)
    assert moved(found[-1][1][0], found[0][1][0]) == 0


def test_an_attacker_that_is_reset_starts_afresh_after_each_ascent(tmp_path: Path) -> None:
    reset, _, model = immunise(4, tmp_path, ["lora"], inner_reset="each_cycle")
    kept, _, _ = immunise(4, tmp_path, ["lora"])
    model.restore()
    fresh = LowRank.attach(model, rank=2, seed=1).snapshot()
    assert moved(reset[0][1][0], kept[0][1][0]) == 0
    assert moved(reset[1][1][0], fresh) == 0
    # And without moments: the next descent is a first one.
    descend = PaperAdamW(LR_IN)
    model.restore()
    theta = {**model.unet_tensors("all"), **reset[1][0]}
    phi = leaves(fresh)
    batch = batches(model, tmp_path, 3)[2]
    loss = denoising_loss(model, low_rank_weights(theta, phi), batch, batch.condition)
    descend.descend(list(phi.values()), torch.autograd.grad(loss, list(phi.values())))
    assert_equal(reset[2][1][0], phi)
    assert moved(kept[2][1][0], phi) > 1e-3


def test_several_attacks_take_turns_and_each_sees_its_own_adapter_alone(tmp_path: Path) -> None:
    found, ctx, model = immunise(6, tmp_path, ["lora", "ti"])
    drawn = [row["attack"] for row in ctx.rows]
    assert set(drawn) == {0, 1} and drawn[::2] == drawn[1::2]
    model.restore()
    given = batches(model, tmp_path, 6)
    theta = leaves(model.unet_tensors("attention"))
    low_rank = leaves(LowRank.attach(model, rank=2, seed=1).snapshot())
    model.restore()
    rows = Words.attach(model, token="q", initializer="m", num_vectors=2).rows.requires_grad_()
    sides = [list(low_rank.values()), [rows]]
    descend, ascend = [PaperAdamW(LR_IN), PaperAdamW(LR_IN)], PaperAdamW(LR_OUT)
    for k, batch in enumerate(given):
        i = int(drawn[k])
        tensors = theta if i else low_rank_weights(theta, low_rank)
        condition = model.text.embed(batch.captions) if i else batch.condition
        loss = denoising_loss(model, tensors, batch, condition)
        if k % 2 == 0:
            descend[i].descend(sides[i], torch.autograd.grad(loss, sides[i]))
        else:
            ascend.descend(list(theta.values()), torch.autograd.grad(-loss, list(theta.values())))
    assert_equal(found[-1][0], theta)
