"""The picture source ``dataset``: squares of pictures that a task names by reference, fetched beforehand.

A task's table ``[dataset]`` names where its pictures are published. `immunebench.pictures.dataset_fetch` stores them
in one folder a task, with a lock: a JSON file with the SHA-256 of every picture as it was fetched and as a square.
Nothing is fetched here, and nothing outside that folder is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, JsonValue, ValidationError

from immunebench.catalog.entry import sha256
from immunebench.core.errors import UsageError
from immunebench.core.home import cache
from immunebench.core.wording import CONTENT
from immunebench.declared.schema import Model, PictureFile, Sha256
from immunebench.declared.task import SPLITS, Split, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from immunebench.catalog.catalog import Catalog
    from immunebench.declared.task import TaskDataset

LOCK = "lock.json"
State = Literal["fetched", "missing", "outdated", "damaged"]


class LockedPicture(Model):
    """One picture of a lock.

    Attributes
    ----------
    split, file
        Where its square lies.
    name
        What it was called where it came from.
    source
        SHA-256 of the file as it came.
    square
        SHA-256 of the square's pixels (RGB, 8 bits, row by row), which no PNG encoder changes.
    png
        SHA-256 of the square's file.
    """

    split: Split
    file: PictureFile
    name: str
    source: Sha256
    square: Sha256
    png: Sha256


class Lock(Model):
    """``lock.json``: what was fetched, from where, and under which terms."""

    reference: dict[str, JsonValue]
    side: Annotated[int, Field(ge=8)]
    terms: str | None
    pictures: tuple[LockedPicture, ...]


def home(task: str) -> Path:
    """Return the folder of a task's pictures: in ``$IMMUNEBENCH_DATA`` or ``~/.cache/immunebench/data``."""
    return cache("IMMUNEBENCH_DATA", "data") / task


def reference(task: Task, dataset: TaskDataset) -> dict[str, JsonValue]:
    """Return everything that determines the splits; a lock with another reference is outdated."""
    where = {"host", "repo", "revision", "files", "config", "split", "image", "where", "sha256"}
    return {**dataset.model_dump(mode="json", include=where), "pictures": dict(task.pictures.sizes)}


def _is_own(task: Task, lock: Lock) -> bool:
    """Return whether a lock belongs to the data set that the task names now."""
    return task.dataset is not None and lock.reference == reference(task, task.dataset)


def places(task: Task) -> list[tuple[Split, str]]:
    """Return split and file of each of a task's pictures, in the order in which they are assigned."""
    return [(split, f"{number:03d}.png") for split in SPLITS for number in range(task.pictures.sizes[split])]


def read_lock(task: Task) -> Lock | None:
    """Return the lock of a task's pictures, None where they are not there.

    Raises
    ------
    UsageError
        It is damaged.
    """
    file = home(task.id) / LOCK
    damaged = f"is damaged; remove it and start: immunebench data fetch {task.id}"
    try:
        lock = Lock.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", file=file) from error
    except ValidationError as error:
        raise UsageError(damaged, file=file) from error
    # A lock of an earlier data set of the task may have other splits.
    if _is_own(task, lock) and [(picture.split, picture.file) for picture in lock.pictures] != places(task):
        raise UsageError(damaged, file=file)
    return lock


def state(task: Task) -> State:
    """Return whether a task's pictures are there, and whether they are those that the task names now."""
    try:
        lock = read_lock(task)
    except UsageError:
        # A damaged one must not prevent the others from being listed.
        return "damaged"
    if lock is None:
        return "missing"
    return "fetched" if _is_own(task, lock) else "outdated"


def require(catalog: Catalog, tasks: Sequence[Task]) -> None:
    """Refuse to continue without the pictures of all tasks, in one line for all that are missing.

    Raises
    ------
    UsageError
        Names the tasks, the size and the licences of their pictures, and the commands that fetch them; or a damaged
        lock.
    """
    lacking = []
    for task in (task for task in tasks if task.dataset is not None):
        lock = read_lock(task)
        if lock is None or not _is_own(task, lock):
            lacking.append(task)
    if lacking:
        raise UsageError(missing(lacking))


