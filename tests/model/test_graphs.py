"""Recorded passes: the same bits as without them, whatever a method does with the loss; nothing read back inside."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from immunebench.core.types import Numerics
from immunebench.declared.architecture import SHAPES
from immunebench.methods.adapters import Adapter, Dense, LowRank, Words
from immunebench.methods.context import Context
from immunebench.methods.surrogate import watched
from immunebench.model import graphs, runtime
from immunebench.model.batch import Batch
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.graphs import FIRST, Graphs
from immunebench.model.runtime import training
from immunebench.model.shapes import build
from tape import Tapes
from tiny import tiny_folder, tiny_pictures

HALF: dict[str, Any] = {"resolution": 32, "sampling_steps": 4, "batch": 2, "frozen_dtype": "bfloat16", "masters": True}
TRAINED: dict[str, Callable[[LatentDiffusion], Adapter]] = {
    "low-rank": lambda model: LowRank.attach(model, rank=2, seed=0),
    "networks": lambda model: Dense.attach(model),
    "words": lambda model: Words.attach(model, token="sks", initializer="a"),
}
STEPS = FIRST + 3


def loaded(tapes: Tapes | None, **changes: Any) -> LatentDiffusion:
    """The tiny model in half precision, whose passes are recorded on tapes if there are any."""
    numerics = Numerics(**{**HALF, **changes})
    runtime.prepare_process(numerics)
    model = LatentDiffusion.load(tiny_folder(), numerics)
    if tapes is not None:
        model._half_network().graphs = Graphs(tapes)
    return model


def replays(model: LatentDiffusion) -> int:
    recorded = model._half_network().graphs
    return 0 if recorded is None else recorded.replays


def trained(model: LatentDiffusion, name: str, out: Path, *, losses: int = 1) -> list[Tensor]:
    """Losses of some steps, and the weights after them; of several losses a step the sum is descended."""
    ctx = Context(model.numerics, 0, out, lambda *_: None, token="sks", noun="a")
    data = model.prepare(tiny_pictures(3))
    phi = TRAINED[name](model)
    optimiser, found = ctx.adamw(phi.parameters, lr=1e-3), []
    for step, batch in ctx.steps(STEPS, model, data, batch=2):
        with training(phi.parameters):
            parts = [model.loss(batch)]
            parts += [model.loss(model.draw(data, [i], ctx.generator)) for i in range(losses - 1)]
            optimiser.step(torch.stack(parts).sum() if losses > 1 else parts[0])
        found += [part.detach() for part in parts]
        ctx.log(step, loss=parts[0])
    return [*found, *(p.detach().clone() for p in phi.parameters.values())]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", TRAINED)
def test_training_from_recordings_has_the_bits_of_training_without(name: str, tmp_path: Path) -> None:
    tapes = Tapes()
    recorded = loaded(tapes)
    assert same(trained(recorded, name, tmp_path), trained(loaded(None), name, tmp_path))
    assert replays(recorded) == STEPS - FIRST
    assert len(tapes.tapes) == 2  # forward and backward


def test_two_losses_of_one_step_have_a_recording_each(tmp_path: Path) -> None:
    """Batches of two and one picture; then two of equal form, which must not share the memory of their activations."""
    tapes = Tapes()
    recorded = loaded(tapes)
    assert same(
        trained(recorded, "networks", tmp_path, losses=2), trained(loaded(None), "networks", tmp_path, losses=2)
    )
    assert len(tapes.tapes) == 4
    tapes = Tapes()
    recorded = loaded(tapes)
    got, wanted = (trained(m, "low-rank", tmp_path, losses=3) for m in (recorded, loaded(None)))
    assert same(got, wanted)
    assert len(tapes.tapes) == 6
    found = recorded._half_network().graphs
    assert found is not None and all(not r.under_way for mine in found._recorded.values() for r in mine)


def test_alternating_what_is_trained_and_changing_it_by_hand(tmp_path: Path) -> None:
    """As IMMA does: an attacker's and a publisher's step in turn, the attacker's weights taken back in between."""

    def alternated(model: LatentDiffusion) -> list[Tensor]:
        ctx = Context(model.numerics, 0, tmp_path, lambda *_: None)
        data = model.prepare(tiny_pictures(3))
        phi = LowRank.attach(model, rank=2, seed=0)
        theta = model.trainable(model.unet_tensors("attention"))
        before = phi.snapshot()
        descend, ascend = ctx.adamw(phi.parameters, lr=1e-2), ctx.adamw(theta, lr=1e-3)
        found = []
        for step, batch in ctx.steps(2 * STEPS, model, data, batch=2):
            with training(theta if step % 2 else phi.parameters):
                loss = model.loss(batch)
                (ascend if step % 2 else descend).step(-loss if step % 2 else loss)
            found.append(loss.detach())
            if step % 4 == 3:
                phi.reset(before)
        phi.enable(False)
        with torch.no_grad():
            found.append(model.loss(batch))
        return [*found, *(p.detach() for p in theta.values())]

    recorded = loaded(Tapes())
    got, wanted = alternated(recorded), alternated(loaded(None))
    assert same(got, wanted)
    assert replays(recorded) == 2 * (STEPS - FIRST)
    assert not torch.equal(got[1], got[3])


