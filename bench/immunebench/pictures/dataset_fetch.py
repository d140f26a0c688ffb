"""Fetches the pictures that a task refers to: from GitHub, from a hub's data set, or from a folder of the user.

Pictures are handled as bytes until `immunebench.pictures.decoding` decodes them, and tables are read as Parquet only
(`immunebench.pictures.dataset_rows`), so that no pickle and no script of a data set is ever run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from urllib.request import Request

from filelock import FileLock

from immunebench.bases import base_folder
from immunebench.catalog.entry import sha256
from immunebench.core.errors import UsageError
from immunebench.core.home import expanded, require_cache
from immunebench.declared.task import Task, TaskDataset
from immunebench.pictures.dataset_rows import MAX_BYTES, Source, rows
from immunebench.pictures.dataset_source import LOCK, Lock, LockedPicture, home, places, read_lock, reference

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog
    from immunebench.pictures.decoding import Square

Say = Callable[[str], None]

#: Where GitHub serves a file of a commit.
RAW = "https://raw.githubusercontent.com"
#: Timeout of a connection, in seconds.
_PATIENCE = 60


def fetch(task: Task, catalog: Catalog, *, accept_terms: bool = False, say: Say = print) -> Path:
    """Download a task's pictures and store them as squares, with a lock.

    Pictures that are there already are compared with their lock: a download of other pictures changes nothing.

    Parameters
    ----------
    task : Task
    catalog : Catalog
        Knows the size that the task's base draws.
    accept_terms : bool
        The user read and accepted the terms of the data set, where it has some.
    say : callable
        Receives a line for the user about each step.

    Returns
    -------
    Path
        The task's folder.

    Raises
    ------
    UsageError
        The task has no data set or its terms were not accepted; a picture could not be fetched, cannot be used, or
        differs from the lock or the task. Nothing was changed.
    """
    dataset = check(task, catalog, accept_terms=accept_terms)
    say(f"{task.id}: about {dataset.size_mb:g} MB ({dataset.licence}) from {dataset.repo} at {dataset.revision[:12]}")
    if dataset.host == "github":
        sources = [Source(file, _download(dataset, file)) for file in dataset.files]
    else:
        sources = rows(dataset, sum(task.pictures.sizes.values()))
    return _keep(task, dataset, catalog, sources, say)


def add(task: Task, catalog: Catalog, folder: Path, *, accept_terms: bool = False, say: Say = print) -> Path:
    """Read a task's pictures from a folder of the user.

    For files of GitHub that is a checkout, or a folder with files of the same names, which must have the same name
    itself unless the task states the pictures' digests. For a hub's data set it is a copy of its Parquet files, or a
    folder with the pictures alone, in the order of their names.

    Parameters
    ----------
    task, catalog, accept_terms, say
        As for `fetch`.
    folder : Path

    Returns
    -------
    Path
        The task's folder.

    Raises
    ------
    UsageError
        As by `fetch`; or the folder lacks a picture.
    """
    from immunebench.pictures.decoding import SUFFIXES

    dataset = check(task, catalog, accept_terms=accept_terms)
    folder = expanded(folder)
    if not folder.is_dir():
        raise UsageError("no such folder", file=folder)
    needed = sum(task.pictures.sizes.values())
    if dataset.host == "github":
        sources = _named(dataset, folder)
    elif any(file.suffix.lower() in SUFFIXES for file in folder.iterdir()):
        sources = _all(folder, needed, dataset.sha256)
    else:
        sources = rows(dataset, needed, folder)
    if not dataset.sha256 and read_lock(task) is None:
        say(f"{task.id}: the task states no SHA-256; that these are its pictures is taken on trust")
    return _keep(task, dataset, catalog, sources, say)


def check(task: Task, catalog: Catalog, *, accept_terms: bool = False) -> TaskDataset:
    """Return a task's data set, if its pictures can be fetched and its terms allow it.

    Parameters
    ----------
    task, catalog, accept_terms
        As for `fetch`.

    Raises
    ------
    UsageError
        The task has no data set, its terms were not accepted, the size that its base draws is not known, or its lock
        is damaged.
    """
    if task.dataset is None:
        known = [name for name, other in catalog.tasks.items() if other.dataset is not None]
        raise UsageError("has no pictures to fetch:", field="TASK", value=task.id, choices=known)
    if task.dataset.terms is not None and not accept_terms:
        raise UsageError(
            f"is needed: the pictures of {task.id} have terms of their own; read them at {task.dataset.terms}",
            field="--accept-terms",
        )
    _side(task, catalog)
    read_lock(task)
    return task.dataset


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to encrypted addresses only."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        """Refuse an address that is not encrypted, before anything is sent there."""
        if urlsplit(newurl).scheme != urlsplit(RAW).scheme:
            raise UsageError("leads to an address that is not encrypted:", file=req.full_url, value=newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(dataset: TaskDataset, file: str) -> bytes:
    """Return a file of a repository at its commit."""
    url = f"{RAW}/{dataset.repo}/{dataset.revision}/{quote(file)}"
    try:
        with urllib.request.build_opener(_Redirects).open(url, timeout=_PATIENCE) as response:
            data = bytes(response.read(MAX_BYTES + 1))
    except urllib.error.HTTPError as error:
        raise UsageError(f"could not be fetched: {error.code} {error.reason}", file=url) from error
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise UsageError(f"could not be fetched: {' '.join(str(reason).split())[:200]}", file=url) from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"has more than {MAX_BYTES // 10**6} MB", file=url)
    return data


def _named(dataset: TaskDataset, folder: Path) -> list[Source]:
    """Return files of a repository from a folder that holds all of them, by their paths or the ends of their paths.

    Subjects of a data set have pictures of the same names. Where the task states no digests, the folder must therefore
    have the name of the files' common folder, or contain that folder.
    """
    files = dataset.files
    common = os.path.commonpath([os.path.dirname(file) for file in files])
    deepest, depth = max(file.count("/") for file in files), len(Path(common).parts)
    unlike = False
    for cut in range(deepest + 1):
        names = ["/".join(file.split("/")[min(cut, file.count("/")) :]) for file in files]
        if len(set(names)) != len(names) or not all((folder / name).exists() for name in names):
            continue
        if not dataset.sha256 and 0 < depth <= cut and folder.name != Path(common).name:
            unlike = True
            continue
        return [Source(file, _read(folder, name)) for file, name in zip(files, names, strict=True)]
    if unlike:
        message = f"does not say by its name that its pictures are those of {common}; the task states no SHA-256, so it"
        raise UsageError(f"{message} must be called", file=folder, value=Path(common).name)
    lacking = next((file for file in files if not (folder / file).exists()), files[0])
    raise UsageError("lacks the picture", file=folder, value=lacking)


def _all(folder: Path, needed: int, digests: Sequence[str]) -> list[Source]:
    """Return the pictures of a folder in the order of their names, or of the digests that the task states."""
    from immunebench.pictures.decoding import picture_files

    files, _ = picture_files(folder)
    if digests:
        found = {sha256(file): file.name for file in files if not file.is_symlink()}
        lacking = next((digest for digest in digests if digest not in found), None)
        if lacking is not None:
            raise UsageError("holds no picture with the SHA-256", file=folder, value=lacking)
        return [Source(found[digest], _read(folder, found[digest])) for digest in digests]
    if len(files) != needed:
        raise UsageError(f"holds {len(files)} pictures, the splits take {needed}", file=folder)
    return [Source(file.name, _read(folder, file.name)) for file in files]


def _read(folder: Path, name: str) -> bytes:
    file = folder / name
    if file.resolve() != folder.resolve() / name or not file.is_file():
        raise UsageError("is a link or no regular file; put the picture itself there", file=file)
    if file.stat().st_size > MAX_BYTES:
        raise UsageError(f"has more than {MAX_BYTES // 10**6} MB", file=file)
    return file.read_bytes()


def _keep(task: Task, dataset: TaskDataset, catalog: Catalog, sources: Sequence[Source], say: Say) -> Path:
    """Turn pictures into squares and replace the stored ones by them, with their lock."""
    for source, expected in zip(sources, dataset.sha256, strict=False):
        if source.digest != expected:
            raise UsageError(f"has the SHA-256 {source.digest[:12]}..., not the task's", file=source.name,
                             field="dataset.sha256", value=expected)  # fmt: skip
    side = _side(task, catalog)
    squares = _squares(task, sources, side)
    require_cache("IMMUNEBENCH_DATA", "data")
    target, origin = home(task.id), reference(task, dataset)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Two fetches of a task write one after the other; the second is compared with the lock of the first.
        with FileLock(target.with_name(f".{task.id}.lock")):
            _recover(target)
            before = read_lock(task)
            again = before is not None and before.reference == origin
            if before is not None and again:
                _check_lock(task, before, sources)
            _write(target, task, sources, squares, lambda pictures: Lock(
                reference=origin, side=side, terms=dataset.terms, pictures=pictures,
            ))  # fmt: skip
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", file=error.filename or target) from error
    sizes = ", ".join(f"{split} {size}" for split, size in task.pictures.sizes.items())
    done = "as locked before" if again else "locked"
    say(f"{task.id}: {len(sources)} pictures of {side} x {side} pixels ({sizes}), {done}, in {target}")
    return target


def _write(
    target: Path,
    task: Task,
    sources: Sequence[Source],
    squares: Sequence[Square],
    lock: Callable[[tuple[LockedPicture, ...]], Lock],
) -> None:
    """Write squares and lock into a temporary folder, then rename it; the caller holds the task's lock."""
    from PIL import Image

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / task.id
        locked = []
        for (split, name), source, square in zip(places(task), sources, squares, strict=True):
            file = made / split / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(square).save(file)
            locked.append(
                LockedPicture(
                    split=split, file=file.name, name=source.name, source=source.digest,
                    square=hashlib.sha256(square.tobytes()).hexdigest(), png=sha256(file),
                )
            )  # fmt: skip
        (made / LOCK).write_text(lock(tuple(locked)).model_dump_json(indent=1) + "\n", "utf-8")
        try:
            if target.exists():
                target.rename(_aside(target))
            made.rename(target)
        finally:
            _recover(target)


