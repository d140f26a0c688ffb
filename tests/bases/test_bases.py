"""Bases of a model hub: found, checked, fetched and converted, and run from end to end; all on a narrow SD 1.x."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import original
from catalogs import use_catalog
from immunebench import api
from immunebench.authoring.new import TaskRequest, new_task
from immunebench.bases import base_folder, intake
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import sha256
from immunebench.catalog.loading import load_catalog
from immunebench.cli.main import app
from immunebench.core.errors import UsageError
from immunebench.core.types import Numerics, Pictures
from immunebench.declared.architecture import SHAPES
from immunebench.declared.models import BaseModelSpec
from immunebench.declared.suite import Suite
from immunebench.declared.task import Task
from immunebench.execution import grading as judging
from immunebench.execution import inputs
from immunebench.hardware.doctor import Gpu
from immunebench.model.diffusion import LatentDiffusion
from immunebench.pictures import dataset_fetch
from immunebench.plan.builder import Builder
from immunebench.plan.planning import make_plan
from photos import photo
from tiny import narrow_folder

NAME = "sd14"
REVISION = "133a221b8aa7292a167afc5127cb63fb5005638b"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub's: settings, and every network in half precision under the name of the variant."""
    return narrow_folder(tmp_path_factory.mktemp("hub") / "sd14", half=True)


@pytest.fixture
def copy(narrow: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may spoil."""
    return Path(shutil.copytree(narrow, tmp_path / "copy"))


@pytest.fixture
def spec(narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BaseModelSpec:
    """What models.toml says of sd14, for the narrow files; weights and the hub's cache are empty."""
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    known = load_catalog().models.bases[NAME]
    files = {name: sha256(narrow / name) for name in known.files}
    return known.model_copy(
        update={"files": files, "shape": "sd14-narrow", "judge": "mini", "perceptual": "mini", "upscaler": "mini"}
    )


def catalog(spec: BaseModelSpec) -> Catalog:
    """The catalogue with the narrow files as sd14, and a style to protect on it."""
    found = load_catalog()
    found.models = found.models.model_copy(update={"bases": {**found.models.bases, NAME: spec}})
    found.tasks["style-brandt"] = found.tasks["style-brandt"].model_copy(update={"base": NAME})
    return found


def suite(**more: Any) -> Suite:
    """A suite of one cell on the smallest pictures."""
    values = {
        "id": "narrow", "version": "1.0", "title": "Narrow", "profile": "cpu", "seeds": [0], "tasks": ["style-brandt"],
        "defenses": ["none"], "chains": ["lora"], "prompts": 1, "pictures": 1, "curve_pictures": 0,
    }  # fmt: skip
    return Suite.model_validate_json(json.dumps(values | more))


def test_the_published_bases_are_pinned_to_commits_and_digests() -> None:
    found = {name: base for name, base in load_catalog().models.bases.items() if base.hub}
    assert set(found) == {"sd14", "sd15", "sd21-base", "sdxl"}
    for name, base in found.items():
        assert base.revision == base.hub[0].revision
        second = base_folder.SECOND_WEIGHTS if name == "sdxl" else {}
        assert {name.split("/")[0] for name in base.files} == {*base_folder.WEIGHTS, *second}
        assert base.shape in SHAPES and base.licence is not None and "OpenRAIL" in base.licence.replace(" ", "")
    # The publisher of SD 1.5 changed neither the autoencoder nor the text encoder of SD 1.4.
    assert {n for n in found["sd14"].files if found["sd14"].files[n] != found["sd15"].files[n]} == {
        "unet/diffusion_pytorch_model.fp16.safetensors"
    }


def test_missing_weights_are_said_with_their_size_and_the_commands_before_anything_runs(spec: BaseModelSpec) -> None:
    with pytest.raises(UsageError) as error:
        make_plan(suite(), catalog(spec))
    assert str(error.value) == (
        "the weights of the base sd14 are missing (2.2 GB, CreativeML OpenRAIL-M); get them with: immunebench "
        "weights fetch sd14, or add a folder or a checkpoint: immunebench weights add sd14 PATH"
    )


def test_a_base_in_the_hub_s_cache_is_found_at_its_pinned_revision_alone(
    spec: BaseModelSpec, narrow: Path, tmp_path: Path
) -> None:
    snapshots = tmp_path / "hub" / "models--CompVis--stable-diffusion-v1-4" / "snapshots"
    shutil.copytree(narrow, snapshots / ("0" * 40))
    with pytest.raises(UsageError, match="are missing"):
        base_folder.find(NAME, spec, Path("models.toml"))
    shutil.copytree(narrow, snapshots / REVISION)
    assert base_folder.find(NAME, spec, Path("models.toml")) == snapshots / REVISION
    known = catalog(spec)
    assert known.base_folder(NAME) == snapshots / REVISION
    # What the snapshot holds beside what is loaded is no part of the base.
    (snapshots / REVISION / "unet" / "diffusion_flax_model.msgpack").write_bytes(b"x")
    read = known.base_files(NAME)
    assert read.items() >= spec.files.items()
    assert set(read) == {*spec.files, *base_folder.SETTINGS} - {"tokenizer/special_tokens_map.json"}


@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "text_encoder/adapter_config.json",
        "tokenizer/added_tokens.json",
    ],
)
def test_a_file_that_the_libraries_would_read_instead_is_refused(spec: BaseModelSpec, copy: Path, name: str) -> None:
    """Each of them changes what is loaded, and no SHA-256 of models.toml."""
    intake.add(NAME, spec, copy, lambda text: None)
    (copy / name).write_text("{}")
    with pytest.raises(UsageError, match="would be loaded in addition to the files of the base; remove it"):
        catalog(spec).base_files(NAME)


