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
