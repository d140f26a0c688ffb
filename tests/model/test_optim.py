"""AdamW of the memory preset: tensors move inside the backward pass, moments take eight bits."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from immunebench.core.machine import process_peak, reset_process_peak
from immunebench.core.types import Numerics, StageError
from immunebench.model import optim
from immunebench.model.optim import AdamW, ReleasedAdamW, adamw, interleave

RELEASED = Numerics(release_gradients=True)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As the profile `cpu` has it: several wait for each other on a busy machine."""
    torch.set_num_threads(1)


def network(seed: int = 0, width: int = 32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


def regression(net: nn.Module, step: int) -> Tensor:
    """Mean squared error of a noisy linear function on a batch of its own for each step; its least is about 0.25."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 8, generator=generator)
    noise = torch.randn(32, 1, generator=generator)
    return nn.functional.mse_loss(net(x), x[:, :3].sum(1, keepdim=True) + 0.5 * noise)


def trained(
    make: Callable[[nn.Module], AdamW], steps: int, clip: float | None, width: int = 32
) -> tuple[Tensor, nn.Module]:
    net = network(width=width)
    optimiser, losses = make(net), []
    for step in range(steps):
        loss = regression(net, step)
        optimiser.step(loss, clip)
        losses.append(loss.detach())
    return torch.stack(losses), net


def of(numerics: Numerics, lr: float = 3e-3) -> Callable[[nn.Module], AdamW]:
    return lambda net: adamw(dict(net.named_parameters()), lr, 1e-2, numerics, lambda figures: None)


def values(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_released_tensors_move_as_torchs_own_adamw_moves_them() -> None:
    net = network()
    reference = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    for step in range(20):
        reference.zero_grad()
        regression(net, step).backward()
        reference.step()
    _, ours = trained(of(RELEASED), 20, None)
    assert torch.equal(values(ours), values(net))
    assert all(p.grad is None for p in ours.parameters())


def test_each_tensor_is_clipped_by_the_last_norm_or_its_own() -> None:
    """By hand, on two tensors of two values: norms 5 and 10 at first, 3 and 4 (5 together) before 0.6 and 0.8."""
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimiser = ReleasedAdamW({"a": a, "b": b}, 1e-3, 0.0, RELEASED)

    def step(ga: list[float], gb: list[float]) -> dict[str, Tensor]:
        before = [optimiser._each[p].state[p].get("exp_avg", torch.zeros(2)).clone() for p in (a, b)]
        optimiser.step((a * torch.tensor(ga)).sum() + (b * torch.tensor(gb)).sum(), clip=1.0)
        after = [optimiser._each[p].state[p]["exp_avg"] for p in (a, b)]
        return {name: (m - 0.9 * m_0) / 0.1 for name, m_0, m in zip("ab", before, after, strict=True)}

    seen = step([3.0, 4.0], [6.0, 8.0])  # each by its own norm
    torch.testing.assert_close(seen["a"], torch.tensor([0.6, 0.8]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["b"], torch.tensor([0.6, 0.8]), rtol=1e-4, atol=1e-5)
    assert optimiser.norm == pytest.approx(125**0.5)
    seen = step([0.0, 2.0], [0.0, 30.0])  # by sqrt(125), and by its own 30, which is larger
    torch.testing.assert_close(seen["a"], torch.tensor([0.0, 2.0 / 125**0.5]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["b"], torch.tensor([0.0, 1.0]), rtol=1e-4, atol=1e-5)
    step([0.0, 0.6], [0.0, 0.8])
    assert optimiser.norm == pytest.approx(1.0)
    seen = step([0.0, 0.5], [0.0, 0.5])  # below the norm of 1: not clipped
    torch.testing.assert_close(seen["a"], torch.tensor([0.0, 0.5]), rtol=1e-4, atol=1e-5)


def test_clipping_by_the_last_norm_leaves_the_loss_curve_as_it_is() -> None:
    """On losses whose gradient norms pass the clip; seeds of the data are the noise that the difference is held to."""
    usual, _ = trained(of(Numerics()), 200, 0.5)
    released, _ = trained(of(RELEASED), 200, 0.5)
    last = slice(100, None)
    assert usual[last].mean() < 0.3 * usual[:10].mean()
    noise = usual[last].std() / 100**0.5
    assert abs(released[last].mean() - usual[last].mean()) < noise


def test_step_and_backward_with_update_are_the_same_arithmetic() -> None:
    net, together = network(), network()
    optimiser, one = of(RELEASED)(net), of(RELEASED)(together)
    for step in range(5):
        optimiser.backward(regression(net, step))
        optimiser.update(1.0)
        one.step(regression(together, step), 1.0)
    assert torch.equal(values(net), values(together))
    optimiser.backward(0.5 * regression(net, 9))
    optimiser.backward(0.5 * regression(net, 9))
    optimiser.update(1.0)
    one.step(regression(together, 9), 1.0)
    torch.testing.assert_close(values(net), values(together), rtol=0, atol=1e-6)


def test_a_tensor_that_overflows_stays_with_its_moments_while_others_move() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    told: list[dict[str, float]] = []
    optimiser = ReleasedAdamW({"a": a, "b": b}, 0.1, 0.1, RELEASED, told.append)

    def step(factor: float) -> None:
        optimiser.step((a * factor).sum() + b.square().sum(), clip=1.0)

    step(float("inf"))  # before a has moments
    assert torch.equal(a, torch.ones(3)) and not optimiser._each[a].state
    assert (b < 1).all() and optimiser.skipped == 1
    step(1.0)
    kept, moved = a.detach().clone(), b.detach().clone()
    moments = {name: t.clone() for name, t in optimiser._each[a].state[a].items()}
    step(float("nan"))
    assert torch.equal(a, kept) and (b < moved).all()
    for name, value in moments.items():
        assert torch.equal(optimiser._each[a].state[a][name], value), name
    assert int(optimiser._each[b].state[b]["step"]) == 3
    step(0.0)
    assert [(t["skipped"], t["zero"]) for t in told] == [(1, 0), (0, 0), (1, 0), (0, 1)]


def test_overflow_of_everything_is_an_error_after_some_steps() -> None:
    a = nn.Parameter(torch.ones(3))
    optimiser = ReleasedAdamW({"a": a}, 0.1, 0.0, RELEASED)
    for _ in range(optim.PATIENCE - 1):
        optimiser.step((a * float("inf")).sum())
    with pytest.raises(StageError, match="no gradient was finite in 20 consecutive steps"):
        optimiser.step((a * float("inf")).sum())


@pytest.mark.parametrize(("frozen", "told"), [("float32", []), ("bfloat16", [(1, 1), (0, 2)])])
def test_half_precision_counts_what_overflowed_and_what_vanished(frozen: str, told: list[tuple[int, int]]) -> None:
    """Three tensors: one with a gradient, one with zeros, one whose gradient is infinite and then zero."""
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    figures: list[dict[str, Tensor]] = []
    optimiser = adamw({"a": a, "b": b, "c": c}, 1e-3, 0.0, Numerics(frozen_dtype=frozen), figures.append)
    for factor in (float("inf"), 0.0):
        optimiser.step(a.sum() + 0 * b.sum() + factor * c.sum(), clip=None)
    assert [(int(row["overflowed"]), int(row["zero"])) for row in figures] == told


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize(("good", "bad", "raises"), [(0, 20, True), (7, 33, True), (7, 19, False)])
def test_half_precision_gives_up_after_20_steps_in_a_row(good: int, bad: int, raises: bool, stopped: bool) -> None:
    """Looked at once in 20 steps, so found after 39 at the latest; going on in the middle changes nothing."""
    a = nn.Parameter(torch.ones(2))
    numerics = Numerics(frozen_dtype="bfloat16")
    optimiser = adamw({"a": a}, 1e-3, 0.0, numerics, lambda figures: None)

    def run() -> None:
        nonlocal optimiser
        for step in range(40):
            ends = good <= step < good + bad
            optimiser.step((float("inf") if ends else 1.0) * a.sum())
            if stopped:
                kept = optimiser.extra_state()
                optimiser = adamw({"a": a}, 1e-3, 0.0, numerics, lambda figures: None)
                optimiser.load_extra_state(*kept)

    if raises:
        with pytest.raises(StageError, match="no gradient was finite in 20 consecutive steps"):
            run()
    else:
        run()


def test_the_loss_scale_goes_out_of_the_gradient_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16 2^-26 is 0: without a scale it vanishes, with one it arrives; too large a scale halves until it fits."""
    monkeypatch.setattr(optim, "_scales", lambda numerics: True)
    a, b = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimiser = ReleasedAdamW({"a": a, "b": b}, 0.0, 0.0, RELEASED)

    def through_half(x: Tensor, factor: float) -> Tensor:
        x.register_hook(lambda g: g.half().float())
        return (x * factor).sum()

    def step() -> None:
        optimiser.step(through_half(a * 1.0, 2.0**-26) + through_half(b * 1.0, 3.0), clip=None)

    step()
    assert optimiser.skipped == 1 and optimiser.zero == 0  # 3 * 65536 is above fp16's 65504
    assert optimiser.scale == 32768
    step()
    step()
    assert optimiser.skipped == 0 and optimiser.scale == 16384
    torch.testing.assert_close(optimiser._each[a].state[a]["exp_avg"], torch.full((4,), 2.0**-26 * (1 - 0.9**3)))
    torch.testing.assert_close(optimiser._each[b].state[b]["exp_avg"], torch.full((4,), 3.0 * 0.1))
    monkeypatch.setattr(optim, "GROWTH_INTERVAL", 2)
    step()
    assert optimiser.scale == 32768


def test_two_optimisers_of_one_tensor_take_turns() -> None:
    """As IMMA's do: the one's step must not be the other's as well."""
    a = nn.Parameter(torch.ones(3))
    down, up = (ReleasedAdamW({"a": a}, 0.1, 0.0, RELEASED) for _ in range(2))
    down.step(a.sum(), None)
    assert not up._each[a].state
    torch.testing.assert_close(a.detach(), torch.full((3,), 0.9))
    up.step(-a.sum(), None)
    torch.testing.assert_close(a.detach(), torch.ones(3))
    assert int(down._each[a].state[a]["step"]) == int(up._each[a].state[a]["step"]) == 1


def test_rates_and_forgetting_reach_every_tensor() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimiser = ReleasedAdamW({"a": a, "b": b}, 0.5, 0.0, RELEASED)
    optimiser.set_lr_factor(0.5)
    optimiser.step(a.sum() - b.sum(), None)
    torch.testing.assert_close([a.item(), b.item()], [0.75, 1.25])
    optimiser.reset_moments()
    assert optimiser.norm == 0 and not any(o.state for o in optimiser._each.values())


def test_two_losses_through_one_network_never_hold_a_whole_gradient() -> None:
    """Sixteen matrices of 16 MiB: kept gradients are 256 MiB; released ones of two passes at most a few of them."""
    weights = [nn.Parameter(torch.full((2048, 2048), 1e-3)) for _ in range(16)]
    named = {str(i): w for i, w in enumerate(weights)}

    def loss(seed: int) -> Tensor:
        x = torch.full((1, 2048), float(seed))
        for w in weights:
            x = torch.tanh(x @ w)
        return x.square().mean()

    def peak(numerics: Numerics) -> float:
        optimiser = adamw(named, 1e-6, 0.0, numerics, lambda figures: None)
        for _ in range(2):  # the second step: moments are there
            total = loss(1) + 0.5 * loss(2)
            reset_process_peak()
            before = process_peak()
            optimiser.step(total, None)
        return (process_peak() - before) / 2**20

    released, usual = peak(RELEASED), peak(Numerics())
    # The allocator may find part of either in what earlier tests freed.
    assert released < 0.75 * usual


def test_interleaving_leaves_the_gradient_as_it_is() -> None:
    def gradient(together: bool) -> Tensor:
        net = network()
        loss = regression(net, 1) - 0.5 * regression(net, 2)
        if together:
            interleave(loss)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    assert torch.equal(gradient(True), gradient(False))


def test_eight_bit_moments_follow_torchs_adamw() -> None:
    """The first step sees exact moments; later ones the loss curve of fp32 within its own noise."""
    eight = Numerics(optimiser_state="8bit", release_gradients=True)
    (_, ours), (_, exact) = trained(of(eight), 1, None, 128), trained(of(Numerics()), 1, None, 128)
    torch.testing.assert_close(values(ours), values(exact), rtol=0, atol=1e-7)
    quantised, net = trained(of(eight), 150, None, 128)
    usual, _ = trained(of(Numerics()), 150, None, 128)
    last = slice(75, None)
    assert usual[last].mean() < 0.3 * usual[:10].mean()
    assert abs(quantised[last].mean() - usual[last].mean()) < usual[last].std() / 75**0.5
    optimiser = of(eight)(net)
    optimiser.step(regression(net, 0))
    large = next(p for p in net.parameters() if p.numel() >= 128 * 128)
    state = optimiser._each[large].state[large]  # type: ignore[attr-defined]
    kept = sum(t.nbytes for n, t in state.items() if isinstance(t, Tensor) and not n.startswith("qmap"))
    assert kept < 2.1 * large.numel()


def test_eight_bit_moments_survive_an_overflow() -> None:
    net = network(width=128)
    optimiser = of(Numerics(optimiser_state="8bit", release_gradients=True))(net)
    optimiser.step(regression(net, 0))
    before = values(net)
    optimiser.step(regression(net, 1) * float("inf"))
    assert torch.equal(values(net), before)
    optimiser.step(regression(net, 2))
    assert torch.isfinite(values(net)).all() and not torch.equal(values(net), before)


def test_eight_bit_moments_are_those_of_the_library_without_its_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    ours, theirs = network(width=128), network(width=128)
    waits: list[object] = []
    monkeypatch.setattr(bitsandbytes.optim.optimizer, "sync_gpu", waits.append)
    for net, make in ((ours, optim._maker(Numerics(optimiser_state="8bit"))), (theirs, bitsandbytes.optim.AdamW8bit)):
        before = len(waits)
        optimiser = make(list(net.parameters()), lr=1e-2, weight_decay=1e-2)
        for step in range(3):
            regression(net, step).backward()
            optimiser.step()
            optimiser.zero_grad()
        assert (len(waits) > before) == (net is theirs)
    assert torch.equal(values(ours), values(theirs))


def test_missing_or_unknown_moments_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match="'4bit' is not supported; float32 or 8bit"):
        of(Numerics(optimiser_state="4bit"))(network())
    monkeypatch.setattr(optim.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StageError, match=r"needs bitsandbytes: pip install 'immunebench\[low-memory\]'"):
        of(Numerics(optimiser_state="8bit"))(network())


