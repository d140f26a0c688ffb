"""The commit that a record names is that of the package's own checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from immunebench.records import code_state


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@y", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that the package seems to lie in."""
    folder = repository(tmp_path / "own")
    monkeypatch.setattr(code_state, "__file__", str(folder / "code_state.py"))
    code_state._source_state.cache_clear()
    return folder


def repository(folder: Path) -> Path:
    folder.mkdir()
    (folder / "__init__.py").write_text(f"# {folder.name}\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def test_variables_of_another_repository_do_not_count(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    other = repository(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert code_state.source_state() == {"commit": commit, "dirty": False}


def test_a_checkout_of_another_owner_has_its_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setattr(code_state.os, "environ", {**code_state.os.environ, "GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"})
    _strangers(checkout)
    assert code_state.source_state()["commit"] == commit


def _strangers(folder: Path) -> None:
    """Give a folder to another user, where this one may."""
    import os

    if os.getuid() == 0:
        for path in (folder, folder / ".git"):
            os.chown(path, 12345, 12345)
