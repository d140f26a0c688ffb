"""The training of the embedded world's networks, on recipes of a few steps and a handful of pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import nn
from transformers import CLIPTokenizer

from immunebench.core.types import Numerics
from immunebench.mini import readers as networks
from immunebench.mini import train, traits, world
from immunebench.mini.judges import load_public
from immunebench.mini.training import data, denoiser, export, public, readers, schedule, upscaler, vae
from immunebench.mini.training.log import Curve
from immunebench.mini.training.recipe import RECIPES
from immunebench.mini.training.schedule import Budget, Descent, Stepper, descend
from immunebench.mini.training.tokens import train_tokenizer
from immunebench.mini.upscaler import UpscalerNet
from immunebench.mini.upscaler import load as load_upscaler

CPU = torch.device("cpu")
CHUNK, PICTURES = 6, 12
#: Of judges: every kind of damage has its share.
BATCH = 40
RECIPE = replace(
    RECIPES["mini-b"], pictures=PICTURES, latents=3, vae_channels=(8, 8, 8), vae_steps=3, vae_batch=4,
    unet_channels=(16, 16), text_width=16, unet_steps=3, unet_batch=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    said = [caption for i in range(12) for caption in world.draw("train", i, wordings=2).labels["captions"]]
    return train_tokenizer(said, tmp_path_factory.mktemp("tokenizer"), 600)


class OneProcess:
    """A pool that does the work itself."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def map(self, function: Callable[[Any], Any], jobs: Any) -> Iterator[Any]:
        return map(function, jobs)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Iterator[Path]:
    """A work folder with twelve rendered pictures of three groups."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "CHUNK", CHUNK)
        patch.setattr(data, "ProcessPoolExecutor", OneProcess)
        data.render(folder / "pictures", dict.fromkeys(("mini", "mini-b", "second"), PICTURES), folder / "tokenizer")
        yield folder


def rendered(work: Path, group: str = "mini") -> data.Rendered:
    return data.Rendered(work / "pictures", group, PICTURES, CPU)


# ---------------------------------------------------------------- pictures and words


def test_placeholders_are_one_token_and_the_end_token_is_last(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.tokenize("a sks mug") == ["a</w>", "sks</w>", "mug</w>"]
    assert tokenizer.tokenize("lighthouse") == ["lighthouse</w>"]
    assert tokenizer.eos_token_id == len(tokenizer) - 1


def test_rendered_pictures_are_the_world_s_with_labels_and_captions(work: Path, tokenizer: CLIPTokenizer) -> None:
    pictures, wide = rendered(work), rendered(work, "second")
    assert pictures.ready == wide.ready == PICTURES
    for index in (0, CHUNK + 1):
        own = world.draw("train", index, group="mini", wordings=data.WORDINGS)
        assert np.array_equal(pictures.pixels[index].numpy(), own.pixels)
        assert np.array_equal(pictures.labels[index].numpy(), traits.encode(own.labels))
        assert tuple(pictures.boxes[index].tolist()) == own.labels["box"]
        said = tokenizer.batch_decode(pictures.ids[index].long(), skip_special_tokens=True)
        for text, caption in zip(said, own.labels["captions"], strict=True):
            # Not more than 64 tokens of these few words.
            assert len(text) > 8 and caption.replace(" ", "").startswith(text.replace(" ", ""))
        own = world.draw("train", index, group="second", wordings=1, wide=True)
        assert np.array_equal(wide.pixels[index].numpy(), own.pixels)


def test_training_begins_with_the_pictures_that_are_there(work: Path, tmp_path: Path) -> None:
    (tmp_path / "mini").mkdir()
    first, second = sorted((work / "pictures" / "mini").iterdir())
    (tmp_path / "mini" / first.name).write_bytes(first.read_bytes())
    pictures = data.Rendered(tmp_path, "mini", PICTURES, CPU, least=CHUNK)
    assert pictures.ready == CHUNK and not pictures.refresh()
    (tmp_path / "mini" / second.name).write_bytes(second.read_bytes())
    assert pictures.refresh() and pictures.ready == PICTURES
    assert torch.equal(pictures.pixels, rendered(work).pixels)


def test_what_is_drawn_is_not_drawn_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "draw", lambda *_, **__: pytest.fail("drawn again"))
    data.render(work / "pictures", {"mini": PICTURES}, work / "tokenizer")


def test_pixels_go_to_tensors_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    x = data.to_input(pixels)
    assert x.shape == (1, 3, 16, 16) and x.min() == -1 and x.max() == 1
    assert torch.equal(data.to_pixels(x), pixels)


# ---------------------------------------------------------------- the training loop


def test_the_rate_warms_up_stays_and_ends_low() -> None:
    rate = schedule.stable_then_decay
    assert rate(0.0) == pytest.approx(1e-3) and rate(0.01) == pytest.approx(0.5)
    assert rate(0.02) == rate(0.4) == rate(0.69) == 1.0
    # A quarter of the decay is over, then all of it: 1 - sqrt of the share.
    assert rate(0.775) == pytest.approx(0.5) and rate(1.0) == pytest.approx(0.005)
    falling = [rate(0.7 + 0.003 * i) for i in range(100)]
    assert falling == sorted(falling, reverse=True)


def test_a_budget_is_over_by_steps_or_by_time_whichever_is_first() -> None:
    assert Budget(200, None).done(50) == 0.25
    half = Budget(100, 1000.0, spent=500.0)
    assert half.done(20) == pytest.approx(0.5, abs=0.01) and half.done(80) == 0.8
    assert Budget(100, 10.0, spent=20.0).done(0) == 1.0 and Budget(100, None).done(400) == 1.0


def test_min_snr_weights() -> None:
    """SNR of alpha-bar 0.5 is 1, so its weight is 1; of 0.99 it is 99, so 5 / 99."""
    weights = schedule.min_snr(torch.tensor([0.5, 0.99]))
    assert weights.tolist() == pytest.approx([1.0, 5 / 99], rel=1e-4)


def test_a_step_on_a_cpu_is_carried_out_as_it_is() -> None:
    taken: list[int] = []

    def step() -> torch.Tensor:
        taken.append(len(taken))
        return torch.tensor(float(len(taken)))

    run = Stepper(step, CPU)
    assert taken == [] and run.captured == ""
    assert [run().item() for _ in range(3)] == [1.0, 2.0, 3.0]


def test_descent_is_adamw_with_clipped_gradients_and_decay_of_matrices_alone() -> None:
    """By hand in float64: gradients 3 w of a matrix and 1 of a vector, clipped together to a norm of 1."""
    w0, b0, rate, decay = np.array([[2.0, -1.0]]), np.array([0.5]), 0.1, 0.2
    w, b = nn.Parameter(torch.tensor(w0).float()), nn.Parameter(torch.tensor(b0).float())
    descent = Descent(lambda: 1.5 * w.square().sum() + b.sum(), [w, b], CPU, rate=rate, decay=decay, betas=(0.9, 0.99))
    factors, moments = (0.5, 1.0, 0.25), [np.zeros_like(w0), np.zeros_like(b0)]
    squares = [np.zeros_like(w0), np.zeros_like(b0)]
    for t, factor in enumerate(factors, 1):
        descent.set_lr_factor(factor)
        assert descent().item() == pytest.approx(1.5 * np.square(w0).sum() + b0.sum(), rel=1e-5)
        slopes = [3 * w0, np.ones_like(b0)]
        norm = np.sqrt(sum(np.square(slope).sum() for slope in slopes))
        for i, value in enumerate((w0, b0)):
            slope = slopes[i] / max(norm, 1.0)
            moments[i] = 0.9 * moments[i] + 0.1 * slope
            squares[i] = 0.99 * squares[i] + 0.01 * slope**2
            step = (moments[i] / (1 - 0.9**t)) / (np.sqrt(squares[i] / (1 - 0.99**t)) + 1e-8)
            value *= 1 - rate * factor * (decay if value.ndim > 1 else 0.0)
            value -= rate * factor * step
        np.testing.assert_allclose(w.detach().numpy(), w0, rtol=1e-4)
        np.testing.assert_allclose(b.detach().numpy(), b0, rtol=1e-4)


class Counted:
    """A module of one weight, its average, and how many steps were taken on it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module, self.average = nn.Linear(2, 1), nn.Linear(2, 1).requires_grad_(False)
        self.steps = self.refreshed = 0

    def loss(self) -> torch.Tensor:
        self.steps += 1
        return self.module(torch.randn(4, 2)).square().mean()  # type: ignore[no-any-return]

    def refresh(self) -> None:
        self.refreshed += 1

    def run(self, folder: Path, steps: int) -> list[int]:
        descent = Descent(self.loss, list(self.module.parameters()), CPU, rate=1e-2)
        return list(descend("toy", descent, self.module, folder, CPU, Budget(steps, None), seed=1, batch=4,
                            averaged=self.average, ema=0.9, refresh=self.refresh))  # fmt: skip


