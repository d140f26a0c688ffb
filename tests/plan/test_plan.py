from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

import house
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError
from immunebench.core.wording import fill
from immunebench.declared.schema import Values
from immunebench.plan.estimate import estimate
from immunebench.plan.planning import make_plan
from immunebench.plan.prices import units
from immunebench.store.graph import Plan, StageSpec, canonical_json


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
# Generate and score: steps 1 and 2, floor, unrelated prompts, benign attack, benign floor. Score: unseen real pictures.
NONE = {"pictures": 6, "adapt": 2, "generate": 6, "score": 7, "anchor": 1}


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
    assert len(made.roots["style-a/none/lora/cpu/0"].stages) == 22


@pytest.mark.parametrize(
    ("defense", "more"),
    [
        # The owner's pictures, public ones and the protection; then the attack and the benign attack from its weights.
        # Its pictures are held against the start model's on unrelated prompts and after the benign attack; the start
        # model's against its own by another kernel and from other noise.
        ("shield", {"pictures": 2, "protect": 1, "adapt": 2, "generate": 7, "score": 9}),
        # Only the published pictures change, so utility is the base's; fidelity is one score. Whether mimicry fails is
        # three: of the attacked, the undefended and unseen real pictures.
        ("noise", {"pictures": 2, "protect": 1, "adapt": 1, "generate": 2, "score": 6}),
        ("none-replicate", {"adapt": 1, "generate": 2, "score": 2}),
    ],
)
def test_a_defense_adds_its_own_stages_and_plans_the_ceiling(root: Path, defense: str, more: dict[str, int]) -> None:
    expected = dict(Counter(NONE) + Counter(more))
    assert counts(plan(root, defense=defense)) == expected
    assert counts(plan(root, defense=["none", defense])) == expected


def test_the_whole_suite_shares_what_is_equal(root: Path) -> None:
    # The owner's pictures and the public ones are asked for by shield and by noise and are one stage each.
    total = {"pictures": 8, "protect": 2, "adapt": 6, "generate": 17, "score": 24, "anchor": 1}
    assert counts(plan(root)) == total


def metrics(spec: StageSpec) -> list[str]:
    return [row["id"] for row in spec.key["metrics"]]  # type: ignore[index, call-overload, union-attr]


def test_what_the_attack_learnt_is_scored_at_every_step_and_copying_at_the_last(root: Path) -> None:
    made = plan(root)
    graph = made.roots["style-a/noise/lora/cpu/0"]
    early, last, floor = (made.stages[digest] for digest in (graph.curve[1], graph.curve[2], graph.floor))
    assert metrics(early) == metrics(floor) == ["image_similarity", "collapse", "prompt_accuracy"]
    assert metrics(last) == [*metrics(early), "nearest_training"]
    # Copies are looked for among the pictures that the attack trained on, which are the protected ones.
    assert last.inputs["training"] == graph.protect["protect_images"]
    assert "training" not in early.inputs
    assert last.key["contents"] == {"a house in sks style": "a house", "a tree in sks style": "a tree"}
    assert graph.facts.contents == 2
    assert graph.unseen is not None
    unseen = made.stages[graph.unseen]
    assert metrics(unseen) == ["collapse", "nearest_training"]
    splits = {name: made.stages[digest].key["split"] for name, digest in unseen.inputs.items()}
    assert splits == {"generated": "extra", "training": "published"}


def test_integrity_compares_the_same_prompts_and_noise_before_and_after_a_benign_adaptation(root: Path) -> None:
    made = plan(root)
    assert made.roots["style-a/none/lora/cpu/0"].utility.integrity == {}
    assert made.roots["style-a/noise/lora/cpu/0"].utility.integrity == {}, "it releases no weights"
    graph = made.roots["style-a/shield/lora/cpu/0"]
    assert list(graph.utility.integrity) == ["before", "after_benign", "floor", "ceiling"]
    for when, digest in list(graph.utility.integrity.items())[:2]:
        assert metrics(made.stages[digest]) == ["perceptual"]
        own, start = (made.stages[made.stages[digest].inputs[name]] for name in ("generated", "reference"))
        assert own.key == start.key, "prompts, noise, step and sampler are equal"
        assert own.inputs["weights"] == graph.protect["protect_model"]
        assert "weights" not in start.inputs
        assert ("adapter" in own.inputs) == ("adapter" in start.inputs) == (when == "after_benign")


