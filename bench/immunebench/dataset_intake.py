"""Gets the pictures that a task names by reference: from GitHub, from a hub's data set, or from a folder of the user's.

What comes in is bytes until `immunebench.intake` has decoded it; a table's rows are read as Parquet and nothing else,
so that no pickle and no script of a data set is ever run.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from immunebench import bases
from immunebench.dataset_source import LOCK, Lock, LockedPicture, home, read_lock, reference
from immunebench.entry import sha256
from immunebench.errors import UsageError
from immunebench.task import SPLITS, Task, TaskDataset

if TYPE_CHECKING:
    from immunebench.entry import Catalog
    from immunebench.intake import Square

Say = Callable[[str], None]

#: Where GitHub serves a file of a commit.
RAW = "https://raw.githubusercontent.com"
#: Of one picture file; the largest of the data sets that tasks name have a tenth of it.
MAX_BYTES = 50_000_000
#: Longest that a connection may say nothing, in seconds.
_PATIENCE = 60
_PARQUET = "datasets.packaged_modules.parquet."


@dataclass(frozen=True, slots=True)
class Source:
    """A picture file as it came: what it is called where it came from, and its bytes."""

    name: str
    data: bytes

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the bytes."""
        return hashlib.sha256(self.data).hexdigest()


def fetch(task: Task, catalog: Catalog, *, accept_terms: bool = False, say: Say = print) -> Path:
    """Download a task's pictures and keep them as squares, with a lock.

    Pictures that are there already are held against their lock: a download that brings others changes nothing.

    Parameters
    ----------
    task : Task
    catalog : Catalog
        Says which size the task's base draws.
    accept_terms : bool
        The user read and accepted the terms of the data set, where it has some.
    say : callable
        Told what is done.

    Returns
    -------
    Path
        The task's folder.

    Raises
    ------
    UsageError
        The task has no data set or its terms were not accepted; a picture could not be had, cannot be used, or is
        another than the lock or the task says. Nothing was changed.
    """
    dataset = _dataset(task, catalog, accept_terms)
    say(f"{task.id}: about {dataset.size_mb:g} MB ({dataset.licence}) from {dataset.repo} at {dataset.revision[:12]}")
    if dataset.host == "github":
        sources = [Source(file, _download(dataset, file)) for file in dataset.files]
    else:
        sources = _rows(dataset, dataset.repo, sum(task.pictures.sizes.values()))
    return _keep(task, dataset, catalog, sources, say)


