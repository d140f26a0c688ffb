"""Half precision with fp32 masters: autocast's numbers to rounding, without its casts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Numerics, Weights
from immunebench.declared.profile import Profile
from immunebench.methods.adapters import Dense, LowRank, Words
from immunebench.methods.context import Context
from immunebench.model import optim, runtime
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.runtime import training
from tiny import tiny_folder, tiny_pictures, tiny_xl_base

CATALOG = load_catalog()
TRAINED: dict[str, Any] = {
    "low-rank": lambda model: LowRank.attach(model, rank=2, seed=0),
    "networks": lambda model: Dense.attach(model),
    "networks with text": lambda model: Dense.attach(model, text=True),
    "words": lambda model: Words.attach(model, token="sks", initializer="a"),
}
#: Half the distance between neighbouring values, relative: what one rounding can change.
ROUNDING = {"bfloat16": 2.0**-9, "float16": 2.0**-12}


class Count(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def loaded(**changes: Any) -> LatentDiffusion:
    numerics = Numerics(**{"resolution": 32, "sampling_steps": 2, "batch": 2, "masters": True, **changes})
    runtime.prepare_process(numerics)
    return LatentDiffusion.load(tiny_folder(), numerics)


def trained(model: LatentDiffusion, name: str, out: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of four steps, the first gradient as one vector, and what was trained."""
    ctx = Context(model.numerics, 0, out, lambda *_: None, token="sks", noun="a")
    data = model.prepare(tiny_pictures(3))
    phi = TRAINED[name](model)
    own = phi.parameters
    optimiser, losses, first = ctx.adamw(own, lr=1e-3), [], torch.empty(0)
    for step, batch in ctx.steps(4, model, data, batch=2):
        with training(own):
            loss = model.loss(batch)
            optimiser.backward(loss)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in own.values()]
            assert {g.dtype for g in gradients} == {torch.float32}
            first = first if step else torch.cat([g.flatten() for g in gradients])
            optimiser.update()
        losses.append(loss.detach())
    return torch.stack(losses), first, torch.cat([p.detach().flatten() for p in own.values()])


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", TRAINED)
def test_masters_train_as_autocast_does(name: str, dtype: str, tmp_path: Path) -> None:
    """The same roundings of the same weights, in another order of sums at most.

    So losses lie within a few roundings of each other, and gradients lie as near as they lie to fp32's.
    """
    exact, ours, theirs = (
        trained(loaded(**changes), name, tmp_path)
        for changes in ({}, {"frozen_dtype": dtype}, {"frozen_dtype": dtype, "masters": False})
    )
    torch.testing.assert_close(ours[0], theirs[0], rtol=4 * ROUNDING[dtype], atol=0)
    noise = (theirs[1] - exact[1]).norm()
    assert 0 < noise < 0.2 * exact[1].norm()
    assert (ours[1] - exact[1]).norm() < 2 * noise
    assert ours[2].dtype is torch.float32
    assert not torch.equal(ours[2], ours[2].to(getattr(torch, dtype)).float())


def test_only_inputs_are_cast_and_weights_are_copied_together(tmp_path: Path) -> None:
    calls = {}
    for masters in (False, True):
        model = loaded(frozen_dtype="bfloat16", masters=masters)
        phi = Dense.attach(model)
        batch = model.draw(model.prepare(tiny_pictures(2)), [0, 1], torch.Generator().manual_seed(0))
        with Count() as count, training(phi.parameters):
            torch.autograd.backward(model.loss(batch))
        calls[masters] = count.calls
    trained_tensors, groups = len(phi.parameters), -(-len(phi.parameters) // 64)
    assert calls[False]["aten::_to_copy"] > trained_tensors
    assert calls[True]["aten::_to_copy"] < 10
    assert calls[True]["aten::_foreach_copy_"] == 1 + groups


def test_the_network_of_two_encoders_has_its_sizes_in_full_precision(tmp_path: Path) -> None:
    folder = tiny_xl_base(tmp_path)
    found = []
    for changes in ({"frozen_dtype": "bfloat16"}, {"frozen_dtype": "bfloat16", "masters": True}):
        numerics = Numerics(resolution=32, batch=2, **changes)
        runtime.prepare_process(numerics)
        model = LatentDiffusion.load(folder, numerics)
        phi = Dense.attach(model)
        batch = model.draw(model.prepare(tiny_pictures(2)), [0, 1], torch.Generator().manual_seed(0))
        with training(phi.parameters):
            found.append(model.loss(batch))
            torch.autograd.backward(found[-1])
        assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in phi.parameters.values())
    torch.testing.assert_close(found[1], found[0], rtol=4 * ROUNDING["bfloat16"], atol=0)


