"""Cells in an unusual setting: some of the attacker's pictures clean, or another base under surrogate or attacker."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import house
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError
from immunebench.core.types import Pictures
from immunebench.declared.suite import Setting
from immunebench.execution import stages
from immunebench.plan.planning import make_plan
from immunebench.records.record import CellNames
from immunebench.store.graph import CellGraph, Plan, StageSpec

BLOCK = '[[cells]]\ntasks = ["style-a"]\nchains = ["lora"]\ndefenses = ["none", "noise"]\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "house"
    models = house.house(root)
    other = house.MODELS.partition("[judges.toy]")[0].replace("tiny", "other")
    models.write_text(other + house.MODELS)
    house.write(root / "weights/other/unet/config.json", '{"other": 1}')
    return root


def plan(root: Path, *blocks: str) -> Plan:
    """Plan the tiny suite with blocks in the place of its one product."""
    lines = [line for line in house.SUITE.splitlines() if not line.startswith(("tasks", "defenses", "chains"))]
    (root / "suites/tiny.toml").write_text("\n".join([*lines, *blocks]))
    catalog = load_catalog(root, models=root / "models.toml")
    return make_plan(catalog.suite("tiny"), catalog)


def refused(root: Path, *blocks: str) -> str:
    with pytest.raises(UsageError) as caught:
        plan(root, *blocks)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def spec(made: Plan, digest: str, *inputs: str) -> StageSpec:
    """Walk from a stage along named inputs."""
    for name in inputs:
        digest = made.stages[digest].inputs[name]
    return made.stages[digest]


def trained(made: Plan, graph: CellGraph, *, undefended: bool = False) -> StageSpec:
    """Return the stage whose pictures the attack of a cell trains on."""
    pictures = graph.ceiling_pictures if undefended else graph.pictures
    return spec(made, pictures[max(pictures)], "adapter", "images")


def test_the_usual_setting_written_out_is_the_plan_without_it(root: Path) -> None:
    plain, written = plan(root, BLOCK), plan(root, BLOCK + "clean = [0]\n")
    same = plan(root, BLOCK + 'surrogate = "tiny"\nattacker_base = "tiny"\n')
    assert plain.stages.keys() == written.stages.keys() == same.stages.keys()
    assert plain.cells == written.cells == same.cells
    assert [cell.key for cell in plain.cells] == ["style-a/none/lora/cpu/0", "style-a/noise/lora/cpu/0"]


def test_a_share_of_the_attackers_pictures_is_replaced_in_both_arms_alike(root: Path) -> None:
    made = plan(root, BLOCK + "clean = [0, 25, 50, 75, 100]\n")
    places = {}
    for share in (25, 50, 75):
        noise, none = (made.roots[f"style-a/{name}/lora/cpu/0/clean-{share}"] for name in ("noise", "none"))
        defended, undefended = trained(made, noise), trained(made, noise, undefended=True)
        assert defended.stage == undefended.stage == "mix"
        assert defended.key == undefended.key
        assert spec(made, defended.digest, "extra").key["split"] == "extra"
        assert defended.inputs["images"] == noise.protect["protect_images"]
        assert spec(made, undefended.digest, "images").key["split"] == "published"
        # Floor and ceiling pair with the share: the ceiling is `none` at that share, the floor needs no pictures.
        assert noise.ceiling == none.curve and noise.floor == made.roots["style-a/noise/lora/cpu/0"].floor
        places[share] = set(map(int, defended.key["clean"]))  # type: ignore[arg-type]
    # 16 pictures: a quarter is 4, and every larger share holds the smaller ones.
    assert {share: len(found) for share, found in places.items()} == {25: 4, 50: 8, 75: 12}
    assert places[25] < places[50] < places[75] < set(range(16))


def test_where_all_pictures_are_clean_the_defense_changes_nothing_by_construction(root: Path) -> None:
    made = plan(root, BLOCK + "clean = [100]\n")
    noise = made.roots["style-a/noise/lora/cpu/0/clean-100"]
    assert noise.curve == noise.ceiling
    assert noise.protect and noise.fidelity is not None, "its pictures are still made and measured"


def test_the_clean_pictures_take_the_named_places(tmp_path: Path) -> None:
    for name, value, count in (("images", 10, 3), ("extra", 100, 4)):
        (tmp_path / name).mkdir()
        pixels = np.stack([np.full((8, 8, 3), value + i, np.uint8) for i in range(count)])
        Pictures(pixels, tuple(f"{name} {i}" for i in range(count))).save(tmp_path / name)

    def mixed(places: list[int], *names: str) -> list[tuple[int, str]]:
        out = tmp_path / "-".join(["out", *names, *map(str, places)])
        out.mkdir()
        inputs = {name: tmp_path / name for name in names}
        assert stages.mix({"clean": places}, inputs, out, lambda *_: None) == {"pictures": 3}
        found = Pictures.load(out)
        assert np.ptp(found.pixels, axis=(1, 2, 3)).max() == 0
        return [(int(p[0, 0, 0]), c) for p, c in zip(found.pixels, found.captions, strict=True)]

    assert mixed([2], "images", "extra") == [(10, "images 0"), (11, "images 1"), (100, "extra 0")]
    assert mixed([2, 0], "images", "extra") == [(101, "extra 1"), (11, "images 1"), (100, "extra 0")]
    assert mixed([2, 0, 1], "extra") == [(101, "extra 1"), (102, "extra 2"), (100, "extra 0")]


def bases(made: Plan, graph: CellGraph) -> dict[str, object]:
    """Return the base of every kind of stage of a cell, floor and ceiling among them."""
    last = graph.final
    return {
        "protect": made.stages[graph.protect["protect_images"]].key["base"] if graph.protect else None,
        "adapt": spec(made, graph.pictures[last], "adapter").key["base"],
        "generate": made.stages[graph.pictures[last]].key["base"],
        "ceiling": spec(made, graph.ceiling_pictures[last], "adapter").key["base"],
        "floor": made.stages[graph.floor_pictures].key["base"],
        "record": graph.facts.base,
    }


def test_transfer_protects_on_one_base_and_attacks_another(root: Path) -> None:
    made = plan(root, BLOCK, BLOCK + 'attacker_base = "other"\n', BLOCK + 'surrogate = "other"\n')
    there, back = (made.roots[f"style-a/noise/lora/cpu/0/{name}-other"] for name in ("on", "by"))
    attacked = dict.fromkeys(("adapt", "generate", "ceiling", "floor", "record"))
    assert bases(made, there) == {"protect": "tiny"} | dict.fromkeys(attacked, "other")
    assert bases(made, back) == {"protect": "other"} | dict.fromkeys(attacked, "tiny")
    # The reverse meets the ordinary floor and ceiling, and `none` has no surrogate that could be another.
    usual = made.roots["style-a/noise/lora/cpu/0"]
    assert (back.floor, back.ceiling) == (usual.floor, usual.ceiling)
    assert there.protect == usual.protect != back.protect
    assert not any(key.startswith("style-a/none") and "by-other" in key for key in made.roots)
    assert made.roots["style-a/none/lora/cpu/0/on-other"].curve == there.ceiling
    keys = {graph.facts.comparability(graph.cell).rpartition("/")[2] for graph in (usual, there, back)}
    assert keys == {"cpu@2", "on-other", "by-other"}


def test_presets_of_another_base_are_taken_where_models_toml_says_so_only(root: Path) -> None:
    def steps(made: Plan) -> object:
        graph = made.roots["style-a/none/lora/cpu/0/on-other"]
        return spec(made, graph.pictures[graph.final], "adapter").key["params"]["steps"]  # type: ignore[index, call-overload]

    models = root / "models.toml"
    text = models.read_text()
    moved = BLOCK + 'attacker_base = "other"\n'
    assert steps(plan(root, moved)) == 9, "the attack's [params]"
    models.write_text(text.replace("[bases.other]", '[bases.other]\nlike = "tiny"'))
    assert steps(plan(root, moved)) == 2, "[presets.tiny]"
    attack = root / "attacks/lora/attack.toml"
    attack.write_text(attack.read_text() + "[presets.other]\nsteps = 5\nsaves = [5]\n")
    assert steps(plan(root, moved)) == 5, "its own come first"
    models.write_text(text.replace("[bases.other]", '[bases.other]\nlike = "tinny"'))
    with pytest.raises(UsageError, match=r"bases\.other\.like must name another base, not 'tinny'"):
        plan(root, moved)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (BLOCK + "clean = [25, 25]\n", "clean holds a value twice"),
        (BLOCK + "clean = [101]\n", "should be less than or equal to 100, not 101"),
        (BLOCK + "clean = [1]\n", "clean: leaves none of 16 pictures clean: 1"),
        (
            BLOCK.replace('"noise"', '"shield"') + "clean = [50]\n",
            "clean: says which pictures stay unprotected, and 'shield' protects none: 50",
        ),
        (BLOCK + 'attacker_base = "othr"\n', "attacker_base: unknown base 'othr' (nearest: 'other')"),
        (
            BLOCK.replace('"noise"', '"shield"') + 'attacker_base = "other"\n',
            "attacker_base: the attacker of 'style-a' against 'shield' begins from weights of 'tiny', not of 'other'",
        ),
    ],
)
def test_a_setting_without_meaning_is_refused_before_anything_runs(root: Path, block: str, said: str) -> None:
    assert refused(root, block).endswith(said)


def test_a_base_with_another_judge_gives_no_comparable_number(root: Path) -> None:
    models = root / "models.toml"
    judge = '[judges.else]\nloader = "toy.judges:load"\nfiles = ["weights/judge.safetensors"]\n'
    models.write_text(models.read_text().replace('judge = "toy"', 'judge = "else"', 1) + judge)
    assert refused(root, BLOCK + 'attacker_base = "other"\n').endswith("has another judge than 'tiny': 'other'")


def test_an_ensemble_of_bases_of_another_world_protects_no_picture(root: Path) -> None:
    house.defense(root, "cloak", "protect_images", 'budget = 8\nsurrogates = ["tiny", "other"]')
    block = BLOCK.replace("noise", "cloak")
    assert "style-a/cloak/lora/cpu/0" in plan(root, block).roots
    models = root / "models.toml"
    judge = '[judges.else]\nloader = "toy.judges:load"\nfiles = ["weights/judge.safetensors"]\n'
    models.write_text(models.read_text().replace('judge = "toy"', 'judge = "else"', 1) + judge)
    said = "surrogates: has another judge than 'tiny', the base of task 'style-a': 'other'"
    assert refused(root, block) == f"{root / 'defenses/cloak/defense.toml'}: {said}"


NAMES = {
    "task": "style-a", "task_version": 1, "family": "style", "concept": "style/a", "concept_kind": "near",
    "base": "tiny", "base_revision": "r1", "defense": "noise", "defense_version": 1, "defense_title": "Noise",
    "defense_kind": "control", "hooks": ["protect_images"], "budget": 8, "chain": "lora",
    "links": [{"attack": "lora", "version": 3}], "profile": "cpu", "profile_version": 1, "seed": 0,
}  # fmt: skip


def test_records_name_a_setting_only_where_it_is_unusual() -> None:
    usual = CellNames.model_validate_json(json.dumps(NAMES))
    assert usual.setting.usual and "setting" not in json.loads(usual.model_dump_json())
    assert usual.key == "style-a/noise/lora/cpu/0"
    mixed = CellNames.model_validate_json(json.dumps(NAMES | {"setting": {"clean": 50, "attacker_base": "other"}}))
    assert mixed.key == "style-a/noise/lora/cpu/0/clean-50+on-other"
    assert CellNames.model_validate_json(mixed.model_dump_json()) == mixed
    assert mixed.setting == Setting(clean=50, attacker_base="other")