def add(task: Task, catalog: Catalog, folder: Path, *, accept_terms: bool = False, say: Say = print) -> Path:
    """Take a task's pictures from a folder that the user has.

    For files of GitHub it is a checkout, or a folder with the same names; for a hub's data set a copy of its Parquet
    files, or a folder with the pictures alone, in the order of their names.

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
    from immunebench.intake import SUFFIXES

    dataset = _dataset(task, catalog, accept_terms)
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise UsageError("no such folder", file=folder)
    needed = sum(task.pictures.sizes.values())
    if dataset.host == "github":
        sources = _named(dataset.files, folder)
    elif any(file.suffix.lower() in SUFFIXES for file in folder.iterdir()):
        sources = _all(folder, needed, dataset.sha256)
    else:
        sources = _rows(dataset, str(folder), needed)
    if not dataset.sha256 and read_lock(task) is None:
        say(f"{task.id}: the task states no SHA-256; that these are its pictures is taken on trust")
    return _keep(task, dataset, catalog, sources, say)


def _dataset(task: Task, catalog: Catalog, accepted: bool) -> TaskDataset:
    if task.dataset is None:
        known = [name for name, other in catalog.tasks.items() if other.dataset is not None]
        raise UsageError("has no pictures to fetch:", field="TASK", value=task.id, choices=known)
    if task.dataset.terms is not None and not accepted:
        raise UsageError(
            f"is needed: the pictures of {task.id} have terms of their own; read them at {task.dataset.terms}",
            field="--accept-terms",
        )
    return task.dataset


def _download(dataset: TaskDataset, file: str) -> bytes:
    """Return a file of a repository at its commit."""
    url = f"{RAW}/{dataset.repo}/{dataset.revision}/{quote(file)}"
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as response:
            if urlsplit(response.geturl()).scheme != urlsplit(RAW).scheme:
                raise UsageError("leads to an address that is not encrypted", file=url)
            data = bytes(response.read(MAX_BYTES + 1))
    except urllib.error.HTTPError as error:
        raise UsageError(f"could not be fetched: {error.code} {error.reason}", file=url) from error
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise UsageError(f"could not be fetched: {' '.join(str(reason).split())[:200]}", file=url) from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"has more than {MAX_BYTES // 10**6} MB", file=url)
    return data


def _rows(dataset: TaskDataset, place: str, needed: int) -> list[Source]:
    """Return the first rows of a data set that have the values asked for, in its own order.

    It is read from its beginning and no further than needed, and the library keeps no copy of it.

    Parameters
    ----------
    dataset : TaskDataset
    place : str
        Its repository on the hub, or a folder with its files.
    needed : int
    """
    import datasets

    where = f"{dataset.repo} at {dataset.revision[:12]}"
    try:
        with tempfile.TemporaryDirectory() as cache:
            builder = datasets.load_dataset_builder(place, dataset.config, revision=dataset.revision, cache_dir=cache)
            kind = type(builder).__module__
            if not kind.startswith(_PARQUET):
                message = "must be a data set of Parquet files, which hold the pictures' bytes, not of kind"
                raise UsageError(message, file=where, value=kind.split(".")[-1])
            found = _chosen(builder.as_streaming_dataset(split=dataset.split), dataset, where, needed)
    except UsageError:
        raise
    except Exception as error:  # whatever stops the library, the user needs one line
        raise UsageError(f"could not be read: {_reason(error)}", file=where) from error
    if len(found) < needed:
        asked = ", ".join(f"{name} = {value!r}" for name, value in dataset.where.items()) or "no condition"
        message = f"holds {len(found)} pictures ({asked}), the splits take {needed}"
        raise UsageError(message, file=where, field="dataset.where")
    return found


def _chosen(rows: Any, dataset: TaskDataset, where: str, needed: int) -> list[Source]:
    """Return the pictures of at most ``needed`` rows of a stream; see `_rows`."""
    import datasets

    # A stream may know its columns only by its first row.
    features: Mapping[str, Any] | None = rows.features
    known = list(features or next(iter(rows), {}))
    for field, column in {"image": dataset.image, **{f"where.{name}": name for name in dataset.where}}.items():
        if column not in known:
            message = "has no such column:"
            raise UsageError(message, file=where, field=f"dataset.{field}", value=column, choices=known)
    wanted = {name: _stored(features, name, value, where) for name, value in dataset.where.items()}
    if features is not None:
        rows = rows.select_columns(list(dict.fromkeys([dataset.image, *wanted])))
        # Decoded here it would be by whatever plug-in of Pillow fits, before its size is known.
        if isinstance(features[dataset.image or ""], datasets.Image):
            rows = rows.cast_column(dataset.image, datasets.Image(decode=False))
    found = []
    for number, row in enumerate(rows):
        if all(row[name] == value for name, value in wanted.items()):
            found.append(Source(f"row {number}", _bytes(row[dataset.image], f"{where}: row {number}")))
        if len(found) == needed:
            break
    return found


def _stored(features: Mapping[str, Any] | None, column: str, value: object, where: str) -> object:
    """Return a value as the rows hold it: a class's name is stored as its number."""
    names = getattr((features or {}).get(column), "names", None)
    if names is None or not isinstance(value, str):
        return value
    if value not in names:
        raise UsageError("is no value of the column:", file=where, field=f"dataset.where.{column}", value=value,
                         choices=names)  # fmt: skip
    return names.index(value)


