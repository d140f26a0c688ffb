"""An erasure is held against the untouched base, all else against the model that the attacker begins from."""

from __future__ import annotations

import pytest

from immunebench import api
from immunebench.store.graph import Plan


def made_of(plan: Plan, digest: str) -> set[str]:
    """Ids of the entries in all stages that a stage depends on."""
    spec = plan.stages[digest]
    own = {str(spec.key["entry"])} if "entry" in spec.key else set()
    return own.union(*(made_of(plan, other) for other in spec.inputs.values()))


@pytest.mark.parametrize(("defense", "reference"), [("esd", set()), ("esd+imma-lora", set()), ("imma-lora", {"esd"})])
def test_utility_is_held_against_what_the_defense_did_not_make(defense: str, reference: set[str]) -> None:
    """The released model of a relearn task is made of the task's erasure too, whoever made it."""
    plan = api.plan_suite("mini-dev", task="relearn-cat", defense=defense, attack="lora")
    (use,) = [plan.roots[cell.key].utility for cell in plan.cells if cell.defense == defense]
    assert made_of(plan, use.g_base) & {"esd", "imma-lora"} == reference
    assert made_of(plan, use.floor) & {"esd", "imma-lora"} == reference
    assert made_of(plan, use.ceiling) & {"esd", "imma-lora"} == reference
    assert "esd" in made_of(plan, use.g)


def test_an_honest_user_s_model_is_asked_for_the_erased_concept() -> None:
    """Benign drift: the fine-tuning is the one that U is measured on, the prompts are the attacker's."""
    plan = api.plan_suite("mini-dev", task="relearn-cat", defense="esd+imma-lora", attack="lora")
    (graph,) = [plan.roots[cell.key] for cell in plan.cells if cell.defense == "esd+imma-lora"]
    drawn = plan.stages[plan.stages[graph.erasure["after_benign"]].inputs["generated"]]
    before = plan.stages[plan.stages[graph.erasure["released"]].inputs["generated"]]
    honest = plan.stages[plan.stages[graph.utility.s].inputs["generated"]]
    assert drawn.inputs["adapter"] == honest.inputs["adapter"] and drawn.key["step"] == honest.key["step"]
    assert drawn.inputs["weights"] == before.inputs["weights"] == honest.inputs["weights"]
    assert drawn.key["prompts"] == before.key["prompts"] != honest.key["prompts"]
    assert drawn.key["noise_key"] == before.key["noise_key"], "the same noise as before, so that they can be compared"
    attacked = plan.stages[graph.pictures[graph.final]]
    assert attacked.inputs["adapter"] != drawn.inputs["adapter"]
    # Beside it, real pictures of what was taught, asked the same: are they the concept?
    control, asked = plan.stages[graph.erasure["benign"]], plan.stages[graph.erasure["after_benign"]]
    taught, reference = plan.stages[control.inputs["generated"]], plan.stages[graph.reference]
    assert taught.key["concept"] == "object/boat" and taught.key["split"] == reference.key["split"]
    assert control.key["concept"] == asked.key["concept"] == "known/cat"


@pytest.mark.parametrize("task", ["style-okafor", "identity-chidi"])
def test_only_what_was_erased_can_come_back(task: str) -> None:
    plan = api.plan_suite("mini-dev", task=task, defense="imma-lora", attack="lora")
    assert not any(graph.erasure for graph in plan.roots.values())
