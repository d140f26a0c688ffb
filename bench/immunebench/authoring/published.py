"""``immunebench export published``: a task's clean published pictures as PNG, to be cloaked by an external tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.authoring.scaffold import write_all
from immunebench.core.errors import UsageError
from immunebench.declared.schema import Values
from immunebench.pictures import cloaked

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog
    from immunebench.core.types import Pictures
    from immunebench.declared.task import Task

INDEX = "published.json"


def published_pictures(task: Task, catalog: Catalog) -> Pictures:
    """Return the pictures that the attacker of a task trains on, before any defense.

    Raises
    ------
    UsageError
        One of their files is missing or damaged, or the task is of the family relearn, whose pictures have no owner.
    """
    if task.family == "relearn":
        raise UsageError("is of the family relearn, whose pictures cannot be protected:", field="task", value=task.id)
    from immunebench.execution.stages import read_split

    source, concept, count = task.concept.source, task.concept.name, task.pictures.published
    key: Values = {"source": source, "concept": concept, "split": "published", "count": count}
    files = catalog.split_files(source, task, concept, "published", count)
    if files is not None:
        key["files"] = dict(files)
    return read_split(key, catalog)


def export_published(task: Task, catalog: Catalog, folder: Path) -> Path:
    """Write ``000.png``, ``001.png``, ... and `INDEX`, all of them or none.

    The index has task, version and base, and for every picture its file, index, caption and the SHA-256 of its pixels
    (RGB, 8 bits, row by row), by which `immunebench new artefact` and every run identify it.

    Raises
    ------
    UsageError
        The folder is not new, or cannot be written.
    """
    found = published_pictures(task, catalog)
    rows = [
        {"index": i, "file": f"{i:03d}.png", "sha256": cloaked.digest(pixels), "caption": caption}
        for i, (pixels, caption) in enumerate(zip(found.pixels, found.captions, strict=True))
    ]
    index = {"task": task.id, "task_version": task.version, "base": task.base, "pictures": rows}

    def write(place: Path) -> None:
        from PIL import Image

        place.mkdir()
        for row, pixels in zip(rows, found.pixels, strict=True):
            Image.fromarray(pixels).save(place / str(row["file"]))
        (place / INDEX).write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", "utf-8")

    folder = folder.expanduser()
    if folder.exists() or folder.is_symlink():
        raise UsageError("exists already; name a new folder:", field="DIR", value=str(folder))
    write_all({folder: write})
    return folder
