"""Reads the pictures of a data set's rows: Parquet files of a hub's repository at its commit, or of one folder.

The library `datasets` finds the files and their columns. The places of these files are then checked, since the card of
a data set may name any file or address.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunebench.bases.hub import failure_reason
from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.declared.task import TaskDataset

Row = Mapping[str, Any]

#: Largest picture file; those of the data sets that tasks name have a tenth of it at most.
MAX_BYTES = 50_000_000
#: How many times the size that a task states for its data set may be read, since other columns are read as well.
_TIMES = 10
#: Rows unpacked at once: a repeated value is small in a file and large in memory.
_AT_ONCE = 8
_PARQUET = "datasets.packaged_modules.parquet."


@dataclass(frozen=True, slots=True)
class Source:
    """A picture file as it was fetched: its name at its source, and its bytes."""

    name: str
    data: bytes

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the bytes."""
        return hashlib.sha256(self.data).hexdigest()


def rows(dataset: TaskDataset, needed: int, folder: Path | None = None) -> list[Source]:
    """Return the first rows of a data set that have the values asked for, in its own order.

    It is read from its beginning and no further than needed; the library stores no copy of it.

    Parameters
    ----------
    dataset : TaskDataset
    needed : int
        How many rows.
    folder : Path, optional
        A copy of its files; read from the hub if None.

    Raises
    ------
    UsageError
        It cannot be read, its files lie elsewhere, or it has too few such rows.
    """
    import datasets

    where = f"{dataset.repo} at {dataset.revision[:12]}"
    if folder is None and Path(dataset.repo).exists():
        # The library would read this folder, at no revision at all.
        raise UsageError(
            "is also a folder here, which would be read in the place of the hub's; fetch from another folder than",
            file=dataset.repo, value=str(Path.cwd()),
        )  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as cache:
            builder = datasets.load_dataset_builder(
                dataset.repo if folder is None else str(folder),
                dataset.config,
                revision=dataset.revision,
                cache_dir=cache,
            )
            kind = type(builder).__module__
            if not kind.startswith(_PARQUET):
                message = "must be a data set of Parquet files, which hold the pictures' bytes, not of kind"
                raise UsageError(message, file=where, value=kind.split(".")[-1])
            files = {str(split): [str(file) for file in held] for split, held in builder.config.data_files.items()}
            for file in chain.from_iterable(files.values()):
                _check_place(file, dataset, folder, where)
            builder.config.batch_size = _AT_ONCE
            stream = builder.as_streaming_dataset(split=dataset.split)
            found = _chosen(stream, files[str(dataset.split)], dataset, where, needed)
    except UsageError:
        raise
    except Exception as error:  # whatever stops the library, the user needs one line
        raise UsageError(f"could not be read: {failure_reason(error)}", file=where) from error
    if len(found) < needed:
        asked = ", ".join(f"{name} = {value!r}" for name, value in dataset.where.items()) or "no condition"
        message = f"holds {len(found)} pictures ({asked}), the splits take {needed}"
        raise UsageError(message, file=where, field="dataset.where")
    return found


def _check_place(file: str, dataset: TaskDataset, folder: Path | None, where: str) -> None:
    """Refuse a file that lies elsewhere than in the repository at its commit, or than in the folder."""
    if folder is None:
        root = f"hf://datasets/{dataset.repo}@{dataset.revision}/"
        inside = file.startswith(root) and "::" not in file and ".." not in file.split("/")
    else:
        root = str(folder)
        inside = "://" not in file and Path(file).resolve().is_relative_to(folder.resolve())
    if not inside:
        raise UsageError(f"has a data file that lies outside of {root}:", file=where, value=file)


def _chosen(stream: Any, files: Sequence[str], dataset: TaskDataset, where: str, needed: int) -> list[Source]:
    """Return the pictures of at most ``needed`` rows of a stream of files; see `rows`."""
    features: Mapping[str, Any] = stream.features
    for field, column in {"image": dataset.image, **{f"where.{name}": name for name in dataset.where}}.items():
        if column not in features:
            message = "has no such column:"
            raise UsageError(message, file=where, field=f"dataset.{field}", value=column, choices=features)
    wanted = {name: _stored(features, name, value, where) for name, value in dataset.where.items()}
    # Decoded here, a picture would be by whatever plug-in of Pillow fits, before its size is known, and a path in one
    # followed; so would one in a column of sounds or films.
    stream = stream.decode(False).select_columns(list(dict.fromkeys([dataset.image, *wanted])))
    found = []
    for number, row in enumerate(_bounded(stream, files, dataset.size_mb, where)):
        if all(row[name] == value for name, value in wanted.items()):
            found.append(Source(f"row {number}", _bytes(row[dataset.image or ""], f"{where}: row {number}")))
        if len(found) == needed:
            break
    return found


def _bounded(stream: Iterable[Row], files: Sequence[str], size_mb: float, where: str) -> Iterator[Row]:
    """Yield the rows of files, as long as the unpacked data stay near the size that the task states.

    A group of rows is looked up before it is read: it is in memory as a whole.
    """
    rows, left = iter(stream), _TIMES * size_mb * 10**6
    for count, size in _groups(files):
        left -= size
        if left < 0:
            message = f"takes more than {_TIMES} times the MB that the task states, counted unpacked:"
            raise UsageError(message, file=where, field="dataset.size_mb", value=size_mb)
        yield from islice(rows, count)


def _groups(files: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yield rows and unpacked bytes of each group of rows, by the files' own tables of contents."""
    # Both come with `datasets`, which reads the same files by them.
    import fsspec
    import pyarrow.parquet as pq

    for file in files:
        with fsspec.open(file, "rb") as held:
            contents = pq.read_metadata(held)
        for group in map(contents.row_group, range(contents.num_row_groups)):
            yield group.num_rows, group.total_byte_size


def _stored(features: Mapping[str, Any], column: str, value: object, where: str) -> object:
    """Return a value as the rows hold it: a class's name is stored as its number."""
    names = getattr(features[column], "names", None)
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
