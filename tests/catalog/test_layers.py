"""Defenses released together, and combinations that are refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

import house
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.layers import Layers
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError
from immunebench.plan.planning import make_plan

PARAMS = "[params]\nsteps = 3\n"
SUITE = house.SUITE.replace('defenses = ["none", "shield", "noise", "none-replicate"]', "defenses = {defenses}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A house with two erasures' worth of layers: gone, shield, cloak, and the control noise."""
    folder = tmp_path / "house"
    house.house(folder)
    house.defense(folder, "gone", "protect_model", 'aliases = ["away"]\n' + PARAMS, kind="erasure")
    house.defense(folder, "cloak", "protect_images", "budget = 4\n" + PARAMS, kind="data")
    house.defense(folder, "veil", "protect_images", "budget = 4\n" + PARAMS, kind="data")
    task = house.TASK.replace("style-a", "relearn-a").replace('family = "style"', 'family = "relearn"')
    task = task.replace('title = "The style of A"', 'title = "A"\nstart_from = "gone"')
    house.write(folder / "tasks/relearn/relearn-a.toml", task.replace("[benign]", '[benign]\nfamily = "style"'))
    return folder


def read(root: Path) -> Catalog:
    return load_catalog(root, models=root / "models.toml")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone+gone", "holds a layer twice: 'gone+gone'"),
        ("gone+away", "holds a layer twice: 'gone+away'"),
        ("shield+gone", "an erasure starts from the base, so it must be the first layer of 'shield+gone'"),
        ("noise+shield", "noise is a control and cannot be a layer: 'noise+shield'"),
        ("shield+none", "none is a control and cannot be a layer: 'shield+none'"),
        ("cloak+shield", "model defenses come first, and at most one layer changes pictures, unlike in 'cloak+shield'"),
        ("cloak+veil", "model defenses come first, and at most one layer changes pictures, unlike in 'cloak+veil'"),
        ("gone+", "unknown defense ''"),
        ("gone+sheild", "unknown defense 'sheild' (nearest: 'shield')"),
    ],
)
def test_layers_that_would_undo_each_other_are_one_line(root: Path, name: str, said: str) -> None:
    path = house.write(root / "suites/tiny.toml", SUITE.replace("{defenses}", f'["none", "{name}"]'))
    catalog = read(root)
    with pytest.raises(UsageError) as caught:
        make_plan(catalog.suite("tiny"), catalog)
    assert str(caught.value).startswith(f"{path}: defenses: {said}")
    with pytest.raises(UsageError) as caught:
        make_plan(catalog.suite("tiny"), catalog, defense=name)
    assert said in str(caught.value)


def test_layers_speak_as_one_defense(root: Path) -> None:
    catalog = read(root)
    both = catalog.defense("away+buckler+cloak")
    assert isinstance(both, Layers)
    assert (both.id, both.kind_of, both.version, both.budget) == ("gone+shield+cloak", "layered", 3, 4)
    assert both.hooks == ("protect_model", "protect_images") and both.against == ("lora",)
    assert both.params("tiny") == {
        "gone": {"steps": 3},
        "shield": {"steps": 5, "lr": 0.1, "keep": True, "against": ["lora"]},
        "cloak": {"steps": 3},
    }
    assert set(both.files) == {"gone/defense.py", "shield/defense.py", "cloak/defense.py"}
    assert catalog.defense("gone+shield").kind_of == "erasure"


def test_each_layer_begins_from_what_the_one_before_it_released(root: Path) -> None:
    block = '[[cells]]\ntasks = ["{}"]\ndefenses = {}\nchains = ["lora"]\n'
    blocks = block.format("relearn-a", '["gone+shield", "shield"]') + block.format("style-a", '["shield+cloak"]')
    product = ("tasks", "defenses", "chains")
    shared = "\n".join(line for line in house.SUITE.splitlines() if not line.startswith(product))
    house.write(root / "suites/tiny.toml", f"{shared}\n{blocks}")
    catalog = read(root)
    made = make_plan(catalog.suite("tiny"), catalog)

    def chain(digest: str) -> list[str]:
        spec = made.stages[digest]
        before = chain(spec.inputs["weights"]) if "weights" in spec.inputs else []
        return [*before, str(spec.key["entry"])]

    graph = made.roots["relearn-a/gone+shield/lora/cpu/0"]
    assert chain(graph.protect["protect_model"]) == ["gone", "shield"]
    both = made.roots["style-a/shield+cloak/lora/cpu/0"]
    # The picture's layer sees the start model, not the release that is made at the same time.
    assert chain(both.protect["protect_images"]) == ["cloak"]
    adapt = made.stages[made.stages[both.pictures[2]].inputs["adapter"]]
    assert adapt.inputs["weights"] == both.protect["protect_model"]
    assert adapt.inputs["images"] == both.protect["protect_images"]
    # A defense of the model alone begins from the task's start model: here the same two stages.
    alone = made.roots["relearn-a/shield/lora/cpu/0"]
    assert alone.protect["protect_model"] == graph.protect["protect_model"]
