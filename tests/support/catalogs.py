"""Puts a catalogue in the place of the process's own."""

from __future__ import annotations

import importlib
import sys

import pytest

from immunebench.catalog.catalog import Catalog

#: Modules that ask for the catalogue of the process.
USERS = ("execution.stages", "execution.inputs", "execution.hooks", "execution.grading", "execution.boxed")


def use_catalog(monkeypatch: pytest.MonkeyPatch, catalog: Catalog) -> None:
    """Let every stage of this process find its entries and models in `catalog`."""
    for name in USERS:
        module = importlib.import_module(f"immunebench.{name}")
        monkeypatch.setattr(module, "default_catalog", lambda: catalog)
    assert not [
        name for name, module in sys.modules.items()
        if name.startswith("immunebench.execution.") and hasattr(module, "default_catalog")
        and name.removeprefix("immunebench.") not in USERS
    ]  # fmt: skip
