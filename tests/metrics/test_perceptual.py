"""The perceptual distance that entries are lent, and the bound in its terms, from the manifest to the saved pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import house
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError
from immunebench.core.types import Pictures, StageError
from immunebench.declared import schema
from immunebench.declared.manifest import DefenseManifest
from immunebench.execution import hooks, inputs
from immunebench.methods.bound import distances, within
from immunebench.methods.context import Context
from immunebench.plan.planning import make_plan
from tiny import tiny_context, tiny_model, tiny_pictures

BOUND = "perceptual_budget = 0.05\n[variants.veil-10]\nperceptual_budget = 0.1\n"
PERCEPTUAL = """
[perceptual.eye]
loader = "immunebench.metrics.perceptual:load_lpips"
files = ["weights/eye.safetensors"]
"""


def mean_square(x: Tensor, y: Tensor) -> Tensor:
    """A distance whose values are computed by hand: 1 between black and white."""
    return ((x - y) / 2).square().mean((1, 2, 3))


def context(out: Path) -> Context:
    ctx = tiny_context(tiny_model(), out)
    ctx.distance = mean_square
    return ctx


def grey(*levels: int) -> Pictures:
    pixels = np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])
    return Pictures(pixels, ("",) * len(levels))


def lent(tmp_path: Path, *, file: bool = True) -> Catalog:
    """Return a house whose base lends a distance, with two defenses and a purifier that use it."""
    models = house.house(tmp_path)
    text = models.read_text().replace('judge = "toy"\n', 'judge = "toy"\nperceptual = "eye"\n') + PERCEPTUAL
    models.write_text(text)
    if file:
        house.write(tmp_path / "weights/eye.safetensors", "eye")
    house.defense(tmp_path, "veil", "protect_images", BOUND, kind="data")
    house.defense(tmp_path, "seer", "protect_images", 'budget = 8\nneeds = ["perceptual"]\n', kind="data")
    manifest = house.ATTACK.split("[params]")[0].replace('"lora"', '"wash"').replace('"adapt"', '"purify"')
    house.write(tmp_path / "attacks/wash/attack.toml", manifest + 'needs = ["perceptual"]\n')
    house.write(tmp_path / "attacks/wash/attack.py", "def purify(*arguments):\n    return arguments\n")
    return load_catalog(tmp_path, models=models)


def keys(catalog: Catalog, defense: str, stage: str, chain: str = "lora") -> dict[str, object]:
    plan_suite = catalog.suite("tiny").model_copy(update={"chains": (chain,)})
    plan = make_plan(plan_suite, catalog, defense=defense)
    (spec,) = [s for s in plan.stages.values() if s.stage == stage and s.key.get("entry") in (defense[:4], "wash")]
    return dict(spec.key)


def test_the_key_names_the_distance_where_an_entry_asks_for_it(tmp_path: Path) -> None:
    catalog = lent(tmp_path)
    eye = {"id": "eye", "version": 1, "files": {"weights/eye.safetensors": house_digest("eye")}}
    veil = keys(catalog, "veil-10", "protect")
    assert (veil["perceptual"], veil["perceptual_budget"], veil["budget"]) == (eye, 0.1, None)
    seer = keys(catalog, "seer", "protect")
    assert (seer["perceptual"], seer["budget"]) == (eye, 8)
    assert "perceptual_budget" not in seer
    assert keys(catalog, "none", "purify", "wash+lora")["perceptual"] == eye
    shield = make_plan(catalog.suite("tiny"), catalog, defense="shield")
    assert not any({"perceptual", "perceptual_budget"} & spec.key.keys() for spec in shield.stages.values())


def house_digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def test_what_a_distance_reads_must_be_there_before_anything_runs(tmp_path: Path) -> None:
    catalog = lent(tmp_path, file=False)
    with pytest.raises(UsageError, match=r"perceptual\.eye\.files.*no such file.*weights/eye\.safetensors"):
        keys(catalog, "veil", "protect")
    models = tmp_path / "models.toml"
    models.write_text(models.read_text().replace('perceptual = "eye"', 'perceptual = "eyes"'))
    with pytest.raises(UsageError, match=r"unknown perceptual distance.*'eyes'.*'eye'"):
        keys(load_catalog(tmp_path, models=models), "veil", "protect")
    models.write_text(models.read_text().replace('perceptual = "eyes"\n', ""))
    with pytest.raises(UsageError, match=r"veil/defense\.toml.*the base 'tiny' does not provide"):
        keys(load_catalog(tmp_path, models=models), "veil", "protect")


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ("", "budget is missing.*or perceptual_budget"),
        ("budget = 8\nperceptual_budget = 0.05\n", "perceptual_budget replaces budget"),
        (
            "budget = 8\n[variants.a]\nperceptual_budget = 0.05\n",
            "perceptual_budget replaces budget",
        ),
        ("perceptual_budget = 0.0\n", "perceptual_budget"),
        ("perceptual_budget = 1.5\n", "perceptual_budget"),
        ('budget = 8\nneeds = ["perception"]\n', "perceptual"),
    ],
)
def test_a_wrong_bound_breaks_the_entry_when_it_is_listed(tmp_path: Path, more: str, wrong: str) -> None:
    folder = house.defense(tmp_path, "veil", "protect_images", more, kind="data")
    with pytest.raises(UsageError, match=wrong):
        schema.load(folder / "defense.toml", DefenseManifest)


def test_an_entry_that_asks_for_no_distance_gets_none(tmp_path: Path) -> None:
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(StageError, match=r'needs = \["perceptual"\]'):
        tiny_context(tiny_model(), tmp_path).perceptual(x, x)


def test_distances_are_those_of_each_pair(tmp_path: Path) -> None:
    found = distances(grey(0, 255, 0), grey(255, 255, 51), context(tmp_path))
    assert found == pytest.approx([1.0, 0.0, 0.04])


def test_a_change_is_shrunk_until_the_bound_holds_and_no_further(tmp_path: Path) -> None:
    """A change of 51 levels has distance 0.04, one of 5.1 has 0.0004; 0.01 is reached at 25.5 levels."""
    clean = grey(100, 100, 100)
    change = np.stack([np.full((8, 8, 3), level, np.float32) for level in (51, 5, 0)])
    kept = within(clean, change, 0.01, context(tmp_path))
    assert distances(clean, kept, context(tmp_path)).max() <= 0.01
    assert [int(p[0, 0, 0]) - 100 for p in kept.pixels] == [25, 5, 0]
    nothing = within(grey(100), np.full((1, 8, 8, 3), 51, np.float32), 1e-9, context(tmp_path))
    assert np.array_equal(nothing.pixels, grey(100).pixels)


def test_saved_pictures_are_held_to_the_bound(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    hooks.check_perceptual("veil", distances(grey(100, 0), grey(151, 0), ctx), 0.04)
    with pytest.raises(StageError, match=r"veil: a perceptual distance of 0\.0400 exceeds the declared 0\.03"):
        hooks.check_perceptual("veil", distances(grey(0, 100), grey(0, 151), ctx), 0.03)
    with pytest.raises(StageError, match="nan"):
        hooks.check_perceptual("veil", np.array([0.01, np.nan]), 0.03)


def test_the_embedded_base_lends_a_network_that_no_judge_grades_with() -> None:
    """Its files are none of the judge's, noise moves it more the stronger it is, and a gradient comes back."""
    catalog = load_catalog()
    key = catalog.perceptual("mini", asked_by=Path("x"))
    assert not key["files"].keys() & catalog.judge_files("mini").keys()  # type: ignore[union-attr]
    distance = inputs.load_distance("mini", "cpu")
    x = tiny_model().to_images(tiny_pictures(2, side=64).pixels).requires_grad_()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    near, far = distance(x, x + 0.02 * noise), distance(x, x + 0.2 * noise)
    assert near.shape == (2,)
    assert (near < far).all()
    assert distance(x, x).max() == 0
    (gradient,) = torch.autograd.grad(far.sum(), x)
    assert gradient.abs().max() > 0
