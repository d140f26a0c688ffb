from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import house
from immunebench.entry import load_catalog
from immunebench.errors import UsageError
from immunebench.plan import Plan, StageSpec, canonical_json, make_plan


@pytest.fixture
def root(tmp_path: Path) -> Path:
    house.house(tmp_path / "house")
    return tmp_path / "house"


def plan(root: Path, **wanted: object) -> Plan:
    catalog = load_catalog(root, models=root / "models.toml")
    return make_plan(catalog.suite("tiny"), catalog, **wanted)  # type: ignore[arg-type]


def counts(made: Plan) -> dict[str, int]:
    return dict(Counter(spec.stage for spec in made.stages.values()))


# Pictures: published, reference, extra, one other concept, the benign concept's published and reference.
# Generate and score: steps 1 and 2, floor, unrelated prompts, benign attack, benign floor.
NONE = {"pictures": 6, "adapt": 2, "generate": 6, "score": 6, "anchor": 1}


def test_canonical_json_and_digest_are_golden() -> None:
    # The digests are those that `sha256sum` gives of the JSON texts.
    key = {"source": "mini", "source_version": 1, "concept": "style/a", "split": "owner", "count": 2}
    spec = StageSpec("pictures", key)  # type: ignore[arg-type]
    assert spec.digest == "29bd0f8e6085419049470a9e9d76456899e789438357c541e6d8f79fa8570b53"
    other = StageSpec("score", {"name": "café", "lr": 2e-3}, {"generated": "aa"})
    assert other.digest == "09530aeb589c35e7469211366a2d2991fe7feb85117ee4dd571963da463b9556"
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


def test_stages_of_the_undefended_cell_are_those_counted_by_hand(root: Path) -> None:
    made = plan(root, defense="none")
    assert counts(made) == NONE
    assert len(made.roots["style-a/none/lora/cpu/0"].stages) == 21


@pytest.mark.parametrize(
    ("defense", "more"),
    [
        # The owner's pictures, public ones and the protection; then the attack and the benign attack from its weights.
        ("shield", {"pictures": 2, "protect": 1, "adapt": 2, "generate": 4, "score": 4}),
        # Only the published pictures change, so utility is the base's; fidelity is one score.
        ("noise", {"pictures": 2, "protect": 1, "adapt": 1, "generate": 2, "score": 3}),
        ("none-replicate", {"adapt": 1, "generate": 2, "score": 2}),
    ],
)
def test_a_defense_adds_its_own_stages_and_plans_the_ceiling(root: Path, defense: str, more: dict[str, int]) -> None:
    expected = dict(Counter(NONE) + Counter(more))
    assert counts(plan(root, defense=defense)) == expected
    assert counts(plan(root, defense=["none", defense])) == expected


def test_the_whole_suite_shares_what_is_equal(root: Path) -> None:
    # The owner's pictures and the public ones are asked for by shield and by noise and are one stage each.
    total = {"pictures": 8, "protect": 2, "adapt": 6, "generate": 14, "score": 15, "anchor": 1}
    assert counts(plan(root)) == total


def test_inputs_come_before_their_users_and_are_all_there(root: Path) -> None:
    made = plan(root)
    seen: set[str] = set()
    for digest, spec in made.stages.items():
        assert digest == spec.digest
        assert set(spec.inputs.values()) <= seen
        seen.add(digest)
    assert {d for graph in made.roots.values() for d in graph.stages} == seen


def test_the_released_artifact_knows_no_attack_picture_and_no_entry_folder(root: Path) -> None:
    made = plan(root, defense="shield")
    (spec,) = (s for s in made.stages.values() if s.stage == "protect")
    assert set(spec.inputs) == {"owner", "public"}
    assert made.stages[spec.inputs["owner"]].key["split"] == "owner"
    text = canonical_json(spec.key)
    assert "sks" not in text
    assert str(root) not in text
    assert spec.key["params"] == {"steps": 5, "lr": 0.1, "keep": True, "against": ["lora"]}


