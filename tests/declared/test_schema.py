from __future__ import annotations

from pathlib import Path

import pytest

import house
from immunebench.core.errors import UsageError
from immunebench.declared import schema
from immunebench.declared.manifest import AttackManifest, DefenseManifest
from immunebench.declared.profile import Profile
from immunebench.declared.suite import Suite
from immunebench.declared.task import Task

GOOD = house.DEFENSE.format(id="foo", kind="control", hooks="[]")


def complaint(path: Path, text: str, model: type[schema.Model]) -> str:
    house.write(path, text)
    with pytest.raises(UsageError) as caught:
        schema.load(path, model)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version = 1", 'version = "one"', "version: input should be a valid integer, not 'one'"),
        ("version = 1", "", "version: is required and missing"),
        ("version = 1", "version = 1\nverson = 2", "unknown field 'verson' (nearest: 'version')"),
        ('kind = "control"', 'kind = "modle"', "kind: is not valid: 'modle' (nearest: 'model')"),
        (
            "hooks = []",
            'hooks = ["protect_modl"]',
            "hooks.0: is not valid: 'protect_modl' (nearest: 'protect_model')",
        ),
        ('id = "foo"', 'id = "../foo"', "id: string should match pattern"),
        ("version = 1", "version = true", "version: input should be a valid integer, not True"),
    ],
)
def test_wrong_manifest_is_one_line_with_field_value_and_nearest(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    assert complaint(tmp_path / "defense.toml", text, DefenseManifest).startswith(expected)


def test_toml_errors_name_the_file(tmp_path: Path) -> None:
    assert "cannot be read" in complaint(tmp_path / "x.toml", "id = ", DefenseManifest)


def test_a_preset_may_only_override_known_parameters(tmp_path: Path) -> None:
    text = GOOD + "[params]\nsteps = 1\n[presets.mini]\nstep = 2\n"
    line = complaint(tmp_path / "x.toml", text, DefenseManifest)
    assert line == "presets.mini.step is not a parameter of [params] (nearest: 'steps')"


def test_parameters_must_be_finite(tmp_path: Path) -> None:
    assert "finite" in complaint(tmp_path / "x.toml", GOOD + "[params]\nlr = nan\n", DefenseManifest)


@pytest.mark.parametrize("saves", ["[2, 1]", "[1]", "[]", "3", "[0, 2]", "[1, 1, 2]", "[1, 2.0]"])
def test_an_attack_saves_ascending_steps_that_end_with_the_last(tmp_path: Path, saves: str) -> None:
    text = house.ATTACK.replace("saves = [1, 2]", f"saves = {saves}")
    assert "saves" in complaint(tmp_path / "attack.toml", text, AttackManifest)


def test_owner_and_attacker_must_not_share_words(tmp_path: Path) -> None:
    text = house.TASK.replace('token = "oqx"', 'token = "sks"')
    assert "must differ" in complaint(tmp_path / "t.toml", text, Task)


def test_a_suite_draws_no_more_curve_pictures_than_prompts(tmp_path: Path) -> None:
    text = house.SUITE.replace("curve_pictures = 2", "curve_pictures = 3")
    assert "curve_pictures" in complaint(tmp_path / "s.toml", text, Suite)


def test_numerics_hold_what_changes_bytes_and_no_name() -> None:
    profile = schema.load(Path(schema.__file__).parents[1] / "profiles/cpu.toml", Profile)
    training = profile.numerics(sampling=False)
    sampling = profile.numerics(sampling=True)
    assert sampling.keys() - training.keys() == {"sampler", "sampling_steps", "guidance"}
    assert not {"id", "version", "title"} & sampling.keys()
    assert (sampling["threads"], sampling["guidance"], sampling["frozen_dtype"]) == (1, 1.5, "float32")


@pytest.mark.parametrize(("budget", "said"), [(0, "greater than or equal to 1"), (-8, "equal to 1"), (256, "255")])
def test_a_budget_of_pictures_is_above_0_and_at_most_255(tmp_path: Path, budget: int, said: str) -> None:
    text = house.DEFENSE.format(id="foo", kind="data", hooks='["protect_images"]')
    line = complaint(tmp_path / "defense.toml", text + f"budget = {budget}\n", DefenseManifest)
    assert line.startswith("budget: ") and said in line and line.endswith(f"not {budget}")
    varied = text + f"budget = 8\n[variants.foo-x]\nbudget = {budget}\n"
    assert "variants.foo-x.budget" in complaint(tmp_path / "defense.toml", varied, DefenseManifest)


def test_a_parameter_that_is_one_of_a_few_names_the_nearest(tmp_path: Path) -> None:
    text = house.DEFENSE.format(id="foo", kind="data", hooks='["protect_images"]') + "budget = 8\n"
    text += '[params]\nstyle = "far"\n[limits]\nstyle = { choices = ["far", "mosaic", "dots"] }\n'
    wrong = text + '[variants.foo-x]\nparams = { style = "mosaik" }\n'
    line = complaint(tmp_path / "defense.toml", wrong, DefenseManifest)
    assert line == ("variants.foo-x.params.style must be one of far, mosaic, dots (nearest: 'mosaic'), not 'mosaik'")
    listed = text.replace('style = "far"', 'style = ["far", "dotz"]')
    line = complaint(tmp_path / "defense.toml", listed, DefenseManifest)
    assert line == "params.style must be a list of far, mosaic, dots (nearest: 'dots'), not ['far', 'dotz']"
