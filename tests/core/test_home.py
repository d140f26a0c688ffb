"""A user without a home folder: what is given is used, and only what is needed is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from immunebench import api
from immunebench.bases import weights
from immunebench.core.errors import UsageError
from immunebench.pictures import dataset_source


@pytest.fixture(autouse=True)
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ``HOME``, and a user who has no entry in the system's list."""

    def unknown(path: Path) -> Path:
        if path.parts[:1] and path.parts[0].startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    for name in ("STORE", "WEIGHTS", "DATA"):
        monkeypatch.delenv(f"IMMUNEBENCH_{name}", raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)


def test_what_is_looked_for_is_not_there(tmp_path: Path) -> None:
    assert not weights.cache_folder().exists() and not dataset_source.home("task").exists()
    assert api.open_store(tmp_path).root == tmp_path


def test_what_is_needed_is_asked_for_by_its_name() -> None:
    with pytest.raises(UsageError, match="IMMUNEBENCH_STORE: is needed: no home folder is known"):
        api.open_store()
    with pytest.raises(UsageError, match="IMMUNEBENCH_WEIGHTS: is needed"):
        weights.fetch(next(iter(weights.FETCHABLE)))
    with pytest.raises(UsageError, match="no home folder is known for '~/store'"):
        api.open_store("~/store")


def test_a_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMMUNEBENCH_STORE", str(tmp_path))
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path / "w"))
    assert api.open_store().root == tmp_path and weights.cache_folder() == tmp_path / "w"
