"""Reads the pictures of an artefact: files that a closed tool made from a task's published pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from immunebench.core.types import Pictures, StageError
from immunebench.pictures.decoding import decode, picture_size


def cloaked(entry: str, folder: Path, rows: Sequence[Mapping[str, Any]], published: Pictures) -> Pictures:
    """Read the pictures of a task and check each against the published one that it was made from.

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
    if len(rows) != len(published):
        raise StageError("error", f"{entry}: holds {len(rows)} pictures of a task that publishes {len(published)}")
    stack = []
    for row, clean in zip(rows, published.pixels, strict=True):
        where = f"{entry}: {row['file']}"
        if digest(clean) != row["clean"]:
            reason = f"was made from another picture than published picture {row['index']} of the task"
            raise StageError("error", f"{where} {reason}; export the published pictures anew")
        data = _read(folder / row["file"], row["sha256"], where)
        # Compared before it is decoded: a small file may hold a picture of gigabytes.
        width, height = picture_size(data, where, ("PNG",))
        if (height, width) != clean.shape[:2]:
            raise StageError("error", f"{where} is {width} x {height}, its clean picture {size(clean)}")
        pixels = decode(data, where, formats=("PNG",))
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


def _read(file: Path, sha256: str, where: str) -> bytes:
    data = b"" if file.is_symlink() else file.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        # An OSError, so that the next run tries again: it plans again and reports the file if it is still wrong.
        raise OSError(f"{where}: changed after the run was planned; start it again")
    return data
