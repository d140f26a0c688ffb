"""What `new defense` and `new attack` write is a valid entry whose code does what its docstring says."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from immunebench.authoring.scaffold import Created
from immunebench.authoring.templates import new_attack, new_defense
from immunebench.catalog import loading
from immunebench.catalog.entry import Entry
from immunebench.catalog.loading import load_catalog
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from immunebench.core.types import Concept, Params, Pictures
from immunebench.execution.hooks import check_pictures
from immunebench.plan.planning import make_plan
from tiny import tiny_context, tiny_model, tiny_pictures

HOOKS = [
    (new_defense, "defense", "model"),
    (new_defense, "defense", "data"),
    (new_defense, "defense", "erasure"),
    (new_defense, "defense", "layered"),
    (new_defense, "defense", "api-enforced"),
    (new_attack, "attack", "adapt"),
    (new_attack, "attack", "purify"),
]


@pytest.fixture(autouse=True)
def house(own_entries: Path) -> Path:
    """Every test has entries of its own."""
    return own_entries


def created(make: Callable[..., Created], kind: str, hook: str) -> Entry:
    make("my-own", hook, load_catalog())
    catalog = load_catalog()
    assert not [broken for broken in catalog.broken if broken.id == "my-own"]
    return (catalog.defense if kind == "defense" else catalog.attack)("my-own")


@pytest.mark.parametrize(("make", "kind", "hook"), HOOKS)
def test_it_is_listed_planned_and_clean(make: Callable[..., Created], kind: str, hook: str, house: Path) -> None:
    made = created(make, kind, hook)
    defined = {"model": ("protect_model",), "data": ("protect_images",), "erasure": ("protect_model",)}
    defined |= {"layered": ("protect_model", "protect_images"), "api-enforced": ("freeze",)}
    assert made.hooks == defined.get(hook, (hook,))
    catalog = load_catalog()
    plan = make_plan(catalog.suite("my-own"), catalog)
    assert {catalog.task(cell.task).split for cell in plan.cells} == {"dev"}
    assert any("my-own" in (cell.defense, *cell.chain.split("+")) for cell in plan.cells)
    options = ["--config", str(Path(__file__).parents[2] / "pyproject.toml"), "--no-cache", str(made.folder)]
    for check in (["format", "--check"], ["check"]):
        subprocess.run([sys.executable, "-m", "ruff", *check, *options], check=True, capture_output=True)


def test_the_model_defense_raises_the_loss_on_the_owners_pictures(tmp_path: Path) -> None:
    made = created(*HOOKS[0])
    model, pictures = tiny_model(), tiny_pictures(4)
    concept = Concept("object-mug", "object", "mug", "oqx", "a oqx mug", pictures)
    params = Params({**made.params("mini"), "steps": 30, "lr": 1e-2})
    ctx = tiny_context(model, tmp_path)
    weights = made.function("protect_model")(model, (concept,), params, ctx)
    ctx.check()
    losses = [float(row["loss"]) for row in ctx.rows]
    assert np.mean(losses[-5:]) > 1.2 * np.mean(losses[:5])
    assert weights.tensors and all("attn" in name for name in weights.tensors)


def test_the_picture_defense_uses_its_whole_budget_and_no_more(tmp_path: Path) -> None:
    made = created(*HOOKS[1])
    model, published = tiny_model(), tiny_pictures(3)
    concept = Concept("object-mug", "object", "mug", "oqx", "a oqx mug", tiny_pictures(2, seed=1))
    params = Params({**made.params("mini"), "budget": made.budget})
    protected = made.function("protect_images")(model, concept, published, params, tiny_context(model, tmp_path))
    check_pictures("my-own", published, protected, 8)
    assert np.abs(protected.pixels.astype(int) - published.pixels).max() == 8


def test_the_mask_freezes_the_share_that_it_is_told(tmp_path: Path) -> None:
    made = created(*HOOKS[4])
    model = tiny_model()
    count = len(model.unet_tensors("all"))
    concept = Concept("object-mug", "object", "mug", "oqx", "a oqx mug", tiny_pictures(2, seed=1))
    for rho, frozen in ((0.5, (count - 1) // 2), (1.0, count - 1)):
        mask = made.function("freeze")(model, (concept,), Params({"rho": rho}), tiny_context(model, tmp_path))
        assert len(mask.names) == frozen and len(mask.frozen) == count


def test_the_attack_learns_and_saves_every_step_it_names(tmp_path: Path) -> None:
    made = created(*HOOKS[5])
    model = tiny_model()
    params = Params({**made.params("mini"), "steps": 4, "saves": [2, 4]})
    ctx = tiny_context(model, tmp_path)
    made.function("adapt")(model, tiny_pictures(4), params, ctx)
    assert sorted(file.name for file in tmp_path.glob("*.safetensors")) == [
        "adapter-00002.safetensors",
        "adapter-00004.safetensors",
    ]


def test_the_purifier_takes_out_a_speck(tmp_path: Path) -> None:
    made = created(*HOOKS[6])
    model = tiny_model()
    flat = np.full((1, 32, 32, 3), 90, np.uint8)
    speck = flat.copy()
    speck[0, 10, 10] = 255
    params = Params(made.params("mini"))
    cleaned = made.function("purify")(model, Pictures(speck, ("a",)), params, tiny_context(model, tmp_path))
    assert np.array_equal(cleaned.pixels, flat) and cleaned.captions == ("a",)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["defense", "My_Shield"], "ID: must be up to 64 lower-case letters"),
        (["defense", "imma-lora"], "ID: is the name of another entry or suite: 'imma-lora'"),
        (["attack", "mini-smoke"], "ID: is the name of another entry or suite: 'mini-smoke'"),
        (
            ["attack", "mine", "--hook", "purifi"],
            "--hook: is not a hook of such an entry: 'purifi' (nearest: 'purify')",
        ),
        (["defense", "mine", "--track", "modle"], "--track: is no track: 'modle' (nearest: 'model')"),
        (["defense", "mine", "--artefact"], "immunebench new artefact mine --task TASK"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(house: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(cli.app, ["new", *arguments])
    assert isinstance(result.exception, UsageError) and said in str(result.exception)
    assert not list(house.rglob("*"))


def test_the_command_names_what_it_wrote_and_overwrites_nothing(house: Path) -> None:
    result = CliRunner().invoke(cli.app, ["new", "defense", "mine"])
    assert result.exit_code == 0 and "next: immunebench run mine" in result.stdout
    names = {"defense.toml", "defense.py", "cite.bib"}
    assert {file.name for file in (house / "defenses/mine").iterdir()} == names
    assert sorted(path.name for path in house.iterdir()) == ["defenses", "suites", "tests"]
    assert not list(house.rglob(".new-*"))
    (house / "suites/mine.toml").unlink()
    (house / "defenses/mine/defense.toml").write_text("mine alone")
    loading.default_catalog.cache_clear()
    again = CliRunner().invoke(cli.app, ["new", "defense", "mine"])
    assert isinstance(again.exception, UsageError) and "mine: exists already" in str(again.exception)
    assert (house / "defenses/mine/defense.toml").read_text() == "mine alone"


def test_a_new_defense_is_tried_on_one_dev_task_a_family_and_the_first_is_named(house: Path) -> None:
    result = CliRunner().invoke(cli.app, ["new", "defense", "mine"])
    tasks = tomllib.loads((house / "suites/mine.toml").read_text())["tasks"]
    assert tasks == ["style-okafor", "object-umbrella", "identity-chidi", "relearn-cat"]
    assert "immunebench run mine --task style-okafor" in result.stdout
    assert CliRunner().invoke(cli.app, ["new", "defense", "eraser", "--track", "erasure"]).exit_code == 0
    erased = tomllib.loads((house / "suites/eraser.toml").read_text())["tasks"]
    assert erased == ["relearn-cat", "relearn-watercolour"]