def test_a_base_that_changed_since_the_plan_is_not_loaded(
    spec: BaseModelSpec, copy: Path, narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake.add(NAME, spec, copy, lambda text: None)
    known = catalog(spec)
    use_catalog(monkeypatch, known)
    key = {"base": NAME, "base_files": known.base_files(NAME), "numerics": {}}
    assert inputs.load_base(key).unet is not None
    inputs._bases.clear()
    setting("scheduler/scheduler_config.json", steps_offset=0)(copy)
    with pytest.raises(OSError, match="base sd14: its files changed after the run was planned"):
        inputs.load_base(key)


def test_converted_copies_are_neither_added_again_nor_taken_from_anywhere(spec: BaseModelSpec, copy: Path) -> None:
    home = base_folder.added_path(NAME)
    shutil.copytree(copy, home)
    for place in (home, home / "unet"):
        with pytest.raises(UsageError, match="is where converted copies are stored"):
            intake.add(NAME, spec, place, print)
    assert (home / "unet" / "config.json").is_file()
    with pytest.raises(UsageError, match="was not converted from a checkpoint of the base sd14"):
        catalog(spec).base_files(NAME)


def test_a_folder_of_the_user_s_is_read_where_it_lies(spec: BaseModelSpec, copy: Path) -> None:
    said: list[str] = []
    assert intake.add(NAME, spec, copy, said.append) == copy
    assert catalog(spec).base_folder(NAME) == copy and str(copy) in said[0]
    shutil.rmtree(copy)
    with pytest.raises(UsageError, match="names a folder that no longer exists"):
        catalog(spec).base_folder(NAME)


def test_another_file_than_the_published_one_is_refused(spec: BaseModelSpec, copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UsageError, match=r"fp16\.safetensors: is not the file of the base sd14 \(SHA-256 .*fetch sd14"):
        intake.add(NAME, spec, copy, print)
    assert not base_folder.added_path(NAME).with_suffix(".folder").exists()


def rename_unet(folder: Path, name: str) -> None:
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").rename(folder / "unet" / name)


def full_precision(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", variant="fp16").float()
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet")


def setting(part: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / part
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


@pytest.mark.parametrize(
    ("spoil", "memory", "words"),
    [
        (full_precision, 14.5, r"model\.safetensors: is in single precision, and the profile t4-16g is fp16; .* fetch"),
        (lambda f: rename_unet(f, "diffusion_pytorch_model.bin"), 14.5, "holds only pickled weights, which are never"),
        (setting("unet/config.json", in_channels=9), 14.5, r"unet/config\.json: in_channels: must be 4: .*, not 9"),
        (setting("vae/config.json", latent_channels=16), 14.5, "latent_channels: must be 4: .*, not 16"),
        (setting("unet/config.json", addition_embed_type="text_time"), 14.5, r"no such file$|tokenizer_2/vocab\.json"),
        (setting("unet/config.json", addition_embed_type="text"), 14.5, "that one text encoder lacks: 'text'"),
        (lambda f: (f / "text_encoder_2").mkdir(), 14.5, "must be 'text_time' with two text encoders$"),
        (setting("scheduler/scheduler_config.json", prediction_type="sample"), 14.5, "'sample' .*'?epsilon"),
        (lambda f: None, 1e-4, r"has 0\.0001 GiB, less than the 0\.0 GiB of the weights of the base sd14 alone: 't4"),
        (lambda f: (f / "vae" / "config.json").write_text("{"), 14.5, r"vae/config\.json: cannot be read"),
        (setting("scheduler/scheduler_config.json", beta_end=0.02), 14.5, "beta_end: must be 0.012, .*, not 0.02"),
    ],
)  # fmt: skip
def test_a_base_that_cannot_run_on_a_profile_is_one_line(
    copy: Path, spoil: Callable[[Path], None], memory: float, words: str
) -> None:
    profile = load_catalog().profile("t4-16g").model_copy(update={"memory_gib": memory})
    base_folder.check(NAME, copy, profile.model_copy(update={"memory_gib": 14.5}))
    spoil(copy)
    with pytest.raises(UsageError, match=words) as error:
        base_folder.check(NAME, copy, profile)
    assert "\n" not in str(error.value)


def test_a_cut_or_foreign_file_of_weights_is_no_safetensors(copy: Path, tmp_path: Path) -> None:
    file = base_folder.weights_file(copy, "unet")
    whole = base_folder.header(file)
    assert whole.count == sum(p.numel() for p in LatentDiffusion.load(copy, Numerics()).unet.parameters())
    assert whole.formats == {"F16"}
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UsageError, match="is not a safetensors file: it is truncated"):
        base_folder.header(file)
    for bad in (b"", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"{}"):
        (tmp_path / "x").write_bytes(bad)
        with pytest.raises(UsageError, match="is not a safetensors file"):
            base_folder.header(tmp_path / "x")


def test_an_entry_for_epsilon_alone_is_refused_on_a_base_that_predicts_v(spec: BaseModelSpec, copy: Path) -> None:
    intake.add(NAME, spec, copy, lambda text: None)
    known = catalog(spec)
    attack = known.attacks["lora"]
    narrow_minded = attack.manifest.model_copy(update={"predictions": ("epsilon",)})
    known.attacks["lora"] = replace(attack, manifest=narrow_minded)
    assert len(make_plan(suite(), known).cells) == 1
    setting("scheduler/scheduler_config.json", prediction_type="v_prediction")(copy)
    with pytest.raises(UsageError, match="predictions: leaves out 'v_prediction', which the denoiser of the base sd14"):
        make_plan(suite(), known)


def test_a_profile_of_another_picture_size_than_the_base_s_is_refused(spec: BaseModelSpec, copy: Path) -> None:
    intake.add(NAME, spec, copy, lambda text: None)
    with pytest.raises(UsageError, match="has pictures of 512 pixels, the base sd14 draws 64: 't4-16g'"):
        make_plan(suite(), catalog(spec), profile="t4-16g")


def test_a_gpu_s_profile_is_refused_where_there_is_no_gpu(
    spec: BaseModelSpec, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake.add(NAME, spec, copy, lambda text: None)
    known = catalog(spec)
    known.profiles["t4-16g"] = known.profiles["t4-16g"].model_copy(update={"resolution": 64})
    plan = make_plan(suite(), known, profile="t4-16g")
    monkeypatch.setattr("immunebench.hardware.doctor.cuda_devices", lambda: ())
    with pytest.raises(UsageError, match=r"profile: cannot be run here, no CUDA device \(see: immunebench doctor\)"):
        api.measure(plan, api.open_store(tmp_path / "store"), tmp_path / "results")
    monkeypatch.setattr("immunebench.hardware.doctor.cuda_devices", lambda: (Gpu("Card", 15.0),))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"profile: needs bitsandbytes; get it with: pip .*\[low-memory\]': 't4-16g'"):
        api.measure(plan, api.open_store(tmp_path / "store"), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def pickled(file: Path) -> Path:
    """The same tensors as CompVis pickled them: beside a table whose key is a class of the trainer's library."""
    from safetensors.torch import load_file

    names = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    trainer = {name: ModuleType(name) for name in names}
    callback = type("ModelCheckpoint", (), {"__module__": names[-1]})
    trainer[names[-1]].ModelCheckpoint = callback  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in trainer.items():
            patch.setitem(sys.modules, name, module)
        state = {"state_dict": load_file(file), "global_step": 7, "callbacks": {callback: {"best": torch.tensor(1.0)}}}
        torch.save(state, file.with_suffix(".ckpt"))
    return file.with_suffix(".ckpt")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_is_converted_once_and_draws_the_same(
    spec: BaseModelSpec, narrow: Path, tmp_path: Path, suffix: str
) -> None:
    source = LatentDiffusion.load(narrow, Numerics())
    file = original.write(source.unet, source.vae, source.text.encoder, tmp_path / "sd-v1-4.safetensors")
    with pytest.raises(
        UsageError, match=r"has the SHA-256 .*, no checkpoint of the base sd14 has \(sd-v1-4.ckpt fe4eff"
    ):
        intake.add(NAME, spec, file, print)
    if suffix == ".ckpt":
        file = pickled(file)
    known = spec.model_copy(update={"checkpoints": {file.name: sha256(file)}})
    folder = intake.add(NAME, known, file, lambda text: None)
    assert folder == catalog(known).base_folder(NAME) == base_folder.added_path(NAME)
    assert set(catalog(known).base_files(NAME)) >= set(spec.files)
    assert catalog(known).base_revision(NAME) == f"checkpoint-{sha256(file)[:12]}"
    made = LatentDiffusion.load(folder, Numerics())
    for ours, theirs in ((made.unet, source.unet), (made.vae, source.vae), (made.text.encoder, source.text.encoder)):
        expected = theirs.state_dict()
        assert all(torch.equal(t, expected[name]) for name, t in ours.state_dict().items())
    assert torch.equal(made.condition(["a red house"]), source.condition(["a red house"]))


def test_a_pickled_checkpoint_that_asks_for_code_is_refused_and_runs_none(spec: BaseModelSpec, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (mark,))

    file = tmp_path / "sd-v1-4.ckpt"
    torch.save({"state_dict": Evil()}, file)
    known = spec.model_copy(update={"checkpoints": {file.name: sha256(file)}})
    with pytest.raises(UsageError, match="cannot be converted"):
        intake.add(NAME, known, file, lambda text: None)
    assert not mark.exists() and not base_folder.added_path(NAME).exists()


def _hub_error(kind: str) -> Exception:
    """An error of the hub's library, without the answer of a server that its making asks for."""
    from huggingface_hub import errors

    made: Exception = getattr(errors, kind).__new__(getattr(errors, kind))
    return made


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "is gated: accept its licence"),
        ("RepositoryNotFoundError", "was moved or removed"),
        ("RevisionNotFoundError", "no longer has the pinned revision"),
        ("LocalEntryNotFoundError", "could not be reached"),
    ],
)
def test_a_hub_that_gives_nothing_is_one_line_and_the_mirror_is_tried(
    spec: BaseModelSpec, narrow: Path, monkeypatch: pytest.MonkeyPatch, kind: str, words: str
) -> None:
    asked: list[str] = []

    def download(repo: str, *, revision: str, allow_patterns: list[str], force_download: bool) -> str:
        asked.append(repo)
        if repo != "some/mirror":
            raise _hub_error(kind)
        assert revision == "1" * 40 and set(spec.files) <= set(allow_patterns)
        return str(narrow)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(base_folder, "cached", lambda source: None)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(9e9, 0, 9e9))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=rf"could not be fetched \(CompVis/stable-diffusion-v1-4: {words}"):
        intake.fetch(NAME, spec, lambda text: None)
    mirror = type(spec.hub[0])(repo="some/mirror", revision="1" * 40)
    mirrored = spec.model_copy(update={"hub": (*spec.hub, mirror)})
    assert intake.fetch(NAME, mirrored, lambda text: None) == narrow
    assert asked[-2:] == ["CompVis/stable-diffusion-v1-4", "some/mirror"]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(9e9, 8e9, 1e9))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"has 1\.0 GB free, the base sd14 takes 2\.2"):
        intake.fetch(NAME, spec, lambda text: None)


