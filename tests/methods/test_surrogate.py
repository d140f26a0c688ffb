"""Defenses that perturb pictures against a model in training: Anti-DreamBooth, SimAC, MetaCloak."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from exact import Exact, PaperAdamW, assert_equal, copied, denoising_loss, exact_model, moved
from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Params, Pictures, StageError
from immunebench.methods.perturb import Draws
from immunebench.methods.surrogate import Surrogate, watched
from immunebench.model.batch import Batch
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.runtime import derive_seed
from simulated import DREAMBOOTH, PARAMS, DreamBooth, context, owner, protect, published
from tiny import tiny_model, tiny_pictures

ENTRIES = list(PARAMS)


class Double(Exact):
    """In double precision from the pixels on."""

    def latents(self, images: Tensor) -> Tensor:
        return latent(self, images.double())


@functools.cache
def _double_model() -> Exact:
    model = exact_model(Double)
    model.vae.double()
    return model


def double_model() -> Exact:
    """Return the model in double precision in its untouched state."""
    model = _double_model()
    model.noise_scheduler.register_to_config(prediction_type="epsilon")
    model.restore()
    return model


def code(entry: str) -> ModuleType:
    function = load_catalog().defense(entry).layers[0].function("protect_images")
    return sys.modules[function.__module__]


def leaves(model: LatentDiffusion) -> dict[str, Tensor]:
    return {name: t.detach().clone().requires_grad_() for name, t in model.unet_tensors("all").items()}


def latent(model: LatentDiffusion, x: Tensor) -> Tensor:
    moments: Tensor = model.vae.quant_conv(model.vae.encoder(x))
    return moments[:, :4] * 0.5


def test_aspl_is_the_published_alternation(tmp_path: Path) -> None:
    """Two rounds in plain PyTorch: f' takes N_s steps on A, PGD ascends against f', f takes N_s steps on B."""
    model = double_model()
    found = protect("anti-dreambooth", model, context(model, tmp_path), published(), train_steps=2)
    theta = copied(model.unet_tensors("all"))

    model = double_model()
    ctx = context(model, tmp_path)
    prior = ctx.prior_batches(model, 1)
    clean = torch.from_numpy(published().pixels).permute(0, 3, 1, 2).double() / 127.5 - 1
    x, c = clean.clone(), model.condition(["a q"]).double()
    streams = [torch.Generator().manual_seed(derive_seed(ctx.seed_of("noise"), "draw", i)) for i in range(3)]
    f = leaves(model)

    def trained(tensors: dict[str, Tensor], pictures: Pictures) -> dict[str, Tensor]:
        tensors = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
        descend, data = PaperAdamW(DREAMBOOTH["lr"]), model.prepare(pictures)
        orders = ctx.orders(3, 2)
        for _ in range(2):
            batch, kept = model.draw(data, next(orders), ctx.generator), next(prior)
            loss = denoising_loss(model, tensors, batch, batch.condition)
            loss = loss + 0.5 * denoising_loss(model, tensors, kept, kept.condition)
            descend.descend(list(tensors.values()), torch.autograd.grad(loss, list(tensors.values())))
        return tensors

    for k in range(2):
        dashed = trained(f, owner())
        for _ in range(2):
            x = x.requires_grad_()
            t = torch.stack([torch.randint(1000, (), generator=g) for g in streams])
            noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in streams]).double()
            loss = denoising_loss(model, dashed, Batch(latent(model, x), c, noise, t), c.expand(3, -1, -1))
            (gradient,) = torch.autograd.grad(loss, x)
            x = x.detach() + 3 / 127.5 * gradient.sign()
            x = (clean + (x - clean).clamp(-4 / 127.5, 4 / 127.5)).clamp(-1, 1)
        pixels = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        f = trained(f, Pictures(pixels, published().captions)) if k == 0 else f
    np.testing.assert_array_equal(found.pixels, pixels)
    assert_equal(theta, f)
    assert moved(theta, leaves(double_model())) > DREAMBOOTH["lr"] / 2


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_manifest_defines_what_the_code_reads(entry: str) -> None:
    found = {base: load_catalog().defense(entry).params(base) for base in ("mini", "sd14")}
    assert set(found["mini"]) == set(found["sd14"]) == {*PARAMS[entry], "against"}
    # The published rate, and on the embedded base that of the simulated attack.
    assert (found["sd14"]["lr"], found["mini"]["lr"]) == (5e-7, 0)


@pytest.mark.parametrize("entry", ENTRIES)
def test_pictures_keep_the_budget_and_use_it(tmp_path: Path, entry: str) -> None:
    model = tiny_model()
    protected = protect(entry, model, context(model, tmp_path), published())
    change = protected.pixels.astype(int) - published().pixels
    assert abs(change).max() == 4
    assert protected.captions == published().captions


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_surrogate_learns_from_the_owners_and_the_perturbed_pictures_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    model, learned = tiny_model(), []
    train = Surrogate.train
    monkeypatch.setattr(Surrogate, "train", lambda f, given, steps: (learned.append(given), train(f, given, steps))[1])
    protect(entry, model, context(model, tmp_path), published())
    own = [given for given in learned if np.array_equal(given.pixels, owner().pixels)]
    perturbed = [given for given in learned if not any(given is other for other in own)]
    assert len(own) >= 1 and len(perturbed) >= 1
    for given in perturbed:
        change = abs(given.pixels.astype(int) - published().pixels)
        assert 0 < change.max() <= 4
        assert all(picture.any() for picture in change)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_picture_does_not_depend_on_its_neighbours(tmp_path: Path, entry: str) -> None:
    """Where the surrogate is not trained on the pictures themselves, nothing else may tie them together."""
    alone = {"anti-dreambooth": {"rounds": 1}, "simac": {"rounds": 1}, "metacloak": {"advance": 0}}[entry]
    results = []
    for count in (1, 3):
        model = double_model()
        results.append(protect(entry, model, context(model, tmp_path), published(count), **alone))
    np.testing.assert_array_equal(results[0].pixels[0], results[1].pixels[0])
    assert (results[1].pixels[1] != published().pixels[1]).any()


def test_weights_in_bfloat16_hardly_move_at_the_reference_s_rate(tmp_path: Path) -> None:
    """Above 2^-11 half a unit in the last of bfloat16's 8 places exceeds a step of 5e-7."""
    after = {}
    for weights in ("float32", "bfloat16"):
        model = tiny_model()
        f = Surrogate(model, DreamBooth(), context(model, tmp_path), lr=5e-7, weights=weights)
        before = f.phi.snapshot()
        f.train(owner(), 3)
        now = f.phi.snapshot()
        after[weights] = [(before[name].flatten(), now[name].flatten()) for name in before]
    before, now = (torch.cat(side) for side in zip(*after["bfloat16"], strict=True))
    assert torch.equal(before, before.bfloat16().float())
    large = before.abs() >= 2**-11
    assert large.float().mean() > 0.9 and torch.equal(before[large], now[large])
    before, now = (torch.cat(side) for side in zip(*after["float32"], strict=True))
    assert ((before != now) & (before.abs() >= 2**-11)).float().mean() > 0.8


