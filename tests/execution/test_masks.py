"""Masks of tensors in their stages: what is admitted, what it binds, and what an attack that goes round it meets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from catalogs import use_catalog
from exact import copied
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import load_catalog
from immunebench.core.mask import Mask
from immunebench.core.types import StageError
from immunebench.execution import masks, stages
from immunebench.methods.adapters import install
from immunebench.model.diffusion import LatentDiffusion
from immunebench.store.graph import StageSpec
from tiny import tiny_folder, tiny_model, tiny_pictures

NUMERICS = {"device": "cpu", "memory_gib": 64, "threads": 1, "resolution": 32, "batch": 4, "sampling_steps": 2}
SHORT = {"steps": 2, "batch": 3, "lr": 1e-2, "weight_decay": 1e-2, "saves": [1, 2]}
ATTACKS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "lora-tuned": {"rank": 2, "rates": [0.5, 1.0], "probe_steps": 2},
    "dreambooth": {"train": "networks", "text_encoder": False, "prior_weight": 0.0, "decay": 0.0, "rank": 2},
    "textual-inversion": {"num_vectors": 1, "initializer": "m"},
}
#: An attack that trains the networks behind the interface's back.
ROUND = """\
from immunebench import Dense


def attach(model, params, ctx):
    model.frozen = frozenset()
    return Dense.attach(model)


def adapt(model, pictures, params, ctx):
    frozen = model.frozen
    adapter = attach(model, params, ctx)
    ctx.checkpoint(1, adapter)
    model.frozen = frozen
"""
#: The same with low-rank adapters.
ROUND_LORA = ROUND.replace("Dense", "LowRank").replace("attach(model)", "attach(model, rank=2, seed=1)")
PART = "down_blocks.0.attentions.0.transformer_blocks.0"


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """The checkout's entries and two attacks that break the rules, on a tiny base."""
    models = tiny_folder().parent / "mask-models.toml"
    models.write_text(
        '[bases.tiny]\npath = "base"\nformat = "diffusers"\nrevision = "1"\njudge = "none"\n'
        'unrelated_prompts = ["a", "b"]\n[judges]\n'
        '[sources.mini]\nloader = "immunebench.mini.world:concept_pictures"\nversion = 1\n'
    )
    house = tmp_path / "house"
    manifest = Path(__file__).parents[2].joinpath("attacks/lora/attack.toml").read_text().partition("[params]")[0]
    params = "[params]\nsteps = 1\nbatch = 3\nlr = 1e-2\nsaves = [1]\n"
    for name, more in (("round", ""), ("round-lora", ""), ("word-liar", 'trains = "words"\n')):
        folder = house / "attacks" / name
        folder.mkdir(parents=True)
        (folder / "attack.toml").write_text(manifest.replace('id = "lora"', f'id = "{name}"') + more + params)
        (folder / "attack.py").write_text(ROUND_LORA if name == "round-lora" else ROUND)
    found = load_catalog(house, models=models)
    tiny_model()
    monkeypatch.setattr(LatentDiffusion, "load", lambda folder, numerics: tiny_model())
    use_catalog(monkeypatch, found)
    return found


def mask_of(folder: Path, *frozen: str) -> Path:
    """Write the mask that freezes the tensors whose names begin so."""
    folder.mkdir()
    model = tiny_model()
    names = list(model.unet_tensors("all"))
    entry = load_catalog().defense("random-freeze").layers[0]
    masks.admit(entry, Mask.of(names, [name for name in names if name.startswith(frozen)]), model, folder)
    return folder


