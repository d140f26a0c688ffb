"""Attackers with other pictures, or with the public base: what they train on, what they begin from, what draws."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import house
import toy_stages
from immunebench import api
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError
from immunebench.declared.scoring import role
from immunebench.plan.planning import make_plan
from immunebench.store.artifacts import Store
from immunebench.store.graph import CellGraph, Plan, StageSpec

VARIANTS = """
[variants.adaptive-few]
pictures = 2
[variants.merge-back]
public_base = "merge-back"
[variants.restore]
public_base = "restore"
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    house.house(tmp_path / "house")
    attack = tmp_path / "house/attacks/lora/attack.toml"
    attack.write_text(attack.read_text() + VARIANTS)
    suite = tmp_path / "house/suites/tiny.toml"
    chains = 'chains = ["lora", "adaptive-few", "merge-back", "restore"]'
    suite.write_text(suite.read_text().replace('chains = ["lora"]', chains))
    return tmp_path / "house"


def plan(root: Path) -> Plan:
    catalog = load_catalog(root, models=root / "models.toml")
    return make_plan(catalog.suite("tiny"), catalog)


def drawing(made: Plan, graph: CellGraph) -> tuple[StageSpec, StageSpec]:
    """The stages that train the attack and draw from it at its last step."""
    drawn = made.stages[graph.pictures[graph.final]]
    return made.stages[drawn.inputs["adapter"]], drawn


def cell(made: Plan, defense: str, chain: str) -> CellGraph:
    return made.roots[f"style-a/{defense}/{chain}/cpu/0"]


def test_an_attacker_with_other_pictures_trains_on_as_many_of_the_same_split(root: Path) -> None:
    made = plan(root)
    usual, few = (drawing(made, cell(made, "shield", chain))[0] for chain in ("lora", "adaptive-few"))
    pictures = [made.stages[trained.inputs["images"]].key for trained in (usual, few)]
    assert [key["count"] for key in pictures] == [16, 2]
    assert {**pictures[0], "count": 2} == pictures[1]
    assert usual.key == few.key
    # What is protected is what the attacker gets; what it is scored against stays.
    shielded, noised = cell(made, "shield", "adaptive-few"), cell(made, "noise", "adaptive-few")
    assert made.stages[noised.protect["protect_images"]].inputs["published"] == few.inputs["images"]
    assert shielded.reference == cell(made, "shield", "lora").reference
    assert shielded.protect == cell(made, "shield", "lora").protect


def test_an_adapter_of_the_public_base_is_that_of_the_undefended_attack(root: Path) -> None:
    made = plan(root)
    trained, drawn = drawing(made, cell(made, "shield", "merge-back"))
    assert trained is drawing(made, cell(made, "none", "lora"))[0], "nothing is trained twice"
    assert "weights" not in trained.inputs
    assert drawn.inputs["weights"] == cell(made, "shield", "merge-back").protect["protect_model"]


def test_restored_attentions_are_what_the_attack_begins_from_and_what_draws(root: Path) -> None:
    made = plan(root)
    graph = cell(made, "shield", "restore")
    trained, drawn = drawing(made, graph)
    assert trained.inputs["weights"] == drawn.inputs["weights"]
    restored = made.stages[drawn.inputs["weights"]]
    assert (restored.stage, restored.key) == ("restore", {"tensors": "attention"})
    assert restored.inputs == {"weights": graph.protect["protect_model"]}
    # Utility and the floor are those of what was released.
    assert graph.utility == cell(made, "shield", "lora").utility
    assert graph.defended_floor == cell(made, "shield", "lora").defended_floor


@pytest.mark.parametrize("chain", ["merge-back", "restore"])
def test_without_released_weights_the_public_base_is_the_start_model(root: Path, chain: str) -> None:
    made = plan(root)
    for defense in ("none", "noise"):
        own, usual = (drawing(made, cell(made, defense, name)) for name in (chain, "lora"))
        assert own == usual
    assert cell(made, "shield", chain).ceiling == cell(made, "shield", "lora").ceiling


def test_every_rung_has_a_record_and_what_restoring_costs_is_in_it(root: Path, tmp_path: Path) -> None:
    store, folder = Store(tmp_path / "store"), tmp_path / "results" / "tiny"
    records = api.measure(plan(root), store, folder, run_stage=toy_stages.every_stage)
    assert {record.status for record in records} == {"ok"}
    by_chain = {record.cell.chain: record for record in records if record.cell.defense == "shield"}
    assert set(by_chain) == {"lora", "adaptive-few", "merge-back", "restore"}
    assert [chain for chain, record in by_chain.items() if "restore" in record.cost] == ["restore"]
    integrity = by_chain["lora"].integrity
    assert integrity is not None and integrity.floor is not None and integrity.ceiling is not None


