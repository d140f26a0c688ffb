"""Attacks and defenses as stages run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalogs import use_catalog
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.catalog.loading import load_catalog
from immunebench.core import wording
from immunebench.core.types import Concept, Params, Pictures, StageError, Weights
from immunebench.execution import stages
from immunebench.methods.context import Context
from immunebench.model.diffusion import LatentDiffusion
from immunebench.store.graph import StageSpec
from tiny import tiny_folder, tiny_model, tiny_pictures

NUMERICS = {
    "device": "cpu",
    "memory_gib": 64,
    "threads": 1,
    "resolution": 32,
    "batch": 4,
    "sampling_steps": 2,
}
CONCEPT = {
    "id": "object-mug",
    "family": "object",
    "noun": "mug",
    "caption": "a {token} {noun}",
    "token": "oqx",
}
LORA = {"rank": 2, "steps": 3, "batch": 4, "lr": 1e-2, "weight_decay": 1e-2, "saves": [1, 3]}
IMMA = {
    "tensors": "attention", "inner": True, "inner_steps": 1, "unroll": 0, "inner_reset": "never",
    "phase": "global", "steps": 4, "batch": 4,
    "lr_in": 1e-2, "lr_out": 1e-3, "retain": 0.0, "against": ["lora"], "clip": 1.0,
}  # fmt: skip
AGAINST = {"lora": {"entry": "lora", "entry_files": {}, "params": LORA}}
BAD = """
import torch
from immunebench import Weights

def protect_model(model, concepts, params, ctx):
    name, w = next(iter(model.unet_tensors().items()))
    if params.how == "raise":
        raise ValueError("two\\nlines")
    if params.how == "type":
        return {name: w}
    wrong = {"nan": {name: w * float("nan")}, "shape": {name: w[:1]}, "name": {name + "x": w}}
    return Weights(wrong[params.how])
"""


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """The checkout's entries, a tiny base and a defense that misbehaves."""
    house = tmp_path / "house"
    bad = house / "defenses" / "bad"
    bad.mkdir(parents=True)
    manifest = Path(__file__).parents[2].joinpath("defenses/destroy/defense.toml").read_text()
    manifest = manifest.partition("[params]")[0].replace('"destroy"', '"bad"')
    (bad / "defense.toml").write_text(manifest + '[params]\nhow = "nan"\n')
    (bad / "defense.py").write_text(BAD)
    models = tiny_folder().parent / "models.toml"
    models.write_text(
        '[bases.tiny]\npath = "base"\nformat = "diffusers"\nrevision = "1"\njudge = "none"\n'
        'unrelated_prompts = ["a", "b"]\n[judges]\n'
        '[sources.mini]\nloader = "immunebench.mini.world:concept_pictures"\nversion = 1\n'
        '[perceptual.mini]\nloader = "immunebench.mini.judges:load_public_distance"\n'
    )
    found = load_catalog(house, models=models)
    use_catalog(monkeypatch, found)
    return found


def run(stage: str, key: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, object]:
    out.mkdir()
    common: dict[str, Any] = {"base": "tiny", "base_files": {}, "numerics": NUMERICS, "seed": 5}
    if "entry" in key:
        known = stages.default_catalog()
        entry = known.defense(key["entry"]) if stage == "protect" else known.attack(key["entry"])
        common["entry_files"] = dict(entry.files)
    spec = StageSpec(stage, {**common, **key}, dict.fromkeys(inputs, "0" * 64))
    return stages.run_stage(spec, inputs, out, lambda what, done, total: None)


def test_code_that_is_not_that_of_the_key_does_not_run(catalog: Catalog, tmp_path: Path) -> None:
    key = {"entry": "bad", "hook": "protect_model", "entry_files": {"defense.py": "0" * 64}}
    with pytest.raises(OSError, match="files changed after the run was planned"):
        run("protect", key, {}, tmp_path / "out")