def test_integrity_has_a_floor_and_a_ceiling_of_the_start_model_alone(root: Path) -> None:
    made = plan(root)
    own = made.roots["style-a/shield/lora/cpu/0"].utility.integrity
    start = made.stages[own["before"]].inputs["reference"]
    changed = {}
    for which in ("floor", "ceiling"):
        spec = made.stages[own[which]]
        assert spec.key == made.stages[own["before"]].key and spec.inputs["reference"] == start
        other = made.stages[spec.inputs["generated"]]
        assert other.inputs == {}
        key = made.stages[start].key
        changed[which] = {name: (value, other.key[name]) for name, value in key.items() if value != other.key[name]}
    assert changed["ceiling"] == {"noise_key": (["unrelated", 0], ["unrelated", 0, "again"])}
    before, after = changed["floor"]["numerics"]
    assert list(changed["floor"]) == ["numerics"]
    assert {name for name in before if before[name] != after[name]} == {"attention"}  # type: ignore[index, union-attr]


def test_prompts_that_all_ask_for_the_same_have_no_prompt_accuracy(root: Path) -> None:
    task = root / "tasks/style/style-a.toml"
    same = '["a house in {token} style", "a house, in the {token} style"]'
    text = task.read_text().replace('["a house in {token} style", "a tree in {token} style"]', same, 1)
    task.write_text(text)
    made = plan(root, defense="none")
    graph = made.roots["style-a/none/lora/cpu/0"]
    assert "prompt_accuracy" not in metrics(made.stages[graph.curve[2]])
    assert graph.facts.contents == 0


def test_a_judge_that_cannot_tell_the_prompts_of_a_family_apart_is_not_asked(root: Path) -> None:
    models = root / "models.toml"
    models.write_text(models.read_text().replace("[sources.toy]", 'reads_prompts = ["object"]\n[sources.toy]'))
    graph = plan(root, defense="none").roots["style-a/none/lora/cpu/0"]
    assert graph.facts.contents == 0
    models.write_text(models.read_text().replace('["object"]', '["style"]'))
    assert plan(root, defense="none").roots["style-a/none/lora/cpu/0"].facts.contents == 2


def test_a_suite_may_leave_out_everything_beside_the_score(root: Path) -> None:
    suite = root / "suites/tiny.toml"
    suite.write_text(suite.read_text() + "metrics = []\nintegrity = []\nbeside = []\n")
    made = plan(root)
    graph = made.roots["style-a/shield/lora/cpu/0"]
    assert graph.unseen is None and graph.utility.integrity == {}
    scored = {tuple(metrics(spec)) for spec in made.stages.values() if spec.stage == "score"}
    assert scored == {("image_similarity",), ("caption_accuracy",), ("perceptual", "linf", "psnr", "ssim")}


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
    assert two == {"pictures": 6, "adapt": 4, "generate": 12, "score": 13, "anchor": 1}
    assert two["pictures"] == one["pictures"]


def test_a_changed_line_of_code_changes_only_what_depends_on_it(root: Path) -> None:
    before = plan(root)
    with (root / "defenses/shield/defense.py").open("a") as stream:
        stream.write("# more\n")
    after = plan(root)
    gone = Counter(before.stages[d].stage for d in before.stages.keys() - after.stages.keys())
    assert gone == {"protect": 1, "adapt": 2, "generate": 5, "score": 7}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"task": "style-b"}, "--task: is not in the suite: 'style-b' (nearest: 'style-a')"),
        ({"attack": "lroa"}, "--attack: unknown attack 'lroa' (nearest: 'lora')"),
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

    full, rest = estimate(made), estimate(made, Half())
    assert rest.stages["pictures"].cached == 8
    assert rest.stages["pictures"].seconds == 0
    expected = sum(c.seconds for s, c in full.stages.items() if s not in ("pictures", "protect"))
    assert rest.seconds == pytest.approx(expected)
    # Six adaptations of 2 steps at batch 1: 0.5 s each to begin with, 0.041 s a step.
    assert full.stages["adapt"].seconds == pytest.approx(6 * (0.5 + 2 * 0.041))