def _aside(target: Path) -> Path:
    """Return where pictures are while others take their place."""
    return target.with_name(f".{target.name}.old")


def _recover(target: Path) -> None:
    """Put back what a write that was stopped had moved aside; where it was not stopped, remove that."""
    aside = _aside(target)
    if not aside.exists():
        return
    if target.exists():
        shutil.rmtree(aside)
    else:
        aside.rename(target)


def _squares(task: Task, sources: Sequence[Source], side: int) -> list[Square]:
    """Decode pictures, and refuse one that is there twice: in two splits it would be trained on and scored against."""
    from immunebench.pictures.decoding import decode

    squares = [decode(source.data, f"{task.id}: {source.name}", side) for source in sources]
    seen: dict[str, str] = {}
    for source, square in zip(sources, squares, strict=True):
        for digest in (source.digest, hashlib.sha256(square.tobytes()).hexdigest()):
            if seen.setdefault(digest, source.name) != source.name:
                raise UsageError(f"{task.id}: is the same picture as {seen[digest]}; each belongs to one split",
                                 file=source.name)  # fmt: skip
    return squares


def _check_lock(task: Task, lock: Lock, sources: Sequence[Source]) -> None:
    """Hold what came against what came before."""
    for picture, source in zip(lock.pictures, sources, strict=True):
        if picture.source != source.digest:
            raise UsageError(
                f"has the SHA-256 {source.digest[:12]}..., and {picture.source[:12]}... in the lock; nothing was "
                f"changed. Remove the lock to take it:", file=source.name, value=str(home(task.id) / LOCK),
            )  # fmt: skip


def _side(task: Task, catalog: Catalog) -> int:
    """Return the side of what the task's base draws: from its settings or, where it is not there yet, its shape."""
    spec = catalog.models.bases[task.base]
    if spec.path is not None or base_folder.is_available(task.base, spec, catalog.models_path):
        side = base_folder.side(catalog.base_folder(task.base))
        if side is not None:
            return side
    if spec.shape is None:
        raise UsageError("its unet or vae config says no picture size", field="base", value=task.base)
    from immunebench.declared.architecture import SHAPES

    return SHAPES[spec.shape].resolution
