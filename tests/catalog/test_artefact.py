"""Pictures that a closed tool cloaked, from the export to the record: pairs, bounds, hostile files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import toy_stages
from immunebench import api
from immunebench.authoring.new_artefact import ArtefactRequest, new_artefact
from immunebench.authoring.scaffold import Created
from immunebench.board.assembly.scored import score_folder
from immunebench.catalog import loading
from immunebench.catalog.loading import load_catalog
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from immunebench.core.types import Pictures, StageError
from immunebench.execution import stages
from immunebench.plan.planning import make_plan
from immunebench.store.artifacts import Store
from immunebench.store.graph import Plan, StageSpec

TASK = "style-okafor"
BUDGET = 8


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clean published pictures, as the command writes them."""
    folder = tmp_path_factory.mktemp("export") / "clean"
    result = CliRunner().invoke(cli.app, ["export", "published", TASK, str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(autouse=True)
def house(own_entries: Path) -> Path:
    """Every test has entries of its own."""
    return own_entries


def pixels(file: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(file).convert("RGB"))


def change(number: int) -> np.ndarray[Any, Any]:
    """A seeded change of exactly `BUDGET` in every value."""
    return BUDGET * np.random.default_rng(number).choice([-1, 1], (64, 64, 3))


@pytest.fixture
def cloaked(exported: Path, tmp_path: Path) -> Path:
    """What a tool outside made of the export: other names, and other file formats now and then."""
    folder = tmp_path / "cloaked"
    folder.mkdir()
    for number, file in enumerate(sorted(exported.glob("*.png"))):
        image = Image.fromarray(np.clip(pixels(file) + change(number), 0, 255).astype(np.uint8))
        match number:
            case 1:
                image.save(folder / f"{file.stem}-cloaked.webp", lossless=True)
            case 2:
                image.convert("RGBA").save(folder / f"{file.stem}_v2.PNG")
            case _:
                image.save(folder / file.name)
    return folder


def create(folder: Path, **options: Any) -> Created:
    given = {"id": "closed", "tasks": (TASK,), "images": (folder,), "tool": "Cloak", "tool_version": "1.0"}
    return new_artefact(ArtefactRequest(**{**given, "budget": BUDGET, **options}), load_catalog())


def plan(defense: str = "closed", task: str = TASK, **options: Any) -> Plan:
    loading.default_catalog.cache_clear()
    catalog = load_catalog()
    return make_plan(catalog.suite("mini-dev"), catalog, task=task, defense=defense, attack="lora", **options)


def protection(of: Plan) -> StageSpec:
    (spec,) = (spec for spec in of.stages.values() if "cloaked" in spec.key)
    return spec


def protect(of: Plan, folder: Path) -> Pictures:
    """Carry out the reading of the cloaked pictures and that of the clean ones before it."""
    spec = protection(of)
    for name in ("clean", "out"):
        (folder / name).mkdir()
    stages.run_stage(of.stages[spec.inputs["published"]], {}, folder / "clean", lambda *_: None)
    stages.run_stage(spec, {"published": folder / "clean"}, folder / "out", lambda *_: None)
    return Pictures.load(folder / "out")


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


def test_the_export_is_the_attackers_clean_pictures_and_says_which(exported: Path, tmp_path: Path) -> None:
    create_plan = make_plan(load_catalog().suite("mini-dev"), load_catalog(), task=TASK, defense="none", attack="lora")
    graph = next(iter(create_plan.roots.values()))
    trained = next(s for s in create_plan.stages.values() if s.stage == "pictures" and s.key["split"] == "published"
                   and s.key["concept"] == graph.facts.concept)  # fmt: skip
    stages.run_stage(trained, {}, tmp_path, lambda *_: None)
    trained_on = Pictures.load(tmp_path)
    index = json.loads((exported / "published.json").read_text())
    assert (index["task"], index["base"], len(index["pictures"])) == (TASK, "mini", len(trained_on))
    for number, row in enumerate(index["pictures"]):
        own = pixels(exported / row["file"])
        assert row["index"] == number and np.array_equal(own, trained_on.pixels[number])
        assert row["caption"] == trained_on.captions[number]
        assert row["sha256"] == hashlib.sha256(own.tobytes()).hexdigest()


def test_what_the_tool_made_is_what_the_attacker_trains_on(
    cloaked: Path, exported: Path, house: Path, tmp_path: Path
) -> None:
    made = create(cloaked)
    assert made.messages[0] == f"task {TASK}: 16 pictures, changed by up to 8 of 255"
    assert made.next == ("immunebench run closed",)
    protected = protect(plan(), tmp_path)
    for number, own in enumerate(protected.pixels):
        clean = pixels(exported / f"{number:03d}.png")
        assert np.array_equal(own, np.clip(clean + change(number), 0, 255))
    # The same pictures for every seed, and no base and no numerics in what identifies them.
    own = plan()
    assert protection(own).digest == protection(plan(seed=7)).digest
    assert not {"seed", "numerics", "base"} & protection(own).key.keys()
    # The attack reads them, and the record says what made them.
    assert protection(own).digest in {i for s in own.stages.values() if s.stage == "adapt" for i in s.inputs.values()}
    (graph,) = own.roots.values()
    assert (graph.facts.params, graph.facts.defense_kind) == ({"tool": "Cloak", "tool_version": "1.0"}, "artefact")
    suite = load_catalog().suite("closed")
    assert suite.names("defenses") == ("none", "noise", "closed") and suite.names("tasks") == (TASK,)


def _swap(folder: Path) -> None:
    (folder / "003.png").rename(folder / "x")
    (folder / "004.png").rename(folder / "003.png")
    (folder / "x").rename(folder / "004.png")


def _resized(folder: Path) -> None:
    Image.open(folder / "005.png").resize((128, 96)).save(folder / "005.png")


def _louder(folder: Path) -> None:
    values = pixels(folder / "006.png").astype(int)
    made = np.broadcast_to(change(6), values.shape)
    # One value goes one step further than the budget, away from both ends of what a picture can hold.
    at = tuple(np.argwhere((values > 20) & (values < 235) & (np.abs(made) == BUDGET))[0])
    values[at] += np.sign(made[at])
    Image.fromarray(values.astype(np.uint8)).save(folder / "006.png")


def _link(folder: Path, to: str) -> None:
    (folder / "007.png").unlink()
    (folder / "007.png").symlink_to(to)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "003.png").unlink(), "cloaked: lacks the published picture 003.png"),
        (
            lambda folder: Image.open(folder / "003.png").save(folder / "003.jpg"),
            "cloaked: 003.jpg and 003.png both begin with 003; remove one",
        ),
        (
            lambda folder: shutil.copy(folder / "003.png", folder / "003.PNG"),
            "cloaked: 003.PNG and 003.png both begin with 003; remove one",
        ),
        (
            lambda folder: shutil.copy(folder / "003.png", folder / "cover.png"),
            "cover.png: does not begin with a published picture's number, 000 to 015",
        ),
        (
            lambda folder: shutil.copy(folder / "003.png", folder / f"{'9' * 100}.png"),
            "9.png: does not begin with a published picture's number, 000 to 015",
        ),
        (_swap, "003.png: shows the published picture 004.png, not 003.png"),
        (_resized, "005.png: is 128 x 96, its clean picture 64 x 64"),
        (_louder, "--budget: picture 006 of task style-okafor changes by "),
        (lambda folder: _link(folder, "../clean/007.png"), "007.png: is a link or no regular file"),
        (lambda folder: (folder / "008.png").write_text("words"), "008.png: is no picture of a kind that is read"),
        (
            lambda folder: (folder / "008.png").write_bytes((folder / "008.png").read_bytes()[:500]),
            "008.png: is damaged or cut short",
        ),
    ],
)
def test_a_wrong_picture_is_named_and_nothing_is_written(
    cloaked: Path, house: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(cloaked)
    with pytest.raises(UsageError) as caught:
        create(cloaked)
    assert said in str(caught.value) and tree(house) == set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"budget": None},
            "--budget: or --perceptual is required: the pictures of task style-okafor change by up to 8",
        ),
        ({"budget": 7}, "changes by 8 of 255, more than the declared 7"),
        ({"budget": 0}, "--budget: must be from 1 to 255, not 0"),
        ({"budget": 256}, "--budget: must be from 1 to 255, not 256"),
        ({"perceptual": 0.1}, "--perceptual: replaces --budget"),
        ({"budget": None, "perceptual": 0.0}, "--perceptual: must be above 0 and at most 1, not 0.0"),
        ({"tasks": ("style-okafo",)}, "--task: unknown task 'style-okafo' (nearest: 'style-okafor')"),
        ({"tasks": ("relearn-cat",)}, "is of the family relearn, whose pictures cannot be protected: 'relearn-cat'"),
        ({"tasks": (TASK, "object-umbrella")}, "there are 2 --task and 1 --images"),
        ({"id": "noise"}, "ID: is the name of another entry or suite: 'noise'"),
        ({"id": "../x"}, "ID: must be up to 64 lower-case letters"),
        ({"tool": "Cl\u202eoak"}, r"--tool: must be printable text, not 'Cl\u202eoak'"),
        ({"images": (Path("nowhere"),)}, "--images: no such folder 'nowhere'"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_written(
    cloaked: Path, house: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        create(cloaked, **options)
    assert said in str(caught.value) and tree(house) == set()


def test_the_clean_pictures_are_no_submission(exported: Path, house: Path) -> None:
    with pytest.raises(UsageError, match="holds the clean pictures themselves"):
        create(exported)
    assert tree(house) == set()


def edit(house: Path, before: str, after: str) -> None:
    file = house / "defenses/closed/defense.toml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))


def rows(house: Path) -> list[str]:
    return [line for line in (house / "defenses/closed/defense.toml").read_text().splitlines() if "index" in line]


def _another_clean(house: Path) -> None:
    clean = rows(house)[2].partition('clean = "')[2][:64]
    edit(house, clean, "0" * 64)


def _one_less(house: Path) -> None:
    edit(house, f"{rows(house)[15]}\n", "")
    (house / f"defenses/closed/{TASK}/015.png").unlink()


def _forged(house: Path) -> None:
    """A picture of another size whose SHA-256 the manifest lists."""
    file = house / f"defenses/closed/{TASK}/001.png"
    Image.new("RGB", (32, 48)).save(file)
    edit(house, rows(house)[1].partition('sha256 = "')[2][:64], hashlib.sha256(file.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda house: edit(house, "budget = 8", "budget = 7"),
            "closed: Linf of 8/255 exceeds the declared budget of 7",
        ),
        (_another_clean, "closed: 002.png was made from another picture than published picture 2 of the task"),
        (_one_less, "closed: holds 15 pictures of a task that publishes 16"),
        (_forged, "closed: 001.png is 32 x 48, its clean picture 64 x 64"),
    ],
)
def test_pictures_that_do_not_fit_are_an_error_of_the_defense(
    cloaked: Path, house: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    create(cloaked)
    spoil(house)
    with pytest.raises(StageError) as caught:
        protect(plan(), tmp_path)
    assert caught.value.kind == "error" and said in str(caught.value)


def test_changed_files_are_noticed_before_and_after_planning(cloaked: Path, house: Path, tmp_path: Path) -> None:
    create(cloaked)
    file = house / f"defenses/closed/{TASK}/000.png"
    planned = plan()
    shutil.copy(file.with_name("001.png"), file)
    with pytest.raises(OSError, match=r"closed: 000\.png: changed after the run was planned"):
        protect(planned, tmp_path)
    with pytest.raises(UsageError, match=r"000\.png: has another SHA-256 than the manifest lists"):
        plan()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda house: edit(house, '"000.png"', '"../../secret.png"'), "artefact.tasks.style-okafor.0.file"),
        (lambda house: edit(house, '"000.png"', '"001.png"'), "style-okafor names a file twice"),
        (lambda house: edit(house, "index = 0", "index = 1"), "must hold every published picture once"),
        (lambda house: edit(house, TASK, "style-okafar"), "is none of the listed pictures"),
        (
            lambda house: edit(house, '"artefact"', '"data"'),
            "and the table [artefact] require each other",
        ),
        (lambda house: edit(house, "protect_images", "protect_model"), "hooks of an artefact are"),
        (lambda house: edit(house, "budget = 8", "params = { lr = 1.0 }\nbudget = 8"), "params does not apply"),
        (lambda house: edit(house, "budget = 8", ""), "budget is missing"),
        (
            lambda house: (house / "defenses/closed/defense.py").write_text("import os"),
            "defense.py: is none of the listed pictures",
        ),
        (
            lambda house: (house / f"defenses/closed/{TASK}/004.png").unlink(),
            "in the manifest but missing",
        ),
        (
            lambda house: _link(house / "defenses/closed" / TASK, "006.png"),
            "007.png: is a symbolic link; put the file itself there",
        ),
        (lambda house: _link(house / "defenses/closed" / TASK, "/etc/hostname"), "007.png: links to a file outside"),
    ],
)
def test_a_folder_that_is_more_or_less_than_its_pictures_is_broken(
    cloaked: Path, house: Path, spoil: Callable[[Path], None], said: str
) -> None:
    create(cloaked)
    spoil(house)
    catalog = load_catalog()
    (broken,) = catalog.broken
    assert "closed" not in catalog.defenses and said in broken.reason


