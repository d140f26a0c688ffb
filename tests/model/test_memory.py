"""What a profile may ask for to take less memory: offloading, micro-batches, older cards; and what stays as it was."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from exact import exact_model
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError
from immunebench.core.types import Numerics, StageError
from immunebench.declared.architecture import SHAPES
from immunebench.declared.profile import Profile
from immunebench.declared.schema import load
from immunebench.methods.adapters import Dense, LowRank, Words
from immunebench.methods.context import Context
from immunebench.model import runtime
from immunebench.model.batch import Batch
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.offload import Resident
from immunebench.model.runtime import training
from immunebench.model.shapes import static_gib
from tiny import tiny_folder, tiny_pictures

CATALOG = load_catalog()
PROFILES = Path(runtime.__file__).parents[1] / "profiles"
NEW = {"release_gradients", "offload", "micro_batch", "masters", "compute_capability"}


class Network(nn.Module):
    """Remembers where it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def to(self, device: torch.device) -> Network:  # type: ignore[override]
        self.sent.append(device.type)
        return self


def test_a_network_comes_when_needed_and_leaves_once() -> None:
    network = Network()
    resident = Resident(network, torch.device("cuda"), offload=True)
    assert network.sent == ["cpu"]
    with torch.no_grad(), resident.loaded(), resident.loaded():
        assert network.sent == ["cpu", "cuda"]
    assert network.sent == ["cpu", "cuda", "cpu"]
    with resident.loaded():
        pass
    assert network.sent[3:] == ["cuda"]  # gradients were recorded: the backward pass is to come
    with torch.no_grad(), resident.loaded():
        pass
    assert network.sent[3:] == ["cuda"]
    resident.release()
    assert network.sent[3:] == ["cuda", "cpu"]


def test_a_network_that_does_not_leave_is_sent_once() -> None:
    network = Network()
    resident = Resident(network, torch.device("cuda"), offload=False)
    with resident.loaded():
        resident.release()
    assert network.sent == ["cuda"]


def watched(numerics: Numerics) -> LatentDiffusion:
    """Return the tiny model, which fails where a network computes that is not on the device."""
    runtime.prepare_process(numerics)
    model = LatentDiffusion.load(tiny_folder(), numerics)

    def check(resident: Resident) -> Any:
        def present(*_: object) -> None:
            assert resident.on_device, "the network is away"

        return present

    for part in (model.vae.encoder, model.vae.decoder):
        part.register_forward_pre_hook(check(model.autoencoder))
    model.text.encoder.register_forward_pre_hook(check(model.text.resident))
    return model


def losses(model: LatentDiffusion, attach: Any, out: Path) -> list[float]:
    ctx = Context(model.numerics, 0, out, lambda *_: None, token="sks", noun="a")
    data = model.prepare(tiny_pictures(3))
    phi = attach(model)
    optimiser, found = ctx.adamw(phi.parameters, lr=1e-3), []
    for _, batch in ctx.steps(2, model, data, batch=2):
        with training(phi.parameters):
            loss = model.loss(batch)
            optimiser.step(loss)
        found.append(loss.item())
        ctx.log(len(found), loss=loss)
    assert all(("skipped" in row) == model.numerics.release_gradients for row in ctx.rows)
    return found


TRAINED = {
    "low-rank": lambda model: LowRank.attach(model, rank=2, seed=0),
    "networks": lambda model: Dense.attach(model),
    "networks with text": lambda model: Dense.attach(model, text=True),
    "words": lambda model: Words.attach(model, token="sks", initializer="a", num_vectors=2),
}


def test_offloading_changes_no_number_and_parts_are_there_when_used(tmp_path: Path) -> None:
    numerics = Numerics(resolution=32, sampling_steps=2, batch=2)
    here, leaving = watched(numerics), watched(Numerics(resolution=32, sampling_steps=2, batch=2, offload=True))
    assert not leaving.autoencoder.on_device and not leaving.text.resident.on_device
    for name, attach in TRAINED.items():
        assert losses(here, attach, tmp_path) == losses(leaving, attach, tmp_path), name
        assert not leaving.autoencoder.on_device, name
        assert leaving.text.resident.on_device == (name in ("networks with text", "words")), name
        one, other = (model.sample(["a picture of sks"], [3]) for model in (here, leaving))
        assert (one.pixels == other.pixels).all(), name
        here.restore()
        leaving.restore()
        assert not leaving.text.resident.on_device, name
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    z = leaving.latents(x)
    leaving.encode(tiny_pictures(1).pixels)
    assert leaving.autoencoder.on_device  # between z and its gradient
    torch.autograd.backward(z.sum())
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    leaving.restore()
    assert not leaving.autoencoder.on_device