@pytest.mark.parametrize(
    "numerics",
    [Numerics(), RELEASED, Numerics(optimiser_state="8bit"), Numerics(optimiser_state="8bit", release_gradients=True)],
    ids=["usual", "released", "8bit", "8bit-released"],
)
def test_an_optimiser_goes_on_from_what_a_bookmark_keeps(numerics: Numerics) -> None:
    """Wide enough for moments in eight bits; a bookmark is tensors and what JSON holds."""
    make, width = of(numerics), 96
    straight = network(width=width)
    whole = make(straight)
    for step in range(6):
        whole.set_lr_factor(1 - step / 10)
        whole.step(regression(straight, step))

    stopped = network(width=width)
    first = make(stopped)
    for step in range(3):
        first.set_lr_factor(1 - step / 10)
        first.step(regression(stopped, step))
    tensors, value = first.extra_state()
    again = network(seed=1, width=width)
    second = make(again)
    with torch.no_grad():
        for name, p in second.state_tensors().items():
            p.copy_(first.state_tensors()[name])
    second.load_extra_state({name: t.clone() for name, t in tensors.items()}, json.loads(json.dumps(value)))
    second.step(regression(again, 3))
    # At the rate of the step before, which is part of what is kept.
    first.step(regression(stopped, 3))
    assert torch.equal(values(again), values(stopped))
    for step in (4, 5):
        for optimiser, net in ((first, stopped), (second, again)):
            optimiser.set_lr_factor(1 - step / 10)
            optimiser.step(regression(net, step))
    assert torch.equal(values(again), values(stopped))
    assert not torch.equal(values(straight), values(stopped)), "the fourth step had another rate"