def protect(catalog: Catalog, folder: Path, entry: str, params: dict[str, Any], **key: Any) -> Path:
    """Run a defense on the tiny base and return its artifact."""
    given = folder / "given"
    if not given.exists():
        given.mkdir()
        tiny_pictures(8, "a {subject} near the sea").save(given)
    manifest = catalog.defense(entry)
    out = folder / f"out-{len(list(folder.iterdir()))}"
    full = {
        "entry": entry, "params": params, "hook": manifest.hooks[0], "budget": manifest.budget,
        "against": {}, "concept": CONCEPT, **key,
    }  # fmt: skip
    run("protect", full, {"owner": given, "published": given}, out)
    return out


def test_every_entry_of_the_checkout_is_sound(catalog: Catalog) -> None:
    # Tasks and ensembles of surrogates name the embedded bases, which are not in this catalogue.
    assert {broken.id for broken in catalog.broken if broken.kind != "task"} == {"aspl-ensemble"}
    assert catalog.defense("imma").id == "imma-lora"
    assert {
        "none",
        "none-replicate",
        "noise-4",
        "blank",
        "destroy-mild",
        "imma-lora-max",
    } <= catalog.defenses.keys()


def test_captions_are_filled() -> None:
    content = "a {subject} near the sea"
    assert wording.fill("{content}", token="sks", noun="mug", content=content) == "a sks mug near the sea"
    assert wording.fill("a {noun} in {token} style", token="oqx", noun="picture") == "a picture in oqx style"


def test_lora_trains_saves_and_generates(catalog: Catalog, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    tiny_pictures(6, "a {subject} near the sea").save(images)
    key = {"entry": "lora", "params": LORA, "caption": "{content}", "token": "sks", "noun": "mug"}
    meta = run("adapt", key, {"images": images}, tmp_path / "a")
    run("adapt", key, {"images": images}, tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["adapter-00001.safetensors", "adapter-00003.safetensors", "adapter.json", "log.json"]
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    assert json.loads((tmp_path / "a" / "adapter.json").read_text())["steps"] == [1, 3]
    assert meta["peak_process_gib"] > 0  # type: ignore[operator]

    drawing = {"prompts": ["a sks mug", "a tree"], "per_prompt": 2, "noise_key": ["object-mug", 0], "step": 3}
    run("generate", drawing, {"adapter": tmp_path / "a"}, tmp_path / "drawn")
    run("generate", {**drawing, "step": None}, {}, tmp_path / "floor")
    drawn, floor = Pictures.load(tmp_path / "drawn"), Pictures.load(tmp_path / "floor")
    assert drawn.captions == ("a sks mug", "a sks mug", "a tree", "a tree")
    assert (tmp_path / "drawn" / "p01-01.png").exists()
    assert not np.array_equal(drawn.pixels, floor.pixels)


def test_noise_keeps_its_budget_and_blank_does_not(catalog: Catalog, tmp_path: Path) -> None:
    published = tiny_pictures(8)
    for entry, budget in (("noise", 8), ("noise-16", 16)):
        out = protect(catalog, tmp_path, entry, {}, budget=budget)
        change = Pictures.load(out).pixels.astype(int) - published.pixels
        assert np.abs(change).max() == budget
        assert abs(change.mean()) < 0.2
    with pytest.raises(StageError, match=r"blank: Linf of \d+/255 exceeds the declared budget of 8/255"):
        protect(catalog, tmp_path, "blank", {})


def test_pictures_are_held_to_a_perceptual_bound_where_the_manifest_declares_one(
    catalog: Catalog, tmp_path: Path
) -> None:
    bound = {"budget": None, "perceptual": {"id": "mini"}}
    with pytest.raises(StageError, match=r"blank: a perceptual distance of \d\.\d+ exceeds the declared 0\.01"):
        protect(catalog, tmp_path, "blank", {}, perceptual_budget=0.01, **bound)
    protect(catalog, tmp_path, "blank", {}, perceptual_budget=1.0, **bound)


def test_destroy_adds_noise_in_proportion(catalog: Catalog, tmp_path: Path) -> None:
    out = protect(catalog, tmp_path, "destroy", {"tensors": "cross-attention", "strength": 0.5})
    released = Weights.load(out / "weights.safetensors").tensors
    base = tiny_model().unet_tensors("cross-attention")
    assert released.keys() == base.keys()
    name = max(released, key=lambda n: released[n].numel())
    ratio = (released[name] - base[name]).std() / base[name].std()
    assert abs(ratio.item() - 0.5) < 0.1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "not finite"),
        ("shape", "the base has"),
        ("name", "no tensor"),
        ("type", "returned dict, not Weights"),
        ("raise", "bad: ValueError: two lines"),
    ],
)
def test_a_defense_that_misbehaves_is_one_clear_line(catalog: Catalog, tmp_path: Path, how: str, message: str) -> None:
    with pytest.raises(StageError, match=message) as caught:
        protect(catalog, tmp_path, "bad", {"how": how})
    assert caught.value.kind == "error"
    assert str(caught.value).startswith("bad: ")
    assert "\n" not in str(caught.value)


