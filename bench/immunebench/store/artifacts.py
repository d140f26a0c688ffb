"""Artifacts on disk, named by the digest of what they are made from: locks, atomic writes, verification, collection.

Layout below the root::

    <stage>/<ab>/<digest>/{manifest.json, files}   one artifact; without its manifest it does not exist
    tmp/<digest>.<pid>.<n>/                        drafts of stages that are being made
    locks/<digest>.lock                            one lock per digest, released by the kernel on a crash
    store.json, leases/<digest>                    of a store of several machines; see `immunebench.store.sharing`
    failures/<digest>.json                         why a stage failed; never read as a result
    runs/<pid>.<n>.json                            what a running process needs, so that collection spares it
    bookmarks/<digest>/<n>/                        checkpoints of interrupted stages; see `immunebench.store.bookmark`
    boxes/<pid>.<n>/                               what entries in their boxes read and write; removed after each stage
    damaged/<stage>-<digest>/                      artifacts that differed from their manifest; removed by collection

Files are safetensors, PNG and JSON. Nothing is ever unpickled.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import time
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
from immunebench.core.errors import UsageError, shortened
from immunebench.core.home import expanded
from immunebench.store.files import files_below, fsync, read_json, size_of, unique, write_json
from immunebench.store.leases import Lease
from immunebench.store.manifest import MANIFEST, artifact_fault, read_manifest, sealed
from immunebench.store.sharing import Sharing, cached, is_url

_RESERVED = frozenset({"tmp", "locks", "leases", "slurm", "failures", "runs", "bookmarks", "boxes", "damaged"})
#: Most characters of an exception's message and of its traceback that a note keeps.
_MESSAGE, _TRACEBACK = 2_000, 20_000
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


class Spec(Protocol):
    """The attributes of a planned stage that the store and the executors use."""

    @property
    def stage(self) -> str: ...
    @property
    def key(self) -> Mapping[str, Any]: ...
    @property
    def inputs(self) -> Mapping[str, str]: ...
    @property
    def digest(self) -> str: ...


class CorruptArtifact(UserWarning):
    """An artifact differs from its manifest; it is set aside and computed again."""


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
        self.root = expanded(root)
        self._verified: set[str] = set()
        self._locks: dict[str, BaseFileLock | Lease] = {}
        self.sharing = Sharing.of(self.root)
        self.remote = None if self.sharing is None else self.sharing.remote

    @property
    def location(self) -> str:
        """Where another machine opens this store: its URL, else its folder."""
        return str(self.root) if self.remote is None else self.remote.url

    # Reading

    def path(self, digest: str) -> Path | None:
        """Return the folder of a published artifact, unverified; None where there is none."""
        for stage in self._stages():
            folder = stage / digest[:2] / digest
            if (folder / MANIFEST).is_file():
                return folder
        return None

    def has(self, digest: str) -> bool:
        """Return whether an artifact is published; its bytes are not verified."""
        return self.path(digest) is not None or (self.remote is not None and self.remote.has(digest))

    def holds(self, digest: str) -> bool:
        """Return whether a stage need not be made: verified if it is here, unverified if only object storage has it."""
        if self.remote is not None and self.path(digest) is None:
            return self.remote.has(digest)
        return self.get(digest) is not None

    def get(self, digest: str) -> Path | None:
        """Return the folder of an artifact whose bytes equal its manifest, else None.

        The first call of a process hashes every file. A corrupted artifact is reported by a `CorruptArtifact`
        warning and set aside, so that the caller computes it again.
        """
        folder = self.path(digest)
        if folder is None and self.remote is not None:
            return self._fetched(digest)
        if folder is None or digest in self._verified:
            return folder
        if artifact_fault(folder) is not None:
            # Another process may have replaced it between the look and the lock.
            with self.lock(digest):
                fault = self._lasting_fault(folder)
                if fault is not None:
                    self._set_aside(folder, fault)
                    return None
        self._verified.add(digest)
        return folder

    def awaited(self, digest: str) -> Path | None:
        """As `get`, of an artifact that somebody published: the network of a shared folder may show it late."""
        end = time.monotonic() + self._lateness
        while (folder := self.get(digest)) is None and time.monotonic() < end:
            time.sleep(1.0)
        return folder

    def _lasting_fault(self, folder: Path) -> str | None:
        """Return what is wrong with an artifact, and stays so until a network shows all of what was published."""
        end = time.monotonic() + self._lateness
        while (fault := artifact_fault(folder)) is not None and time.monotonic() < end:
            time.sleep(1.0)
        return fault

    @property
    def _lateness(self) -> float:
        """Seconds that the network of a folder that several machines mount may take to show what is there."""
        return self.sharing.seconds / 2 if self.sharing is not None and self.remote is None else 0.0

    def manifest(self, digest: str) -> dict[str, Any] | None:
        """Return the manifest of a published artifact, None where it is missing or damaged.

        Its fields are digest, stage, key, inputs, files, cost, meta, versions and created.
        """
        folder = self.path(digest)
        if folder is None and self.remote is not None:
            return self.remote.manifest(digest)
        return None if folder is None else read_manifest(folder)

    def resolve(self, prefix: str) -> list[str]:
        """Return the full digests of artifacts and failures that begin with `prefix`."""
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
        lock = self._locks.get(digest) or self._locks.setdefault(digest, self._lock(digest))
        with lock.acquire(timeout=-1 if wait else 0, poll_interval=0.1):
            yield

    @contextmanager
    def stage(self, spec: Spec) -> Iterator[Draft]:
        """Fill a temporary folder; on leaving, hash it, write the manifest, fsync and rename it into place.

        The caller holds the digest's lock. Nothing is visible until the rename; an exception leaves nothing.
        """
        with self.lock(spec.digest):
            tmp = self.root / "tmp"
            for stale in tmp.glob(f"{spec.digest}.*"):  # Its process has ended, since this one holds the lock.
                shutil.rmtree(stale, ignore_errors=True)
            draft = Draft(tmp / f"{spec.digest}.{unique()}")
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
        write_json(draft.path / MANIFEST, sealed(manifest))
        fsync(draft.path)
        final = self.root / spec.stage / spec.digest[:2] / spec.digest
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            self._remove(final)
        os.replace(draft.path, final)
        fsync(final.parent)
        self._verified.add(spec.digest)
        if self.remote is not None:
            self.remote.upload(final)
        self.clear_failure(spec.digest)
        self.drop_bookmark(spec.digest)

    def discard(self, digest: str, pid: int) -> None:
        """Remove the drafts that a killed process left for a digest."""
        for draft in (self.root / "tmp").glob(f"{digest}.{pid}.*"):
            shutil.rmtree(draft, ignore_errors=True)

    # Bookmarks

    def bookmark(self, digest: str) -> Path:
        """Return the folder of a stage's bookmark, which need not exist; only the holder of its lock may fill it."""
        return self.root / "bookmarks" / digest

    def drop_bookmark(self, digest: str) -> None:
        """Remove a stage's bookmark: the stage is made, or it failed and will start from its beginning."""
        shutil.rmtree(self.bookmark(digest), ignore_errors=True)

    # Failures

    def fail(self, spec: Spec, kind: str, message: str, traceback: str, *, transient: bool = False) -> None:
        """Note why a stage failed; where the store cannot be written, nothing is noted and the next run tries again.

        Parameters
        ----------
        spec
            The stage.
        kind
            Status of the cells that need it.
        message, traceback
            Shortened where they are very long.
        transient
            The next run tries the stage again unasked, from its bookmark if there is one. Any other failure removes
            the bookmark.
        """
        note = {
            "digest": spec.digest,
            "stage": spec.stage,
            "key": dict(spec.key),
            "inputs": dict(spec.inputs),
            "kind": kind,
            "message": shortened(message, _MESSAGE),
            "traceback": shortened(traceback, _TRACEBACK),
            "transient": transient,
            "versions": versions(),
            "created": _now(),
        }
        with suppress(OSError):
            if not transient:
                self.drop_bookmark(spec.digest)
            write_json(self._failure_file(spec.digest), note)
            if self.remote is not None:
                self.remote.fail(spec.digest, note)

    def failure(self, digest: str) -> dict[str, Any] | None:
        """Return the note of a stage's last failure (kind, message, traceback, transient); None where it is damaged."""
        remote = {} if self.remote is None else self.remote.failure(digest) or {}
        note = remote or read_json(self._failure_file(digest)) or {}
        words = all(isinstance(note.get(name), str) for name in ("stage", "kind", "message", "created"))
        sound = words and note.get("digest") == digest and isinstance(note.get("transient"), bool)
        return note if sound else None

    def clear_failure(self, digest: str) -> None:
        """Remove the note of a stage's failure."""
        self._failure_file(digest).unlink(missing_ok=True)
        if self.remote is not None:
            self.remote.fail(digest, None)

    def _failure_file(self, digest: str) -> Path:
        return self.root / "failures" / f"{digest}.json"

    # Size and collection

    def artifacts(self) -> Iterator[tuple[str, Path]]:
        """Yield every published artifact as (stage, folder)."""
        for stage in self._stages():
            for folder in sorted(stage.glob("??/*")):
                if (folder / MANIFEST).is_file():
                    yield stage.name, folder

    def size(self) -> dict[str, tuple[int, int]]:
        """Return artifacts and bytes by stage, {stage: (count, bytes)}; other folders under their own names."""
        total: dict[str, tuple[int, int]] = {}
        for stage, folder in self.artifacts():
            count, size = total.get(stage, (0, 0))
            total[stage] = (count + 1, size + size_of(folder))
        for name in ("tmp", "bookmarks", "damaged"):
            found = list((self.root / name).glob("*"))
            if found:
                total[name] = (len(found), sum(map(size_of, found)))
        return total

    @contextmanager
    def using(self, digests: Iterable[str]) -> Iterator[None]:
        """Make `gc` in other processes spare these digests while the block runs."""
        note = self.root / "runs" / f"{os.getpid()}.{uuid.uuid4().hex}.json"
        note.parent.mkdir(parents=True, exist_ok=True)
        with self._run_lock(note).acquire():
            write_json(note, sorted(digests))
            try:
                yield
            finally:
                with suppress(OSError):  # A store that became read-only; the next `gc` removes the note.
                    note.unlink(missing_ok=True)
                    note.with_suffix(".lock").unlink(missing_ok=True)

    def gc(self, keep: Iterable[str], *, dry_run: bool = False) -> tuple[int, int]:
        """Remove every artifact that `keep`, a running process, or an input of either does not need.

        Returns
        -------
        (count, bytes) of the artifacts and of the stale drafts, bookmarks and damaged artifacts that are removed, or
        that would be.

        Raises
        ------
        UsageError
            The note of a running process is damaged, so that nobody knows what it needs; or the store is the cache of
            object storage, where nobody knows what other machines need.
        """
        if self.remote is not None:
            raise UsageError("is not collected here: nobody knows what other machines need", value=self.remote.url)
        kept = self._closure({*keep, *self._live()})
        loose = [folder for _, folder in self.artifacts() if folder.name not in kept]
        marks = [mark for mark in (self.root / "bookmarks").glob("*") if mark.name not in kept or self.has(mark.name)]
        stale = [*(self.root / "tmp").glob("*"), *marks, *(self.root / "damaged").glob("*")]
        count = size = 0
        for folder in [*loose, *stale]:
            try:
                with self.lock(folder.name.split(".")[0], wait=False):
                    count, size = count + 1, size + size_of(folder)
                    if not dry_run:
                        self._remove(folder)
            except Timeout:  # Another process makes or reads it at this moment.
                continue
        return count, size

    def _live(self) -> set[str]:
        digests: set[str] = set()
        for note in (self.root / "runs").glob("*.json"):
            lock = note.with_suffix(".lock")
            try:
                with self._run_lock(note).acquire(timeout=0):
                    note.unlink(missing_ok=True)  # Its process has ended.
                lock.unlink(missing_ok=True)
            except Timeout:
                digests.update(_noted(note))
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
        grave = self.root / "tmp" / f"{folder.name.split('.')[0]}.{unique()}"
        grave.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, grave)
        shutil.rmtree(grave, ignore_errors=True)

    def _lock(self, digest: str) -> BaseFileLock | Lease:
        if self.sharing is not None:
            return self.sharing.lock(digest)
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{digest}.lock")

    def _run_lock(self, note: Path) -> BaseFileLock | Lease:
        """Return the lock that a process holds as long as the note of what it needs counts."""
        if self.sharing is None or self.sharing.remote is not None:  # The notes of a cache are those of one machine.
            return FileLock(note.with_suffix(".lock"))
        return self.sharing.lock(f"run-{note.stem}")

    def _fetched(self, digest: str) -> Path | None:
        """Bring an artifact from object storage into the cache; a damaged one is forgotten there, and None returned."""
        assert self.remote is not None
        if not self.remote.has(digest):
            return None
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"fetch-{digest}.lock"):  # Of this machine: others have caches of their own.
            folder = self.path(digest) or self.remote.fetch(digest, self.root)
        if folder is None:
            warnings.warn(f"{digest[:12]} is corrupted in {self.remote.url}", CorruptArtifact, stacklevel=3)
            self.remote.forget(digest)
            return None
        self._verified.add(digest)
        return folder

    def _set_aside(self, folder: Path, fault: str) -> None:
        """Move a damaged artifact out of the way and warn; of one digest the last is kept."""
        stage, digest = folder.parent.parent.name, folder.name
        place = self.root / "damaged" / f"{stage}-{digest}"
        what = f"{stage} {digest[:12]} is corrupted ({fault})"
        warnings.warn(f"{what}: set aside in {place}, to be made again", CorruptArtifact, stacklevel=3)
        self._verified.discard(digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(folder, place)


def open_at(location: Path | str) -> Store:
    """Open the store in a folder, or the local cache of the one at a URL such as ``s3://bucket/prefix``."""
    return Store(cached(str(location)) if is_url(location) else location)


def _noted(note: Path) -> list[str]:
    """Return the digests that a running process needs."""
    try:
        found = json.loads(note.read_text("utf-8"))
    except FileNotFoundError:  # It ended just now.
        return []
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(digest, str) for digest in found):
        raise UsageError("is damaged, and its run is still going: collect once that has ended", file=note)
    return found


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide the numbers; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