def test_a_task_without_pictures_is_incomplete_and_the_record_says_why(cloaked: Path, tmp_path: Path) -> None:
    create(cloaked)

    def run_stage(spec: Any, inputs: dict[str, Path], out: Path, report: Any) -> dict[str, object]:
        run = stages.run_stage if "cloaked" in spec.key else toy_stages.every_stage
        return run(spec, inputs, out, report)

    of, folder = plan(task="object-umbrella"), tmp_path / "results" / "mini-dev"
    (record,) = api.measure(of, Store(tmp_path / "store"), folder, run_stage=run_stage)
    assert record.status == "skipped" and record.failure is None
    assert record.reason == "closed: no pictures of the task object-umbrella were submitted"
    (row,) = score_folder(folder).board.rows
    assert row.p is None and row.u is None and row.incomplete == ("object-umbrella: U is not measured",)
    assert row.track == "data" and "artefact" in row.badges


def test_pictures_of_a_further_task_leave_the_key_of_the_first(cloaked: Path, house: Path, tmp_path: Path) -> None:
    create(cloaked)
    alone = protection(plan()).digest
    shutil.rmtree(house / "defenses/closed")
    (house / "suites/closed.toml").unlink()
    second = tmp_path / "umbrella"
    CliRunner().invoke(cli.app, ["export", "published", "object-umbrella", str(second)])
    for number, file in enumerate(sorted(second.glob("*.png"))):
        Image.fromarray(np.clip(pixels(file) + change(number), 0, 255).astype(np.uint8)).save(file)
    create(cloaked, tasks=(TASK, "object-umbrella"), images=(cloaked, second))
    assert protection(plan()).digest == alone
    assert protection(plan(task="object-umbrella")).digest != alone


