"""Stable Diffusion XL as a base of the hub: what is read, refused, converted and measured; on a narrow one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import original
from catalogs import use_catalog
from immunebench import api
from immunebench.authoring.new import TaskRequest, new_task
from immunebench.bases import base_folder, intake
from immunebench.bases.skeleton import write_settings
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import sha256
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError
from immunebench.core.types import Numerics
from immunebench.declared.architecture import SHAPES
from immunebench.declared.models import BaseModelSpec
from immunebench.declared.suite import Suite
from immunebench.execution import grading as judging
from immunebench.hardware.capacity import Job, run
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.shapes import build
from immunebench.model.text import PairedText
from immunebench.plan.checks import check_base
from immunebench.plan.planning import make_plan
from tiny import tiny_xl_folder

NAME = "sdxl"
REVISION = "462165984030d82259a11f4367a4eed129e94a7b"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub's: settings, and every network in half precision under the name of the variant."""
    folder = tmp_path_factory.mktemp("hub") / NAME
    write_settings("sdxl-narrow", folder)
    model = build(SHAPES["sdxl-narrow"], Numerics())
    for part, network in {"unet": model.unet, "vae": model.vae, **model.text.networks}.items():
        network.half().save_pretrained(folder / part, variant="fp16")  # type: ignore[operator]
    return folder


