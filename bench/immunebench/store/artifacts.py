"""Content-addressed artifacts on disk: digest, lock, atomic write, verification, collection.

Layout below the root::

    <stage>/<ab>/<digest>/{manifest.json, files}   one artifact; without its manifest it does not exist
    tmp/<digest>.<pid>.<n>/                        drafts of stages in flight
    locks/<digest>.lock                            one lock per digest, freed by the kernel on a crash
    failures/<digest>.json                         why a stage failed; never read as a result
    runs/<pid>.<n>.json                            what a live run needs, so that collection spares it
    bookmarks/<digest>/<n>/                        where a stopped stage goes on; see `immunebench.store.bookmark`

Files are safetensors, PNG and JSON. Nothing is ever unpickled.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from filelock import BaseFileLock, FileLock, Timeout

from immunebench.bases.weights import sha256

MANIFEST = "manifest.json"
_RESERVED = frozenset({"tmp", "locks", "failures", "runs", "bookmarks"})
_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "open_clip_torch",
    "lpips",
    "torchmetrics",
)
_counter = itertools.count()


class Spec(Protocol):
    """What the store and the executors need to know of a planned stage."""

    @property
    def stage(self) -> str: ...
    @property
    def key(self) -> Mapping[str, Any]: ...
    @property
    def inputs(self) -> Mapping[str, str]: ...
    @property
    def digest(self) -> str: ...


class CorruptArtifact(UserWarning):
    """An artifact's bytes differ from its manifest; it is removed and computed again."""


@dataclass
class Draft:
    """A folder being filled; `cost` and `meta` go into the manifest when it is published."""

    path: Path
    cost: dict[str, object] = field(default_factory=dict)
    meta: dict[str, object] = field(default_factory=dict)