def test_a_stopped_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    first = Counted()
    assert first.run(tmp_path, 150) == [150] and (first.steps, first.refreshed) == (150, 6)
    again = Counted()
    assert again.run(tmp_path, 150) == [150] and again.steps == 0
    for mine, theirs in ((again.module, first.module), (again.average, first.average)):
        assert torch.equal(mine.weight, theirs.weight)
    longer = Counted()
    assert longer.run(tmp_path, 400) == [400] and longer.steps == 250
    rows = [json.loads(line) for line in (tmp_path / "toy-loss.jsonl").read_text().splitlines()]
    assert [(row["step"], row["pictures"]) for row in rows] == [(100, 400), (200, 800), (300, 1200), (400, 1600)]
    assert not torch.equal(longer.average.weight, longer.module.weight)
    assert longer.module.weight.abs().sum() < first.module.weight.abs().sum() < Counted().module.weight.abs().sum()


def test_a_curve_keeps_the_points_up_to_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "loss.jsonl"
    curve = Curve(file, 0)
    for step in (100, 200, 300):
        curve.add(step, loss=1.0)
    Curve(file, 250).add(300, loss=0.5)
    assert [json.loads(line)["loss"] for line in file.read_text().splitlines()] == [1.0, 1.0, 0.5]


# ---------------------------------------------------------------- the base


