from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import house
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "house"
    house.house(folder)
    return folder


def read(root: Path, entries: Path | None = None) -> Catalog:
    return load_catalog(entries or root, models=root / "models.toml")


def reason(catalog: Catalog, name: str) -> str:
    return next(broken.reason for broken in catalog.broken if broken.id == name)


def test_a_house_is_read_whole(root: Path) -> None:
    catalog = read(root)
    assert set(catalog.defenses) == {"none", "none-replicate", "noise", "noise-16", "shield", "shield-max"}
    assert set(catalog.attacks) == {"lora"}
    assert set(catalog.tasks) == {"style-a"}
    assert "cpu" in catalog.profiles
    assert catalog.broken == []


def test_variants_and_presets_resolve_in_order(root: Path) -> None:
    catalog = read(root)
    assert catalog.defense("shield").params("other") == {
        "steps": 10,
        "lr": 0.1,
        "keep": True,
        "against": ["lora"],
    }
    assert catalog.defense("shield").params("tiny")["steps"] == 5
    most = catalog.defense("shield-max")
    assert most.params("tiny") == {"steps": 5, "lr": 0.5, "keep": True, "against": ["lora"]}
    assert (most.title, most.code, most.against) == ("Max", "shield", ("lora",))
    assert catalog.defense("noise-16").budget == 16
    assert catalog.defense("noise").budget == 8
    assert catalog.defense("none-replicate").replicate


def test_aliases_lead_to_the_entry_and_unknown_names_to_the_nearest(root: Path) -> None:
    catalog = read(root)
    assert catalog.defense("buckler").id == "shield"
    with pytest.raises(UsageError, match=r"--defense: unknown defense 'sheild' \(nearest: 'shield'\)"):
        catalog.defense("sheild", field="--defense")


def test_a_broken_entry_is_listed_and_stops_no_other(root: Path) -> None:
    path = house.defense(root, "wrong", "protect_model") / "defense.toml"
    path.write_text(path.read_text().replace("version = 1", 'version = "x"'))
    catalog = read(root)
    assert reason(catalog, "wrong").startswith(f"{path}: version: ")
    assert "shield" in catalog.defenses
    with pytest.raises(UsageError, match="'wrong' is broken"):
        catalog.defense("wrong")


def test_an_unknown_attack_breaks_the_defense_with_the_nearest(root: Path) -> None:
    house.defense(root, "odd", "protect_model", 'against = "lroa"\n')
    assert reason(read(root), "odd").endswith("against: unknown attack 'lroa' (nearest: 'lora')")


@pytest.mark.parametrize(
    ("against", "said"),
    [
        ('"jpeg"', "is a purifier, which trains nothing that a defense could simulate: 'jpeg'"),
        ('["lora", "jpeg"]', "is a purifier, which trains nothing that a defense could simulate: 'jpeg'"),
        ("[]", "names no attack"),
        ('["lora", "lora"]', "holds a value twice"),
    ],
)
def test_a_defense_is_trained_against_what_trains(root: Path, against: str, said: str) -> None:
    manifest = house.ATTACK.partition("[params]")[0].replace("lora", "jpeg").replace("adapt", "purify")
    house.write(root / "attacks/jpeg/attack.toml", manifest)
    house.write(root / "attacks/jpeg/attack.py", "def purify(*arguments):\n    return arguments\n")
    path = house.defense(root, "odd", "protect_model", f"against = {against}\n") / "defense.toml"
    catalog = read(root)
    assert reason(catalog, "odd") == f"{path}: against: {said}"
    assert "odd" not in catalog.defenses


@pytest.mark.parametrize(
    ("surrogates", "said"),
    [
        ('["tinny"]', "unknown base 'tinny' (nearest: 'tiny')"),
        ("[]", "names no base"),
        ('["tiny", "tiny"]', "holds a value twice"),
    ],
)
def test_a_surrogate_is_a_base(root: Path, surrogates: str, said: str) -> None:
    path = house.defense(root, "odd", "protect_images", f"budget = 8\nsurrogates = {surrogates}\n") / "defense.toml"
    assert reason(read(root), "odd") == f"{path}: surrogates: {said}"


@pytest.mark.parametrize("table", ["params", "presets.tiny", "variants.shield-max.params"])
def test_a_parameter_beyond_its_limit_is_named_with_its_table(root: Path, table: str) -> None:
    folder = root / "attacks/words"
    text = house.ATTACK.replace('"lora"', '"words"').replace("rank = 4", "num_vectors = 2")
    lines = {"params": "", "presets.tiny": "num_vectors = 0\n", "variants.shield-max.params": ""}
    text = text.replace("num_vectors = 2", "num_vectors = 0") if table == "params" else text
    text += lines[table] + "[limits]\nnum_vectors = { least = 1, most = 16 }\n"
    text += "[variants.shield-max]\nparams = { num_vectors = 0 }\n" if table.startswith("variants") else ""
    path = house.write(folder / "attack.toml", text)
    house.write(folder / "attack.py", "def adapt(*arguments):\n    return arguments\n")
    assert reason(read(root), "words") == f"{path}: {table}.num_vectors must be at least 1, not 0"