def test_a_perceptual_bound_is_measured_when_it_is_declared_and_when_it_is_run(
    cloaked: Path, house: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"is 0\.\d{4} from its clean one, more than the declared 0\.0001"):
        create(cloaked, budget=None, perceptual=0.0001)
    create(cloaked, budget=None, perceptual=0.5)
    assert len(protect(plan(), tmp_path)) == 16
    edit(house, "perceptual_budget = 0.5", "perceptual_budget = 0.0001")
    again = tmp_path / "again"
    again.mkdir()
    with pytest.raises(StageError, match=r"closed: a perceptual distance of 0\.\d{4} exceeds the declared 0\.0001"):
        protect(plan(), again)


def test_a_surrogate_is_none_of_its_settings_for_nobody_knows_what_the_tool_computed_on(
    cloaked: Path, tmp_path: Path
) -> None:
    create(cloaked)
    suite, block = tmp_path / "transfer.toml", f'[[cells]]\ntasks = ["{TASK}"]\nchains = ["lora"]\n'
    head = 'id = "transfer"\nversion = "1.0"\ntitle = "T"\nprofile = "cpu"\nseeds = [0]\nprompts = 2\npictures = 1\n'
    block += 'defenses = ["mist", "closed"]\n'
    suite.write_text(head + "curve_pictures = 0\n" + block + block + 'surrogate = "mini-b"\n')
    loading.default_catalog.cache_clear()
    catalog = load_catalog()
    made = make_plan(catalog.suite(suite), catalog)
    assert {(cell.defense, cell.setting.surrogate) for cell in made.cells} == {
        ("mist", None), ("mist", "mini-b"), ("closed", None),
    }  # fmt: skip