def adapt(catalog: Catalog, folder: Path, attack: str, mask: Path | None, out: str = "out") -> dict[str, Any]:
    (folder / out).mkdir()
    if not (folder / "given").exists():
        (folder / "given").mkdir()
        tiny_pictures(5, "a q").save(folder / "given")
    entry = catalog.attack(attack)
    params = {**SHORT, **ATTACKS[attack]} if attack in ATTACKS else {"steps": 1, "saves": [1]}
    key: dict[str, Any] = {
        "base": "tiny", "base_files": {}, "numerics": NUMERICS, "seed": 5, "entry": attack,
        "entry_files": dict(entry.files), "params": params, "caption": "a {token} {noun}", "token": "q", "noun": "m",
    }  # fmt: skip
    inputs = {"images": folder / "given"} | ({} if mask is None else {"mask": mask})
    spec = StageSpec("adapt", key, dict.fromkeys(inputs, "0" * 64))
    return stages.run_stage(spec, inputs, folder / out, lambda what, done, total: None)


@pytest.mark.parametrize("attack", ["lora", "lora-tuned", "dreambooth"])
def test_a_frozen_tensor_takes_neither_updates_nor_adapters_and_the_free_ones_do(
    catalog: Catalog, tmp_path: Path, attack: str
) -> None:
    mask = mask_of(tmp_path / "mask", "up_blocks", f"{PART}.attn1.to_q", f"{PART}.attn2.to_out")
    made, free = (adapt(catalog, tmp_path, attack, m, out) for m, out in ((mask, "bound"), (None, "free")))
    model = tiny_model()
    before = copied(model.unet_tensors("all"))
    changed = {}
    for out in ("bound", "free"):
        model.restore()
        install(model, tmp_path / out, 2)
        changed[out] = {n for n, t in model.unet_tensors("all").items() if not torch.equal(t, before[n])}
        model.restore()
    frozen = {n for n, t in json.loads((mask / masks.FILE).read_text())["tensors"].items() if t["frozen"]}
    assert not changed["bound"] & frozen and changed["free"] & frozen
    assert changed["bound"] == changed["free"] - frozen
    # The savings that draw a fine-tuner to the interface: what is not trained has no moments either.
    assert made["trained_parameters"] < free["trained_parameters"]
    assert 8 * made["trained_parameters"] <= made["optimiser_bytes"] < free["optimiser_bytes"]
    saved = load_file(tmp_path / "bound" / "adapter-00002.safetensors")
    assert made["trained_parameters"] == sum(t.numel() for t in saved.values())


def test_textual_inversion_touches_no_tensor_of_the_unet(catalog: Catalog, tmp_path: Path) -> None:
    assert catalog.attack("textual-inversion").trains_words
    everything = mask_of(tmp_path / "mask", "up_blocks", "down_blocks", "mid_block")
    for out, mask in (("bound", everything), ("free", None)):
        adapt(catalog, tmp_path, "textual-inversion", mask, out)
    first, second = ((tmp_path / out / "adapter-00002.safetensors").read_bytes() for out in ("bound", "free"))
    assert first == second


def test_an_attack_that_goes_round_the_interface_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    mask = mask_of(tmp_path / "mask", "conv_in.bias")
    with pytest.raises(StageError, match=r"^round: step 1 changes conv_in\.bias, which the mask freezes$"):
        adapt(catalog, tmp_path, "round", mask)
    projection = mask_of(tmp_path / "projection", f"{PART}.attn2.to_out.0.weight")
    with pytest.raises(StageError, match=rf"^round-lora: step 1 changes {PART}\.attn2\.to_out\.0\.weight, which"):
        adapt(catalog, tmp_path, "round-lora", projection, "low-rank")
    assert adapt(catalog, tmp_path, "round", None, "free")["trained_tensors"] > 0
    with pytest.raises(StageError, match=r'^word-liar: trains networks, and its manifest says trains = "words"$'):
        adapt(catalog, tmp_path, "word-liar", None, "liar")


