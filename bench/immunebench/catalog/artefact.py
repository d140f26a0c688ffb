"""Artefacts: pictures that a closed tool made of a task's published ones, submitted as files without code.

``defenses/<id>/`` holds the manifest, whose table ``[artefact]`` names the tool and lists the pictures, and one folder
a task with the files. Nothing of it is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from immunebench.catalog.entry import Entry
    from immunebench.core.types import Pictures
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


def cloaked(entry: str, folder: Path, rows: Sequence[Mapping[str, Any]], published: Pictures) -> Pictures:
    """Read the pictures of a task, each held against the published one that it was made from.

    Parameters
    ----------
    entry
        Id of the entry, for errors.
    folder
        The task's folder in the entry.
    rows
        As in the manifest, in the order of the published pictures.
    published
        The clean pictures.

    Returns
    -------
    Pictures of the same sizes and captions.

    Raises
    ------
    StageError
        One is missing, was made from another picture, or is of another size.
    UsageError
        One is no whole PNG.
    OSError
        A file changed after the run was planned.
    """
    import numpy as np

    from immunebench.core.types import Pictures, StageError

    if len(rows) != len(published):
        raise StageError("error", f"{entry}: holds {len(rows)} pictures of a task that publishes {len(published)}")
    stack = []
    for row, clean in zip(rows, published.pixels, strict=True):
        where = f"{entry}: {row['file']}"
        if digest(clean) != row["clean"]:
            reason = f"was made from another picture than published picture {row['index']} of the task"
            raise StageError("error", f"{where} {reason}; export the published pictures anew")
        pixels = _read(folder / row["file"], row["sha256"], where)
        if pixels.shape != clean.shape:
            raise StageError("error", f"{where} is {size(pixels)}, its clean picture {size(clean)}")
        stack.append(pixels)
    return Pictures(np.stack(stack), published.captions)


def size(pixels: NDArray[np.uint8]) -> str:
    """Return a picture's width and height in words."""
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def digest(pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of a picture's pixels, row by row: the same however its file was compressed."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def distances(name: str, cloaked: Pictures, published: Pictures) -> NDArray[np.float64]:
    """Return the distance of each picture from its clean one, (n,), by a network of ``models.toml`` that grades none.

    It is the one that holds defenses of code to their bound.
    """
    from immunebench.execution.stages import load_distance
    from immunebench.methods.bound import apart

    return apart(published, cloaked, load_distance(name, "cpu"))


def _read(file: Path, sha256: str, where: str) -> NDArray[np.uint8]:
    from immunebench.pictures.intake import decode

    data = b"" if file.is_symlink() else file.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        # No UsageError: the next run plans anew, and says what is wrong if it still is.
        raise OSError(f"{where}: changed after the run was planned; start it again")
    return decode(data, where, formats=("PNG",))