def test_a_copy_leaves_the_surrogate_as_it_was(tmp_path: Path) -> None:
    model = tiny_model()
    f = Surrogate(model, DreamBooth(), context(model, tmp_path))
    start = f.state()
    with f.copied():
        f.train(owner(), 1)
        assert moved(f.state(), start) > DREAMBOOTH["lr"] / 2
    assert moved(f.state(), start) == 0
    f.train(owner(), 1)
    assert moved(f.state(), start) > 0
    f.restore(start)
    assert moved(f.state(), start) == 0


def test_an_ensemble_meets_its_surrogates_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = tiny_model(), double_model()
    ctx = context(model, tmp_path)
    ctx.bases = {"tiny": lambda: model, "other": lambda: other}
    trained = []
    monkeypatch.setattr(Surrogate, "train", lambda f, pictures, steps: trained.append(f.model))
    protect("anti-dreambooth", model, ctx, published(), pgd_steps=1)
    assert [found is model for found in trained] == [True, True, False, False, True, False]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_targeted_loss_is_diffusers_step_towards_the_target(
    monkeypatch: pytest.MonkeyPatch, prediction_type: str
) -> None:
    model = double_model()
    model.noise_scheduler.register_to_config(prediction_type=prediction_type)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 4, 8, 8, generator=generator).double()
    x = torch.rand(3, 3, 32, 32, generator=generator).double() * 2 - 1
    batch = replace(Draws(["a q"] * 3, 0).batch(model, x, torch.arange(3)), timesteps=torch.tensor([0, 1, 700]))
    monkeypatch.setattr(Draws, "batch", lambda *given: batch)
    entry = code("anti-dreambooth")
    rows = torch.arange(3)
    plain, found = (entry.objective(model, Draws(["a q"] * 3, 0), goal)(x, rows) for goal in (None, z))
    # diffusers draws from p(z_{t-1} | z_t); without its noise that is the mean.
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda shape, **_: torch.zeros(shape))
    for i, t in enumerate([0, 1, 700]):
        one = [side[i : i + 1] for side in (batch.latents, batch.noise, batch.condition)]
        z_t = model.noise_scheduler.add_noise(one[0], one[1], torch.tensor([t]))
        before = model.noise_scheduler.step(model.predict(z_t, torch.tensor([t]), one[2]), t, z_t).prev_sample
        wanted = model.noise_scheduler.add_noise(z, one[1], torch.tensor([t - 1])) if t else z
        torch.testing.assert_close(plain[i] - found[i], ((before - wanted) ** 2).mean(), rtol=1e-4, atol=1e-6)