def measured(store: Path, spec: StageSpec, seconds: float, number: int = 0) -> None:
    """Write the manifest of an artifact that took so long."""
    digest = f"{number:064x}"
    manifest = {
        "stage": spec.stage, "digest": digest, "key": spec.key, "inputs": spec.inputs, "cost": {"seconds": seconds},
        "meta": {}, "files": {}, "versions": {}, "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    house.write(store / spec.stage / "aa" / digest / "manifest.json", json.dumps(manifest))


def test_what_an_entry_says_that_it_takes_is_estimated_until_it_is_measured(root: Path) -> None:
    before = plan(root, defense="noise")
    manifest = root / "defenses/noise/defense.toml"
    edited(manifest, "budget = 8", "budget = 8\nseconds = { tiny = 70.0 }")
    edited(manifest, "budget = 16", "budget = 16\nseconds = { tiny = 9.5 }")
    one, other = plan(root, defense="noise"), plan(root, defense="noise-16")
    assert one.stages.keys() == before.stages.keys(), "it is no part of a key"
    assert estimate(one).stages["protect"].seconds == 70.0
    assert estimate(other).stages["protect"].seconds == 9.5

    class Measured:
        def __init__(self) -> None:
            self.root = root / "store"

        def has(self, digest: str) -> bool:
            return False

    made = next(spec for spec in one.stages.values() if spec.stage == "protect")
    measured(root / "store", made, 41.0)
    assert estimate(one, Measured()).stages["protect"].seconds == 41.0


def test_what_other_machines_took_is_stretched_to_the_pace_of_this_one(root: Path) -> None:
    """Adaptations that took three times what the table says, half the time and twice it: the median is twice."""
    edited(root / "defenses/noise/defense.toml", "budget = 8", "budget = 8\nseconds = { tiny = 70.0 }")
    made = plan(root, defense="noise")
    spec = next(spec for spec in made.stages.values() if spec.stage == "adapt")

    class Store:
        def __init__(self) -> None:
            self.root = root / "store"

        def has(self, digest: str) -> bool:
            return False

    table = 0.5 + 2 * 0.041
    for number, times in enumerate((3.0, 0.5)):
        measured(root / "store", spec, times * table, number)
    assert estimate(made, Store()).stages["protect"].seconds == 70.0, "two say too little"
    measured(root / "store", spec, 2 * table, 2)
    assert estimate(made, Store()).stages["protect"].seconds == pytest.approx(140.0)
    assert estimate(made, Store()).stages["adapt"].seconds == pytest.approx(3 * 2 * table)
    pictures = estimate(made).stages["pictures"].seconds
    assert estimate(made, Store()).stages["pictures"].seconds == pytest.approx(2 * pictures)


def test_a_protection_without_steps_says_nothing_of_one_with_many(root: Path) -> None:
    """Twelve seconds of breaking weights are not twelve seconds a step of another defense."""
    made = plan(root)
    still = StageSpec("protect", {"entry": "destroy", "params": {"strength": 0.8}}, {})

    class Store:
        def __init__(self) -> None:
            self.root = root / "store"

        def has(self, digest: str) -> bool:
            return False

    measured(root / "store", still, 12.0)
    assert estimate(made, Store()).stages["protect"] == estimate(made).stages["protect"]
    again = next(spec for spec in made.stages.values() if spec.key.get("entry") == "noise")
    measured(root / "store", again, 3.0, 1)
    shield = 1.0 + 0.06 * 5  # its five steps, by the table
    assert estimate(made, Store()).stages["protect"].seconds == pytest.approx(3.0 + shield)


def test_more_workers_than_cores_are_no_faster(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate(plan(root))
    monkeypatch.setattr("immunebench.plan.estimate.cores", lambda: 2)
    assert [found.with_workers(n) for n in (1, 2, 64)] == [found.seconds, found.seconds / 2, found.seconds / 2]


@pytest.mark.parametrize(
    ("stage", "params", "passes"),
    [
        # 16 pictures: 100 steps of each; 10 rounds of 6 steps of each and 3 + 3 training steps of 4 + 4 pictures.
        ("protect", {"steps": 100, "alpha": 0.1}, 1600),
        ("protect", {"rounds": 10, "pgd_steps": 6, "train_steps": 3}, 10 * (6 * 16 + 6 * 8)),
        ("protect", {}, 0),
        ("purify", {"quality": 75}, 0),
        ("purify", {"steps": 30}, 480),
        # Image-to-image goes 0.3 of the way.
        ("purify", {"strength": 0.3, "sampling_steps": 50}, 240),
    ],
)
def test_work_on_pictures_is_counted_in_passes_of_pictures(stage: str, params: Values, passes: float) -> None:
    hook: Values = {"hook": "protect_images"} if stage == "protect" else {}
    assert units(StageSpec(stage, {"params": params, **hook})) == pytest.approx(passes)


def test_missing_metric_weights_are_named_before_anything_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path / "empty"))
    suite = root / "suites" / "tiny.toml"
    suite.write_text(suite.read_text() + 'metrics = ["lpips"]\n')
    with pytest.raises(UsageError, match="metric lpips: weights lpips-alex are missing"):
        plan(root)


