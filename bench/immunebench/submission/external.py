"""Findings on external evaluations."""

from __future__ import annotations

from pathlib import Path

from immunebench.board.loading.external import read_external
from immunebench.catalog.loading import default_catalog
from immunebench.submission.findings import Finding, finding, of_error


def check_external(folder: Path) -> list[Finding]:
    """Check every evaluation in ``results/external``: its form, and that it names what the catalogue has."""
    sound, broken = read_external(folder.parent)
    found = [of_error("external", error, folder) for error in broken]
    catalog = default_catalog()
    for one in sound:
        file = folder / f"{one.id}.toml"
        if one.suite not in catalog.suites:
            found.append(finding("external", file, f"suite: unknown suite {one.suite!r}"))
        if one.defense not in catalog.defenses and "+" not in one.defense:
            found.append(finding("external", file, f"defense: unknown defense {one.defense!r}"))
        unknown = [name for name in one.tasks if name not in catalog.tasks]
        if unknown:
            found.append(finding("external", file, f"tasks: unknown task {unknown[0]!r}"))
    return found