def test_micro_batches_have_the_gradient_of_the_whole_batch() -> None:
    """In double precision, for a batch that the micro-batch divides, one that it does not, and one smaller than it."""
    runtime.prepare_process(Numerics())
    model = exact_model()
    data = model.prepare(tiny_pictures(5))
    theta = model.unet_tensors("all")

    def gradient(batch: Batch, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        model.numerics = Numerics(resolution=32, micro_batch=micro_batch)
        seen: list[int] = []
        hook = model.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        with training(theta):
            loss = model.loss(batch)
            found = torch.autograd.grad(loss, list(theta.values()))
        hook.remove()
        return loss.detach(), torch.cat([g.flatten() for g in found]), max(seen)

    for pictures, size in ((4, 2), (5, 2), (2, 4)):
        batch = model.draw(data, range(pictures), torch.Generator().manual_seed(pictures))
        loss, whole, largest = gradient(batch, 0)
        assert largest == pictures
        again, parts, largest = gradient(batch, size)
        assert largest <= size
        torch.testing.assert_close(again, loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-9)
        assert whole.norm() > 1e-3


def test_released_gradients_train_the_denoiser_alike(tmp_path: Path) -> None:
    """Three steps of full training: the first loss is the same, the later ones nearly, for only the clip differs."""
    usual = losses(watched(Numerics(resolution=32)), TRAINED["networks"], tmp_path)
    released = losses(watched(Numerics(resolution=32, release_gradients=True)), TRAINED["networks"], tmp_path)
    assert released[0] == usual[0]
    assert released == pytest.approx(usual, rel=0.01)


@pytest.mark.parametrize("name", sorted(CATALOG.profiles))
def test_a_profile_without_new_fields_keeps_its_key(name: str) -> None:
    profile = CATALOG.profiles[name]
    table = tomllib.loads((PROFILES / f"{name}.toml").read_text())
    written = {field: value for field, value in table.items() if field not in ("id", "version", "title")}
    assert profile.numerics(sampling=True) == written
    assert bool(NEW & set(written)) == (profile.device == "cuda")


def test_small_cards_have_the_memory_preset() -> None:
    preset = {"optimiser_state": "8bit", "release_gradients": True, "offload": True, "micro_batch": 1}
    for name, profile in CATALOG.profiles.items():
        held = {field: getattr(profile, field) for field in preset} == preset
        assert held == (name in ("t4-16g", "v100-16g")), name
        assert Numerics.of(profile.numerics(sampling=True)).extra.keys() <= {"precision"}


def test_older_cards_go_without_flash_attention_and_the_next_profile_has_it_again() -> None:
    def flash(name: str) -> tuple[bool, bool]:
        numerics = Numerics.of(CATALOG.profiles[name].numerics(sampling=True) | {"device": "cpu", "threads": 1})
        runtime.prepare_process(numerics)
        return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()

    try:
        assert flash("t4-16g") == flash("v100-32g") == (False, False)
    finally:
        assert flash("cpu") == flash("a100-40g") == (True, True)


def test_bfloat16_on_an_older_card_is_refused_when_the_profile_is_read(tmp_path: Path) -> None:
    text = (PROFILES / "t4-16g.toml").read_text().replace('frozen_dtype = "float16"', 'frozen_dtype = "bfloat16"')
    (tmp_path / "t4.toml").write_text(text)
    with pytest.raises(UsageError, match=r"frozen_dtype: a GPU of compute_capability 7.5 has no bfloat16") as caught:
        load(tmp_path / "t4.toml", Profile)
    assert "\n" not in str(caught.value)


def test_bfloat16_that_a_card_only_emulates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(
        is_bf16_supported=lambda including_emulation: including_emulation, get_device_name=lambda: "Tesla T4"
    )
    monkeypatch.setattr(torch, "cuda", card)
    asked = Numerics(device="cuda", frozen_dtype="bfloat16")
    with pytest.raises(StageError, match="frozen_dtype: Tesla T4 has no bfloat16; float16 or float32"):
        runtime._check_bfloat16(asked)
    runtime._check_bfloat16(Numerics(device="cuda", frozen_dtype="float16"))
    card.is_bf16_supported = lambda including_emulation: True
    runtime._check_bfloat16(asked)


def test_the_memory_preset_leaves_room_for_activations_by_arithmetic() -> None:
    """No measurement. 1.5 GiB are allowed for activations under checkpointing, casts and one tensor's update."""
    small = Numerics.of(CATALOG.profiles["t4-16g"].numerics(sampling=True))
    large = Numerics.of(CATALOG.profiles["a100-40g"].numerics(sampling=True))
    everything, attention = ("",), (".to_q.", ".to_k.", ".to_v.", ".to_out.")
    room, gib = 1.5, 2**30
    unet, projections, vae, text = 859_520_964, 93_536_640, 83_653_863, 123_060_480
    sd14 = SHAPES["sd14"]
    dreambooth = static_gib(sd14, small, [everything])
    assert dreambooth == pytest.approx(unet * (4 + 2 + 8 / 256) / gib)
    assert dreambooth < 7 - room
    imma = static_gib(sd14, small, [everything, attention], attention)
    assert imma == pytest.approx((unet * (4 + 2 + 8 / 256) + projections * (4 + 2 + 8 / 256)) / gib)
    assert imma < 8 - room
    imma_lora = static_gib(sd14, small, [attention], attention)
    assert imma_lora == pytest.approx(((unet - projections) * 2 + projections * (4 + 4 + 2 + 8 / 256)) / gib)
    assert imma_lora < 6 - room
    usual = static_gib(sd14, large, [everything])
    assert usual == pytest.approx((unet * (16 + 2) + vae * 4 + text * 2) / gib)
    assert usual > 7
