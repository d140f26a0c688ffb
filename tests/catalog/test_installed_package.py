"""Entries of a third party's package, installed as pip does it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "their-shields"
version = "1.0"
[project.entry-points."immunebench.entries"]
their-shields = "their_shields"
"""


def test_an_installed_package_adds_its_entries(tmp_path: Path) -> None:
    package = tmp_path / "source" / "their_shields"
    folder = package / "defenses" / "their-shield"
    shutil.copytree(ROOT / "defenses" / "noise", folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / "defense.toml").read_text("utf-8").partition("[variants")[0]
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("aliases"))
    (folder / "defense.toml").write_text(text.replace('id = "noise"', 'id = "their-shield"'), "utf-8")
    # A package that fails on import: its entries are read, and it is not.
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package.parent / "pyproject.toml").write_text(PROJECT)
    site, pip = tmp_path / "site", [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(site)]
    subprocess.run([*pip, "install", *offline, str(package.parent)], check=True, capture_output=True)
    shutil.rmtree(package.parent)

    paths = os.pathsep.join([str(site), str(ROOT / "bench")])
    environment = {name: value for name, value in os.environ.items() if name != "IMMUNEBENCH_ENTRIES"}
    code = "import immunebench.cli.main, sys; sys.argv[1:] = ['list', '--json']; immunebench.cli.main.main()"
    listed = subprocess.run(
        [sys.executable, "-c", code],
        check=True, capture_output=True, text=True, cwd=tmp_path, env={**environment, "PYTHONPATH": paths},
    )  # fmt: skip
    assert '"their-shield"' in json.dumps(json.loads(listed.stdout)), listed.stdout[:500]