def test_the_loss_of_a_reconstruction_counts_pixels_smaller_pictures_and_outlines() -> None:
    target = torch.zeros(1, 3, 8, 8)
    # A shift of 0.1: 0.1 of pixels, 4 x 0.01 of squares, half of 0.1 at two sizes, and no outline.
    assert vae.reconstruction_loss(target + 0.1, target).item() == pytest.approx(0.1 + 0.04 + 0.1)
    # Stripes of +-0.1 vanish from smaller pictures, and each of their edges counts 0.2.
    stripes = torch.tensor([0.1, -0.1]).repeat(4).expand(1, 3, 8, 8)
    assert vae.reconstruction_loss(stripes, target).item() == pytest.approx(0.1 + 0.04 + 0.25 * 0.2)
    assert vae.reconstruction_loss(target, target).item() == 0


@pytest.fixture(scope="module")
def autoencoder(work: Path) -> AutoencoderKL:
    folder = work / "vae-alone"
    folder.mkdir()
    return vae.train(RECIPE, rendered(work), folder, CPU, Budget(RECIPE.vae_steps, None))


def test_an_autoencoder_is_trained_to_latents_of_unit_variance(
    work: Path, autoencoder: AutoencoderKL, tmp_path: Path
) -> None:
    pixels = rendered(work).pixels
    latents = vae.encode(autoencoder, pixels)
    assert latents.shape == (PICTURES, 3, 16, 16) and latents.std().item() == pytest.approx(1, abs=1e-3)
    assert not any(p.requires_grad for p in autoencoder.parameters())
    autoencoder.save_pretrained(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path).eval()
    assert torch.allclose(vae.encode(loaded, pixels), latents, atol=1e-3)
    assert torch.allclose(vae.round_trip(loaded, pixels[:2]), vae.round_trip(autoencoder, pixels)[:2], atol=1e-3)
    assert (work / "vae-alone" / "vae.safetensors").is_file()


