"""What the machine does to a stage is no failure of the entry: said, and tried again once it is put right."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from immunebench.core.types import StageError
from immunebench.execution.executor import Event, Inline
from immunebench.execution.failures import stage_failure
from immunebench.execution.scheduler import execute
from immunebench.store.artifacts import Store
from toy_stages import Toy, add, graph

FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def from_entry(cause: Exception) -> StageError:
    error = StageError("error", f"shield: {cause}")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        from_entry(FULL),
        OSError(errno.ENOSPC, "No space left on device"),
        from_entry(OSError(errno.EDQUOT, "Disk quota exceeded")),
    ],
)
def test_a_full_disk_is_said_and_is_not_the_entry_s_failure(tmp_path: Path, error: Exception) -> None:
    failure = stage_failure(error, tmp_path)
    assert (failure.kind, failure.transient) == ("skipped", True)
    assert "the disk of the store is full" in failure.message and "make room" in failure.message


def test_another_disk_than_the_store_s_is_named(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/x/y.bin")
    assert "the disk of /scratch/x is full" in stage_failure(error, tmp_path).message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (SafetensorError("Error while deserializing header"), "error"),
        (from_entry(FileNotFoundError(errno.ENOENT, "No such file", "x")), "error"),
        (MemoryError(), "oom"),
        (StageError("timeout", "late"), "timeout"),
    ],
)
def test_what_an_entry_did_stays_its_failure(tmp_path: Path, error: Exception, kind: str) -> None:
    failure = stage_failure(error, tmp_path)
    assert (failure.kind, failure.transient) == (kind, False)


def test_a_run_continues_after_room_was_made(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {"value": 1})
    after = Toy("score", {"value": 1}, {"x": spec.digest})

    def full(*arguments: object) -> dict[str, object]:
        raise FULL

    (store.bookmark(spec.digest)).mkdir(parents=True)
    first = execute(graph(spec, after), store, Inline(store, full))
    assert first.failed[spec.digest].startswith("the disk of the store is full")
    assert store.bookmark(spec.digest).is_dir()
    again = execute(graph(spec, after), store, Inline(store, add))
    assert again.made == {spec.digest, after.digest}


def no_writing(path: Path) -> Callable[..., object]:
    def refuse(*arguments: object, **options: object) -> object:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    return refuse


def test_a_store_that_becomes_read_only_fails_its_stages_in_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "s")
    specs = [Toy("adapt", {"value": n}) for n in range(3)]
    events: list[Event] = []

    def tell(event: Event) -> None:
        events.append(event)
        if event.kind == "made":
            for name in ("mkdir", "unlink", "write_text"):
                monkeypatch.setattr(Path, name, no_writing(store.root))

    outcome = execute(graph(*specs), store, Inline(store, add), tell=tell)
    monkeypatch.undo()
    assert len(outcome.made) == 1 and len(outcome.failed) == 2
    assert all("can only be read" in line and "\n" not in line for line in outcome.failed.values())
    assert not any(store.failure(spec.digest) for spec in specs)
    assert execute(graph(*specs), store, Inline(store, add)).present == {spec.digest for spec in specs}


def test_an_exception_of_any_length_becomes_a_line(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Toy("adapt", {"value": 1})

    def shout(*arguments: object) -> dict[str, object]:
        raise ValueError("x" * 20_000_000)

    outcome = execute(graph(spec), store, Inline(store, shout))
    assert len(outcome.failed[spec.digest]) < 3_000
