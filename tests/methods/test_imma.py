"""IMMA against plain PyTorch: the published equations, without adapters, wrappers or engine loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from exact import Exact, PaperAdamW, assert_equal, copied, denoising_loss, exact_model, low_rank_weights, moved
from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Concept, Params, Pictures, StageError
from immunebench.methods.adapters import Adapter, Dense, LowRank, Words
from immunebench.methods.context import Context
from immunebench.methods.unrolled import unrolled
from immunebench.model.batch import Batch
from tiny import tiny_context, tiny_pictures

LR_IN, LR_OUT, SEED = 1e-2, 1e-3, 3
Values = dict[str, Tensor]
#: theta_S and the phi of each attack.
State = tuple[Values, list[Values]]
#: L(theta_S, phi; batch).
Loss = Callable[[Values, Values, Batch], Tensor]
PARAMS = {
    "tensors": "attention", "inner": True, "inner_reset": "never", "phase": "global", "batch": 4,
    "inner_steps": 1, "unroll": 0, "lr_in": LR_IN, "lr_out": LR_OUT, "retain": 0.0, "clip": 1.0,
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
    loss: Loss, given: list[Batch], phi: Values, theta: Values, *, clip: float | None, inner_steps: int = 1
) -> list[State]:
    """phi <- phi - lr_in dL/dphi, `inner_steps` times, then theta_S <- theta_S + lr_out dL/dtheta_S."""
    descend = (list(phi.values()), PaperAdamW(LR_IN, clip=clip), 1)
    ascend = (list(theta.values()), PaperAdamW(LR_OUT, clip=clip), -1)
    states: list[State] = []
    for k, batch in enumerate(given):
        tensors, optimiser, sign = descend if k % (inner_steps + 1) < inner_steps else ascend
        gradients = torch.autograd.grad(sign * loss(theta, phi, batch), tensors, allow_unused=True)
        optimiser.descend(tensors, gradients)
        states.append((copied(theta), [copied(phi)]))
    return states


def problem(attack: str, model: Exact) -> tuple[Values, Values, Loss]:
    """theta_S, phi and L(theta_S, phi; batch) of an attack, without adapters."""
    theta = leaves(model.unet_tensors("attention"))
    if attack == "lora":
        phi = leaves(LowRank.attach(model, rank=2, seed=1).snapshot())
        model.restore()
        return theta, phi, lambda t, p, batch: denoising_loss(model, low_rank_weights(t, p), batch, batch.condition)
    if attack == "dreambooth":
        # phi is the whole network: theta_S are the same leaves, with a second pair of moments.
        phi = {name: theta.get(name, t) for name, t in leaves(model.unet_tensors("all")).items()}
        return theta, phi, lambda t, p, batch: denoising_loss(model, p, batch, batch.condition)
    encoder = model.text.encoder
    (name,) = (n for n, _ in encoder.named_parameters() if "token_embedding" in n)
    table = encoder.get_input_embeddings().weight.detach()
    ids = model.text.tokens(["a m"])
    phi = leaves({"q": table[ids[0, 2]].float().repeat(2, 1)})
    # "a q" with two vectors: begin, a, v1, v2, then ends; v1 and v2 are the rows above the table.
    ids[0, 2:4] = torch.tensor([len(table), len(table) + 1])

    def loss(t: Values, p: Values, batch: Batch) -> Tensor:
        rows = torch.cat([table, p["q"].double()])
        embedded: Tensor = functional_call(encoder, {name: rows}, (ids,))[0]
        return denoising_loss(model, t, batch, embedded.float().expand(4, -1, -1))

    return theta, phi, loss


@pytest.mark.parametrize(("attack", "clip"), [("lora", 1.0), ("dreambooth", 1.0), ("ti", 0.0)])
def test_the_first_updates_are_those_of_the_published_equations(tmp_path: Path, attack: str, clip: float) -> None:
    found, _, model = immunise(4, tmp_path, [attack], clip=clip)
    model.restore()
    start = copied(model.unet_tensors("attention"))
    theta_s, phi_s, loss = problem(attack, model)
    expected = alternate(loss, batches(model, tmp_path, 4), phi_s, theta_s, clip=clip or None)
    for (theta, (phi,)), (own_theta, (own_phi,)) in zip(found, expected, strict=True):
        assert_equal(theta, own_theta)
        assert_equal(phi, own_phi)
    # Where phi holds theta_S, descent moves it too: DreamBooth's first step already.
    assert (moved(found[0][0], start) > 0) == (attack == "dreambooth")
    assert moved(found[1][0], found[0][0]) > LR_OUT / 2


def test_the_attacker_takes_several_steps_to_one_of_the_publisher(tmp_path: Path) -> None:
    found, _, model = immunise(6, tmp_path, ["lora"], inner_steps=2)
    model.restore()
    theta, phi, loss = problem("lora", model)
    expected = alternate(loss, batches(model, tmp_path, 6), phi, theta, clip=1.0, inner_steps=2)
    for (own_theta, (own_phi,)), (other_theta, (other_phi,)) in zip(found, expected, strict=True):
        assert_equal(own_theta, other_theta)
        assert_equal(own_phi, other_phi)
    ascended = [moved(after[0], before[0]) > 0 for before, after in itertools.pairwise(found)]
    assert ascended == [False, True, False, False, True]


def further(
    loss: Loss,
    theta: Values,
    phi: Values,
    ahead: list[Batch],
    moments: list[tuple[Tensor, Tensor]],
    t: int,
    clip: float,
) -> Values:
    """phi after one AdamW step a batch as a function of theta, by Loshchilov & Hutter 2019, algorithm 2."""
    for batch in ahead:
        t += 1
        gradients = torch.autograd.grad(loss(theta, phi, batch), list(phi.values()), create_graph=True)
        norm = torch.cat([g.flatten().double() for g in gradients]).norm()
        scale = torch.minimum(torch.ones(()), clip / (norm + 1e-6)) if clip else 1.0
        moments = [
            (0.9 * m + 0.1 * scale * g, 0.999 * v + 0.001 * (scale * g) ** 2)
            for (m, v), g in zip(moments, gradients, strict=True)
        ]
        phi = {
            name: (1 - LR_IN * 1e-2) * p - LR_IN * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            for (name, p), (m, v) in zip(phi.items(), moments, strict=True)
        }
    return phi


@pytest.mark.parametrize(("attack", "clip"), [("lora", 1.0), ("dreambooth", 0.05), ("ti", 0.0)])
def test_an_unrolled_ascent_follows_the_gradient_through_the_attacker_s_steps(
    tmp_path: Path, attack: str, clip: float
) -> None:
    """Two descents and one ascent, which is differentiated through two further steps that are then taken back."""
    found, _, model = immunise(3, tmp_path, [attack], inner_steps=2, unroll=2, clip=clip)
    first_order, _, _ = immunise(3, tmp_path, [attack], inner_steps=2, clip=clip)
    model.restore()
    ctx = tiny_context(model, tmp_path, seed=SEED)
    x, own, other = model.prepare(owner()), ctx.orders(8, 4), ctx.orders(8, 4)
    given = [model.draw(x, next(own), ctx.generator) for _ in range(3)]
    ahead = [model.draw(x, next(other), ctx.generator) for _ in range(2)]
    # The entry draws the batch of the ascent before those of the steps ahead.
    theta, phi, loss = problem(attack, model)
    descend = PaperAdamW(LR_IN, clip=clip or None)
    with sdpa_kernel(SDPBackend.MATH):  # The text encoder's attention has no second derivative otherwise.
        for batch in given[:2]:
            descend.descend(list(phi.values()), torch.autograd.grad(loss(theta, phi, batch), list(phi.values())))
        reached = further(loss, theta, phi, ahead, descend.moments, descend.t, clip)
        gradients = torch.autograd.grad(-loss(theta, reached, given[2]), list(theta.values()))
    kept = copied(phi) if attack != "dreambooth" else {}
    PaperAdamW(LR_OUT, clip=clip or None).descend(list(theta.values()), gradients)
    assert_equal(found[-1][0], theta)
    assert_equal(found[-1][1][0], kept or copied(phi))
    assert moved(found[-1][0], first_order[-1][0]) > LR_OUT / 2


def test_unrolling_begins_at_an_adapter_whose_one_half_is_zero(tmp_path: Path) -> None:
    """B = 0 gives A gradients and moments of exactly 0, where a root has no derivative."""
    found, _, _ = immunise(2, tmp_path, ["lora"], inner=False, unroll=1)
    assert all(torch.isfinite(t).all() for t in found[-1][0].values())


def test_half_precision_is_no_place_to_unroll() -> None:
    phi: Any = SimpleNamespace(model=SimpleNamespace(dtype=torch.float16))
    batch: Any = None
    with pytest.raises(StageError, match=r"float32 only, not torch\.float16"), unrolled(phi, batch, [batch], 1.0):
        pass


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
