"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from immunebench.core.errors import printable
from immunebench.execution.executor import Event
from immunebench.execution.scheduler import Outcome

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_EVERY = 5.0
#: Seconds at the expected speed that an estimate starts with, as the first stages take what processes take to start.
_PRIOR = 120.0


class Progress:
    """Shows cells done of planned, the running stage, reused stages, rate and time left, on standard error.

    Parameters
    ----------
    names
        What to call each planned stage, by digest.
    seconds
        Expected seconds of each stage, by digest. They are corrected by what stages take, the more the longer it runs.
    cells
        Stages of each cell, by cell key.
    outcome
        Updated by the scheduler.
    workers
        Stages at a time.
    stream
        Where to write.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        seconds: Mapping[str, float],
        cells: Mapping[str, tuple[str, ...]],
        outcome: Outcome,
        *,
        workers: int = 1,
        stream: TextIO | None = None,
    ) -> None:
        self._names, self._seconds, self._outcome, self._workers = names, seconds, outcome, workers
        self._waiting = {key: set(stages) for key, stages in cells.items()}
        self._users: dict[str, list[str]] = {}
        for key, stages in cells.items():
            for digest in stages:
                self._users.setdefault(digest, []).append(key)
        self._cells, self._cells_done = len(cells), 0
        self._stream = stream or sys.stderr
        self._began, self._said = time.monotonic(), 0.0
        self._expected = self._spent = 0.0
        self._rest = sum(seconds.values())
        self._bars: Bars | None = None
        self._total: TaskID | None = None
        self._running: dict[str, TaskID] = {}
        # Of stages that are being made: when they began, and the share of their work that is done.
        self._under_way: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bars = Bars(*columns, console=Console(file=self._stream), transient=True)
            self._bars.start()
            self._total = self._bars.add_task("stages", total=len(self._names), note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, line: str) -> None:
        """Print a line that stays, with control and direction characters escaped."""
        if self._bars is not None:
            self._bars.console.print(printable(line), highlight=False, markup=False)
        else:
            print(printable(line), file=self._stream, flush=True)

    def tell(self, event: Event) -> None:
        """Update the display by an event of the scheduler."""
        name = self._names.get(event.digest, event.digest[:12])
        self._follow(event)
        if event.kind in ("made", "reused", "failed", "blocked"):
            self._settle(event)
        elif event.kind == "lost":
            # Cells that depend on it stay done, although it is made again.
            self._rest += self._seconds.get(event.text, 0.0)
            self.say(f"corrupted: {self._names.get(event.text, event.text[:12])}; it is made again")
        if event.kind == "failed":
            self.say(f"failed: {name}: {event.text}")
        elif event.kind == "again":
            self.say(f"{event.text}: {name} is tried once more")
        elif event.kind == "noted":
            self.say(f"{name}: {event.text}")
        elif event.kind == "busy":
            self.say(f"another run makes {name}; its result will be shared")
        if self._bars is not None:
            self._draw(event, name)
        elif event.kind in ("made", "progress") and time.monotonic() - self._said > _EVERY:
            self._said = time.monotonic()
            detail = (
                f"{event.text} {event.done}/{event.total}" if event.kind == "progress" else f"{event.seconds:.1f} s"
            )
            self.say(f"{self.summary()} | {name}: {detail}")

    def summary(self) -> str:
        """Return one line: cells, stages, reused stages, rate and time left."""
        done = self._outcome.count
        made = len(self._outcome.made)
        parts = [f"cells {self._cells_done}/{self._cells}", f"stages {done}/{len(self._names)}"]
        parts.append(f"reused {len(self._outcome.present) - made}")
        elapsed = time.monotonic() - self._began
        if made:
            parts.append(f"{made / elapsed * 60:.1f} stages/min")
        if done < len(self._names):
            parts.append(f"about {duration(self._left())} left")
        return ", ".join(parts)

    def _follow(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind in ("started", "again"):
            self._under_way[event.digest] = now, 0.0
        elif event.kind == "progress":
            began, share = self._under_way.get(event.digest, (now, 0.0))
            # A stage may have several loops; the longest is taken for the whole.
            done = min(event.done / event.total, 1.0) if event.total else 0.0
            self._under_way[event.digest] = began, max(share, done)
        elif event.kind != "noted":
            self._under_way.pop(event.digest, None)

    def _left(self) -> float:
        spent, expected, rest, now = self._spent, self._expected, self._rest, time.monotonic()
        for digest, (began, share) in self._under_way.items():
            done = share * self._seconds.get(digest, 0.0)
            if done > 0:
                spent, expected, rest = spent + now - began, expected + done, rest - done
        prior = min(_PRIOR, sum(self._seconds.values()))
        slower = (spent + prior) / (expected + prior) if prior > 0 else 1.0
        return max(rest, 0.0) * slower / self._workers

    def _settle(self, event: Event) -> None:
        self._rest -= self._seconds.get(event.digest, 0.0)
        if event.kind == "made":
            self._spent += event.seconds
            self._expected += self._seconds.get(event.digest, 0.0)
        for key in self._users.pop(event.digest, ()):
            self._waiting[key].discard(event.digest)
            self._cells_done += not self._waiting[key]

    def _draw(self, event: Event, name: str) -> None:
        assert self._bars is not None and self._total is not None
        done = self._outcome.count
        self._bars.update(self._total, completed=done, note=self.summary())
        if event.kind == "started":
            self._running[event.digest] = self._bars.add_task(f"  {printable(name)}", total=None, note="")
        task = self._running.get(event.digest)
        if task is None:
            return
        if event.kind == "progress":
            self._bars.update(task, completed=event.done, total=event.total, note=printable(event.text))
        elif event.kind not in ("started", "noted"):
            self._bars.remove_task(self._running.pop(event.digest))


def duration(seconds: float) -> str:
    """Return seconds in words.

    >>> duration(42), duration(200), duration(7000)
    ('42 s', '3 min', '1 h 57 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Return bytes in words.

    >>> size(512), size(3_400_000)
    ('512 B', '3.4 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