def test_a_longer_training_reconstructs_better(work: Path, autoencoder: AutoencoderKL, tmp_path: Path) -> None:
    pictures = rendered(work)
    learned = vae.train(RECIPE, pictures, tmp_path, CPU, Budget(40, None))
    x = data.to_input(pictures.pixels)
    errors = [(vae.round_trip(network, pictures.pixels) - x).square().mean() for network in (autoencoder, learned)]
    assert errors[1] < 0.92 * errors[0]


def test_a_base_is_trained_saved_and_drawn_with_by_plain_diffusers(
    work: Path, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    pictures, folder = rendered(work), tmp_path / "pipeline"
    budget = Budget(RECIPE.unet_steps, None)
    *_, (average, step) = denoiser.train(RECIPE, autoencoder, pictures, tokenizer, tmp_path, CPU, budget)
    assert step == RECIPE.unet_steps
    export.save_pipeline(folder, autoencoder, average, tokenizer)
    assert next(average.parameters()).dtype == torch.float32, "what goes on training is a copy"
    assert all(str(work).encode() not in file.read_bytes() for file in folder.rglob("*.json"))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert pipeline.unet.config.in_channels == pipeline.vae.config.latent_channels == 3
    assert pipeline.vae.config.scaling_factor == pytest.approx(autoencoder.config.scaling_factor)
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.tokenizer.get_vocab() == tokenizer.get_vocab()
    weights = average.unet.state_dict()
    for name, tensor in pipeline.unet.state_dict().items():
        torch.testing.assert_close(tensor.float(), weights[name].half().float(), rtol=0, atol=0, msg=name)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a red mug in plain style", height=64, width=64, num_inference_steps=2).images
    assert drawn[0].size == (64, 64)
    one, two = (export.sample(export.open_pipeline(folder), ["a mug", "a cat"][:n], steps=2, batch=n) for n in (1, 2))
    assert two.shape == (2, 64, 64, 3) and np.abs(two[0].astype(int) - one[0]).max() <= 1


# ---------------------------------------------------------------- judges


def test_the_loss_of_reading_is_the_mean_over_traits_of_the_known_answers() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, sum(networks.ANSWERS))
    labels = torch.stack([torch.randint(n, (5,)) for n in networks.ANSWERS], 1)
    labels[1:3, 0] = labels[:, 4] = traits.IGNORE
    losses = []
    for i, part in enumerate(logits.double().split(networks.ANSWERS, 1)):
        chances = (part.exp() / part.exp().sum(1, keepdim=True)).numpy()
        known = [-np.log(chances[n, labels[n, i]]) for n in range(5) if labels[n, i] >= 0]
        losses.append(np.mean(known) if known else 0.0)
    assert readers.reading_loss(logits, labels).item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("name", ["reader", "second"])
