"""The graph of a defense that says what may be trained: what the mask enters, and what stays the cell of `none`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import house
import toy_stages
from immunebench import api
from immunebench.board.assembly.scored import score_folder
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError
from immunebench.plan.planning import make_plan
from immunebench.store.artifacts import Store
from immunebench.store.graph import CellGraph, Plan


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A house with a mask, its control and an attack that trains words alone."""
    root = tmp_path / "house"
    house.house(root)
    house.defense(root, "guard", "freeze", "[params]\nrho = 0.2\n", kind="api")
    house.defense(root, "dice", "freeze", "[params]\nrho = 0.2\n")
    words = house.ATTACK.replace('id = "lora"', 'id = "words"').replace("[params]", 'trains = "words"\n[params]')
    house.write(root / "attacks/words/attack.toml", words)
    house.write(root / "attacks/words/attack.py", "def adapt(*arguments):\n    return arguments\n")
    suite = root / "suites/tiny.toml"
    text = suite.read_text().replace('"none-replicate"]', '"none-replicate", "guard", "dice"]')
    suite.write_text(text.replace('chains = ["lora"]', 'chains = ["lora", "words"]'))
    return root


def plan(root: Path, **wanted: Any) -> Plan:
    catalog = load_catalog(root, models=root / "models.toml")
    return make_plan(catalog.suite("tiny"), catalog, **wanted)


def graph(made: Plan, defense: str, chain: str) -> CellGraph:
    return made.roots[f"style-a/{defense}/{chain}/cpu/0"]


def test_the_mask_enters_the_adaptations_of_attacker_and_honest_user_and_no_picture_before_them(root: Path) -> None:
    made = plan(root)
    own, none = graph(made, "guard", "lora"), graph(made, "none", "lora")
    adapted = made.stages[made.stages[own.pictures[2]].inputs["adapter"]]
    undefended = made.stages[made.stages[own.ceiling_pictures[2]].inputs["adapter"]]
    mask = own.protect["freeze"]
    assert adapted.inputs == {**undefended.inputs, "mask": mask} and adapted.key == undefended.key
    honest = made.stages[own.utility.s]
    trained = made.stages[made.stages[honest.inputs["generated"]].inputs["adapter"]]
    assert trained.inputs["mask"] == mask and "weights" not in trained.inputs
    # No weight is changed, so everything drawn before a fine-tuning is what `none` draws.
    assert own.defended_floor == own.floor == none.floor and own.utility.g == own.utility.g_base
    assert made.stages[mask].key["hook"] == "freeze"
    assert set(made.stages[mask].inputs) == {"owner", "public"}
    assert "mask" in dict(made.stages[made.stages[graph(made, "dice", "lora").pictures[2]].inputs["adapter"]].inputs)


def test_without_the_interface_it_is_the_cell_of_none_by_digest(root: Path) -> None:
    own, none = (graph(plan(root), name, "lora") for name in ("guard", "none"))
    assert own.curve != none.curve and own.ceiling == none.curve


def test_an_attack_on_words_alone_is_the_cell_of_none_and_still_waits_for_the_mask(root: Path) -> None:
    own, none = (graph(plan(root), name, "words") for name in ("guard", "none"))
    assert own.curve == none.curve
    assert own.protect["freeze"] in own.parts["attack"]


def test_who_trains_the_public_base_elsewhere_meets_no_mask(root: Path) -> None:
    text = house.ATTACK.replace('id = "lora"', 'id = "home"').replace(
        "[params]", 'public_base = "merge-back"\n[params]'
    )
    house.write(root / "attacks/home/attack.toml", text)
    house.write(root / "attacks/home/attack.py", "def adapt(*arguments):\n    return arguments\n")
    suite = root / "suites/tiny.toml"
    suite.write_text(suite.read_text().replace('"lora", "words"', '"lora", "home"'))
    own, none = (graph(plan(root), name, "home") for name in ("guard", "none"))
    assert own.curve == none.curve


def test_no_other_plan_changes(root: Path) -> None:
    with_mask = plan(root, defense=["none", "shield", "noise", "none-replicate"], attack="lora")
    text = (root / "suites/tiny.toml").read_text()
    (root / "suites/tiny.toml").write_text(text.replace(', "guard", "dice"', "").replace(', "words"', ""))
    assert plan(root).stages.keys() == with_mask.stages.keys()
    assert not any("mask" in spec.inputs for spec in with_mask.stages.values())