def _bytes(cell: object, where: str) -> bytes:
    """Return what a cell holds of a picture; a path in it, which could lead anywhere, is not followed."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise UsageError("holds no picture's bytes", file=where)
    if len(data) > MAX_BYTES:
        raise UsageError(f"has more than {MAX_BYTES // 10**6} MB", file=where)
    return data


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    known = (
        (errors.GatedRepoError, "is gated: accept its terms on its page, then log in with: hf auth login"),
        (errors.RepositoryNotFoundError, "was moved or removed, or asks for a login: hf auth login"),
        (errors.RevisionNotFoundError, "no longer has the pinned revision"),
        (errors.OfflineModeIsEnabled, "the hub is switched off by HF_HUB_OFFLINE"),
    )
    # The library wraps what its client of the hub raises.
    said = next((words for kind, words in known if isinstance(error, kind) or isinstance(error.__cause__, kind)), None)
    return said or " ".join(str(error).split())[:200] or type(error).__name__


def _named(files: Sequence[str], folder: Path) -> list[Source]:
    """Return files of a repository from a folder that holds all of them, by their paths or the ends of their paths."""
    deepest = max(file.count("/") for file in files)
    for cut in range(deepest + 1):
        names = ["/".join(file.split("/")[min(cut, file.count("/")) :]) for file in files]
        if len(set(names)) == len(names) and all((folder / name).exists() for name in names):
            return [Source(file, _read(folder, name)) for file, name in zip(files, names, strict=True)]
    lacking = next((file for file in files if not (folder / file).exists()), files[0])
    raise UsageError("lacks the picture", file=folder, value=lacking)


def _all(folder: Path, needed: int, digests: Sequence[str]) -> list[Source]:
    """Return the pictures of a folder in the order of their names, or of the digests that the task states."""
    from immunebench.intake import picture_files

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
    """Turn pictures into squares and put them, with their lock, in the place of what was there."""
    for source, expected in zip(sources, dataset.sha256, strict=False):
        if source.digest != expected:
            raise UsageError(f"has the SHA-256 {source.digest[:12]}..., not the task's", file=source.name,
                             field="dataset.sha256", value=expected)  # fmt: skip
    side = _side(task, catalog)
    squares = _squares(task, sources, side)
    target, origin = home(task.id), reference(task, dataset)
    before = read_lock(task)
    if before is not None and before.reference == origin:
        _check_lock(task, before, sources)
    try:
        _write(target, task, sources, squares, lambda pictures: Lock(
            reference=origin, side=side, terms=dataset.terms, pictures=pictures,
        ))  # fmt: skip
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", file=error.filename or target) from error
    sizes = ", ".join(f"{split} {size}" for split, size in task.pictures.sizes.items())
    done = "as locked before" if before is not None and before.reference == origin else "locked"
    say(f"{task.id}: {len(sources)} pictures of {side} x {side} pixels ({sizes}), {done}, in {target}")
    return target


def _write(
    target: Path,
    task: Task,
    sources: Sequence[Source],
    squares: Sequence[Square],
    lock: Callable[[tuple[LockedPicture, ...]], Lock],
) -> None:
    """Write squares and lock beside the target, then move them there: a stopped fetch leaves what was there before."""
    from PIL import Image

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / task.id
        locked = []
        for (split, number), source, square in zip(_places(task), sources, squares, strict=True):
            file = made / split / f"{number:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(square).save(file)
            locked.append(
                LockedPicture(
                    split=split, file=file.name, name=source.name, source=source.digest,
                    square=hashlib.sha256(square.tobytes()).hexdigest(), png=sha256(file),
                )
            )  # fmt: skip
        (made / LOCK).write_text(lock(tuple(locked)).model_dump_json(indent=1) + "\n", "utf-8")
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def _places(task: Task) -> Iterator[tuple[Any, int]]:
    """Yield split and number of each picture in order."""
    for split in SPLITS:
        yield from ((split, number) for number in range(task.pictures.sizes[split]))


def _squares(task: Task, sources: Sequence[Source], side: int) -> list[Square]:
    """Decode pictures, and refuse one that is there twice: in two splits it would be trained on and scored against."""
    from immunebench.intake import decode

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
    if spec.path is not None or bases.there(task.base, spec, catalog.models_path):
        side = bases.side(catalog.base_folder(task.base))
        if side is not None:
            return side
    if spec.shape is None:
        raise UsageError("its unet or vae config says no picture size", field="base", value=task.base)
    from immunebench.shapes import SHAPES

    return SHAPES[spec.shape].resolution