def test_a_reader_is_trained_written_and_loaded(
    work: Path, autoencoder: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def small(name: str) -> networks.Reader:
        widths = (8, 8, 8, 16)
        trunk = networks.PlainTrunk(widths) if name == "reader" else networks.ResidualTrunk(widths)
        return networks.Reader(trunk, widths)

    monkeypatch.setattr(networks, "build", small)
    pictures = rendered(work, "second")
    trained = readers.train(name, pictures, [autoencoder], tmp_path, CPU, Budget(3, None), batch=BATCH)
    assert not trained.training
    export.save_half(trained, tmp_path / "out" / f"{name}.safetensors")
    loaded = networks.load(name, tmp_path / "out")
    x = data.to_input(pictures.pixels)
    with torch.inference_mode():
        answers = loaded(x)
        assert answers.shape == (PICTURES, sum(networks.ANSWERS)) and answers.isfinite().all()
        assert (answers - trained(x)).abs().max() < 0.02
    assert not any(p.requires_grad for p in loaded.parameters())


def test_decoded_nothing_is_as_many_pictures_as_asked_for(work: Path, autoencoder: AutoencoderKL) -> None:
    torch.manual_seed(0)
    found = readers.decoded_nothing(autoencoder, rendered(work).pixels, 8)
    assert found.shape == (8, 64, 64, 3) and found.dtype == torch.uint8


def test_the_public_classifier_is_trained_written_and_loaded(work: Path, tmp_path: Path) -> None:
    pictures = rendered(work)
    trained = public.train(pictures, tmp_path, CPU, Budget(2, None), batch=BATCH)
    assert not trained.training
    export.save_half(trained, tmp_path / "public.safetensors")
    loaded, x = load_public(tmp_path), data.to_input(pictures.pixels[:2])
    with torch.inference_mode():
        for mine, theirs in zip(loaded(x), trained(x), strict=True):
            assert torch.allclose(mine, theirs, atol=0.02)


def test_training_the_upscaler_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    drawings = np.stack([world.draw("unseen", i, group="upscaler test", reduce=1).pixels for i in range(4)])
    np.save(tmp_path / "drawings.npy", drawings)
    torch.manual_seed(5)
    target = data.to_input(torch.from_numpy(drawings))
    noisy = (nn.functional.avg_pool2d(target, 2) + 0.2 * torch.randn(4, 3, 64, 64)).clamp(-1, 1)

    def error(network: UpscalerNet) -> float:
        with torch.inference_mode():
            return float((network(noisy) - target).abs().mean())

    first = upscaler.train(tmp_path, CPU, Budget(4, None), workers=1, batch=2)
    same = upscaler.train(tmp_path, CPU, Budget(4, None), workers=1, batch=2)
    assert error(same) == pytest.approx(error(first), rel=1e-6), "no step was taken again"
    longer = upscaler.train(tmp_path, CPU, Budget(80, None), workers=1, batch=2)
    assert error(longer) < 0.98 * error(first)
    export.save_half(longer, tmp_path / "upscaler.safetensors")
    assert load_upscaler(Numerics(), tmp_path)(drawings[:1, ::2, ::2]).shape == (1, 128, 128, 3)


# ---------------------------------------------------------------- the command line


def test_a_base_goes_from_rendered_pictures_to_its_place(
    work: Path, tokenizer: CLIPTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "RECIPES", {"mini-b": RECIPE})
    monkeypatch.setattr(export, "psnr", lambda *_: 20.0)
    drawn: list[str] = []
    for sheet in ("sample_grid", "caption_grid", "reconstruction_grid"):
        monkeypatch.setattr(export, sheet, lambda network, file: drawn.append(file.name))
    out, own = tmp_path / "out", tmp_path / "work"
    own.mkdir()
    (own / "pictures").symlink_to(work / "pictures")
    tokenizer.save_pretrained(out / "mini" / "tokenizer")

    def part(name: str, *options: object) -> None:
        words = ["train", name, "--base", "mini-b", "--device", "cpu", "--work", own, "--out", out, "--least", PICTURES]
        monkeypatch.setattr("sys.argv", [*map(str, words), *map(str, options)])
        train.main()

    part("vae")
    part("denoiser", "--steps", 2)
    part("export")
    base = out / "mini-b"
    note = json.loads((base / "run.json").read_text())
    assert (note["base"], note["denoiser_steps_done"], note["pictures_seen"]) == ("mini-b", 2, 8)
    assert sorted(drawn) == ["captions.webp", "reconstructions.webp", "reconstructions.webp", "samples.webp"]
    listed = (out / "SHA256SUMS").read_text()
    assert "mini-b/unet/diffusion_pytorch_model.safetensors" in listed
    loaded = StableDiffusionPipeline.from_pretrained(base)
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab(), "the words that it was trained with"
    assert loaded.text_encoder.config.vocab_size == len(loaded.tokenizer)
    contents = [file.read_bytes() for file in base.rglob("*") if file.is_file()]
    assert all(str(tmp_path).encode() not in content for content in contents)

    monkeypatch.setattr(train, "READER_PICTURES", PICTURES)
    part("second", "--steps", 2, "--batch", BATCH, "--vae", own / "mini-b-3" / "vae")
    networks.load("second", out / "judges")
