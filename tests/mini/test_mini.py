"""The embedded base and judges as committed, and the whole path from a suite to a board on them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import immunebench
from immunebench.mini import readers, traits, world
from immunebench.mini.training import check, export

HOUSE = Path(__file__).resolve().parents[2]
WEIGHTS = HOUSE / "bench" / "immunebench" / "mini" / "weights"


def test_all_weights_are_small_safe_and_as_listed() -> None:
    listed = dict(reversed(line.split("  ")) for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines())
    files = [f for f in WEIGHTS.rglob("*.safetensors")]
    assert {f.relative_to(WEIGHTS).as_posix() for f in files} <= set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest, name
    assert (
        sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file() and f.suffix not in {".png", ".webp"})
        <= 32 * 10**6
    )
    assert not [f for f in WEIGHTS.rglob("*") if f.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]


def test_plain_diffusers_loads_and_draws_the_base() -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS / "mini")
    schedule = pipeline.scheduler.config
    assert (schedule.beta_start, schedule.beta_end, schedule.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert schedule.prediction_type == "epsilon" and pipeline.vae.config.latent_channels == 4
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline("a red house in plain style", height=64, width=64, num_inference_steps=4, generator=generator)
    assert drawn.images[0].size == (64, 64)


def test_a_placeholder_is_one_token() -> None:
    from transformers import CLIPTokenizer

    from immunebench.mini.vocabulary import RARE_TOKENS

    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "mini" / "tokenizer")
    assert all(len(tokenizer.tokenize(token)) == 1 for token in RARE_TOKENS)


def test_no_full_caption_is_cut_off() -> None:
    """What lies beyond the tokenizer's length the base was never told."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "mini" / "tokenizer")
    drawn = [world.draw("train", i, wordings=0, person=i % 2 == 0) for i in range(120)]
    lengths = [len(tokenizer(picture.labels["captions"][0]).input_ids) for picture in drawn]
    assert max(lengths) <= tokenizer.model_max_length


@pytest.fixture(scope="module")
def drawn() -> tuple[list[world.Picture], np.ndarray]:
    """Pictures of the world and what the base draws from their full captions."""
    asked = [world.draw("reference", i, group="base test", wordings=0, person=i % 3 == 0) for i in range(36)]
    pipeline = export.open_pipeline(WEIGHTS / "mini")
    return asked, export.sample(pipeline, [picture.labels["captions"][0] for picture in asked], batch=12)


def test_the_base_draws_what_its_captions_say(drawn: tuple[list[world.Picture], np.ndarray]) -> None:
    """Of a base that draws nothing in particular a kind would be right once in seventeen, most traits once in six."""
    asked, pixels = drawn
    labels = np.stack([traits.encode(picture.labels) for picture in asked]).astype(int)
    found = check.answers(readers.load("reader", WEIGHTS / "judges"), pixels, "cpu")
    captioned = [i for i, trait in enumerate(traits.TRAITS) if trait in check.CAPTIONED]
    has = (labels != traits.IGNORE) & (labels < [len(values) for values in traits.TRAITS.values()])
    right = {list(traits.TRAITS)[i]: float((found[:, i] == labels[:, i])[has[:, i]].mean()) for i in captioned}
    assert right["kind"] >= 0.9 and right["procedure"] >= 0.9 and np.mean(list(right.values())) >= 0.8, right


def test_the_autoencoder_keeps_what_the_reader_reads() -> None:
    """Balanced reading after a round trip, relative to that of the pictures themselves."""
    pipeline = export.open_pipeline(WEIGHTS / "mini")
    drawn = [world.draw("reference", i, group="trip test", wordings=0) for i in range(80)]
    pixels = np.stack([picture.pixels for picture in drawn])
    labels = np.stack([traits.encode(picture.labels) for picture in drawn]).astype(int)
    back = export.reconstructed(pipeline.vae, pixels)
    error = np.square(back.astype(float) - pixels).mean((1, 2, 3))
    assert (10 * np.log10(255**2 / error)).mean() >= 24.5
    reader = readers.load("reader", WEIGHTS / "judges")
    before, after = (check.balanced(labels, check.answers(reader, shown, "cpu")) for shown in (pixels, back))
    assert np.mean(list(after.values())) >= 0.95 * np.mean(list(before.values()))


def test_balanced_reading_counts_every_value_alike_and_leaves_out_what_cannot_be_read() -> None:
    names = list(traits.TRAITS)
    labels = np.array([[traits.unreadable(trait) for trait in names]] * 4)
    found = labels.copy()
    kind = names.index("kind")
    # Three mugs, of which one is read right, and a boat that is: a third and one.
    labels[:, kind], found[:, kind] = [7, 7, 7, 3], [7, 0, 0, 3]
    assert check.balanced(labels, found) == {"kind": pytest.approx(2 / 3)}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's entries with an attack of 30 steps, and a suite of one task."""
    root = tmp_path_factory.mktemp("house")
    for folder in ("tasks", "defenses", "attacks"):
        shutil.copytree(HOUSE / folder, root / folder)
    (root / "pyproject.toml").write_text("[tool.immunebench]\n")
    manifest = root / "attacks" / "lora" / "attack.toml"
    text = manifest.read_text()
    preset = text.index("[presets.mini]")
    (root / "attacks" / "lora" / "attack.toml").write_text(
        text[:preset] + "[presets.mini]\nsteps = 30\nbatch = 4\nlr = 2e-3\nsaves = [15, 30]\n"
    )
    (root / "quick.toml").write_text(
        'id = "quick"\nversion = "1.0"\ntitle = "One task, quickly"\nprofile = "cpu"\nseeds = [0]\n'
        'tasks = ["style-solano"]\ndefenses = ["none", "destroy-strong", "blank"]\nchains = ["lora"]\nprompts = 4\n'
        "pictures = 1\ncurve_pictures = 2\nunrelated_pictures = 1\n"
    )
    return root


@pytest.mark.slow
def test_the_attack_learns_and_any_number_of_workers_gives_the_same(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMMUNEBENCH_ENTRIES", str(house))
    tables = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        tables.append(immunebench.run(house / "quick.toml", results=folder, store=folder / "store", workers=workers))
    assert list(tables[0]["status"]) == ["ok", "ok", "error"]
    assert "budget" in tables[0]["reason"].iloc[2]

    def lines(workers: int, name: str) -> dict[str, object]:
        (line,) = (tmp_path / str(workers) / "quick" / f"{name}@1.jsonl").read_text().splitlines()
        record = json.loads(line)
        return {key: value for key, value in record.items() if key not in {"cost", "env", "created", "attestation"}}

    for name in ("none", "destroy-strong", "blank"):
        assert lines(1, name) == lines(2, name)
    none = json.loads((tmp_path / "1" / "quick" / "none@1.jsonl").read_text())
    span = none["anchors"]["m_same"] - none["anchors"]["m_other"]
    gain = (
        none["scores"]["trait_agreement@1"]["mean"] - none["baseline"]["floor"]["scores"]["trait_agreement@1"]["mean"]
    )
    assert gain / span > 0.25
    sheet = tmp_path / "1" / "quick" / none["sheet"]["file"]
    assert hashlib.sha256(sheet.read_bytes()).hexdigest() == none["sheet"]["sha256"]
