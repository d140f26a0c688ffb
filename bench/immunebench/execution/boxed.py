"""`Boxes`: carries out stages that run an entry's code, each in a fresh process within a box.

This process never loads an entry's code. It lends the stage what it needs, hears messages of a fixed form, measures
time and memory itself, and has what was written admitted by a process that has not seen the entry either.
"""

from __future__ import annotations

import itertools
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from immunebench.box.choice import Kind
from immunebench.box.folders import Untidy, regular_files, remove
from immunebench.box.messages import Done, Failed, Note, Progress
from immunebench.box.process import Asked, BoxError, Ended, Template
from immunebench.box.view import View
from immunebench.catalog.loading import default_catalog
from immunebench.core import machine
from immunebench.core.errors import printable, shortened
from immunebench.execution.executor import DEFAULT_STAGES, LONGEST_LINE, SUITE_STAGES, Event, Tell
from immunebench.execution.lending import Lent, foreign, lend, lend_other
from immunebench.execution.shelf import Shelf
from immunebench.store import bookmark
from immunebench.store.artifacts import Spec, Store
from immunebench.store.bookmark import Spent
from immunebench.store.files import unique
from immunebench.store.graph import runs_entries

_WARM = ("immunebench.execution.in_box:warm",)
_STAGE, _OTHER = "immunebench.execution.in_box:stage", "immunebench.execution.in_box:other"
_ADMIT = "immunebench.execution.admission:work"
#: Seconds that admission may take: it reads what was written once.
_ADMISSION = 3_600.0
#: A disk with less room is full, whoever says so.
_FULL = 256 << 20
_MOST_NOTES, _MOST_OUT = 20, 10_000
#: Seconds before its end at which a stage prints where it is, and the most that such a clock is set to.
_LAST = 5.0
_LONG = 1e6
_FRAME = re.compile(r'^  File "([^"\n]{1,500})", line (\d{1,7}) in ', re.MULTILINE)
#: Default limits of a stage in seconds.
HOURS_CPU, HOURS_GPU = 6 * 3600.0, 24 * 3600.0


@dataclass
class _Refused(Exception):
    """A stage failed; what is noted of it."""

    kind: str
    message: str
    trace: str = ""
    transient: bool = False


def limit(spec: Spec, timeout: float | None) -> float:
    """Return the seconds that a stage may take: as given, else the default of its device."""
    if timeout is not None:
        return timeout
    numerics = spec.key.get("numerics")
    return HOURS_GPU if isinstance(numerics, Mapping) and numerics.get("device") == "cuda" else HOURS_CPU