def test_whoever_has_the_public_base_trains_where_no_mask_is_enforced(root: Path) -> None:
    house.defense(root, "guard", "freeze", "[params]\nrho = 0.2\n", kind="api")
    suite = root / "suites/tiny.toml"
    suite.write_text(suite.read_text().replace('"noise"', '"noise", "guard"'))
    made = plan(root)
    assert "mask" in drawing(made, cell(made, "guard", "lora"))[0].inputs
    for chain in ("merge-back", "restore"):
        assert drawing(made, cell(made, "guard", chain)) == drawing(made, cell(made, "none", "lora"))


def test_a_share_of_clean_pictures_does_not_meet_another_number_of_pictures(root: Path) -> None:
    suite = root / "suites/tiny.toml"
    text = suite.read_text()
    for name in ("tasks", "defenses", "chains"):
        line = next(line for line in text.splitlines() if line.startswith(name))
        text = text.replace(f"{line}\n", "")
    block = '[[cells]]\ntasks = ["style-a"]\ndefenses = ["noise"]\nchains = ["adaptive-few"]\nclean = [50]\n'
    suite.write_text(text + block)
    with pytest.raises(UsageError, match="says how many of 16 pictures are clean, and 'adaptive-few' has 2: 50"):
        plan(root)


@pytest.mark.parametrize(
    ("folder", "more", "reason"),
    [
        ("defenses/shield", "[variants.few]\npictures = 4\n", r"variants\.few\.pictures applies to attacks only"),
        ("attacks/lora", "[variants.none]\npictures = 0\n", "pictures"),
        ("attacks/lora", '[variants.steal]\npublic_base = "take"\n', "public_base"),
        ("attacks/jpeg", "[variants.few]\npictures = 4\n", "pictures applies to an attack with the hook adapt only"),
    ],
)
def test_a_manifest_that_asks_for_what_it_cannot_have_is_refused(
    root: Path, folder: str, more: str, reason: str
) -> None:
    kind = folder.partition("s/")[0]
    purifier = house.ATTACK.partition("[params]")[0].replace('"lora"', '"jpeg"').replace("adapt", "purify")
    house.write(root / "attacks/jpeg/attack.toml", purifier)
    house.write(root / "attacks/jpeg/attack.py", "def purify(*arguments):\n    return arguments\n")
    path = root / folder / f"{kind}.toml"
    path.write_text(path.read_text() + more)
    broken = load_catalog(root, models=root / "models.toml").broken
    assert any(item.path == path for item in broken)
    (found,) = {item.reason for item in broken if item.path == path}
    assert re.search(reason, found) and "\n" not in found


def test_the_ladder_s_rungs_are_outside_the_headline_and_the_public_base_apart() -> None:
    catalog = load_catalog()
    suite = catalog.suite("mini-ladder")
    roles = {chain: role(chain) for chain in suite.names("chains")}
    assert [chain for chain, of in roles.items() if of == "headline"] == ["lora"]
    assert [chain for chain, of in roles.items() if of == "public base"] == ["merge-back", "restore"]
    assert len(roles) == 13
    for name in (*suite.names("tasks"), *catalog.suite("mini-matrix").names("tasks")):
        assert catalog.task(name).split == "dev", "nothing is tuned on what is scored"
    # Twelve rungs, each with settings of its own on the embedded base.
    settings = {
        str((entry.folder, catalog.params(entry, "mini"), entry.pictures, entry.public_base))
        for entry in map(catalog.attack, roles)
    }
    assert len(settings) == 13


def test_concept_ablation_makes_a_start_model_as_any_erasure_does() -> None:
    catalog = load_catalog()
    catalog.tasks["relearn-cat"] = catalog.task("relearn-cat").model_copy(update={"start_from": "concept-ablation"})
    made = make_plan(catalog.suite("mini-dev"), catalog, task="relearn-cat", defense="none", attack="lora")
    (graph,) = made.roots.values()
    start = made.stages[drawing(made, graph)[0].inputs["weights"]]
    assert (start.stage, start.key["entry"], list(start.inputs)) == ("protect", "concept-ablation", ["owner", "public"])


def test_a_defense_that_needs_class_pictures_gets_those_that_its_own_start_model_draws(root: Path) -> None:
    manifest = root / "defenses/shield/defense.toml"
    manifest.write_text(manifest.read_text().replace("[params]", 'needs = ["prior"]\n[params]', 1))
    with pytest.raises(UsageError, match=r"prior\.prompts: is missing: the defense 'shield' needs class pictures"):
        plan(root)
    task = root / "tasks/style/style-a.toml"
    task.write_text(task.read_text() + '[prior]\nprompts = ["a house", "a tree"]\n')
    made = plan(root)
    hook = made.stages[cell(made, "shield", "lora").protect["protect_model"]]
    drawn = made.stages[hook.inputs["prior"]]
    assert (drawn.stage, drawn.key["prompts"], drawn.inputs) == ("generate", ["a house", "a tree"], {})
