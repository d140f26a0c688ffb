"""A checkpoint of one's own is a base under its own name, pinned, and never mixed with the base that it is like."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import original
from catalogs import use_catalog
from immunebench import api
from immunebench.authoring.new_base import BaseRequest, new_base
from immunebench.bases import base_folder, own
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import sha256
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError
from immunebench.core.types import Numerics
from immunebench.execution import grading as judging
from immunebench.model.diffusion import LatentDiffusion
from immunebench.plan.planning import make_plan
from tiny import narrow_folder

PRESETS = {
    "lora": {"steps": 2, "batch": 2, "saves": [2], "lr": 1e-3},
    "imma-lora": {"steps": 2, "batch": 2, "lr_out": 1e-3},
}
SUITE = """\
id = "narrow"
version = "3.1"
title = "Narrow"
profile = "cpu"
seeds = [0]
tasks = ["style-brandt"]
defenses = ["none", "imma-lora"]
chains = ["lora"]
prompts = 1
pictures = 1
curve_pictures = 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder in single precision, as trainers save it, of Stable Diffusion's form with few channels."""
    return narrow_folder(tmp_path_factory.mktemp("trained") / "my model")


@pytest.fixture
def single(folder: Path, tmp_path: Path) -> Path:
    """The same model as a single file."""
    model = LatentDiffusion.load(folder, Numerics())
    return original.write(model.unet, model.vae, model.text.encoder, tmp_path / "merged.safetensors")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "house/suites").mkdir(parents=True)
    (tmp_path / "house/suites/narrow.toml").write_text(SUITE)
    return tmp_path / "house"


def catalog(root: Path) -> Catalog:
    """The catalogue with a narrow sd14, presets of seconds, and a suite of one task on it."""
    found = load_catalog(root)
    narrow = {"shape": "sd14-narrow", "judge": "mini", "perceptual": "mini", "upscaler": "mini"}
    prompts = {"unrelated_prompts": ("a red house", "a green tree"), "public_prompts": ("a blue car",)}
    bases = {
        name: base.model_copy(update={**narrow, **prompts}) if name == "sd14" or base.own else base
        for name, base in found.models.bases.items()
    }
    found.models = found.models.model_copy(update={"bases": bases})
    found.tasks["style-brandt"] = found.tasks["style-brandt"].model_copy(update={"base": "sd14"})
    for name, preset in PRESETS.items():
        table: dict[str, Any] = found.attacks if name in found.attacks else found.defenses
        manifest = table[name].manifest.model_copy(update={"presets": {"sd14": preset}})
        table[name] = replace(table[name], manifest=manifest)
    return found


def made(root: Path, path: Path, name: str = "my-sd") -> Catalog:
    new_base(BaseRequest(name, path, "sd14", "narrow", root), catalog(root))
    return catalog(root)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "single"])
def test_a_checkpoint_is_converted_pinned_and_draws_the_same(root: Path, folder: Path, single: Path, form: str) -> None:
    path = folder if form == "folder" else single
    found = made(root, path)
    texts = [file.read_text() for file in root.rglob("*.toml")]
    assert not any(str(path.parent) in text for text in texts), "no folder of this machine"
    copy = found.base_folder("my-sd")
    assert copy == base_folder.added_path("my-sd")
    source, ours = LatentDiffusion.load(folder, Numerics()), LatentDiffusion.load(copy, Numerics())
    for a, b in ((source.unet, ours.unet), (source.vae, ours.vae), (source.text.encoder, ours.text.encoder)):
        theirs = b.state_dict()
        assert all(torch.equal(t.half(), theirs[n].half()) for n, t in a.state_dict().items() if "position" not in n)
    spec = found.models.bases["my-sd"]
    (pinned,) = spec.checkpoints.items()
    assert pinned == (path.name, own.digest(path))
    if form == "single":
        assert pinned[1] == sha256(path)
    assert found.base_revision("my-sd") == f"checkpoint-{pinned[1][:12]}"
    assert (spec.like, spec.judge, spec.placeholders) == ("sd14", "mini", found.models.bases["sd14"].placeholders)


@pytest.mark.slow
def test_its_rows_stand_under_its_name_with_tasks_and_suite_of_their_own(
    root: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(root, folder)
    suite = found.suites["my-sd"]
    assert (suite.version, suite.names("tasks")) == ("1.0", ("my-sd-style-brandt",))
    assert found.tasks["my-sd-style-brandt"].base == "my-sd" and found.tasks["style-brandt"].base == "sd14"
    use_catalog(monkeypatch, found)
    judging.load_judge.cache_clear()
    plan = make_plan(suite, found)
    records = api.measure(plan, api.open_store(tmp_path / "store"), tmp_path / "results", processes=False)
    assert [record.status for record in records] == ["ok", "ok"]
    assert {(r.cell.base, r.cell.base_revision) for r in records} == {("my-sd", found.base_revision("my-sd"))}
    assert {r.comparability.split("/")[0] for r in records} == {"my-sd@1.0"}
    assert not any("sd14" in str(spec.key.get("base")) for spec in plan.stages.values())
    assert {r.params.get("steps") for r in records if r.cell.defense == "imma-lora"} == {2}, "the preset of sd14"


@pytest.mark.slow
def test_another_checkpoint_under_the_same_name_is_refused(
    root: Path, folder: Path, single: Path, tmp_path: Path
) -> None:
    found = made(root, single)
    tensors = load_file(single)
    tensors["first_stage_model.quant_conv.bias"] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    shutil.rmtree(base_folder.added_path("my-sd"))
    with pytest.raises(UsageError, match=r"are not on this machine; add merged\.safetensors with: immunebench weights"):
        found.base_folder("my-sd")
    with pytest.raises(UsageError, match="no checkpoint of the base my-sd has"):
        own.add_again("my-sd", found.models.bases["my-sd"], tmp_path / "other.safetensors")
    own.add_again("my-sd", found.models.bases["my-sd"], single, lambda text: None)
    unet = base_folder.added_path("my-sd") / "unet/diffusion_pytorch_model.fp16.safetensors"
    tensors = load_file(unet)
    tensors["conv_out.bias"] += 1
    save_file(tensors, unet)
    with pytest.raises(UsageError, match="is not the file of the base my-sd"):
        found.base_files("my-sd")


def lora(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 8)}


