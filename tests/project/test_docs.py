"""The pages about the code say what is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import immunebench

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bench" / "immunebench"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
TOP = ("bench", "docs", "leaderboard", "tasks", "defenses", "attacks", "pyproject.toml")


def test_the_rooms_are_those_that_import_linter_checks_in_their_order() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    rooms, board = (contract["layers"] for contract in settings["contracts"][:2])
    named = re.findall(r"^\| `([\w/]+)` \|", ARCHITECTURE, flags=re.MULTILINE)
    assert [name for name in named if "/" not in name] == [room for room in rooms if room != "__main__"]
    assert [name.removeprefix("board/") for name in named if "/" in name] == board


def test_every_file_that_the_architecture_names_is_there() -> None:
    paths = [p for p in re.findall(r"`([\w./]+(?:/|\.(?:py|toml|json|md)))`", ARCHITECTURE) if "/" in p]
    assert len(paths) > 30
    lost = [p for p in paths if not ((ROOT if p.split("/")[0] in TOP else PACKAGE) / p).exists()]
    assert not lost


def test_the_api_page_has_every_public_name_once() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    named = re.findall(r"^::: immunebench\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(named) == sorted(name for name in immunebench.__all__ if name != "__version__")


def test_every_call_that_the_api_page_names_exists() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8").partition("## What hooks receive")[0]
    objects = {"model": immunebench.LatentDiffusion, "ctx": immunebench.Context}
    named = re.findall(r"\b(model|ctx)\.(\w+)", page)
    assert len(named) > 20
    fields = set(immunebench.Context.__annotations__) | set(vars(immunebench.Context))
    lost = [f"{a}.{b}" for a, b in named if not hasattr(objects[a], b) and b not in fields]
    assert lost == [], "an instance may also set it"
