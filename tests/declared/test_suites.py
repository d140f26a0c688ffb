"""The suites of the checkout against its entries and against the results that are committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from immunebench import api
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import load_catalog
from immunebench.plan.estimate import estimate
from immunebench.records.files import read_records

RESULTS = Path(__file__).parents[2] / "results"
SWEEPS = (
    "mini-budget",
    "mini-purify",
    "mini-data-more",
    "mini-layers",
    "mini-transfer",
    "mini-mixed",
    "mini-budget-seeds",
)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def test_cells_that_mini_lite_gains_orphan_no_committed_record(catalog: Catalog) -> None:
    plan = api.plan_suite("mini-lite", catalog=catalog)
    versions = {entry.id: entry.version for entry in catalog.attacks.values()}
    if not (RESULTS / "mini-lite").is_dir():
        pytest.skip("no record of mini-lite is committed yet")
    records = read_records(RESULTS / "mini-lite")
    # A task or an attack that changed since makes its own cells history; the suite must not.
    current = [
        r
        for r in records
        if catalog.tasks[r.cell.task].version == r.cell.task_version
        and all(versions.get(link.attack) == link.version for link in r.cell.links)
    ]
    for record in current:
        graph = plan.roots[record.cell.key]
        assert graph.facts.comparability(graph.cell) == record.comparability
    assert current


@pytest.mark.parametrize("suite", SWEEPS)
def test_a_sweep_is_estimated_at_two_hours_of_two_workers_at_most(suite: str, catalog: Catalog) -> None:
    plan = api.plan_suite(suite, catalog=catalog)
    assert estimate(plan).seconds / 2 <= 2 * 3600
    # `none` is there for all that a protection is held against.
    met = {(cell.task, cell.chain, cell.setting.clean, cell.setting.attacker_base) for cell in plan.cells}
    undefended = {
        (cell.task, cell.chain, cell.setting.clean, cell.setting.attacker_base)
        for cell in plan.cells
        if cell.defense == "none"
    }
    assert met == undefended
    families = {catalog.tasks[cell.task].family for cell in plan.cells}
    assert families == {"style", "object", "identity"}


def test_layers_are_measured_alone_on_all_that_they_meet_together(catalog: Catalog) -> None:
    plan = api.plan_suite("mini-layers", catalog=catalog)
    places = {(cell.defense, cell.task, cell.chain) for cell in plan.cells}
    together = [place for place in places if "+" in place[0]]
    assert len({name for name, _, _ in together}) == 3
    for name, task, chain in together:
        assert {(layer, task, chain) for layer in name.split("+")} <= places


#: What else a word of a task's noun is called.
ALSO = {"boot": {"shoe"}, "sneaker": {"shoe"}, "vase": {"pot"}, "clock": {"watch"}, "truck": {"lorry"}}


def test_no_unrelated_prompt_of_a_hub_s_base_asks_for_what_a_task_of_a_suite_protects(catalog: Catalog) -> None:
    """U_gen would measure the loss of the very thing that an immunised model is to lose."""
    known = catalog.models.bases
    asked = 0
    for base, spec in known.items():
        # The embedded world has no thing that no task of any kind is about, and records that hold its twenty prompts.
        if not spec.hub:
            continue
        kin = {base, spec.like, *(name for name, other in known.items() if other.like == base)}
        words = {word for prompt in spec.unrelated_prompts for word in prompt.lower().split()}
        words |= {word.removesuffix("s") for word in words}
        for task in catalog.tasks.values():
            if task.base in kin and task.split == "suite":
                nouns = set(task.concept.noun.lower().split())
                nouns |= {other for noun in nouns for other in ALSO.get(noun, set())}
                assert not nouns & words, (base, task.id)
                asked += 1
        assert len(set(spec.unrelated_prompts)) == 20 and not set(spec.unrelated_prompts) & set(spec.public_prompts)
    assert asked
