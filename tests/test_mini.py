"""The embedded base and judges as committed, and the whole path from a suite to a board on them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import immunebench
from immunebench.mini import judges, world

HOUSE = Path(__file__).resolve().parent.parent
WEIGHTS = HOUSE / "bench" / "immunebench" / "mini" / "weights"


def test_all_weights_are_small_safe_and_as_listed() -> None:
    listed = dict(reversed(line.split("  ")) for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines())
    files = [f for f in WEIGHTS.rglob("*.safetensors")]
    assert {f.relative_to(WEIGHTS).as_posix() for f in files} <= set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest, name
    assert sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file() and f.suffix != ".png") <= 25 * 2**20
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


@pytest.fixture(scope="module")
def judge() -> judges.MiniJudge:
    return judges.load()


def test_the_judge_names_what_is_rendered(judge: judges.MiniJudge) -> None:
    pictures = list(world.stream("unseen", 150, group="test"))
    by_object, by_style = judge.probabilities(np.stack([p.pixels for p in pictures]))
    right_object = [judges.OBJECTS[i] == p.labels["object"] for i, p in zip(by_object.argmax(1), pictures, strict=True)]
    right_style = [judges.STYLES[i] == p.style for i, p in zip(by_style.argmax(1), pictures, strict=True)]
    assert np.mean(right_object) >= 0.93 and np.mean(right_style) >= 0.95


def test_both_judges_name_what_the_base_draws(judge: judges.MiniJudge) -> None:
    """A base that draws nothing in particular would be named right in one picture of seventeen."""
    from immunebench.diffusion import LatentDiffusion
    from immunebench.types import Numerics

    names = world.OBJECT_NAMES[:8]
    model = LatentDiffusion.load(WEIGHTS / "mini", Numerics())
    drawn = model.sample([f"a {name} in plain style" for name in names], list(range(8)))
    for second in (False, True):
        answers = judge.probabilities(drawn.pixels, second=second)[0].argmax(1)
        assert np.mean([judges.OBJECTS[i] == name for i, name in zip(answers, names, strict=True)]) >= 0.5


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
        none["scores"]["image_similarity@1"]["mean"] - none["baseline"]["floor"]["scores"]["image_similarity@1"]["mean"]
    )
    assert gain / span > 0.25
    sheet = tmp_path / "1" / "quick" / none["sheet"]["file"]
    assert hashlib.sha256(sheet.read_bytes()).hexdigest() == none["sheet"]["sha256"]
