"""Whether and how several machines share a store: what ``store.json`` in its folder says, which all of them read.

{"lease_seconds": 120}                                      a folder that several machines mount
{"lease_seconds": 120, "url": "s3://bucket/immunebench"}    the local cache of an object store
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from immunebench.core.errors import UsageError
from immunebench.core.home import cache
from immunebench.store.files import read_json, write_json
from immunebench.store.leases import FolderBoard, Lease
from immunebench.store.remote import Remote

FILE = "store.json"
#: Default of a lease, in seconds: longer than a network file system hides a change (60 s on NFS).
LEASE = 120.0
_LEAST = 0.2


@dataclass(frozen=True)
class Sharing:
    """How a store is shared: leases in the place of locks of one machine, and object storage behind it if there is."""

    folder: Path
    seconds: float
    remote: Remote | None = None

    @classmethod
    def of(cls, root: Path) -> Sharing | None:
        """Return how the store in a folder is shared, None where one machine has it for itself.

        Raises
        ------
        UsageError
            ``store.json`` is damaged: with other locks than everybody else's the store would be unsafe.
        """
        file = root / FILE
        if not file.is_file():
            return None
        found = read_json(file)
        seconds = None if found is None else found.get("lease_seconds")
        url = None if found is None else found.get("url")
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not _LEAST <= seconds < float("inf"):
            why = f"must be seconds, at least {_LEAST:g}, not"
            raise UsageError(why, file=file, field="lease_seconds", value=seconds)
        if url is not None and not isinstance(url, str):
            raise UsageError("must be a URL, not", file=file, field="url", value=url)
        return cls(root, float(seconds), None if url is None else Remote(url))

    def lock(self, name: str) -> Lease:
        """Return the lease of a digest, in the place of its lock."""
        board = FolderBoard(self.folder / "leases") if self.remote is None else self.remote
        return Lease(board, name, self.seconds)


def share(root: Path, seconds: float = LEASE, url: str | None = None) -> None:
    """Let several machines share the store in a folder; no run may use it meanwhile.

    Raises
    ------
    UsageError
        The lease is too short, or the store is shared otherwise already.
    """
    wanted = {"lease_seconds": float(seconds), **({} if url is None else {"url": url})}
    before = read_json(root / FILE)
    if before is not None and before != wanted:
        raise UsageError("says otherwise; remove it while no run uses the store:", file=root / FILE, value=before)
    if before is None:
        if not _LEAST <= seconds < float("inf"):
            raise UsageError(f"must be seconds, at least {_LEAST:g}, not", field="--lease", value=seconds)
        write_json(root / FILE, wanted)


def is_url(location: Path | str) -> bool:
    """Return whether a store's location is object storage: a URL of a protocol that fsspec knows."""
    return "://" in str(location)


def cached(url: str, seconds: float = LEASE) -> Path:
    """Return the local folder of an object store, below ``$IMMUNEBENCH_CACHE`` or ``~/.cache/immunebench/remote``.

    Raises
    ------
    UsageError
        The protocol is unknown, or its library is not installed.
    """
    Remote(url)  # Reported now, not by the first stage.
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    root = cache("IMMUNEBENCH_CACHE", "remote") / name
    share(root, seconds, url)
    return root
