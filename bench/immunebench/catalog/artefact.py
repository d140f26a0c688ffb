"""Artefacts: pictures protected by a closed-source tool, submitted as files without code.

``defenses/<id>/`` holds the manifest, whose table ``[artefact]`` names the tool and lists the pictures, and one folder
per task with the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.catalog.entry import Entry
    from immunebench.declared.manifest import Artefact
    from immunebench.declared.schema import Values

#: Files that the folder may hold in addition to the listed pictures.
_ADDITIONAL = frozenset({"defense.toml", "cite.bib", "README.md"})


def check_folder(folder: Path, artefact: Artefact) -> None:
    """Check that a folder holds exactly the listed pictures, without opening them.

    Raises
    ------
    UsageError
        A picture is missing or a symbolic link, or there is another file.
    """
    listed = {folder / task / row.file for task, rows in artefact.tasks.items() for row in rows}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise UsageError("is a symbolic link; put the file itself there", file=path)
        if path.is_file() and path not in listed and path.relative_to(folder).as_posix() not in _ADDITIONAL:
            raise UsageError("is none of the listed pictures, and an artefact holds nothing else", file=path)
    for path in sorted(listed):
        if not path.is_file():
            raise UsageError("is listed in the manifest but missing", file=path)


def stage_key(entry: Entry, task: str) -> Values:
    """Return the cache key of the protection of a task: its own pictures, so that adding a task changes no other key.

    Raises
    ------
    UsageError
        A file's SHA-256 differs from the manifest's.
    """
    assert entry.artefact is not None
    rows = entry.artefact.tasks.get(task, ())
    files = {name: digest for name, digest in entry.files.items() if name.startswith(f"{task}/")}
    for row in rows:
        if files[f"{task}/{row.file}"] != row.sha256:
            raise UsageError(
                "has another SHA-256 than the manifest lists; create the entry again",
                file=entry.folder / task / row.file,
            )
    return {
        "entry": entry.code,
        "entry_files": dict(files),
        "hook": "protect_images",
        "task": task,
        "budget": entry.budget,
        "cloaked": [row.model_dump(mode="json") for row in rows],
    }