def test_the_command_line_knows_bases_beside_weights() -> None:
    said = CliRunner().invoke(app, ["weights", "--json"])
    states = {row["name"]: row["state"] for row in json.loads(said.output)}
    assert states.keys() >= {"lpips-alex", "sd14", "sd15", "sd21-base", "sdxl"}


def few_steps(known: Catalog) -> None:
    """Give the entries presets for sd14 that take seconds."""
    presets = {
        "lora": {"steps": 2, "batch": 2, "saves": [2], "lr": 1e-3},
        "imma-lora": {"steps": 2, "batch": 2, "lr_out": 1e-3},
        "esd": {"steps": 2, "batch": 1, "lr": 1e-3, "sampling_steps": 2},
    }
    for name, preset in presets.items():
        table: dict[str, Any] = known.attacks if name in known.attacks else known.defenses
        manifest = table[name].manifest.model_copy(update={"presets": {NAME: preset}})
        table[name] = replace(table[name], manifest=manifest)


@pytest.fixture
def known(spec: BaseModelSpec, narrow: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """The catalogue of a run in this process, with few steps."""
    intake.add(NAME, spec, narrow, lambda text: None)
    prompts = {"unrelated_prompts": ("a red house", "a green tree"), "public_prompts": ("a blue car",)}
    found = catalog(spec.model_copy(update=prompts))
    few_steps(found)
    use_catalog(monkeypatch, found)
    judging.load_judge.cache_clear()
    return found


def test_sd14_runs_from_pictures_to_a_record(known: Catalog, tmp_path: Path) -> None:
    """The whole path on SD 1.x's blocks and names, in half-precision files, with few steps."""
    from safetensors.torch import load_file

    store = api.open_store(tmp_path / "store")
    plan = make_plan(suite(defenses=["none", "imma-lora"]), known)
    records = api.measure(plan, store, tmp_path / "results", processes=False)
    assert [record.status for record in records] == ["ok", "ok"]
    (digest,) = [digest for digest, stage in plan.stages.items() if stage.stage == "protect"]
    kept = load_file(str(store.path(digest)) + "/weights.safetensors")
    assert len(kept) == 160 and all(".attn" in name for name in kept)
    assert records[0].cell.base == NAME and records[0].cell.base_revision == REVISION


def small(known: Catalog, name: str) -> Task:
    """A task of Stable Diffusion with two pictures a split."""
    task = known.tasks[name]
    counts = {split: 2 for split in ("owner", "published", "extra", "reference")}
    known.tasks[name] = task.model_copy(update={"pictures": task.pictures.model_copy(update=counts)})
    return known.tasks[name]


def test_a_concept_that_the_base_draws_itself_is_erased_and_relearned(known: Catalog, tmp_path: Path) -> None:
    small(known, "sd14-church")
    store = api.open_store(tmp_path / "store")
    plan = make_plan(suite(tasks=["sd14-church"]), known)
    (record,) = api.measure(plan, store, tmp_path / "results", processes=False)
    assert record.status == "ok"
    # Every split of the concept is drawn by the base before it is erased, each from noise of its own.
    drawn = [s for s in plan.stages.values() if s.stage == "generate" and s.key["prompts"] == ["Image of church"]]
    assert {tuple(s.key["noise_key"]) for s in drawn} == {  # type: ignore[arg-type]
        ("drawn", "known/church", split) for split in ("owner", "published", "extra", "reference")
    }
    assert not any("weights" in s.inputs for s in drawn)
    pictures = [np.stack([*Pictures.load(store.path(s.digest)).pixels]) for s in drawn]  # type: ignore[arg-type]
    assert len(np.unique(np.concatenate(pictures).reshape(8, -1), axis=0)) == 8


def test_a_drawn_concept_without_prompts_is_refused(known: Catalog) -> None:
    task = small(known, "sd14-church")
    known.tasks[task.id] = task.model_copy(
        update={"drawn": {k: v for k, v in task.drawn.items() if k != "known/parachute"}}
    )
    with pytest.raises(UsageError, match=r"sd14-church\.toml: drawn: has no prompts for the concept 'known/parachute'"):
        make_plan(suite(tasks=["sd14-church"]), known)


@pytest.mark.parametrize(("count", "most"), [(6, 3), (7, 1), (2, 2), (4, 4), (12, 4)])
def test_a_split_is_drawn_from_as_many_prompts_as_divide_it(known: Catalog, count: int, most: int) -> None:
    task = small(known, "sd14-church")
    task = task.model_copy(update={"drawn": task.drawn | {"known/church": ("a", "b", "c", "d")}})
    builder = Builder(suite(tasks=["sd14-church"]), known, None)
    key = builder.specs.stages[builder.specs.drawn(task, "known/church", "owner", count)].key
    assert key["prompts"] == ["a", "b", "c", "d"][:most] and key["per_prompt"] == count // most


@pytest.mark.parametrize(
    ("family", "like"), [("style", "sd14-paper"), ("object", "sd14-kettle"), ("identity", "sd14-curie")]
)
def test_a_folder_of_photos_becomes_a_task_on_stable_diffusion(
    known: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, like: str
) -> None:
    """With the prompts of the family's task on that base; on the smallest machine that draws its size."""
    photos = tmp_path / "mine"
    photos.mkdir()
    for i in range(10):
        Image.new("RGB", (80, 70 + i), (20 * i, 90, 200 - 9 * i)).save(photos / f"{i}.png")
    monkeypatch.setattr("immunebench.pictures.folder_source.default_catalog", lambda: known)
    del known.profiles["cpu"], known.profiles["cpu-bf16"]
    for name, profile in known.profiles.items():
        known.profiles[name] = profile.model_copy(update={"resolution": 64})
    noun = "thing" if family == "object" else None
    # Without a name it is the dev task as well, and none of a data set or of a name that the base knows.
    named = like if family == "style" else None
    request = TaskRequest(photos, family, NAME, noun=noun, like=named, out=tmp_path / "out")
    new_task(request, known)
    made = load_catalog(tmp_path / "out")
    task, measured = made.tasks["my-mine"], made.suites["my-mine"]
    assert (task.base, measured.profile) == (NAME, "t4-16g")
    assert set(task.drawn) == {task.benign.concept, *task.anchors.others}
    assert known.tasks[like].concept.name in task.anchors.others
    known.tasks["my-mine"] = task
    known.paths["task", "my-mine"] = made.paths["task", "my-mine"]
    assert len(make_plan(measured, known).cells) == 4


@pytest.mark.parametrize("name", ["sd14-lite", "sd14-full"])
def test_the_suites_of_stable_diffusion_plan_whole(
    known: Catalog, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the size of picture and the judge of the narrow base; which cells and how many adaptations, by hand."""
    monkeypatch.setenv("IMMUNEBENCH_DATA", str(tmp_path / "data"))
    for profile in ("a10-24g", "a100-40g"):
        known.profiles[profile] = known.profiles[profile].model_copy(update={"resolution": 64})
    for task in known.tasks.values():
        assert task.base != NAME or task.family != "relearn" or task.start_from == "esd"
    suite = known.suite(name)
    lacking = [task for task in suite.names("tasks") if known.tasks[task].dataset is not None]
    assert len(lacking) == {"sd14-lite": 1, "sd14-full": 6}[name]
    with pytest.raises(UsageError, match=f"are not there .*immunebench data fetch {' '.join(lacking)}"):
        make_plan(suite, known)
    for task in (known.tasks[task] for task in lacking):
        assert task.dataset is not None
        for number, file in enumerate(task.dataset.files):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            photo(number).save(tmp_path / file)
        dataset_fetch.add(task, known, tmp_path, say=lambda text: None)
    plan = make_plan(suite, known)
    cells = {"sd14-lite": 7 * (2 * 3 + 2), "sd14-full": 3 * (6 * (4 * 5 + 2) + 13 * (3 * 5 + 2))}
    assert len(plan.cells) == cells[name]
    split = {task.id: task.split for task in known.tasks.values() if task.id.startswith("sd14-")}
    assert {task for task, kind in split.items() if kind == "dev"} == {
        "sd14-garbage-truck", "sd14-picasso", "sd14-paper", "sd14-kettle", "sd14-curie",
    }  # fmt: skip
    assert {cell.task for cell in plan.cells} <= {task for task, kind in split.items() if kind == "suite"}
    families = {known.tasks[cell.task].family for cell in plan.cells}
    assert families == {"relearn", "style", "object", "identity"}


def test_the_task_with_terms_plans_by_itself(known: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anti-DreamBooth's sets A, B and C are owner, published, and extra with reference."""
    monkeypatch.setenv("IMMUNEBENCH_DATA", str(tmp_path / "data"))
    task = known.tasks["sd14-vggface2"]
    assert task.dataset is not None
    for number, file in enumerate(task.dataset.files):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(tmp_path / file)
    dataset_fetch.add(task, known, tmp_path, accept_terms=True, say=lambda text: None)
    lock = json.loads((tmp_path / "data/sd14-vggface2/lock.json").read_text())
    sets = {"owner": "A", "published": "B", "extra": "C", "reference": "C"}
    assert all(f"/set_{sets[picture['split']]}/" in picture["name"] for picture in lock["pictures"])
    assert len(make_plan(suite(tasks=[task.id]), known).cells) == 1


@pytest.mark.parametrize("name", ["sd14-lite", "sd14-full"])
def test_what_the_base_draws_needs_no_pictures(known: Catalog, name: str) -> None:
    """The tasks without a data set run by themselves; each draws its concept, the benign one and the others."""
    for profile in ("a10-24g", "a100-40g"):
        known.profiles[profile] = known.profiles[profile].model_copy(update={"resolution": 64})
    suite = known.suite(name)
    plan = make_plan(suite, known, task=[task for task in suite.names("tasks") if not known.tasks[task].dataset])
    for task in (known.tasks[task] for task in {cell.task for cell in plan.cells}):
        drawn = {spec.key["noise_key"][1] for spec in plan.stages.values() if "drawn" in spec.key.get("noise_key", ())}  # type: ignore[index, operator]
        assert {task.concept.name, task.benign.concept, *task.anchors.others} <= drawn
