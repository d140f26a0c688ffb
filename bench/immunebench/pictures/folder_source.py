"""The picture source ``folder``: squares in a folder next to a task's file, as ``immunebench new task`` writes them.

``tasks/object/my-mug.toml`` owns the folder ``tasks/object/my-mug``. Its concept is called ``object/my-mug`` and has
one folder a split with ``000.png``, ``001.png``, ... and ``captions.json``; the concept ``object/my-mug/benign`` would
lie in ``benign`` below it. Nothing outside the task's folder is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.catalog.entry import sha256
from immunebench.catalog.loading import default_catalog
from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from immunebench.catalog.catalog import Catalog
    from immunebench.declared.task import Task

CAPTIONS = "captions.json"
_NAME = re.compile(r"\d{3}\.png")


def split_files(catalog: Catalog, task: Task, concept: str, split: str, count: int) -> dict[str, str]:
    """Return the SHA-256 by name of the files that `count` pictures of a split consist of.

    They are part of the stage's key, so that a changed picture gives another stage.

    Raises
    ------
    UsageError
        The concept is not the task's own, or a file is missing or a link.
    """
    path, own = catalog.paths["task", task.id], f"{task.family}/{task.id}"
    if concept.split("/")[:2] != own.split("/"):
        raise UsageError(f"must be {own!r}, the folder beside this file, or lie in it, not", file=path, value=concept)
    place = _Split.of(catalog, concept, split)
    index = place.file(CAPTIONS)
    listed = _captions(index, index.read_bytes())
    if len(listed) < count:
        raise UsageError(f"lists {len(listed)} pictures, the task needs {count}", file=index)
    return {name: sha256(place.file(name)) for name in (CAPTIONS, *sorted(listed)[:count])}


def pictures(
    concept: str, split: str, count: int, *, files: Mapping[str, str]
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Read the pictures of a split and their content captions.

    Parameters
    ----------
    concept, split, count
        As in the stage's key.
    files
        SHA-256 by name, from `split_files`.

    Returns
    -------
    pixels : ndarray of uint8, shape (count, side, side, 3)
    captions : tuple of str

    Raises
    ------
    UsageError
        A file is no PNG, or they differ in size.
    OSError
        A file changed after the run was planned.
    """
    import numpy as np

    place = _Split.of(default_catalog(), concept, split)
    data = {name: _unchanged(place.file(name), digest) for name, digest in files.items()}
    captions = _captions(place.folder / CAPTIONS, data.pop(CAPTIONS))
    names = sorted(data)[:count]
    decoded = [_decode(place.folder / name, data[name]) for name in names]
    odd = next((n for n, pixels in zip(names, decoded, strict=True) if pixels.shape != decoded[0].shape), None)
    if odd is not None:
        raise UsageError("differs in size from the first picture", file=place.folder / odd)
    return np.stack(decoded), tuple(captions[name] for name in names)


@dataclass(frozen=True)
class _Split:
    """The folder of a split and the folder of its task, which contains all that is read."""

    root: Path
    folder: Path

    @classmethod
    def of(cls, catalog: Catalog, concept: str, split: str) -> _Split:
        _, task, *below = concept.split("/")
        root = catalog.paths["task", task].with_suffix("")
        return cls(root, root.joinpath(*below, split))

    def file(self, name: str) -> Path:
        """Return the path of an existing file; links are refused, except above the task's folder."""
        path = self.folder / name
        if path.resolve() != self.root.parent.resolve() / path.relative_to(self.root.parent):
            raise UsageError("is a link; put the file itself there", file=path)
        if not path.is_file():
            raise UsageError("no such file", file=path)
        return path


def _captions(index: Path, data: bytes) -> dict[str, str]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise UsageError(f"is no JSON: {error}", file=index) from error
    if not isinstance(found, dict) or not all(isinstance(caption, str) for caption in found.values()):
        raise UsageError("must map names of pictures to captions", file=index)
    for name in found:
        if not _NAME.fullmatch(name):
            raise UsageError("pictures are called 000.png, 001.png, ..., not", file=index, value=name)
    return found


def _unchanged(path: Path, digest: str) -> bytes:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        # An OSError, so that the next run tries again, with a new plan.
        raise OSError(f"{path}: changed after the run was planned; start it again")
    return data


def _decode(path: Path, data: bytes) -> NDArray[np.uint8]:
    from immunebench.pictures.decoding import MAX_SIDE, decode

    return decode(data, path, formats=("PNG",), most=MAX_SIDE)
