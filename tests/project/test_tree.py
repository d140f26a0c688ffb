"""What is committed stays small, and its pages lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
MB = 10**6


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Every file of the checkout that git tracks and that is there."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in names.split("\0") if (ROOT / name).is_file()]


@pytest.mark.parametrize(
    ("folder", "limit"),
    [(".", 48.0), ("docs", 2.5), ("leaderboard/releases/2026.0-world1", 1.5), ("tests/fixtures/world1", 0.6)],
)
def test_the_tracked_tree_stays_small(tracked: list[Path], folder: str, limit: float) -> None:
    sizes = {path: path.stat().st_size for path in tracked if path.is_relative_to(ROOT / folder)}
    assert sizes
    largest = ", ".join(f"{path.relative_to(ROOT)} {sizes[path]}" for path in sorted(sizes, key=sizes.__getitem__)[-5:])
    assert sum(sizes.values()) < limit * MB, f"{folder} holds {sum(sizes.values())} bytes; the largest: {largest}"


def test_links_between_pages_lead_to_files(tracked: list[Path]) -> None:
    links = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
    lost = []
    for page in (path for path in tracked if path.suffix == ".md"):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
        for link in links.findall(text):
            if "://" not in link and not link.startswith("mailto:") and not (page.parent / unquote(link)).exists():
                lost.append(f"{page.relative_to(ROOT)}: {link}")
    assert not lost
