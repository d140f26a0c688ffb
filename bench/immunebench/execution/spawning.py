"""What must hold of the running program before worker processes are spawned.

A spawned process imports the program's main module first. Without the usual guard that module would start the run
again, and a program read from standard input is no file that could be imported.
"""

from __future__ import annotations

import ast
import multiprocessing.resource_tracker
import signal
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from immunebench.core.errors import UsageError

_GUARD = 'if __name__ == "__main__":'
#: Names that a guard against running in a spawned process refers to.
_GUARDS = frozenset({"__name__", "current_process"})


def require_spawnable() -> None:
    """Refuse to spawn where the processes could not start.

    Raises
    ------
    UsageError
        The program is read from standard input, or its main module calls this outside a guard.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    named = getattr(main, "__file__", None)
    if spec is not None and spec.name.rpartition(".")[2] == "__main__":
        return  # `python -m package`: a spawned process imports no main module.
    if spec is None and named is None:
        return  # An interactive session, a notebook or `python -c`: likewise.
    file = Path(str(named or getattr(spec, "origin", "")))
    if not file.is_file():
        reason = "more than 1 needs a program that is a file, since each worker process imports it; this one is"
        raise UsageError(reason, field="workers", value=str(named))
    line = _running_line(main)
    if line is not None and not _is_guarded(file, line):
        reason = f"more than 1 needs the guard {_GUARD} around this call, since each worker process imports the program"
        raise UsageError(reason, file=f"{file}:{line}", field="workers")


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold back Ctrl-C: a process that is started meanwhile inherits that, until it handles the signal itself."""
    # It is started with the first process, and lets interrupts through once it runs.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _running_line(main: types.ModuleType) -> int | None:
    """Return the line of the main module's own code that is being executed, None where none is."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals is main.__dict__:
            return frame.f_lineno
        frame = frame.f_back
    return None


def _is_guarded(file: Path, line: int) -> bool:
    """Return whether a condition on how the program was started stands in the main module up to a line."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return True  # Not to be judged; a worker that cannot start is reported.
    tests = (node.test for node in ast.walk(tree) if isinstance(node, ast.If) and node.lineno <= line)
    return any(_GUARDS & {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(test)} for test in tests)