def gradient(entry: ModuleType, model: LatentDiffusion, weight: float, shift: float) -> Tensor:
    """Of SimAC's loss at pictures that are `shift` away from their clean originals."""
    clean = torch.from_numpy(published().pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    x = (clean + shift * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    batch = Draws(["a q"] * 3, 0).batch(model, x, torch.arange(3))
    loss = entry.feature_loss(model, batch, clean, Params({"feature_weight": weight}))
    (found,) = torch.autograd.grad(loss.sum(), x)
    return found


def test_simac_s_feature_loss_carries_gradient_and_the_released_code_s_does_not() -> None:
    model, entry = tiny_model(), code("simac")
    without, once, twice = (gradient(entry, model, weight, 0.05) for weight in (0.0, 1.0, 2.0))
    term = once - without
    assert term.abs().mean() > 1e-3 * without.abs().mean()
    torch.testing.assert_close(twice - once, term, rtol=1e-2, atol=float(term.abs().max()) * 1e-3)
    # A picture that is its own original has no features apart.
    torch.testing.assert_close(*(gradient(entry, model, weight, 0.0) for weight in (0.0, 1.0)))
    simac, released = (load_catalog().defense(name).params("mini") for name in ("simac", "simac-code"))
    assert {name for name in simac if simac[name] != released[name]} == {"feature_weight"}
    assert released["feature_weight"] == 0
    # That gradient is the denoising loss's alone.
    clean = torch.from_numpy(published().pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    x = (clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    batch = Draws(["a q"] * 3, 0).batch(model, x, torch.arange(3))
    (plain,) = torch.autograd.grad(3 * model.loss(batch), x)
    torch.testing.assert_close(without, plain)


@pytest.fixture
def steep(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """SimAC's code on a loss whose gradient grows with the time step."""
    entry = code("simac")
    monkeypatch.setattr(LatentDiffusion, "latents", lambda model, x: x)
    monkeypatch.setattr(
        LatentDiffusion, "losses", lambda model, batch: batch.latents.sum(dim=(1, 2, 3)) * batch.timesteps
    )
    return entry


def selected(entry: ModuleType, folder: Path, **params: Any) -> list[list[int]]:
    model = tiny_model()
    ctx = context(model, folder)
    given = Params({**PARAMS["simac"], "budget": 4, "width": 20, **params})
    left = entry.select_timesteps(model, published(2), Draws(["a q"] * 2, 0), given, ctx)
    return [own.tolist() for own in left]


def test_the_time_steps_of_least_gradient_are_deleted(steep: ModuleType, tmp_path: Path) -> None:
    # Of 300 candidates the lowest is among the first 20, and the window of 40 is moved inwards at the end.
    assert selected(steep, tmp_path, deletions=1, candidates=300) == [list(range(40, 1000))] * 2
    for left in selected(steep, tmp_path, deletions=50, candidates=20, width=50):
        assert 0 < len(left) <= 100 and min(left) > 700
    left = selected(steep, tmp_path, deletions=5, candidates=1)
    assert left[0] != left[1] and all(800 <= len(own) < 960 for own in left)


def test_a_deletion_that_could_leave_no_time_step_is_refused(steep: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="width must be at most half of keep = 100, not 51"):
        selected(steep, tmp_path, width=51)


def test_pgd_draws_from_the_time_steps_that_are_left() -> None:
    draws = Draws(["a q"] * 2, 0)
    draws.steps = [torch.tensor([7]), torch.tensor([30, 40])]
    drawn = {tuple(draws.timesteps(tiny_model(), torch.arange(2)).tolist()) for _ in range(20)}
    assert drawn == {(7, 30), (7, 40)}


def test_metacloak_s_transformations_pass_gradients_and_mirror_half_of_the_time() -> None:
    entry, params = code("metacloak"), Params({"kernel": 3, "sigma": 1.0, "zoom": 0.125})
    picture = torch.linspace(-1, 1, 32).expand(3, 32, 32).clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    mirrored = 0
    for _ in range(40):
        seen = entry.transform(picture, generator, params)
        assert seen.shape == picture.shape and seen.abs().max() <= 1 + 1e-5
        mirrored += int(seen[0, 16, 0] > seen[0, 16, -1])
        (reached,) = torch.autograd.grad(seen.sum(), picture)
        # The middle of the picture is seen whatever is cut off.
        assert (reached[:, 4:-4, 4:-4] > 0).all()
    assert 10 <= mirrored <= 30
    # A blur is a blur: a single bright point spreads.
    point = torch.zeros(3, 33, 33)
    point[:, 16, 16] = 1
    assert entry.transform(point, generator, Params({"kernel": 3, "sigma": 1.0, "zoom": 0.0})).max() < 0.999


def test_what_modules_put_out_is_watched_while_the_block_runs_only() -> None:
    model = tiny_model()
    pictures = tiny_pictures(2, "a q")
    batch = model.draw(model.prepare(pictures), [0, 1], torch.Generator().manual_seed(0))
    with watched([model.unet.conv_out]) as seen:
        model.loss(batch)
    model.loss(batch)
    noised = model.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    (found,) = seen
    torch.testing.assert_close(found, model.predict(noised, batch.timesteps, batch.condition))
