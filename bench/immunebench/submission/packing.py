"""``immunebench bundle``: gather an entry, its records and what it released, from the folders where they lie."""

from __future__ import annotations

from pathlib import Path

from immunebench.core.errors import UsageError
from immunebench.records.record import Record
from immunebench.store.artifacts import Store
from immunebench.submission.bundles import cell_folder, write_bundle
from immunebench.submission.running import records_of

#: Artifacts that a bundle holds, by their name in a record; weights of a larger size stay with their authors.
_RELEASED = ("protect_model", "protect_images", "pictures")
_SUFFIXES = (".png", ".safetensors")
_LARGEST = 64 * 2**20


def pack(folder: Path, file: Path, store: Store, out: Path, *, closed: bool = False) -> tuple[Path, list[str]]:
    """Write a bundle and return it with one line for each artifact that is left out.

    Parameters
    ----------
    folder
        The entry's.
    file
        Its records, with their contact sheets beside them.
    store
        Holds what the records rest on.
    out
        The tar to write.
    closed
        Leave out the code.

    Raises
    ------
    UsageError
        There are no records of the entry, or a file may not be in a bundle.
    """
    records = records_of(file)
    if not records:
        raise UsageError("holds no record; immunebench submit writes them", file=file)
    first = next(iter(records.values()))
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not (closed and path.suffix == ".py"):
            files[f"entry/{path.relative_to(folder).as_posix()}"] = path
    place = f"results/{file.parent.name}"
    files[f"{place}/{file.name}"] = file
    left: list[str] = []
    for key, record in records.items():
        if record.sheet is not None and (file.parent / record.sheet.file).is_file():
            files[f"{place}/{record.sheet.file}"] = file.parent / record.sheet.file
        for name in _RELEASED:
            left += _artifact(record, name, key, store, files)
    table = {
        "schema_version": 1,
        "defense": first.cell.defense,
        "version": first.cell.defense_version,
        "suite": first.suite,
        "closed": closed,
    }
    return write_bundle(out, table, files), left


def _artifact(record: Record, name: str, key: str, store: Store, files: dict[str, Path]) -> list[str]:
    digest = record.artefacts.get(name)
    if digest is None:
        return []
    folder = store.get(digest)
    if folder is None:
        return [f"{key}: {name} is not in the store"]
    own = [path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES or path.name == "captions.json"]
    if sum(path.stat().st_size for path in own) > _LARGEST:
        return [f"{key}: {name} has more than {_LARGEST // 2**20} MiB"]
    files |= {f"artifacts/{cell_folder(key)}/{name}/{path.name}": path for path in own}
    return []
