"""Fixtures that tests of several rooms share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from immunebench.catalog import loading


@pytest.fixture
def own_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that entries are read from and written to, beside the checkout's own entries."""
    root = tmp_path / "entries"
    root.mkdir()
    monkeypatch.setenv("IMMUNEBENCH_ENTRIES", str(root))
    loading.default_catalog.cache_clear()
    yield root
    loading.default_catalog.cache_clear()