def missing(tasks: Sequence[Task]) -> str:
    """Return one line that names the missing pictures, their size, and the commands that fetch them."""
    data = [task.dataset for task in tasks if task.dataset is not None]
    names = [task.id for task in tasks]
    licences = ", ".join(dict.fromkeys(dataset.licence for dataset in data))
    terms = dict.fromkeys(dataset.terms for dataset in data if dataset.terms is not None)
    flag = f" --accept-terms (read {' and '.join(terms)} first)" if terms else ""
    several = f"tasks {', '.join(names)}" if len(names) > 1 else f"task {names[0]}"
    return (
        f"the pictures of the {several} are not there (about {sum(d.size_mb for d in data):.3g} MB, {licences}); get "
        f"them with: immunebench data fetch {' '.join(names)}{flag}, or name a folder of them: immunebench data add "
        f"{names[0] if len(names) == 1 else 'TASK'} FOLDER"
    )


def pictures_digest(task: Task) -> str | None:
    """Return twelve digits that identify a task's pictures, for the comparability key of its records.

    None for a task without a data set, and for one that states the SHA-256 of its pictures, which determines them.

    Raises
    ------
    UsageError
        The pictures are not there.
    """
    if task.dataset is None or task.dataset.sha256:
        return None
    lock = read_lock(task)
    if lock is None or not _is_own(task, lock):
        raise UsageError(missing([task]))
    return hashlib.sha256("\n".join(picture.square for picture in lock.pictures).encode()).hexdigest()[:12]


def split_files(catalog: Catalog, task: Task, concept: str, split: str, count: int) -> dict[str, str]:
    """Return, by file name, the SHA-256 of the pixels of the squares that a split consists of.

    This is what makes other pictures another stage; how a PNG was packed does not.

    Raises
    ------
    UsageError
        The concept is not the task's own, its pictures are not there, or they differ from the lock.
    """
    path = catalog.paths["task", task.id]
    if task.dataset is None or concept != task.concept.name:
        raise UsageError("has no data set of the concept", file=path, field="dataset", value=concept)
    lock = read_lock(task)
    if lock is None or not _is_own(task, lock):
        raise UsageError(missing([task]))
    again = f"; start again: immunebench data fetch {task.id}"
    side = catalog.side(task.base)
    if side is not None and lock.side != side:
        message = f"holds squares of {lock.side} pixels, the base {task.base} draws {side}{again}"
        raise UsageError(message, file=home(task.id) / LOCK)
    held = [picture for picture in lock.pictures if picture.split == split]
    for picture in held[:count]:
        file = _place(task.id, split, picture.file)
        if not file.is_file() or sha256(file) != picture.png:
            raise UsageError(f"is missing or is not what was fetched{again}", file=file)
    return {picture.file: picture.square for picture in held[:count]}


def pictures(
    concept: str, split: str, count: int, *, files: Mapping[str, str]
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Read the squares of a split and what they show.

    Parameters
    ----------
    concept, split, count
        As in the stage's key.
    files
        SHA-256 of the pixels by name, from `split_files`.

    Returns
    -------
    pixels : ndarray of uint8, shape (count, side, side, 3)
    captions : tuple of str

    Raises
    ------
    OSError
        A picture changed after the run was planned.
    """
    import numpy as np

    from immunebench.pictures.decoding import MAX_SIDE, decode

    family, task = concept.split("/")
    squares = []
    # By number: a thousandth picture has a longer name.
    for name, digest in sorted(files.items(), key=lambda item: (len(item[0]), item[0]))[:count]:
        file = _place(task, split, name)
        pixels = decode(file.read_bytes(), file, formats=("PNG",), most=MAX_SIDE)
        if hashlib.sha256(pixels.tobytes()).hexdigest() != digest:
            # An OSError, so that the next run tries again: it plans again and says what to do.
            raise OSError(f"{file}: changed after the run was planned; start it again")
        squares.append(pixels)
    return np.stack(squares), (CONTENT[family],) * len(squares)


def _place(task: str, split: str, name: str) -> Path:
    """Return the path of a square; links are refused."""
    root = home(task)
    file = root / split / name
    if file.resolve() != root.resolve() / split / name:
        raise UsageError("is a link; fetch the pictures again", file=file)
    return file
