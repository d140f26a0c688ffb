"""Artefacts: pictures that a closed tool made of a task's published ones, submitted as files without code.

``defenses/<id>/`` holds the manifest, whose table ``[artefact]`` names the tool and lists the pictures, and one folder
a task with the files. Nothing of it is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.catalog.entry import Entry
    from immunebench.declared.manifest import Artefact
    from immunebench.declared.schema import Values

#: What may lie in the folder beside the listed pictures.
_BESIDE = frozenset({"defense.toml", "cite.bib", "README.md"})


def check_folder(folder: Path, artefact: Artefact) -> None:
    """Refuse a folder that holds anything but the listed pictures, without opening one.

    Raises
    ------
    UsageError
        A picture is missing or a link, or a file is none of them.
    """
    listed = {folder / task / row.file for task, rows in artefact.tasks.items() for row in rows}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise UsageError("is a link; put the file itself there", file=path)
        if path.is_file() and path not in listed and path.relative_to(folder).as_posix() not in _BESIDE:
            raise UsageError("is none of the listed pictures, and an artefact holds nothing else", file=path)
    for path in sorted(listed):
        if not path.is_file():
            raise UsageError("is listed and missing", file=path)


def stage_key(entry: Entry, task: str) -> Values:
    """Return what identifies the protection of a task: its own pictures, so that a further task changes no key.

    Raises
    ------
    UsageError
        A file's SHA-256 is not that of the manifest.
    """
    assert entry.artefact is not None
    rows = entry.artefact.tasks.get(task, ())
    files = {name: digest for name, digest in entry.files.items() if name.startswith(f"{task}/")}
    for row in rows:
        if files[f"{task}/{row.file}"] != row.sha256:
            raise UsageError(
                "has another SHA-256 than the manifest lists; make the entry anew", file=entry.folder / task / row.file
            )
    return {
        "entry": entry.code,
        "entry_files": dict(files),
        "hook": "protect_images",
        "task": task,
        "budget": entry.budget,
        "cloaked": [row.model_dump(mode="json") for row in rows],
    }
