"""Build hook: the entry folders of the checkout travel inside the wheel as ``immunebench/_entries``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ENTRY_FOLDERS = ("tasks", "defenses", "attacks")


class EntriesBuildHook(BuildHookInterface[Any]):
    """Add ``tasks/``, ``defenses/`` and ``attacks/`` to a wheel that is not editable."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Register the entry folders that exist.

        Parameters
        ----------
        version
            The wheel's kind as hatchling names it: ``"standard"`` or ``"editable"``.
        build_data
            Hatchling's mutable build settings; ``force_include`` gains one item per folder.
        """
        # An editable install reads the checkout itself: a copy in site-packages would go stale and shadow it.
        if version == "editable":
            return
        for name in ENTRY_FOLDERS:
            folder = Path(self.root) / name
            if folder.is_dir():
                build_data["force_include"][str(folder)] = f"immunebench/_entries/{name}"
