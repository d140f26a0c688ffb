"""`Bookmark`: the checkpoint of an unfinished stage, as files that are read whole or not at all.

Layout below the folder of a stage's digest::

    <n>/{bookmark.json, state.json, tensors-<i>.safetensors, out/...}   the n-th bookmark; the one before is removed

``bookmark.json`` holds the SHA-256 of every other file, and the stage, machine and versions that they belong to.
`immunebench.execution.resume` decides what a bookmark contains.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunebench.bases.weights import sha256
from immunebench.core import machine
from immunebench.core.errors import UsageError
from immunebench.store.artifacts import versions
from immunebench.store.files import files_below, fsync, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "IMMUNEBENCH_BOOKMARK_SECONDS"
FORMAT = 1
_SECONDS = 120.0
#: Greatest share of a stage's time that is spent on writing bookmarks.
_SHARE = 0.05
#: Bytes of tensors that are copied to the host at once, since copies count as the stage's own memory.
_SHARD = 64 << 20
#: Larger files of the artifact are linked instead of copied: a saved adapter is never written again.
_LINKED = 1 << 20


def seconds() -> float:
    """Return the seconds from one bookmark to the next, by default or by the environment; ``inf`` switches them off.

    Raises
    ------
    UsageError
        If they are no number, or below 0.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return _SECONDS
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not found >= 0:
        raise UsageError(
            "must be seconds, 0 (after each step) or more, or inf (never), not", field=VARIABLE, value=text
        )
    return found


@dataclass(frozen=True, slots=True)
class Spent:
    """Time and memory of all attempts at a stage that a bookmark knows of; `resumed` counts the restarts from one."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_reserved_gib: float = 0.0
    peak_process_gib: float = 0.0
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """A bookmark that was read and verified."""

    folder: Path
    state: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors on the CPU, backed by the files: copy what is needed after they are removed."""
        from safetensors.torch import load_file

        found: dict[str, Tensor] = {}
        for shard in sorted(self.folder.glob("tensors-*.safetensors")):
            found.update(load_file(shard))
        return found

    def restore(self, out: Path) -> None:
        """Replace the contents of the artifact's folder by the files of the bookmark."""
        for file in files_below(out):
            file.unlink()
        _copy(self.folder / "out", out)