def headless(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t for name, t in tensors.items() if not name.startswith("cond_stage_model.")}


def inpainting(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    return {**tensors, name: torch.zeros(16, 9, 3, 3)}


def wide(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: torch.zeros(t.shape[0], 1024) if n.endswith(".attn2.to_k.weight") else t for n, t in tensors.items()}


def huge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "model.diffusion_model.out.2.bias": torch.full((4,), 1e6)}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lora, "is a low-rank adapter, not a whole model; merge it into its base first"),
        (headless, "has no text encoder in the layout of Stable Diffusion's checkpoints"),
        (inpainting, "must take 4 channels: models for inpainting or editing take more, such as 9"),
        (wide, "is of another architecture than sd14: 32 values a token of text; it is sd21-base's, not 1024"),
        (huge, "too large for half precision, in 'unet: conv_out.bias'"),
    ],
)
def test_a_file_that_is_no_such_model_is_one_line_and_leaves_nothing(
    root: Path, single: Path, spoil: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], said: str
) -> None:
    save_file(spoil(load_file(single)), single)
    before = sorted(root.rglob("*"))
    with pytest.raises(UsageError) as error:
        made(root, single)
    assert said in str(error.value) and str(error.value).startswith(str(single))
    assert sorted(root.rglob("*")) == before and not base_folder.added_path("my-sd").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(),
            "diffusion_pytorch_model.fp16.safetensors: no",
        ),
        (lambda f: (f / "tokenizer/vocab.json").unlink(), "tokenizer/vocab.json: no such file"),
        (lambda f: (f / "unet/config.json").write_text('{"in_channels": 9}'), "in_channels: must be 4"),
        (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"x"), "is not a safetensors file"),
        (lambda f: shutil.rmtree(f), "no such file or folder"),
    ],
)
def test_a_folder_that_lacks_something_is_one_line(
    root: Path, folder: Path, tmp_path: Path, change: Callable[[Path], object], said: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    change(copy)
    with pytest.raises(UsageError) as error:
        made(root, copy)
    assert said in str(error.value) and str(error.value).startswith(str(copy))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"id": "sd15"}, "ID: is the name of another base or suite: 'sd15'"),
        ({"id": "My SD"}, "ID: must be up to 64 lower-case letters"),
        ({"like": "sd41"}, "--like: unknown base 'sd41' ("),
        ({"suite": "narro"}, "--suite: unknown suite 'narro' (nearest: 'narrow')"),
        ({"suite": "mini-smoke"}, "is on the base mini, not on sd14: 'mini-smoke'"),
        ({"path": Path("/nowhere/model.safetensors")}, "/nowhere/model.safetensors: no such file or folder"),
    ],
)
def test_a_wrong_option_is_one_line(root: Path, single: Path, arguments: dict[str, Any], said: str) -> None:
    given = {"id": "my-sd", "path": single, "like": "sd14", "suite": "narrow", "out": root} | arguments
    with pytest.raises(UsageError) as error:
        new_base(BaseRequest(**given), catalog(root))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'id = "b"\ntitle = "T"\nlike = "sd14"\n[checkpoints]\n"x" = "%s"\n' % ("0" * 64),
            "id: must equal the file's name 'a'",
        ),
        ('id = "a"\ntitle = "T"\nlike = "sd41"\n[checkpoints]\n"x" = "%s"\n' % ("0" * 64), "like: unknown base 'sd41'"),
        ('id = "a"\ntitle = "T"\nlike = "sd14"\n[checkpoints]\n"x" = "1"\n', "checkpoints.x"),
        ('id = "a"\ntitle = "T"\nlike = "sd14"\n[checkpoints]\n', "checkpoints: "),
    ],
)
def test_a_wrong_file_of_a_base_breaks_itself_alone(root: Path, text: str, said: str) -> None:
    (root / "bases").mkdir()
    (root / "bases/a.toml").write_text(text)
    found = load_catalog(root)
    (broken,) = found.broken
    assert (broken.kind, broken.id) == ("base", "a") and said in broken.reason
    assert "a" not in found.models.bases and "sd14" in found.models.bases