def test_the_id_must_be_the_folder_name(root: Path) -> None:
    (root / "defenses/shield").rename(root / "defenses/buckler")
    line = reason(read(root), "buckler")
    assert line.endswith("id: must equal the folder's name 'buckler', not 'shield'")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def protect_modl(): ...\n", "nearest: 'protect_modl'"),
        ("def (", "does not parse"),
        (None, "is missing"),
    ],
)
def test_code_is_looked_at_without_running_it(root: Path, code: str | None, expected: str) -> None:
    path = house.defense(root, "odd", "protect_model") / "defense.py"
    path.unlink() if code is None else path.write_text(code)
    assert expected in reason(read(root), "odd")


def test_links_out_of_the_folder_are_refused(root: Path, tmp_path: Path) -> None:
    secret = house.write(tmp_path / "secret.py", "x = 1\n")
    (root / "defenses/shield/helper.py").symlink_to(secret)
    assert "links to a file outside" in reason(read(root), "shield")
    outside = house.defense(tmp_path / "else", "far", None)
    (root / "defenses/far").symlink_to(outside)
    assert "links to a folder outside" in reason(read(root), "far")


def test_of_two_entries_of_one_name_the_second_is_broken_with_both_paths(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.defense(tmp_path / "mine", "shield", None)
    monkeypatch.chdir(root)
    catalog = read(root, tmp_path / "mine")
    (broken,) = catalog.broken
    assert broken.reason.startswith(str(tmp_path / "mine/defenses/shield/defense.toml"))
    assert str(root / "defenses/shield/defense.toml") in broken.reason
    assert catalog.defenses["shield"].folder == root / "defenses/shield"


def test_a_given_folder_adds_to_the_checkout_and_goes_before_the_variable(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.defense(tmp_path / "given", "given", None)
    house.defense(tmp_path / "env", "by-variable", None)
    (root / "deep/down").mkdir(parents=True)
    monkeypatch.chdir(root / "deep/down")
    monkeypatch.setenv("IMMUNEBENCH_ENTRIES", str(tmp_path / "env"))
    by_variable = load_catalog(models=root / "models.toml").defenses
    assert {"shield", "by-variable"} <= by_variable.keys()
    given = read(root, tmp_path / "given").defenses
    assert "given" in given
    assert "by-variable" not in given


def test_a_folder_that_does_not_exist_is_named(root: Path) -> None:
    with pytest.raises(UsageError, match="--entries: no such folder"):
        read(root, root / "nowhere")


def test_code_is_hashed_and_loaded_by_path_when_asked(root: Path) -> None:
    folder = root / "defenses/shield"
    house.write(folder / "part.py", "NUMBER = 5\n")
    code = "from .part import NUMBER\n\ndef protect_model():\n    return NUMBER\n"
    house.write(folder / "defense.py", code)
    entry = read(root).defense("shield-max")
    assert entry.files == {
        "defense.py": hashlib.sha256(code.encode()).hexdigest(),
        "part.py": hashlib.sha256(b"NUMBER = 5\n").hexdigest(),
    }
    assert entry.function("protect_model")() == 5
    with pytest.raises(UsageError, match="no such hook 'freeze'"):
        entry.function("freeze")


def test_edited_code_is_never_the_code_loaded_before(root: Path) -> None:
    folder = house.defense(root, "changing", "protect_model")
    house.write(folder / "defense.py", "def protect_model(*arguments):\n    return 1\n")
    assert read(root).defense("changing").function("protect_model")() == 1
    house.write(folder / "defense.py", "def protect_model(*arguments):\n    return 22\n")
    assert read(root).defense("changing").function("protect_model")() == 22


def test_compiled_code_is_refused(root: Path) -> None:
    folder = house.defense(root, "hidden", "protect_model")
    (folder / "core.pyc").write_bytes(b"")
    assert "compiled code" in reason(read(root), "hidden")


def test_changing_pictures_without_a_budget_is_refused(root: Path) -> None:
    house.defense(root, "boundless", "protect_images")
    assert "budget is missing" in reason(read(root), "boundless")


def test_bases_and_judges_are_found_or_named(root: Path) -> None:
    catalog = read(root)
    assert catalog.base_folder("tiny") == (root / "weights/tiny").resolve()
    assert catalog.judge_files("toy") == {"weights/judge.safetensors": hashlib.sha256(b"judge").hexdigest()}
    (root / "weights/judge.safetensors").unlink()
    with pytest.raises(UsageError, match=r"judges.toy.files: no such file 'weights/judge.safetensors'"):
        catalog.judge_files("toy")


def test_reading_the_catalogue_imports_no_heavy_library() -> None:
    code = (
        "import sys; from immunebench.catalog.loading import load_catalog; c = load_catalog(); "
        "print(sorted({'torch', 'pandas', 'diffusers', 'numpy'} & set(sys.modules)), len(c.broken))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] 0"