def test_the_key_of_a_score_names_the_weights_of_its_metrics_and_nothing_where_there_are_none(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> list[Mapping[str, object]]:
        return [spec.key for spec in plan(root).stages.values() if spec.stage == "score"]

    assert not any("metric_weights" in key for key in keys())
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    (tmp_path / "dino-vits16.safetensors").write_bytes(b"abc")
    suite = root / "suites" / "tiny.toml"
    suite.write_text(suite.read_text() + 'metrics = ["dino_similarity_legacy", "dino_similarity"]\n')
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4's example
    by_metric = {
        any(str(row["id"]).startswith("dino") for row in key["metrics"]): key.get("metric_weights")  # type: ignore[attr-defined]
        for key in keys()
    }
    assert by_metric == {True: {"dino-vits16": digest}, False: None}


def edited(path: Path, old: str, new: str) -> Path:
    """Replace a piece of a file of the house."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def refused(root: Path, **wanted: object) -> str:
    with pytest.raises(UsageError) as caught:
        plan(root, **wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("field", ["owner", "attacker", "benign"])
def test_a_placeholder_that_the_base_knows_is_named(root: Path, field: str) -> None:
    vocabulary = {"<|endoftext|>": 0, "mug</w>": 1, "mu": 2, "oqx</w>": 3, "sks</w>": 4, "zvf</w>": 5}
    house.write(root / "weights/tiny/tokenizer/vocab.json", json.dumps(vocabulary))
    edited(root / "models.toml", 'judge = "toy"', 'judge = "toy"\nplaceholders = ["oqx", "sks", "zvf"]')
    plan(root)
    token = {"owner": "oqx", "attacker": "sks", "benign": "zvf"}[field]
    path = edited(root / "tasks/style/style-a.toml", f'token = "{token}"', 'token = "mug"')
    line = f"{path}: {field}.token: is a word that the base 'tiny' knows, so no placeholder: 'mug'"
    assert refused(root).startswith(line)


def test_a_start_that_would_begin_from_itself_is_named(root: Path) -> None:
    house.defense(root, "gone", "protect_model", kind="erasure")
    path = relearn(root, start_from="shield")
    line = f"{path}: start_from: begins from the start model, so it cannot make it: 'shield'"
    assert refused(root, defense="none").startswith(line)
    edited(path, 'start_from = "shield"', 'start_from = "gone"')
    assert counts(plan(root, defense="none"))["protect"] == 1


def test_an_erasure_belongs_on_a_concept_that_the_base_knows(root: Path) -> None:
    house.defense(root, "gone", "protect_model", kind="erasure")
    line = "erases what a base knows; task 'style-a' is of the family 'style', not 'relearn': 'gone'"
    assert refused(root, defense="gone").endswith(f"--defense: {line}")
    path = edited(root / "suites/tiny.toml", '"noise"', '"noise", "gone"')
    assert refused(root) == f"{path}: defenses: {line}"


def test_pictures_of_a_concept_to_relearn_are_nobodys_to_protect(root: Path) -> None:
    house.defense(root, "gone", "protect_model", kind="erasure")
    task = relearn(root, start_from="gone")
    suite = root / "suites/tiny.toml"
    said = "protects pictures before they are published; those of task 'style-a' show what a base drew already: 'noise'"
    assert refused(root) == f"{suite}: defenses: {said}"
    # One that is only asked for takes the places that suit it, and there is none.
    line = refused(root, defense="noise-16")
    assert line.endswith("--defense: " + said.replace("'noise'", "'noise-16'"))
    assert task.is_file()


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ("lora+blur", "cleans pictures after 'lora' has trained on them: 'lora+blur' (valid: blur+lora)"),
        ("blur", "is no chain of purifiers and one attack: 'blur'"),
        ("lora+lora", "is no chain of purifiers and one attack: 'lora+lora'"),
        ("blurr+lora", "unknown attack 'blurr' (nearest: 'blur')"),
    ],
)
def test_a_chain_in_the_wrong_order_is_named(root: Path, chain: str, said: str) -> None:
    blur = house.ATTACK.partition("[params]")[0].replace('"lora"', '"blur"').replace('"adapt"', '"purify"')
    house.write(root / "attacks/blur/attack.toml", blur)
    house.write(root / "attacks/blur/attack.py", "def purify(*arguments):\n    return arguments\n")
    suite = edited(root / "suites/tiny.toml", 'chains = ["lora"]', f'chains = ["{chain}"]')
    assert refused(root) == f"{suite}: chains: {said}"
    edited(suite, f'chains = ["{chain}"]', 'chains = ["blur+lora"]')
    assert "purify" in counts(plan(root))
    line = "--attack: cleans pictures after 'lora' has trained on them: 'lora+blur' (valid: blur+lora)"
    assert refused(root, attack="lora+blur").endswith(line)


def test_class_pictures_that_no_prompt_describes_are_named(root: Path) -> None:
    attack = root / "attacks/lora/attack.toml"
    edited(attack, "rank = 4", "rank = 4\nprior_weight = 1.0")
    task = root / "tasks/style/style-a.toml"
    assert refused(root) == f"{task}: prior.prompts: is missing: the attack 'lora' needs class pictures"
    with task.open("a") as stream:
        stream.write('[prior]\nprompts = ["a house", "a tree"]\nper_prompt = 3\n')
    made = plan(root, defense="shield")
    adapting = [s for s in made.stages.values() if s.stage == "adapt"]
    for spec in adapting:
        drawn = made.stages[spec.inputs["prior"]]
        weights = {name: digest for name, digest in spec.inputs.items() if name == "weights"}
        assert drawn.inputs == weights and drawn.key["per_prompt"] == 3, "drawn by the model that is adapted"
    assert {"weights" in s.inputs for s in adapting} == {True, False}
    edited(attack, "prior_weight = 1.0", "prior_weight = 0.0")
    assert not any("prior" in s.inputs for s in plan(root).stages.values())


def test_a_defense_of_pictures_simulates_its_attack_with_class_pictures_and_on_bases_of_its_own(root: Path) -> None:
    edited(root / "attacks/lora/attack.toml", "rank = 4", "rank = 4\nprior_weight = 1.0")
    with (root / "tasks/style/style-a.toml").open("a") as stream:
        stream.write('[prior]\nprompts = ["a house", "a tree"]\nper_prompt = 3\n')
    house.write(root / "weights/other/unet/config.json", '{"wide": 1}')
    models = root / "models.toml"
    other = models.read_text().partition("[judges.toy]")[0].replace("tiny", "other")
    models.write_text(models.read_text() + other)
    both = 'surrogates = ["tiny", "other"]'
    house.defense(root, "cloak", "protect_images", f'budget = 8\nagainst = "lora"\n[variants.cloak-both]\n{both}\n')

    def protect(defense: str) -> StageSpec:
        made = plan(root, defense=defense)
        return made.stages[made.roots[f"style-a/{defense}/lora/cpu/0"].protect["protect_images"]]

    made = plan(root, defense="none")
    (prior,) = {s.inputs["prior"] for s in made.stages.values() if s.stage == "adapt"}
    assert protect("cloak").inputs["prior"] == protect("cloak-both").inputs["prior"] == prior
    assert "prior" not in protect("noise").inputs
    assert "surrogates" not in protect("cloak").key and "surrogates" not in protect("noise").key
    named = protect("cloak-both").key["surrogates"]
    assert isinstance(named, dict) and list(named) == ["tiny", "other"]
    before = protect("cloak-both").digest
    (root / "weights/other/unet/config.json").write_text('{"wide": 2}')
    assert protect("cloak-both").digest != before


def relearn(root: Path, *, start_from: str) -> Path:
    """Make the house's task one of relearning."""
    path = root / "tasks/style/style-a.toml"
    edited(path, 'family = "style"', f'family = "relearn"\nstart_from = "{start_from}"')
    return edited(path, "[benign]", '[benign]\nfamily = "style"')


def test_what_the_base_draws_for_the_attacker_is_asked_for_in_the_attackers_own_words(root: Path) -> None:
    house.defense(root, "gone", "protect_model", kind="erasure")
    task = relearn(root, start_from="gone")
    edited(task, 'token = "sks"', 'token = "mosaic"')
    edited(root / "suites/tiny.toml", "curve_pictures = 2", 'curve_pictures = 2\npublished = "generated"')
    made = plan(root, defense="none")
    (asked,) = {
        canonical_json(made.stages[spec.inputs["training"]].key["prompts"])
        for spec in made.stages.values()
        if spec.stage == "score" and "training" in spec.inputs
    }
    assert asked == '["a painting in mosaic style"]'
    # The attack trains with that prompt as the caption: the template is not applied to it again.
    own = [spec for spec in made.stages.values() if spec.stage == "adapt" and spec.key["token"] == "mosaic"]
    assert own and all(spec.key["caption"] == "{content}" for spec in own)
    assert fill("{content}", token="mosaic", noun="style", content="a painting in mosaic style").count("mosaic") == 1


def test_the_released_model_has_a_floor_of_its_own(root: Path) -> None:
    made = plan(root)
    for name in ("none", "noise"):
        graph = made.roots[f"style-a/{name}/lora/cpu/0"]
        assert graph.defended_floor == graph.floor, "no weights are released"
    graph = made.roots["style-a/shield/lora/cpu/0"]
    own, start = (made.stages[made.stages[d].inputs["generated"]] for d in (graph.defended_floor, graph.floor))
    assert own.key == start.key and own.inputs == {"weights": graph.protect["protect_model"]}
    assert graph.defended_floor in graph.parts["attack"], "without it the row has no score"


def test_an_attack_is_scored_at_its_own_length_and_followed_beyond_it(root: Path) -> None:
    attack = root / "attacks/lora/attack.toml"
    attack.write_text(attack.read_text().replace("saves = [1, 2]", "saves = [1, 2, 4]"))
    suite = root / "suites/tiny.toml"
    suite.write_text(suite.read_text().replace("curve_pictures = 2", "curve_pictures = 1"))
    made = plan(root, defense="none")
    graph = made.roots["style-a/none/lora/cpu/0"]
    assert graph.final == 2 and sorted(graph.curve) == [1, 2, 4]
    counts = {step: len(made.stages[digest].key["prompts"]) for step, digest in graph.pictures.items()}  # type: ignore[arg-type]
    assert counts[2] > counts[1] == counts[4]
    benign = made.stages[made.stages[graph.utility.s].inputs["generated"]]
    assert made.stages[benign.inputs["adapter"]].key["params"]["saves"] == [2]  # type: ignore[index,call-overload]


def test_none_runs_at_further_seeds(root: Path) -> None:
    suite = root / "suites/tiny.toml"
    suite.write_text(suite.read_text().replace("seeds = [0]", "seeds = [0]\nnone_seeds = [1, 2]"))
    seeds = {name: {c.seed for c in plan(root).cells if c.defense == name} for name in ("none", "shield")}
    assert seeds == {"none": {0, 1, 2}, "shield": {0}}
    assert {c.seed for c in plan(root, seed=3).cells} == {3}, "asked for by number, nothing else runs"