@pytest.mark.parametrize(
    ("name", "said"),
    [("shield+guard", "guard says what may be trained and cannot be a layer:"), ("shield+dice", "dice is a control")],
)
def test_a_mask_is_no_layer(root: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("+", r"\+")):
        load_catalog(root, models=root / "models.toml").defense(name)


def test_a_mask_for_another_architecture_is_refused_before_anything_is_planned(root: Path) -> None:
    models = root / "models.toml"
    models.write_text(models.read_text() + models.read_text().partition("[judges")[0].replace("bases.tiny", "bases.b"))
    suite = root / "suites/tiny.toml"
    head, tail = suite.read_text().split("tasks =")
    names, more = tail.split("prompts =")
    suite.write_text(f'{head}prompts ={more}[[cells]]\ntasks ={names}attacker_base = "b"\n')
    with pytest.raises(UsageError, match="'guard' makes its mask for the architecture of 'tiny', not of 'b'"):
        plan(root, defense="guard")


@pytest.mark.parametrize(
    ("kind", "hooks", "said"),
    [
        ("model", '["freeze"]', "the hook freeze stands alone, in an entry of kind 'api' or 'control'"),
        ("api", '["protect_model"]', "hooks are ['freeze']"),
        ("api", '["freeze", "protect_model"]', "the hook freeze stands alone"),
    ],
)
def test_a_mask_with_anything_else_breaks_its_entry(root: Path, kind: str, hooks: str, said: str) -> None:
    file = root / "defenses/guard/defense.toml"
    file.write_text(file.read_text().replace('"api"', f'"{kind}"').replace('["freeze"]', hooks))
    (broken,) = load_catalog(root, models=root / "models.toml").broken
    assert broken.id == "guard" and said in broken.reason


def test_the_record_holds_ratio_and_savings_and_the_row_says_what_the_mask_does_not_bind(
    root: Path, tmp_path: Path
) -> None:
    def run_stage(spec: Any, inputs: dict[str, Path], out: Path, report: Any) -> dict[str, object]:
        made = toy_stages.every_stage(spec, inputs, out, report)
        if spec.key.get("hook") == "freeze":
            return {"tensors": 10, "frozen_tensors": 2, "parameters": 1000, "frozen_parameters": 50}
        size = 600 if "mask" in inputs else 800
        return {"trained_parameters": size, "optimiser_bytes": 8 * size} if spec.stage == "adapt" else made

    folder = tmp_path / "results" / "tiny"
    records = api.measure(plan(root, defense=["none", "guard"]), Store(tmp_path / "store"), folder, run_stage=run_stage)
    by_chain = {r.cell.chain: r for r in records if r.cell.defense == "guard"}
    found = by_chain["lora"].enforcement
    assert found is not None and found.enforced is not None and found.free is not None
    assert (found.tensors, found.frozen_tensors, found.parameters, found.frozen_parameters) == (10, 2, 1000, 50)
    assert (found.enforced.parameters, found.free.parameters, found.enforced.optimiser_bytes) == (600, 800, 4800)
    assert found.binds and found.ignored == by_chain["lora"].baseline.ceiling.digest  # type: ignore[union-attr]
    assert by_chain["words"].enforcement is not None and not by_chain["words"].enforcement.binds
    assert all(r.enforcement is None for r in records if r.cell.defense == "none")
    assert "enforcement" not in next(r for r in records if r.cell.defense == "none").model_dump_json()
    board = score_folder(folder).board
    row = board.row("guard")
    assert row is not None and row.track == "api-enforced" and "needs enforcement" in row.badges
    assert "mask does not bind words" in row.flags
    (table,) = (t for t in board.tables if "interface" in t.title)
    lines = {line[1]: line for line in table.rows}
    assert lines["lora"][:6] == ("guard", "lora", "2 of 10 (20%)", "5%", "600 (75%)", "0.0 (75%)")
    assert lines["words"][4] == "not bound" and lines["words"][-1] == "0.00, as `none`"