class Bookmark:
    """Reads and writes the bookmarks of one stage; the caller holds the lock of its digest.

    Parameters
    ----------
    folder : Path
        Used by this stage alone; made on first use.
    digest : str
        Digest of the stage; a bookmark of another one is not used.
    every : float, optional
        Least seconds between two bookmarks, `seconds` by default; with 0 each request writes one.
    tell : callable
        Receives a line for the user and, where earlier attempts count from then on, their seconds.
    """

    def __init__(
        self,
        folder: Path,
        digest: str,
        *,
        every: float | None = None,
        tell: Callable[[str, float], None] = lambda line, seconds: None,
    ) -> None:
        self.folder, self.digest, self.tell = folder, digest, tell
        self.every = seconds() if every is None else every
        self.earlier = Spent()
        self._began, self._worked = time.perf_counter(), time.process_time()
        self._last, self._took = time.perf_counter(), 0.0

    def due(self) -> bool:
        """Return whether the next bookmark is due."""
        least = max(self.every, self._took / _SHARE) if self.every else 0.0
        return time.perf_counter() - self._last >= least

    def spent(self, device: str = "cpu") -> Spent:
        """Return time and memory of this attempt and of those before it until now."""
        before, reserved = self.earlier, 0.0
        if device == "cuda":
            import torch

            reserved = torch.cuda.max_memory_reserved() / machine.GIB
        return Spent(
            round(before.seconds + time.perf_counter() - self._began, 3),
            round(before.cpu_seconds + time.process_time() - self._worked, 3),
            max(before.peak_reserved_gib, reserved),
            max(before.peak_process_gib, machine.process_peak() / machine.GIB),
            before.resumed,
        )

    def read(self, device: str) -> Page | None:
        """Return the newest bookmark of this stage that can be used; every other is reported and skipped."""
        for folder in reversed(self._pages()):
            fault = self._fault(folder, device)
            if fault is None:
                return Page(folder, json.loads((folder / "state.json").read_text()))
            self.tell(f"the bookmark is not used: {fault}", 0.0)
        return None

    def take_up(self, page: Page) -> None:
        """Add time and memory of the attempts before the bookmark to those of this one."""
        spent = Spent(**page.state["spent"])
        self.earlier = Spent(**{**asdict(spent), "resumed": spent.resumed + 1})
        self._last = time.perf_counter()

    def write(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor], out: Path, device: str) -> None:
        """Write a bookmark and remove the one before; a full disk is reported and does not fail the stage."""
        from safetensors import SafetensorError

        began = time.perf_counter()
        pages = self._pages()
        new = self.folder / f".new.{os.getpid()}"
        try:
            for torn in self.folder.glob(".new.*"):  # Its process has ended, since the caller holds the lock.
                shutil.rmtree(torn, ignore_errors=True)
            (new / "out").mkdir(parents=True)
            _write_tensors(new, tensors)
            _copy(out, new / "out")
            fsync(new / "out")
            whole = {**state, "spent": asdict(self.spent(device))}
            # Not sorted, so that logged values stay in their order.
            (new / "state.json").write_text(json.dumps(whole, allow_nan=False))
            self._seal(new, device)
            os.replace(new, self.folder / f"{int(pages[-1].name) + 1 if pages else 0:06d}")
            fsync(self.folder)
            for page in pages:
                shutil.rmtree(page, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(new, ignore_errors=True)
            self.tell(f"no bookmark could be written: {' '.join(str(error).split())}", 0.0)
        self._last = time.perf_counter()
        self._took = self._last - began

    def _seal(self, folder: Path, device: str) -> None:
        files = {file.relative_to(folder).as_posix(): sha256(file) for file in files_below(folder)}
        for name in files:
            fsync(folder / name)
        write_json(folder / "bookmark.json", {**self._owner(device), "files": files})
        fsync(folder)

    def _owner(self, device: str) -> dict[str, Any]:
        # A manifest names one machine and one set of libraries, so all attempts must have the same.
        environment = {**machine.environment(device), "versions": versions(), "engine": _engine()}
        return {"format": FORMAT, "digest": self.digest, "environment": json.loads(json.dumps(environment))}

    def _pages(self) -> list[Path]:
        return sorted(page for page in self.folder.glob("*") if page.name.isdecimal())

    def _fault(self, folder: Path, device: str) -> str | None:
        found = read_json(folder / "bookmark.json")
        if found is None or not isinstance(found.get("files"), dict):
            return "it is damaged (bookmark.json)"
        what = {
            "format": "of another version",
            "digest": "of another stage",
            "environment": "from another machine or version",
        }
        for name, value in self._owner(device).items():
            if found.get(name) != value:
                return f"it is {what[name]}"
        there = {file.relative_to(folder).as_posix() for file in files_below(folder)} - {"bookmark.json"}
        for name in sorted(there ^ found["files"].keys()):
            return f"it is damaged ({name})"
        for name, digest in found["files"].items():
            if sha256(folder / name) != digest:
                return f"it is damaged ({name})"
        return None


@cache
def _engine() -> str:
    """Return a digest of this package's code: a stage must be made by one version of it from start to end."""
    package = Path(__file__).parents[1]
    names = {file.relative_to(package).as_posix(): sha256(file) for file in sorted(package.rglob("*.py"))}
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    for i, names in enumerate(_shards(tensors)):
        shard = {name: tensors[name].detach().cpu().contiguous() for name in names}
        save_file(shard, folder / f"tensors-{i:05d}.safetensors")


def _shards(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Split the names into parts of about `_SHARD` bytes each."""
    ends = itertools.accumulate(tensor.nbytes for tensor in tensors.values())
    placed = zip(tensors, ends, strict=True)
    for _, part in itertools.groupby(placed, key=lambda item: item[1] // _SHARD):
        yield [name for name, _ in part]


def _copy(source: Path, target: Path) -> None:
    for file in files_below(source):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.stat().st_size > _LINKED:
            try:
                os.link(file, place)
                continue
            except OSError:  # The file system has no links.
                pass
        shutil.copyfile(file, place)