class Store:
    """Artifacts below one folder, safe for any number of processes at once.

    Parameters
    ----------
    root
        Folder of the store; made on first use.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().absolute()
        self._verified: set[str] = set()
        self._locks: dict[str, BaseFileLock] = {}

    # Reading

    def path(self, digest: str) -> Path | None:
        """Folder of a published artifact, unverified; None where there is none."""
        for stage in self._stages():
            folder = stage / digest[:2] / digest
            if (folder / MANIFEST).is_file():
                return folder
        return None

    def has(self, digest: str) -> bool:
        """Whether an artifact is published (bytes unverified)."""
        return self.path(digest) is not None

    def get(self, digest: str) -> Path | None:
        """Folder of an artifact whose bytes equal its manifest, else None.

        The first call of a process hashes every file. A corrupted artifact is reported by a `CorruptArtifact`
        warning and removed, so that the caller computes it again.
        """
        folder = self.path(digest)
        if folder is None or digest in self._verified:
            return folder
        if self.fault(folder) is not None:
            # Another process may have replaced it between the look and the lock.
            with self.lock(digest):
                fault = self.fault(folder)
                if fault is not None:
                    what = f"{folder.parent.parent.name} {digest[:12]} is corrupted ({fault})"
                    warnings.warn(f"{what}: removed, to be made again", CorruptArtifact, stacklevel=2)
                    self._remove(folder)
                    return None
        self._verified.add(digest)
        return folder

    def manifest(self, digest: str) -> dict[str, Any] | None:
        """The manifest of a published artifact: stage, key, inputs, files, cost, meta, versions, created."""
        folder = self.path(digest)
        return None if folder is None else read_json(folder / MANIFEST)

    def resolve(self, prefix: str) -> list[str]:
        """Full digests of artifacts and failures that begin with `prefix`."""
        found = {p.name for stage in self._stages() for p in stage.glob(f"{prefix[:2]}*/{prefix}*")}
        found |= {p.stem for p in (self.root / "failures").glob(f"{prefix}*.json")}
        return sorted(found)

    # Writing

    @contextmanager
    def lock(self, digest: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock of a digest; reentrant in one thread.

        Raises
        ------
        filelock.Timeout
            `wait` is false and another process holds it.
        """
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = self._locks.setdefault(digest, FileLock(folder / f"{digest}.lock"))
        with lock.acquire(timeout=-1 if wait else 0, poll_interval=0.1):
            yield

    @contextmanager
    def stage(self, spec: Spec) -> Iterator[Draft]:
        """Fill a temporary folder; on leaving, hash it, write the manifest, fsync and rename it into place.

        The caller holds the digest's lock. Nothing is visible until the rename; an exception leaves nothing.
        """
        with self.lock(spec.digest):
            tmp = self.root / "tmp"
            for stale in tmp.glob(f"{spec.digest}.*"):  # whoever made it is dead: the lock is ours
                shutil.rmtree(stale, ignore_errors=True)
            draft = Draft(tmp / f"{spec.digest}.{os.getpid()}.{next(_counter)}")
            draft.path.mkdir(parents=True)
            try:
                yield draft
                self._publish(spec, draft)
            finally:
                shutil.rmtree(draft.path, ignore_errors=True)

    def _publish(self, spec: Spec, draft: Draft) -> None:
        files = {}
        for file in files_below(draft.path):
            fsync(file)
            files[file.relative_to(draft.path).as_posix()] = {
                "sha256": sha256(file),
                "size": file.stat().st_size,
            }
        manifest = {
            "digest": spec.digest,
            "stage": spec.stage,
            "key": dict(spec.key),
            "inputs": dict(spec.inputs),
            "files": files,
            "cost": draft.cost,
            "meta": draft.meta,
            "versions": versions(),
            "created": _now(),
        }
        write_json(draft.path / MANIFEST, manifest)
        fsync(draft.path)
        final = self.root / spec.stage / spec.digest[:2] / spec.digest
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            self._remove(final)
        os.replace(draft.path, final)
        fsync(final.parent)
        self._verified.add(spec.digest)
        self.clear_failure(spec.digest)
        self.drop_bookmark(spec.digest)

    def discard(self, digest: str, pid: int) -> None:
        """Remove the drafts that a killed process left for a digest."""
        for draft in (self.root / "tmp").glob(f"{digest}.{pid}.*"):
            shutil.rmtree(draft, ignore_errors=True)

    # Bookmarks

    def bookmark(self, digest: str) -> Path:
        """Folder of a stage's bookmark, whether there is one or not; whoever holds the digest's lock may fill it."""
        return self.root / "bookmarks" / digest

    def drop_bookmark(self, digest: str) -> None:
        """Remove a stage's bookmark: it is made, or it failed and begins anew."""
        shutil.rmtree(self.bookmark(digest), ignore_errors=True)

    # Failures

    def fail(self, spec: Spec, kind: str, message: str, traceback: str, *, transient: bool = False) -> None:
        """Note why a stage failed; a transient failure (the process died) is tried again by the next run.

        That run goes on from the bookmark, if there is one; any other failure takes it away.
        """
        if not transient:
            self.drop_bookmark(spec.digest)
        note = {
            "digest": spec.digest,
            "stage": spec.stage,
            "key": dict(spec.key),
            "inputs": dict(spec.inputs),
            "kind": kind,
            "message": message,
            "traceback": traceback,
            "transient": transient,
            "versions": versions(),
            "created": _now(),
        }
        write_json(self.root / "failures" / f"{spec.digest}.json", note)

    def failure(self, digest: str) -> dict[str, Any] | None:
        """The note of a stage's last failure (kind, message, traceback, transient), or None."""
        return read_json(self.root / "failures" / f"{digest}.json")

    def clear_failure(self, digest: str) -> None:
        """Forget a stage's failure."""
        (self.root / "failures" / f"{digest}.json").unlink(missing_ok=True)

    # Size and collection

    def artifacts(self) -> Iterator[tuple[str, Path]]:
        """Every published artifact as (stage, folder)."""
        for stage in self._stages():
            for folder in sorted(stage.glob("??/*")):
                if (folder / MANIFEST).is_file():
                    yield stage.name, folder

    def size(self) -> dict[str, tuple[int, int]]:
        """Artifacts and bytes by stage: {stage: (count, bytes)}; drafts under ``tmp``, bookmarks under their name."""
        total: dict[str, tuple[int, int]] = {}
        for stage, folder in self.artifacts():
            count, size = total.get(stage, (0, 0))
            total[stage] = (count + 1, size + _size(folder))
        for name in ("tmp", "bookmarks"):
            found = list((self.root / name).glob("*"))
            if found:
                total[name] = (len(found), sum(map(_size, found)))
        return total

    @contextmanager
    def using(self, digests: Iterable[str]) -> Iterator[None]:
        """Tell `gc` in other processes that these digests are needed while the block runs."""
        note = self.root / "runs" / f"{os.getpid()}.{uuid.uuid4().hex}.json"
        note.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(note.with_suffix(".lock")):
            write_json(note, sorted(digests))
            try:
                yield
            finally:
                note.unlink(missing_ok=True)
                note.with_suffix(".lock").unlink(missing_ok=True)

    def gc(self, keep: Iterable[str], *, dry_run: bool = False) -> tuple[int, int]:
        """Remove what neither `keep`, nor a live run, nor an input of either needs.

        Returns
        -------
        (count, bytes) of the artifacts and stale drafts and bookmarks removed (or that would be).
        """
        kept = self._closure({*keep, *self._live()})
        count = size = 0
        for _, folder in list(self.artifacts()):
            if folder.name in kept:
                continue
            try:
                with self.lock(folder.name, wait=False):
                    count, size = count + 1, size + _size(folder)
                    if not dry_run:
                        self._remove(folder)
            except Timeout:  # being made or read by another process at this moment
                continue
        stale = [mark for mark in (self.root / "bookmarks").glob("*") if mark.name not in kept or self.has(mark.name)]
        for draft in [*(self.root / "tmp").glob("*"), *stale]:
            try:
                with self.lock(draft.name.split(".")[0], wait=False):
                    count, size = count + 1, size + _size(draft)
                    if not dry_run:
                        shutil.rmtree(draft, ignore_errors=True)
            except Timeout:
                continue
        return count, size

    def _live(self) -> set[str]:
        digests: set[str] = set()
        for note in (self.root / "runs").glob("*.json"):
            lock = note.with_suffix(".lock")
            try:
                with FileLock(lock).acquire(timeout=0):
                    note.unlink(missing_ok=True)  # its run is dead
                lock.unlink(missing_ok=True)
            except Timeout:
                digests.update(json.loads(note.read_text()))
        return digests

    def _closure(self, digests: Iterable[str]) -> set[str]:
        seen: set[str] = set()
        todo = list(digests)
        while todo:
            digest = todo.pop()
            if digest not in seen:
                seen.add(digest)
                todo.extend((self.manifest(digest) or {}).get("inputs", {}).values())
        return seen

    # Inner

    def _stages(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(p for p in self.root.iterdir() if p.is_dir() and p.name not in _RESERVED)

    def _remove(self, folder: Path) -> None:
        # Renamed first, so that no reader ever sees a folder that has its manifest but not all of its files.
        self._verified.discard(folder.name)
        grave = self.root / "tmp" / f"{folder.name}.{os.getpid()}.{next(_counter)}"
        grave.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, grave)
        shutil.rmtree(grave, ignore_errors=True)

    def fault(self, folder: Path) -> str | None:
        """What is wrong with an artifact's bytes, None where they equal its manifest."""
        manifest = read_json(folder / MANIFEST)
        if manifest is None or manifest.get("digest") != folder.name:
            return "unreadable manifest"
        for name, entry in manifest["files"].items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["size"] or sha256(file) != entry["sha256"]:
                return f"{name} differs from its hash"
        return None


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.{next(_counter)}")
    tmp.write_text(json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    fsync(tmp)
    os.replace(tmp, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none or it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, sorted."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _size(path: Path) -> int:
    total = 0
    for file in [path] if path.is_file() else files_below(path):
        with suppress(FileNotFoundError):  # a draft may be published while it is counted
            total += file.stat().st_size
    return total


def fsync(path: Path) -> None:
    """Have a file or a folder reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