def test_imma_writes_its_weights_and_its_log(catalog: Catalog, tmp_path: Path) -> None:
    out = protect(catalog, tmp_path, "imma-lora", IMMA, against=AGAINST)
    released = Weights.load(out / "weights.safetensors").tensors
    assert len(released) == 70
    log = json.loads((out / "log.json").read_text())
    shifts = [row["shift"] for row in log]
    assert shifts[0] == 0 < shifts[1] == shifts[2] < shifts[3]
    assert all(row["loss"] > 0 for row in log)


def test_imma_without_inner_steps_only_ascends(catalog: Catalog, tmp_path: Path) -> None:
    out = protect(catalog, tmp_path, "imma-lora", {**IMMA, "inner": False}, against=AGAINST)
    shifts = [row["shift"] for row in json.loads((out / "log.json").read_text())]
    assert 0 < shifts[0] < shifts[1] < shifts[2] < shifts[3]


def test_imma_may_reset_the_attacker_and_restart_each_epoch(catalog: Catalog, tmp_path: Path) -> None:
    faithful = protect(catalog, tmp_path, "imma-lora", IMMA, against=AGAINST)
    reset = protect(catalog, tmp_path, "imma-lora", {**IMMA, "inner_reset": "each_cycle"}, against=AGAINST)
    assert (faithful / "weights.safetensors").read_bytes() != (reset / "weights.safetensors").read_bytes()
    epochs = {**IMMA, "phase": "per_epoch", "batch": 3}
    out = protect(catalog, tmp_path, "imma-lora", epochs, against=AGAINST)
    shifts = [row["shift"] for row in json.loads((out / "log.json").read_text())]
    assert shifts[1] == shifts[2] == shifts[3]


def test_imma_with_a_retain_term_needs_public_pictures(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no public pictures"):
        protect(catalog, tmp_path, "imma-lora", {**IMMA, "retain": 1.0}, against=AGAINST)


def test_surrogates_are_loaded_once_and_beside_the_stage_s_own_base(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def look(model: LatentDiffusion, concept: Concept, published: Pictures, params: Params, ctx: Context) -> Pictures:
        seen.update(model=model, bases=ctx.surrogates(model), captions=ctx.captioned(published).captions)
        return published

    monkeypatch.setattr(Entry, "function", lambda entry, hook: look)
    catalog.models.bases["twin"] = catalog.models.bases["tiny"]
    protect(catalog, tmp_path, "noise", {})
    assert seen["bases"] == [seen["model"]]
    protect(catalog, tmp_path, "noise", {}, surrogates={"twin": {}, "tiny": {}})
    twin, own = seen["bases"]
    assert own is seen["model"] and twin is not own
    assert torch.equal(twin.unet.conv_in.weight, own.unet.conv_in.weight)
    assert set(seen["captions"]) == {"a oqx mug"}
