"""Build hook: the checkout's entries and published figures travel inside the wheel as ``immunebench/_entries``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ENTRY_FOLDERS = ("tasks", "defenses", "attacks")
#: What `board`, `cite`, `diff`, `show` and `reported` read; contact sheets are left out for their size.
PUBLISHED = (
    "CITATION.cff",
    "leaderboard/*.md",
    "leaderboard/*.toml",
    "leaderboard/*.json",
    "leaderboard/releases/**/*",
    "results/README.md",
    "results/**/*.jsonl",
)


class EntriesBuildHook(BuildHookInterface[Any]):
    """Add entries, results, rules and releases to a wheel that is not editable."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Register the folders and files that exist.

        Parameters
        ----------
        version
            The wheel's kind as hatchling names it: ``"standard"`` or ``"editable"``.
        build_data
            Hatchling's mutable build settings; ``force_include`` gains one item per folder of entries and per file.
        """
        # An editable install reads the checkout itself: a copy in site-packages would go stale and shadow it.
        if version == "editable":
            return
        for name in ENTRY_FOLDERS:
            folder = Path(self.root) / name
            if folder.is_dir():
                build_data["force_include"][str(folder)] = f"immunebench/_entries/{name}"
        root = Path(self.root)
        for pattern in PUBLISHED:
            for file in sorted(root.glob(pattern)):
                if file.is_file():
                    inside = file.relative_to(root).as_posix()
                    build_data["force_include"][str(file)] = f"immunebench/_entries/{inside}"
