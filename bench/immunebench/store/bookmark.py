"""`Bookmark`: what a stage that was stopped goes on from, as files that are read whole or not at all.

Layout below the folder of a stage's digest::

    <n>/{bookmark.json, state.json, tensors-<i>.safetensors, out/...}   the n-th bookmark; the older one is dropped

``bookmark.json`` holds the SHA-256 of every other file, and whose they are. `immunebench.execution.resume` decides
what is kept.
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
#: At most this part of a stage's time goes into bookmarks, however large they are.
_SHARE = 0.05
#: Bytes of tensors that are held on the host at once, for copies of them would count as the stage's own memory.
_SHARD = 64 << 20
#: Larger files of the artifact are linked: an adapter is not written again once it is saved, its description is.
_LINKED = 1 << 20


def seconds() -> float:
    """Return the seconds from one bookmark to the next, of the environment where it names them; ``inf``: none.

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
    """What the attempts at a stage took, as far as a bookmark knows; `resumed` counts those that went on."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_reserved_gib: float = 0.0
    peak_process_gib: float = 0.0
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """A bookmark as it was found, every byte of it as it was written."""

    folder: Path
    state: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Read the tensors onto the CPU; copy what is to outlive the files."""
        from safetensors.torch import load_file

        found: dict[str, Tensor] = {}
        for shard in sorted(self.folder.glob("tensors-*.safetensors")):
            found.update(load_file(shard))
        return found

    def restore(self, out: Path) -> None:
        """Give the artifact's folder the files that it held then, and no others."""
        for file in files_below(out):
            file.unlink()
        _copy(self.folder / "out", out)


class Bookmark:
    """The bookmark of one stage, whose lock the caller holds.

    Parameters
    ----------
    folder : Path
        Of this stage alone; made on first use.
    digest : str
        Of the stage; a bookmark of another one is not taken up.
    every : float, optional
        Least seconds from one to the next, `seconds` by default; 0: whenever it is asked for.
    tell : callable
        Given a line for the user, and the seconds that earlier attempts took where the line says that they count.
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
        """Whether it is time for the next one."""
        least = max(self.every, self._took / _SHARE) if self.every else 0.0
        return time.perf_counter() - self._last >= least

    def spent(self, device: str = "cpu") -> Spent:
        """Return what this attempt and those before it took until now."""
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
        """Return the newest bookmark of this very stage; what cannot be used is said in one line and passed over."""
        for folder in reversed(self._pages()):
            fault = self._fault(folder, device)
            if fault is None:
                return Page(folder, json.loads((folder / "state.json").read_text()))
            self.tell(f"the bookmark is not used: {fault}", 0.0)
        return None

    def take_up(self, page: Page) -> None:
        """Count what the attempts before took as this one's, too."""
        spent = Spent(**page.state["spent"])
        self.earlier = Spent(**{**asdict(spent), "resumed": spent.resumed + 1})
        self._last = time.perf_counter()

    def write(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor], out: Path, device: str) -> None:
        """Put a bookmark in the place of the one before; a disk that is full costs the bookmark, not the stage."""
        from safetensors import SafetensorError

        began = time.perf_counter()
        pages = self._pages()
        new = self.folder / f".new.{os.getpid()}"
        try:
            for torn in self.folder.glob(".new.*"):  # whoever wrote it is dead: the lock is the caller's
                shutil.rmtree(torn, ignore_errors=True)
            (new / "out").mkdir(parents=True)
            _write_tensors(new, tensors)
            _copy(out, new / "out")
            fsync(new / "out")
            whole = {**state, "spent": asdict(self.spent(device))}
            # Not sorted: the order of what was logged is kept.
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
        # The manifest names one machine and one set of libraries, which must be those of every attempt.
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
    """Return a digest of this package's code: half a stage by other code would be nobody's result."""
    package = Path(__file__).parents[1]
    names = {file.relative_to(package).as_posix(): sha256(file) for file in sorted(package.rglob("*.py"))}
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    for i, names in enumerate(_shards(tensors)):
        shard = {name: tensors[name].detach().cpu().contiguous() for name in names}
        save_file(shard, folder / f"tensors-{i:05d}.safetensors")


def _shards(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Deal names out so that no part is much larger than `_SHARD`."""
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
            except OSError:  # a file system without links
                pass
        shutil.copyfile(file, place)