def test_copies_follow_every_change_and_only_changes() -> None:
    model = loaded(frozen_dtype="bfloat16")
    phi = Dense.attach(model)
    first = phi.snapshot()
    batch = model.draw(model.prepare(tiny_pictures(1)), [0], torch.Generator().manual_seed(0))

    @torch.no_grad()
    def loss() -> tuple[float, int]:
        with Count() as count:
            found = model.loss(batch)
        return found.item(), count.calls["aten::_foreach_copy_"]

    start, copied = loss()
    assert copied == 1
    assert loss() == (start, 0)
    name, p = next(iter(phi.parameters.items()))
    model.apply(Weights({name: p.detach() + 0.5}))
    changed, copied = loss()
    assert copied == 1 and changed != start
    phi.reset(first)
    assert loss() == (start, 1)
    LowRank.attach(model, rank=2, seed=0)  # changes modules; B is 0
    assert loss() == (pytest.approx(start, rel=ROUNDING["bfloat16"]), 1)
    other = model.frozen_copy()
    model.restore()
    assert model.loss(batch).item() == start
    assert other.loss(batch).item() == pytest.approx(start, rel=ROUNDING["bfloat16"])


def test_optimisers_whose_kernels_no_version_counter_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = trained(loaded(frozen_dtype="bfloat16"), "networks", tmp_path)
    monkeypatch.setattr(optim, "_maker", lambda _: lambda p, **options: torch.optim.AdamW(p, fused=True, **options))
    fused = trained(loaded(frozen_dtype="bfloat16"), "networks", tmp_path)
    torch.testing.assert_close(fused[0], usual[0], rtol=ROUNDING["bfloat16"], atol=0)
    assert len(set(fused[0].tolist())) == 4


def test_recomputed_blocks_have_the_same_copies(tmp_path: Path) -> None:
    kept, again = (
        trained(loaded(frozen_dtype="bfloat16", checkpointing=c), "networks", tmp_path) for c in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_a_gpu_has_a_fused_optimiser_and_resumes_its_count_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss scale of a fused optimiser stays on the device: nothing is read back at each step."""
    p = torch.nn.Parameter(torch.ones(3))
    made = optim._maker(Numerics(device="cuda", frozen_dtype="float16"))([p], lr=1e-2)
    assert made.param_groups[0]["fused"] and made._step_supports_amp_scaling
    p.grad = torch.ones(3)
    made.step()
    tensors, numbers = optim._state(made, [p])
    kept = {name: t.clone() for name, t in tensors.items()}
    after = optim._maker(Numerics(device="cuda", frozen_dtype="float16"))([p], lr=1e-2)
    optim._restore(after, [p], kept, numbers)
    assert after.state[p]["step"].item() == 1
    made.step()
    after.step()
    assert torch.equal(after.state[p]["exp_avg"], made.state[p]["exp_avg"])


def test_speed_presets_have_masters_and_memory_presets_have_not() -> None:
    for name, profile in CATALOG.profiles.items():
        assert profile.masters == (profile.device == "cuda" and not profile.release_gradients), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"frozen_dtype": "float32"}, "frozen_dtype"), ({"release_gradients": True}, "release_gradients")],
)
def test_masters_where_they_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    table = CATALOG.profiles["a100-40g"].model_dump()
    with pytest.raises(ValidationError, match=f"masters: .*{words}"):
        Profile.model_validate({**table, **changes})