def test_it_is_layered_with_a_model_by_name(cloaked: Path) -> None:
    create(cloaked)
    of = plan("imma-lora+closed")
    (graph,) = of.roots.values()
    assert graph.facts.defense_kind == "layered" and set(graph.protect) == {"protect_model", "protect_images"}
    assert graph.protect["protect_images"] == protection(of).digest


def test_the_command_line_says_what_comes_next_and_overwrites_nothing(
    cloaked: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("immunebench.cli.export.all_plans", lambda catalog: [])

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, arguments)

    before = {file.name: file.read_bytes() for file in exported.iterdir()}
    again = call("export", "published", TASK, str(exported))
    assert isinstance(again.exception, UsageError) and "exists already" in str(again.exception)
    assert before == {file.name: file.read_bytes() for file in exported.iterdir()}
    made = call("new", "artefact", "closed", "--task", TASK, "--images", str(cloaked), "--tool", "Cloak",
                "--tool-version", "1.0", "--budget", "8")  # fmt: skip
    assert made.exit_code == 0 and "next: immunebench run closed" in made.stdout
    loading.default_catalog.cache_clear()
    listed = json.loads(call("list", "defenses", "--json").stdout)["defenses"]
    assert "closed" in {row["id"] for row in listed}
    # A cell's key goes on to be exported by the short form.
    cell = call("export", "style-solano/nothing/lora/cpu/0", "exported")
    assert isinstance(cell.exception, UsageError) and "no suite has the cell" in str(cell.exception)
