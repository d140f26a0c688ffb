"""Leases: locks that a vanished owner loses, for a store that several machines share.

``flock`` is released by the kernel of the machine that holds it, which other machines of a network file system may
never learn, and object storage has none. A lease is a small text with an owner and a counter, which the owner raises as
long as it lives. Who finds a lease whose text stays the same for `seconds`, by its own clock, takes it over; no two
clocks are compared. Losing a lease is harmless: an artifact is published whole, and both of its makers make the same.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from filelock import Timeout

#: Beats of an owner in the time after which its lease is taken over: several may be late.
_BEATS = 4
_HERE = socket.gethostname()


class Board(Protocol):
    """Where leases are written: a folder that several machines see, or a prefix of an object store."""

    def create(self, name: str, text: str) -> bool:
        """Write a new text whole; false where there is one already."""

    def read(self, name: str) -> str | None:
        """Return a text, None where there is none."""

    def write(self, name: str, text: str) -> None:
        """Replace a text."""

    def remove(self, name: str) -> None:
        """Remove a text, if it is there."""


class FolderBoard:
    """Leases as files of a folder, by operations that are atomic on NFS too: link and rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, name: str, text: str) -> bool:
        """Write a new text whole; false where there is one already."""
        draft = self._draft(name, text)
        try:
            os.link(draft, self.folder / name)
        except FileExistsError:
            return False
        except OSError:
            # An answer that got lost: NFS asks again and finds its own link. And SFTP has no error of its own for this.
            if draft.stat().st_nlink == 1 and not (self.folder / name).exists():
                raise
            return draft.stat().st_nlink > 1
        finally:
            draft.unlink(missing_ok=True)
        return True

    def read(self, name: str) -> str | None:
        """Return a text, None where there is none."""
        try:
            return (self.folder / name).read_text("utf-8")
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        """Replace a text."""
        os.replace(self._draft(name, text), self.folder / name)

    def remove(self, name: str) -> None:
        """Remove a text, if it is there."""
        (self.folder / name).unlink(missing_ok=True)

    def _draft(self, name: str, text: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{name}.{uuid.uuid4().hex}"
        draft.write_text(text, "utf-8")
        return draft


class Lease:
    """One lease, in the form of a `filelock.FileLock`: reentrant in one thread.

    Parameters
    ----------
    board
        Where it is written.
    name
        What it is called there.
    seconds
        After so long without a beat it is taken over, at least 0.1.
    clock
        Seconds that only grow.
    """

    def __init__(self, board: Board, name: str, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.board, self.name, self.seconds, self._clock = board, name, seconds, clock
        self.owner = f"{_HERE}:{os.getpid()}:{uuid.uuid4().hex}"
        self._depth, self._beat = 0, 0
        # Nothing seen is not the empty text, which a lease has for a moment where a file is created, then written.
        self._seen: tuple[str | None, float] = (None, 0.0)

    @contextmanager
    def acquire(self, timeout: float = -1, poll_interval: float = 0.1) -> Iterator[None]:
        """Hold the lease inside the block.

        Parameters
        ----------
        timeout
            Seconds to wait for another owner; below 0 for ever.
        poll_interval
            Seconds between two looks.

        Raises
        ------
        filelock.Timeout
            Another owner holds it.
        """
        began = self._clock()
        while not self._depth and not self._taken():
            if 0 <= timeout <= self._clock() - began:
                raise Timeout(self.name)
            time.sleep(poll_interval)
        self._depth += 1
        if self._depth == 1:
            _heart.add(self)
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                _heart.drop(self)
                with suppress(OSError):  # Storage that cannot be reached: the lease ends by itself.
                    if self.held():
                        self.board.remove(self.name)

    def held(self) -> bool:
        """Return whether the lease is still this owner's."""
        return _owner(self.board.read(self.name)) == self.owner

    def beat(self) -> None:
        """Show that the owner lives, unless the lease was taken over."""
        if self.held():
            self._beat += 1
            self.board.write(self.name, self._text())

    def _taken(self) -> bool:
        if self.board.create(self.name, self._text()):
            return True
        text = self.board.read(self.name)
        now = self._clock()
        if text is None:
            return False
        if text != self._seen[0]:
            self._seen = (text, now)
        elif now - self._seen[1] > self.seconds and self.board.read(self.name) == text:
            self.board.remove(self.name)
            return self.board.create(self.name, self._text())
        return False

    def _text(self) -> str:
        return json.dumps({"owner": self.owner, "beat": self._beat})


def _owner(text: str | None) -> str:
    try:
        return str(json.loads(text or "{}").get("owner", ""))
    except (ValueError, AttributeError):
        return ""


class _Heart:
    """The thread that keeps the leases of this process alive; it ends with the process, however that ends."""

    def __init__(self) -> None:
        self._leases: dict[int, tuple[Lease, float]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, lease: Lease) -> None:
        with self._lock:
            self._leases[id(lease)] = (lease, time.monotonic())
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
                self._thread.start()

    def drop(self, lease: Lease) -> None:
        with self._lock:
            self._leases.pop(id(lease), None)

    def _run(self) -> None:
        while True:
            with self._lock:
                held = list(self._leases.values())
                if not held:
                    self._thread = None
                    return
            for lease, beaten in held:
                if time.monotonic() - beaten >= lease.seconds / _BEATS:
                    with suppress(Exception), self._lock:  # Whatever storage raises: the next beat may come through.
                        if id(lease) in self._leases:
                            lease.beat()
                            self._leases[id(lease)] = (lease, time.monotonic())
            time.sleep(min([0.5, *(lease.seconds / (2 * _BEATS) for lease, _ in held)]))


_heart = _Heart()