def test_pairs_share_seed_and_noise_and_the_replicate_another_seed(root: Path) -> None:
    made = plan(root)

    def drawn(defense: str) -> tuple[StageSpec, StageSpec]:
        picture = made.stages[made.roots[f"style-a/{defense}/lora/cpu/0"].pictures[2]]
        return picture, made.stages[picture.inputs["adapter"]]

    (none, none_adapt), (shield, shield_adapt), (other, other_adapt) = map(drawn, ("none", "shield", "none-replicate"))
    assert none.key["noise_key"] == shield.key["noise_key"] == other.key["noise_key"] == ["style-a", 0]
    assert none_adapt.key["seed"] == shield_adapt.key["seed"] != other_adapt.key["seed"]
    assert "weights" in shield.inputs
    assert "weights" not in none.inputs


def test_early_steps_draw_few_pictures_and_the_last_all(root: Path) -> None:
    made = plan(root, defense="none")
    graph = made.roots["style-a/none/lora/cpu/0"]
    assert graph.curve == graph.ceiling
    early, last = (made.stages[graph.pictures[step]].key for step in (1, 2))
    assert early["per_prompt"] == 1
    assert last["per_prompt"] == 3
    assert last["prompts"] == ["a house in sks style", "a tree in sks style"]


def test_seeds_move_what_is_random_and_share_the_rest(root: Path) -> None:
    one = counts(plan(root, defense="none"))
    two = counts(plan(root, defense="none", seed=[0, 1]))
    assert two == {"pictures": 6, "adapt": 4, "generate": 12, "score": 12, "anchor": 1}
    assert two["pictures"] == one["pictures"]


def test_a_changed_line_of_code_changes_only_what_depends_on_it(root: Path) -> None:
    before = plan(root)
    with (root / "defenses/shield/defense.py").open("a") as stream:
        stream.write("# more\n")
    after = plan(root)
    gone = Counter(before.stages[d].stage for d in before.stages.keys() - after.stages.keys())
    assert gone == {"protect": 1, "adapt": 2, "generate": 4, "score": 4}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"task": "style-b"}, "--task: is not in the suite: 'style-b' (nearest: 'style-a')"),
        ({"attack": "lroa"}, "--attack: is not in the suite: 'lroa' (nearest: 'lora')"),
        ({"defense": "shild"}, "--defense: unknown defense 'shild' (nearest: 'shield')"),
        ({"profile": "cpuu"}, "--profile: unknown profile 'cpuu' (nearest: 'cpu')"),
        ({"seed": -1}, "--seed: must not be negative, not -1"),
    ],
)
def test_a_wrong_filter_is_named_with_the_nearest(root: Path, wanted: dict[str, object], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(root, **wanted)
    assert str(caught.value).endswith(expected)


def test_an_alias_and_its_entry_are_one_cell(root: Path) -> None:
    made = plan(root, defense=["buckler", "shield"])
    assert [cell.key for cell in made.cells] == ["style-a/shield/lora/cpu/0"]


def test_the_estimate_counts_what_the_store_lacks(root: Path) -> None:
    made = plan(root)

    class Half:
        def __init__(self) -> None:
            self.root = root

        def has(self, digest: str) -> bool:
            return made.stages[digest].stage in ("pictures", "protect")

    full, rest = made.estimate(), made.estimate(Half())
    assert rest.stages["pictures"].cached == 8
    assert rest.stages["pictures"].seconds == 0
    expected = sum(c.seconds for s, c in full.stages.items() if s not in ("pictures", "protect"))
    assert rest.seconds == pytest.approx(expected)
    # Six adaptations of 2 steps at batch 1: 2 s each to begin with, 0.03 s a step.
    assert full.stages["adapt"].seconds == pytest.approx(6 * (2 + 2 * 0.03))


def test_missing_metric_weights_are_named_before_anything_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path / "empty"))
    suite = root / "suites" / "tiny.toml"
    suite.write_text(suite.read_text() + 'metrics = ["lpips"]\n')
    with pytest.raises(UsageError, match="metric lpips: weights lpips-alex are not there"):
        plan(root)
