"""One broken entry breaks itself alone, whatever its files hold and whichever names it claims."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import house
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError
from immunebench.declared import schema
from immunebench.declared.suite import Suite


@pytest.fixture
def root(tmp_path: Path) -> Path:
    house.house(tmp_path)
    return tmp_path


def read(root: Path) -> Catalog:
    return load_catalog(root, models=root / "models.toml")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.with_name("b"))
    file.with_name("b").symlink_to(file)


def sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(10**11)


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("toml", lambda f: f.write_text("x = " + "[" * 5000 + "]" * 5000), "nested too deeply"),
        ("toml", lambda f: f.write_text("[" + "a." * 5000 + "a]\nx = 1"), "nested too deeply"),
        ("toml", lambda f: f.write_text("x = " + "9" * 4301), "integer string conversion"),
        ("toml", lambda f: f.write_text("version = 0x" + "f" * 9000), "integer string conversion"),
        ("toml", lambda f: f.write_bytes(b'id = "\xe9"'), "is no UTF-8 text"),
        ("toml", lambda f: f.write_text('id = "' + "x" * 10**6 + '"'), "characters left out"),
        ("toml", pipe, "is no regular file"),
        ("toml", sparse, "has more than 10 MB"),
        ("py", lambda f: f.write_text("x = " + "+".join(["1"] * 20_000)), "too long or nested too deeply"),
        ("py", lambda f: f.write_text("x = " + "(" * 5000 + ")" * 5000), "does not parse"),
        ("py", lambda f: f.write_bytes(b"\0"), "does not parse"),
        ("py", pipe, "is no regular file"),
        ("py", sparse, "has more than 10 MB"),
        ("py", loop, "links to a file outside its folder"),
    ],
)
def test_what_a_file_holds_breaks_its_own_entry(
    root: Path, name: str, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(house.defense(root, "wrong", "protect_model") / f"defense.{name}")
    catalog = read(root)
    (broken,) = catalog.broken
    assert (broken.kind, broken.id) == ("defense", "wrong") and said in broken.reason
    assert len(broken.reason) < 2_500 and broken.reason.isprintable()
    assert "wrong" not in catalog.defenses and "shield" in catalog.defenses


@pytest.mark.parametrize(
    "claim",
    [
        'aliases = ["shield"]\n',
        '[variants.shield]\ntitle = "A variant"\n',
        '[variants.own]\ntitle = "A variant"\naliases = ["shield"]\n',
        'aliases = ["aaa"]\n',
    ],
)
def test_a_name_of_another_is_not_to_be_had(root: Path, claim: str) -> None:
    # Read before the entry whose name it claims.
    house.defense(root, "aaa", "protect_model", claim)
    catalog = read(root)
    (broken,) = catalog.broken
    assert broken.id == "aaa" and "is already defined in" in broken.reason
    assert catalog.defense("shield").id == "shield" and "own" not in catalog.defenses
    with pytest.raises(UsageError, match="'aaa' is broken"):
        catalog.defense("aaa")


def test_of_two_that_claim_one_alias_the_first_has_it(root: Path) -> None:
    for name in ("first", "second"):
        house.defense(root, name, "protect_model", 'aliases = ["both"]\n')
    catalog = read(root)
    assert [broken.id for broken in catalog.broken] == ["second"]
    assert catalog.defense("both").id == "first"


def test_a_mark_of_the_byte_order_is_no_part_of_a_file(root: Path) -> None:
    file = root / "suites" / "tiny.toml"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert schema.load(file, Suite).id == "tiny"