def test_sampling_and_gradients_of_pictures_from_recordings() -> None:
    def found(model: LatentDiffusion) -> list[Tensor]:
        drawn = model.sample(["a picture", "a dog"], [3, 4])
        data = model.prepare(tiny_pictures(2))
        gradients = []
        for seed in range(STEPS):
            batch = model.draw(data, [0, 1], torch.Generator().manual_seed(seed))
            z = batch.latents.clone().requires_grad_()
            loss = model.losses(Batch(z, batch.condition, batch.noise, batch.timesteps)).sum()
            torch.autograd.backward(loss)
            assert z.grad is not None
            gradients.append(z.grad)
        return [torch.from_numpy(drawn.pixels), *gradients]

    recorded = loaded(Tapes())
    got, wanted = found(recorded), found(loaded(None))
    assert same(got, wanted)
    assert replays(recorded) == (4 - FIRST) + (STEPS - FIRST)
    assert len({g.sum().item() for g in got[1:]}) == STEPS  # No gradient is the memory of another.


def test_what_cannot_be_recorded_runs_as_usual(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = trained(loaded(None), "low-rank", tmp_path)
    refusing = Tapes(refuses=True)
    with caplog.at_level(logging.WARNING):
        assert same(trained(loaded(refusing), "low-rank", tmp_path), wanted)
    assert refusing.gave_up == 1
    assert "not permitted when stream is capturing" in caplog.text
    tapes = Tapes()
    model = loaded(tapes)
    with watched([model.unet.conv_out]) as seen:
        assert same(trained(model, "low-rank", tmp_path), wanted)
    assert len(seen) == STEPS and not tapes.tapes
    assert same(trained(loaded(tapes, checkpointing=True), "low-rank", tmp_path), wanted)
    assert not tapes.tapes


def test_a_second_backward_pass_is_an_error_and_no_wrong_gradient() -> None:
    model = loaded(Tapes())
    data = model.prepare(tiny_pictures(1))
    phi = LowRank.attach(model, rank=2, seed=0)
    with training(phi.parameters):
        for seed in range(STEPS):
            loss = model.loss(model.draw(data, [0], torch.Generator().manual_seed(seed)))
        torch.autograd.backward(loss, retain_graph=True)
        with pytest.raises(RuntimeError, match=graphs.VARIABLE):
            torch.autograd.backward(loss)


@pytest.mark.slow
def test_a_recorded_pass_reads_nothing_back_and_uploads_nothing() -> None:
    """All operations of SD 1.4 on another device than the host; `Tapes` refuses what CUDA does."""
    model = build(SHAPES["sd14-narrow"], Numerics(**{**HALF, "resolution": 64, "attention": "sdpa"}))
    tapes = Tapes()
    model._half_network().graphs = Graphs(tapes)
    phi = TRAINED["low-rank"](model)
    model.unet.to("meta")
    model._weights_changed()
    z = torch.zeros(1, 4, 8, 8, device="meta")
    condition = torch.zeros(1, 77, model.text.width, device="meta")
    batch = Batch(z, condition, z, torch.zeros(1, dtype=torch.int64, device="meta"))
    for _ in range(FIRST + 1):
        with training(phi.parameters):
            torch.autograd.backward(model.loss(batch))
    assert replays(model) == 1
    forward, backward = (len([c for c in tape.calls if not c[0].is_view]) for tape in tapes.tapes)
    assert forward > 600 and backward > 600


def test_graphs_are_for_a_gpu_and_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(graphs.VARIABLE, raising=False)
    assert graphs.graphs(torch.device("cuda")) is None
    monkeypatch.setenv(graphs.VARIABLE, "1")
    assert graphs.graphs(torch.device("cpu")) is None
    made = graphs.graphs(torch.device("cuda"))
    assert made is not None and isinstance(made.recorder, graphs.CudaGraphs)