class Boxes:
    """Processes of stages that run an entry's code, one after the other.

    Parameters
    ----------
    store
        Where artifacts are.
    kind
        The box.
    run_stage
        ``module:function`` that carries out a stage; what the suite's own stages leave is admitted, of any other
        function it is copied.
    timeout
        Seconds that a stage may take; None: `limit`.
    """

    def __init__(self, store: Store, kind: Kind, run_stage: str = DEFAULT_STAGES, timeout: float | None = None) -> None:
        self.kind, self._store, self._run_stage, self._timeout = kind, store, run_stage, timeout
        self._own = run_stage == SUITE_STAGES
        preload = _WARM if self._own else ("immunebench.execution.in_box", run_stage.partition(":")[0])
        self._template = Template(kind, preload)
        self._count = itertools.count()
        self._home: Path | None = None
        self._lock: FileLock | None = None

    @staticmethod
    def takes(spec: Spec) -> bool:
        """Return whether a stage runs an entry's code; pictures that were submitted without code do not."""
        return runs_entries(spec) and "cloaked" not in spec.key

    def close(self) -> None:
        """End what runs, and remove its folders."""
        self._template.close()
        if self._home is not None and self._lock is not None:
            remove(self._home)
            self._lock.release()
            with suppress(OSError):
                Path(self._lock.lock_file).unlink(missing_ok=True)
            self._home = self._lock = None

    def make(self, spec: Spec, inputs: dict[str, Path], tell: Tell) -> Event:
        """Make a stage whose lock this process holds; a failure is noted in the store and returned."""
        began = time.perf_counter()
        try:
            with self._store.stage(spec) as draft:
                self._fill(spec, inputs, draft, tell)
        except _Refused as why:
            self._store.fail(spec, why.kind, why.message, why.trace, transient=why.transient)
            line = why.message if why.transient and why.kind == "skipped" else f"{why.kind}: {why.message}"
            return Event("failed", spec.digest, shortened(line, LONGEST_LINE), seconds=time.perf_counter() - began)
        return Event("made", spec.digest, seconds=time.perf_counter() - began)

    def _fill(self, spec: Spec, inputs: dict[str, Path], draft: Any, tell: Tell) -> None:
        """Run the stage, admit what it left into the draft, and note what it took."""
        attempt = _Attempt(self, spec, inputs, tell)
        try:
            ended, lent, spent = attempt.run()
            figures = self._admitted(spec, inputs, lent, draft.path, ended)
        finally:
            attempt.close()
        draft.meta = {**figures, "box": self.kind}
        draft.cost = {
            "seconds": round(spent.seconds, 3),
            "cpu_seconds": round(spent.cpu_seconds, 3),
            "peak_process_gib": round(spent.peak_process_gib, 4),
        }
        if spent.resumed:
            draft.cost["resumed"] = spent.resumed
        if self._own:
            draft.meta |= _memory(spec, ended, spent)

    def _admitted(self, spec: Spec, inputs: Mapping[str, Path], lent: Lent, out: Path, ended: Ended) -> dict[str, Any]:
        """Write the artifact from what the stage left; return figures for the manifest."""
        if lent.admission is None:
            try:
                for name in regular_files(lent.out, _MOST_OUT):
                    (out / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(lent.out / name, out / name, follow_symlinks=False)
            except Untidy as error:
                raise _Refused("error", str(error)) from error
            return dict(ended.word.found) if isinstance(ended.word, Done) else {}
        folders = {name: str(folder) for name, folder in inputs.items()}
        job = {**lent.admission, "inputs": folders, "left": str(lent.out), "out": str(out)}
        view = View(read=(str(lent.out), *folders.values(), *lent.read), write=(str(out),), bytes=lent.view.bytes)
        asked = Asked(_ADMIT, job, view, lent.environment, _ADMISSION)
        judged = self._asked(asked, lambda message: None)
        if isinstance(judged.word, Failed):
            raise _Refused("error", judged.word.message, judged.word.trace, self._disk_is_full())
        if not isinstance(judged.word, Done):
            raise _Refused("error", f"what it left cannot be read: {judged.fault}", judged.printed)
        return dict(judged.word.found)

    def _asked(self, asked: Asked, tell: Any, marked: Any = lambda *of: None) -> Ended:
        try:
            return self._template.run(asked, tell, marked)
        except BoxError as error:
            raise _Refused("skipped", str(error), transient=True) from error

    def _disk_is_full(self) -> bool:
        return shutil.disk_usage(self._store.root).free < _FULL

    def _place(self) -> Path:
        """Return a new folder for an attempt, below one that others remove once this process has ended."""
        if self._home is None:
            boxes = self._store.root / "boxes"
            boxes.mkdir(parents=True, exist_ok=True)
            _sweep(boxes)
            self._home = boxes / unique()
            self._lock = FileLock(boxes / f"{self._home.name}.lock")
            self._lock.acquire()
            self._home.mkdir(mode=0o700)
        return self._home / str(next(self._count))


class _Attempt:
    """The attempts at one stage: a second one where its process died."""

    def __init__(self, boxes: Boxes, spec: Spec, inputs: dict[str, Path], tell: Tell) -> None:
        self._boxes, self._spec, self._inputs, self._tell = boxes, spec, inputs, tell
        self._shelf = Shelf(boxes._store.bookmark(spec.digest))
        self._lent: Lent | None = None
        self._earlier, self._spare = Spent(), Spent()
        self._notes = 0
        self._began = time.perf_counter()

    def close(self) -> None:
        """Remove the folders."""
        if self._lent is not None:
            self._lent.remove()
            self._lent = None

    def run(self) -> tuple[Ended, Lent, Spent]:
        """Run the stage; return how it ended well, its folders, and what it took."""
        for again in (True, False):
            lent, ended = self._once()
            if ended.kind == "died" and not isinstance(ended.word, Done | Failed) and ended.fault:
                how = f"its {ended.fault}"
                if again:
                    self._tell(Event("again", self._spec.digest, how))
                    continue
                name = str(self._spec.key.get("entry", "")) if self._boxes._own else ""
                why = f"{name}: {how}, twice" if name else f"{how}, twice"
                raise _Refused("error", why, ended.printed, transient=True)
            self._check(ended)
            return ended, lent, self._spent(ended.seconds, ended.cpu_seconds, ended.peak_bytes)
        raise AssertionError("two attempts")

    def _once(self) -> tuple[Lent, Ended]:
        self.close()
        boxes, spec = self._boxes, self._spec
        place = boxes._place()
        try:
            if boxes._own:
                lent = lend(place, spec, self._inputs, boxes.kind, default_catalog())
            else:
                lent = lend_other(place, spec, self._inputs, boxes.kind, boxes._run_stage)
        except OSError as error:
            remove(place)
            raise _Refused("skipped", str(error), transient=True) from error
        self._lent, self._earlier = lent, Spent()
        found, why = self._shelf.lend(lent.mark)
        if why:
            self._note(why, 0.0)
        self._spare = replace(found, resumed=found.resumed + 1) if found is not None else Spent()
        seconds = limit(spec, boxes._timeout)
        job = {
            **lent.job, "bookmark": str(lent.mark), "token": self._shelf.token, "every": str(bookmark.seconds()),
            "told_after": min(max(0.8 * seconds, seconds - _LAST), _LONG),
        }  # fmt: skip
        work = _STAGE if boxes._own else _OTHER
        asked = Asked(work, job, lent.view, lent.environment, seconds, self._spare.seconds)
        return lent, boxes._asked(asked, self._heard, self._marked)

    def _heard(self, message: Progress | Note) -> None:
        if isinstance(message, Progress):
            seconds = time.perf_counter() - self._began
            self._tell(Event("progress", self._spec.digest, message.what, message.done, message.total, seconds))
        elif message.resumes:
            self._earlier = self._spare
            self._note(message.line, self._earlier.seconds)
        else:
            self._note(message.line, 0.0)

    def _note(self, line: str, seconds: float) -> None:
        self._notes += 1
        if self._notes <= _MOST_NOTES:
            self._tell(Event("noted", self._spec.digest, printable(line), seconds=seconds))

    def _marked(self, page: str, seconds: float, cpu_seconds: float, peak_bytes: int) -> None:
        assert self._lent is not None
        why = self._shelf.keep(self._lent.mark, page, self._spent(seconds, cpu_seconds, peak_bytes))
        if why:
            self._note(why, 0.0)

    def _spent(self, seconds: float, cpu_seconds: float, peak_bytes: int) -> Spent:
        before = self._earlier
        return Spent(
            before.seconds + seconds,
            before.cpu_seconds + cpu_seconds,
            before.peak_reserved_gib,
            max(before.peak_process_gib, peak_bytes / machine.GIB),
            before.resumed,
        )

    def _place_of(self, ended: Ended) -> str:
        """Return the innermost line of an entry's code that a process stood in before its time was up; else nothing.

        It is what the process printed, so an entry can say another line of its own.
        """
        if self._lent is None:
            return ""
        for file, line in _FRAME.findall(ended.printed):
            for entry in self._lent.job.get("entries", ()):
                folder = Path(entry["folder"])
                if Path(file).is_relative_to(folder):
                    return f" ({printable(Path(file).relative_to(folder.parent).as_posix())}, line {line})"
        return ""

    def _check(self, ended: Ended) -> None:
        """Raise the failure that an end means."""
        name = str(self._spec.key.get("entry", "")) if self._boxes._own else ""
        if isinstance(ended.word, Failed):
            trace = ended.word.trace + (f"\nprinted:\n{ended.printed}" if ended.printed else "")
            # What the machine is to blame for is tried again unasked; a stranger's word for it is not enough.
            believed = self._boxes._disk_is_full() or not self._boxes._own or not foreign(self._spec)
            transient = ended.word.transient and believed
            kind = "error" if ended.word.transient and not transient else ended.word.kind
            raise _Refused(kind, ended.word.message, trace, transient)
        if ended.fault:
            place = self._place_of(ended) if ended.kind == "timeout" else ""
            prefix = f"{name}: " if name and (place or ended.kind != "timeout") else ""
            raise _Refused(ended.kind, f"{prefix}{ended.fault}{place}", ended.printed)


def _memory(spec: Spec, ended: Ended, spent: Spent) -> dict[str, float]:
    """Return the figures of memory for the manifest: those of the kernel, and of a GPU's allocator the stage's own."""
    claimed = ended.word.found.get("peak_reserved_gib") if isinstance(ended.word, Done) else None
    numerics = spec.key["numerics"]
    on_gpu = numerics.get("device") == "cuda" and isinstance(claimed, int | float)
    # Nothing is ranked by the figures that the stage alone can know.
    claims = {"optimiser_bytes": ended.word.found.get("optimiser_bytes")} if isinstance(ended.word, Done) else {}
    known = {name: value for name, value in claims.items() if isinstance(value, int) and 0 <= value < 1 << 62}
    return {
        **known,
        "memory_cap_gib": numerics["memory_gib"],
        "peak_reserved_gib": round(float(claimed), 3) if on_gpu and claimed is not None else 0.0,
        "peak_process_gib": round(spent.peak_process_gib, 3),
    }


def _sweep(boxes: Path) -> None:
    """Remove folders whose process has ended."""
    for lock in boxes.glob("*.lock"):
        with suppress(Timeout, OSError), FileLock(lock).acquire(timeout=0):
            remove(boxes / lock.stem)
            lock.unlink(missing_ok=True)


def discard(store: Store, pid: int) -> None:
    """Remove the folders of a killed process."""
    for lock in (store.root / "boxes").glob(f"{pid}.*.lock"):
        for _ in range(50):
            with suppress(Timeout, OSError), FileLock(lock).acquire(timeout=0.1):
                remove(lock.with_suffix(""))
                lock.unlink(missing_ok=True)
                break