def test_where_every_projection_is_frozen_lora_has_nothing_to_train(catalog: Catalog, tmp_path: Path) -> None:
    mask = mask_of(tmp_path / "mask", "up_blocks", "down_blocks", "mid_block")
    with pytest.raises(StageError, match=r"^lora: the mask freezes every projection of to_q, to_k, to_v, to_out\.0"):
        adapt(catalog, tmp_path, "lora", mask)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("conv_in.bias"), "the tensor 'conv_in.bias' is not in the mask"),
        (
            lambda tensors: tensors.update({"conv_in.bios": tensors["conv_in.bias"]}),
            "the base has no tensor 'conv_in.bios' (nearest: 'conv_in.bias')",
        ),
        (lambda tensors: tensors["conv_in.bias"].update(shape=[9]), "conv_in.bias has shape [9], here [16]"),
    ],
)
def test_a_mask_of_another_architecture_is_one_line_before_any_step(
    catalog: Catalog, tmp_path: Path, change: Any, said: str
) -> None:
    mask = mask_of(tmp_path / "mask", "conv_in")
    content = json.loads((mask / masks.FILE).read_text())
    change(content["tensors"])
    (mask / masks.FILE).write_text(json.dumps(content))
    with pytest.raises(StageError) as error:
        adapt(catalog, tmp_path, "lora", mask)
    assert str(error.value) == f"mask: of another architecture: {said}"
    assert not list((tmp_path / "out").iterdir())


def test_what_a_hook_returns_is_checked_and_its_ratio_counted_by_tensors_and_by_parameters(tmp_path: Path) -> None:
    model, entry = tiny_model(), load_catalog().defense("random-freeze").layers[0]
    shapes = {name: tensor.numel() for name, tensor in model.unet_tensors("all").items()}
    frozen = ["conv_in.weight", "conv_out.bias"]
    made = masks.admit(entry, Mask.of(shapes, frozen), model, tmp_path)
    # A convolution of 3 x 3 from 4 to 16 channels, and the bias of 4 channels.
    assert made == {
        "tensors": len(shapes), "frozen_tensors": 2, "parameters": sum(shapes.values()),
        "frozen_parameters": 4 * 16 * 9 + 4,
    }  # fmt: skip
    for wrong, said in (
        ("conv_in.weight", "freeze returned str, not Mask"),
        (Mask(dict.fromkeys(shapes, True)), "every tensor is frozen; at least one must stay free"),
        (Mask({"conv_in.weigth": True}), "the base has no tensor 'conv_in.weigth' (nearest: 'conv_in.weight')"),
        (Mask({**dict.fromkeys(shapes, False), "conv_in.bias": 0.3}), "conv_in.bias is 0.3, not True or False"),  # type: ignore[dict-item]
    ):
        with pytest.raises(StageError) as error:
            masks.admit(entry, wrong, model, tmp_path)
        assert str(error.value).startswith("random-freeze: ") and str(error.value).endswith(said)
    with pytest.raises(ValueError, match="no tensor has the name 'conv_im'"):
        Mask.of(shapes, ["conv_im"])


def test_the_stage_of_a_mask_writes_it_and_restoring_forgets_it(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    tiny_pictures(4, "a q").save(tmp_path / "given")
    entry = catalog.defense("random-freeze").layers[0]
    key: dict[str, Any] = {
        "base": "tiny", "base_files": {}, "numerics": NUMERICS, "seed": 5, "entry": "random-freeze", "hook": "freeze",
        "entry_files": dict(entry.files), "params": {"rho": 0.25, "pick": "random"}, "against": {}, "budget": None,
        "concept": {"id": "object-mug", "family": "object", "noun": "m", "caption": "a {token}", "token": "q"},
    }  # fmt: skip
    (tmp_path / "out").mkdir()
    spec = StageSpec("protect", key, {"owner": "0" * 64})
    meta = stages.run_stage(spec, {"owner": tmp_path / "given"}, tmp_path / "out", lambda what, done, total: None)
    model = tiny_model()
    count = len(model.unet_tensors("all"))
    assert (meta["tensors"], meta["frozen_tensors"]) == (count, round(count / 4))
    masks.enforce(model, tmp_path / "out")
    assert len(model.frozen) == round(count / 4) == count - len(model.open_tensors())
    model.restore()
    assert not model.frozen