@pytest.fixture
def copy(narrow: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may spoil."""
    return Path(shutil.copytree(narrow, tmp_path / "copy"))


@pytest.fixture
def spec(narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BaseModelSpec:
    """What models.toml says of sdxl, for the narrow files; weights and the hub's cache are empty."""
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    known = load_catalog().models.bases[NAME]
    files = {name: sha256(narrow / name) for name in known.files}
    return known.model_copy(update={"files": files, "shape": "sdxl-narrow"})


def catalog(spec: BaseModelSpec) -> Catalog:
    found = load_catalog()
    found.models = found.models.model_copy(update={"bases": {**found.models.bases, NAME: spec}})
    return found


def test_a_snapshot_without_the_second_encoder_is_no_base(spec: BaseModelSpec, narrow: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--stabilityai--stable-diffusion-xl-base-1.0" / "snapshots" / REVISION
    shutil.copytree(narrow, snapshot)
    assert base_folder.find(NAME, spec, Path("models.toml")) == snapshot
    read = catalog(spec).base_files(NAME)
    assert read.items() >= spec.files.items() and len(spec.files) == 4
    assert {"text_encoder_2/config.json", "tokenizer_2/vocab.json", "tokenizer_2/merges.txt"} <= read.keys()
    shutil.rmtree(snapshot / "text_encoder_2")
    with pytest.raises(UsageError, match=r"the weights of the base sdxl are missing \(6\.9 GB, CreativeML Open RAIL"):
        base_folder.find(NAME, spec, Path("models.toml"))


def test_another_second_encoder_is_refused(spec: BaseModelSpec, copy: Path) -> None:
    file = copy / "text_encoder_2" / "model.fp16.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UsageError, match=r"text_encoder_2/model.fp16\.safetensors: is not the file of the base sdxl"):
        intake.add(NAME, spec, copy, print)
    (copy / "tokenizer_2" / "added_tokens.json").write_text("{}")
    with pytest.raises(UsageError, match="would be loaded in addition to the files of the base; remove it"):
        intake.add(NAME, spec, copy, print)


def test_a_folder_is_read_where_it_lies_and_runs_on_profiles_of_its_size(spec: BaseModelSpec, copy: Path) -> None:
    intake.add(NAME, spec, copy, lambda text: None)
    known = catalog(spec)
    assert isinstance(LatentDiffusion.load(known.base_folder(NAME), Numerics()).text, PairedText)
    file = copy / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sample_size": 128}))
    check_base(known, NAME, known.profile("a100-80g-1024"))
    with pytest.raises(UsageError) as error:
        check_base(known, NAME, known.profile("a100-80g"))
    assert str(error.value) == (
        "profile: has pictures of 512 pixels, the base sdxl draws 1024: 'a100-80g' (nearest: 'a100-80g-1024')"
    )


def edit(part: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / part
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


@pytest.mark.parametrize(
    ("spoil", "profile", "words"),
    [
        (lambda f: None, {"vae_dtype": "float16"}, r"vae_dtype: of the profile t4-16g: the autoencoder of the base sdxl"
         r" overflows in 'float16' \(nearest: 'float32'\)"),
        (lambda f: shutil.rmtree(f / "text_encoder_2"), {}, r"text_encoder_2/model\.fp16\.safetensors: no such file"),
        (lambda f: shutil.rmtree(f / "tokenizer_2"), {}, r"tokenizer_2/vocab\.json: no such file"),
        (edit("unet/config.json", addition_embed_type=None), {}, "_type: must be 'text_time' with two text encoders"),
        (edit("model_index.json", force_zeros_for_empty_prompt=False), {}, "_empty_prompt: must be true, .* not False"),
        (lambda f: None, {"memory_gib": 1e-4}, r"less than the 0\.0 GiB of the weights of the base sdxl alone"),
    ],
)  # fmt: skip
def test_a_base_that_cannot_run_is_one_line(
    copy: Path, spoil: Callable[[Path], None], profile: dict[str, object], words: str
) -> None:
    known = load_catalog().profile("t4-16g")
    base_folder.check(NAME, copy, known)
    spoil(copy)
    with pytest.raises(UsageError, match=words) as error:
        base_folder.check(NAME, copy, known.model_copy(update=profile))
    assert "\n" not in str(error.value)


def test_the_single_file_is_converted_once_and_is_the_same(spec: BaseModelSpec, narrow: Path, tmp_path: Path) -> None:
    source = LatentDiffusion.load(narrow, Numerics())
    encoders = source.text.networks
    file = tmp_path / "sd_xl_base_1.0_0.9vae.safetensors"
    original.write_xl(source.unet, source.vae, *encoders.values(), file)
    with pytest.raises(UsageError, match=r"no checkpoint of the base sdxl has \(sd_xl_base_1\.0_0\.9vae\..* e6bb9e"):
        intake.add(NAME, spec, file, print)
    known = spec.model_copy(update={"checkpoints": {file.name: sha256(file)}})
    folder = intake.add(NAME, known, file, lambda text: None)
    assert set(catalog(known).base_files(NAME)) >= set(spec.files)
    made = LatentDiffusion.load(folder, Numerics())
    theirs = {"unet": source.unet, "vae": source.vae, **encoders}
    for part, network in {"unet": made.unet, "vae": made.vae, **made.text.networks}.items():
        expected = theirs[part].state_dict()
        assert all(torch.equal(t, expected[name]) for name, t in network.state_dict().items()), part
    assert torch.equal(made.condition(["a red house"]), source.condition(["a red house"]))


@pytest.mark.parametrize(("entry", "kind"), [("lora", "attack"), ("textual-inversion", "attack"), ("esd", "defense")])
def test_entries_take_their_steps_on_its_blocks(entry: str, kind: str) -> None:
    demand = run(Job(entry, kind, "cpu", None, "sdxl-narrow", 3))  # type: ignore[arg-type]
    assert (demand.status, demand.reason) == ("fits", "")


def test_it_runs_from_pictures_to_a_record(
    spec: BaseModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path on a shallow base, under the names of the published files, with few steps."""
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(tiny_xl_folder(), tmp_path / "base"))
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copy(folder / "vocab.json", folder / part)
    edit("unet/config.json", sample_size=16)(folder)
    spec = spec.model_copy(update={"files": {name: sha256(folder / name) for name in spec.files}})
    intake.add(NAME, spec, folder, lambda text: None)
    prompts = {"unrelated_prompts": ("a red house", "a green tree"), "public_prompts": ("a blue car",)}
    mini = {"judge": "mini", "perceptual": "mini", "upscaler": "mini"}
    known = catalog(spec.model_copy(update={**prompts, **mini}))
    known.tasks["style-brandt"] = known.tasks["style-brandt"].model_copy(update={"base": NAME})
    known.profiles["cpu"] = known.profiles["cpu"].model_copy(update={"sampling_steps": 2})
    presets: dict[str, dict[str, Any]] = {
        "textual-inversion": {"steps": 2, "batch": 2, "saves": [2], "initializer": "m"},
        # What the honest user trains, and the controls.
        "lora": {"steps": 2, "batch": 2, "saves": [2], "lr": 1e-3},
        "imma-lora": {"steps": 2, "batch": 2, "lr_out": 1e-3},
    }
    for name, preset in presets.items():
        table: dict[str, Any] = known.attacks if name in known.attacks else known.defenses
        manifest = table[name].manifest.model_copy(update={"presets": {NAME: preset}})
        table[name] = replace(table[name], manifest=manifest)
    use_catalog(monkeypatch, known)
    judging.load_judge.cache_clear()
    suite = Suite.model_validate_json(json.dumps({
        "id": "narrow", "version": "1.0", "title": "Narrow", "profile": "cpu", "seeds": [0], "tasks": ["style-brandt"],
        "defenses": ["imma-lora"], "chains": ["textual-inversion"], "prompts": 1, "pictures": 1, "curve_pictures": 0,
    }))  # fmt: skip
    store = api.open_store(tmp_path / "store")
    plan = make_plan(suite, known)
    (record,) = api.measure(plan, store, tmp_path / "results", processes=False)
    assert record.status == "ok", record
    assert (record.cell.base, record.cell.base_revision) == (NAME, REVISION)
    (digest,) = [digest for digest, stage in plan.stages.items() if stage.stage == "protect"]
    kept = load_file(str(store.path(digest)) + "/weights.safetensors")
    assert len(kept) == 80 and all(".attn" in name for name in kept)


def test_a_folder_of_photos_becomes_a_task_with_the_words_of_the_base_that_it_is_like(
    spec: BaseModelSpec, narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "mine"
    photos.mkdir()
    for i in range(10):
        Image.new("RGB", (80, 70 + i), (20 * i, 90, 200 - 9 * i)).save(photos / f"{i}.png")
    intake.add(NAME, spec, narrow, lambda text: None)
    known = catalog(spec.model_copy(update={"judge": "mini", "perceptual": "mini", "upscaler": "mini"}))
    monkeypatch.setattr("immunebench.pictures.folder_source.default_catalog", lambda: known)
    known.profiles = {"a100-80g-1024": known.profiles["a100-80g-1024"].model_copy(update={"resolution": 64})}
    request = TaskRequest(photos, "style", NAME, out=tmp_path / "out")
    with pytest.raises(UsageError, match="--like: is not a task of the family style on base sdxl: 'style-brandt'"):
        new_task(replace(request, like="style-brandt"), known)
    new_task(request, known)
    made = load_catalog(tmp_path / "out")
    task, measured = made.tasks["my-mine"], made.suites["my-mine"]
    lent = known.tasks["sd14-paper"]
    assert (task.base, measured.profile) == (NAME, "a100-80g-1024")
    assert (task.evaluation.prompts, task.benign.concept) == (lent.evaluation.prompts, lent.benign.concept)
    known.tasks["my-mine"] = task
    known.paths["task", "my-mine"] = made.paths["task", "my-mine"]
    assert {stage.key["base"] for stage in make_plan(measured, known).stages.values() if "base" in stage.key} == {NAME}
