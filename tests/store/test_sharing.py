"""A store that several machines share: leases, two processes on one folder, and object storage."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from immunebench.core.errors import UsageError
from immunebench.execution.executor import Inline, perform
from immunebench.execution.scheduler import execute
from immunebench.store import artifacts
from immunebench.store.artifacts import CorruptArtifact, Store, open_at
from immunebench.store.leases import FolderBoard, Lease
from immunebench.store.remote import Remote
from immunebench.store.sharing import share
from toy_stages import Toy, add, graph

SPAWN = multiprocessing.get_context("spawn")


def chain(log: Path, count: int = 6, seconds: float = 0.0) -> dict[str, Toy]:
    more = {"do": "sleep", "seconds": seconds} if seconds else {}
    specs = [Toy("pictures", {"value": 1, "log": str(log), **more})]
    for value in range(2, count + 1):
        specs.append(Toy("adapt", {"value": value, "log": str(log), **more}, {"x": specs[-1].digest}))
    side = [Toy("score", {"value": value, "log": str(log), **more}) for value in range(100, 100 + count)]
    return graph(*specs, *side)


def drive(location: str, log: str, cache: str, seconds: float) -> None:
    os.environ["IMMUNEBENCH_CACHE"] = cache
    store = open_at(location)
    execute(chain(Path(log), seconds=seconds), store, Inline(store, add))


def made(log: Path) -> list[int]:
    return sorted(int(line.split()[0]) for line in log.read_text().splitlines())


EVERY = sorted([1, 2, 3, 4, 5, 6, *range(100, 106)])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_is_taken_over_only_after_its_owner_was_silent_for_its_time(tmp_path: Path) -> None:
    clock, board = Clock(), FolderBoard(tmp_path)
    gone = Lease(board, "a", 10.0, clock=clock)
    assert board.create("a", gone._text()), "as a process that was killed leaves it"
    other = Lease(board, "a", 10.0, clock=clock)
    for now in (0.0, 9.0):
        clock.now = now
        with pytest.raises(Timeout), other.acquire(timeout=0):
            pass
    gone.beat()  # It lives after all: the time starts anew.
    for now in (9.5, 19.0):
        clock.now = now
        with pytest.raises(Timeout), other.acquire(timeout=0):
            pass
    clock.now = 20.0
    with other.acquire(timeout=0):
        assert other.held() and not gone.held()
        gone.beat()
        assert other.held(), "the one that lost it does not take it back"
    assert list(tmp_path.iterdir()) == [], "a lease that ended leaves nothing"


def test_a_network_that_says_no_more_than_no_is_asked_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, usual = FolderBoard(tmp_path), os.link

    def refused(*of: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    def unheard(*of: Any) -> None:
        usual(*of)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unheard)
    assert board.create("a", "mine"), "the link was made, only its answer got lost"
    monkeypatch.setattr(os, "link", refused)
    assert not board.create("a", "yours"), "somebody has it"
    with pytest.raises(PermissionError):
        board.create("b", "mine")
    assert board.read("a") == "mine" and [file.name for file in tmp_path.iterdir()] == ["a"]


def test_what_a_network_shows_from_its_memory_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share(tmp_path / "s", 10.0)
    store, specs = Store(tmp_path / "s"), chain(tmp_path / "log", 1)
    execute(specs, store, Inline(store, add))
    [digest, *_] = specs
    shown = ["value.json is missing", "value.json is missing", "value.json differs from its hash"]
    monkeypatch.setattr(artifacts, "artifact_fault", lambda folder: shown.pop() if shown else None)
    other = Store(tmp_path / "s")
    assert other.get(digest) == store.path(digest) and not shown, "it is there, after a while"


def test_an_input_that_a_network_shows_late_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share(tmp_path / "s", 10.0)
    store, specs = Store(tmp_path / "s"), chain(tmp_path / "log", 2)
    first, second = list(specs.values())[:2]
    execute(graph(first), store, Inline(store, add))
    hidden, usual = [True, True], Store.path
    monkeypatch.setattr(
        Store, "path", lambda self, of: None if of == first.digest and hidden and hidden.pop() else usual(self, of)
    )
    event = perform(store, second, add, lambda event: None, wait=True)
    assert event.kind == "made" and not hidden and made(tmp_path / "log") == [1, 2]


def test_a_lease_that_is_being_written_is_somebody_s(tmp_path: Path) -> None:
    """A file that was created and has no text yet, as object storage in a folder shows it for a moment."""
    clock, board = Clock(), FolderBoard(tmp_path)
    clock.now = 1e6
    (tmp_path / "a").touch()
    other = Lease(board, "a", 10.0, clock=clock)
    for clock.now in (1e6, 1e6 + 9):
        with pytest.raises(Timeout), other.acquire(timeout=0):
            pass
    clock.now = 1e6 + 20
    with other.acquire(timeout=0):
        assert other.held(), "its owner died before it wrote"


def beats(folder: Path, name: str = "a") -> int:
    text = FolderBoard(folder).read(name)
    return -1 if text is None else int(json.loads(text)["beat"])


def until_it_beats(folder: Path, times: int) -> None:
    """Wait until an owner has shown that many times that it lives, however slow the machine is."""
    began, end = beats(folder), time.monotonic() + 60
    while beats(folder) < began + times:
        assert time.monotonic() < end, "the owner is silent"
        time.sleep(0.01)


def test_a_lease_is_reentrant_and_keeps_beating(tmp_path: Path) -> None:
    board = FolderBoard(tmp_path)
    lease, other = Lease(board, "a", 0.4), Lease(board, "a", 600.0)
    with lease.acquire():
        with lease.acquire(timeout=0):
            until_it_beats(tmp_path, 3)
        assert lease.held(), "the inner block does not end it"
        with pytest.raises(Timeout), other.acquire(timeout=0):
            pass
        until_it_beats(tmp_path, 3)
    with other.acquire(timeout=0):
        assert other.held()


def _hold(folder: str) -> None:
    with Lease(FolderBoard(Path(folder)), "a", 0.5).acquire():
        time.sleep(600)


def test_a_killed_owner_holds_nothing_for_longer_than_its_lease(tmp_path: Path) -> None:
    process = SPAWN.Process(target=_hold, args=(str(tmp_path),))
    process.start()
    until_it_beats(tmp_path, 3)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    clock, last = Clock(), beats(tmp_path)
    other = Lease(FolderBoard(tmp_path), "a", 0.5, clock=clock)
    for clock.now in (0.0, 0.5):
        with pytest.raises(Timeout), other.acquire(timeout=0):
            pass
    assert beats(tmp_path) == last, "a killed owner does not beat"
    clock.now = 0.6
    with other.acquire(timeout=0):
        assert other.held()


def test_what_a_store_says_of_its_sharing_binds_everybody(tmp_path: Path) -> None:
    share(tmp_path, 30.0)
    store = Store(tmp_path)
    with store.lock("ab"):
        assert (tmp_path / "leases" / "ab").is_file()
        with pytest.raises(Timeout), Store(tmp_path).lock("ab", wait=False):
            pass
    with pytest.raises(UsageError, match=r"store.json: says otherwise"):
        share(tmp_path, 60.0)
    (tmp_path / "store.json").write_text('{"lease_seconds": "long"}')
    with pytest.raises(UsageError, match="lease_seconds: must be seconds"):
        Store(tmp_path)


def test_collection_spares_what_another_machine_uses(tmp_path: Path) -> None:
    share(tmp_path / "s", 30.0)
    store = Store(tmp_path / "s")
    specs = chain(tmp_path / "log", 2)
    execute(specs, store, Inline(store, add))
    with Store(store.root).using(specs):
        assert store.gc([])[0] == 0
    assert store.gc([])[0] == len(specs)


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_two_drivers_with_caches_of_their_own_make_nothing_twice_and_lose_nothing(tmp_path: Path, kind: str) -> None:
    location = str(tmp_path / "shared")
    if kind == "folder":
        share(tmp_path / "shared", 60.0)
    else:
        location = f"file://{location}"
    drivers = [
        SPAWN.Process(target=drive, args=(location, str(tmp_path / "log"), str(tmp_path / f"cache{n}"), 0.1))
        for n in range(2)
    ]
    for process in drivers:
        process.start()
    for process in drivers:
        process.join(60)
    assert [process.exitcode for process in drivers] == [0, 0]
    assert made(tmp_path / "log") == EVERY
    if kind == "url":
        assert not list((tmp_path / "shared" / "leases").glob("*"))
        assert len(list((tmp_path / "shared" / "manifests").glob("*/*"))) == len(EVERY)


def test_files_of_a_folder_are_written_once_and_whole_as_objects_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec looks whether a file is there and then writes it, and empties one before it writes it anew."""
    from fsspec.implementations.local import LocalFileSystem

    board = Remote(f"file://{tmp_path}")
    monkeypatch.setattr(LocalFileSystem, "exists", lambda *_, **__: False)
    assert board.create("a", "mine") and not board.create("a", "yours") and board.read("a") == "mine"
    with (tmp_path / "leases" / "a").open() as reader:
        board.write("a", "mine still")
        assert reader.read() == "mine", "who reads meanwhile has the old text, not a part of the new one"
    assert board.read("a") == "mine still"
    board.remove("a")
    assert board.read("a") is None and not list((tmp_path / "leases").iterdir())


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An object store in this process."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("IMMUNEBENCH_CACHE", str(tmp_path / "cache"))
    yield f"memory://{tmp_path.name}"
    MemoryFileSystem.store.clear()


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: str) -> Store:
    """The same object store, as another machine sees it."""
    monkeypatch.setenv("IMMUNEBENCH_CACHE", str(tmp_path / "other"))
    return open_at(remote)


def test_what_one_machine_made_another_reads_and_never_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: str
) -> None:
    here = open_at(remote)
    specs = chain(tmp_path / "log")
    assert len(execute(specs, here, Inline(here, add)).made) == len(specs)
    there = elsewhere(tmp_path, monkeypatch, remote)
    assert there.root != here.root
    outcome = execute(specs, there, Inline(there, add))
    assert outcome.present == set(specs) and not outcome.made
    assert not list(there.artifacts()), "nothing is downloaded that nobody reads"
    last = next(reversed(specs))
    folder = there.get(last)
    assert folder is not None and json.loads((folder / "value.json").read_text()) == 105
    assert there.manifest(last) == here.manifest(last)


def test_failures_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: str) -> None:
    here, broken = open_at(remote), Toy("adapt", {"value": 1, "do": "raise"})
    execute(graph(broken), here, Inline(here, add))
    there = elsewhere(tmp_path, monkeypatch, remote)
    note = there.failure(broken.digest)
    assert note is not None and note["message"] == "this stage is broken"
    there.clear_failure(broken.digest)
    assert there.failure(broken.digest) is None


@pytest.mark.parametrize("part", ["blobs", "manifests"])
def test_damaged_objects_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: str, part: str
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    here, specs = open_at(remote), chain(tmp_path / "log", 2)
    execute(specs, here, Inline(here, add))
    for name, file in MemoryFileSystem.store.items():
        if f"/{part}/" in name:
            file.seek(0)
            file.write(b"\x00\x01")
    there = elsewhere(tmp_path, monkeypatch, remote)
    (tmp_path / "log").unlink()
    with pytest.warns(CorruptArtifact):
        more = Toy("score", {"value": 7}, {"x": list(specs)[1]})
        outcome = execute({**specs, more.digest: more}, there, Inline(there, add))
    assert outcome.present == {*specs, more.digest}
    folder = there.get(more.digest)
    assert folder is not None and json.loads((folder / "value.json").read_text()) == 10


def test_equal_files_are_uploaded_once(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    sent: list[str] = []
    usual = MemoryFileSystem.put_file

    def put_file(self: Any, local: str, place: str, *rest: Any, **more: Any) -> None:
        sent.append(place)
        usual(self, local, place, *rest, **more)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    store = open_at(remote)
    execute(graph(*(Toy("score", {"value": 5, "of": n}) for n in range(4))), store, Inline(store, add))
    assert len(sent) == 1


def test_a_shared_object_store_is_not_collected(remote: str) -> None:
    with pytest.raises(UsageError, match="nobody knows what other machines need"):
        open_at(remote).gc([])


def test_a_protocol_without_its_library_is_said() -> None:
    with pytest.raises(UsageError, match="--store: "):
        open_at("nosuch://bucket")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3 server on this machine."""
    pytest.importorskip("s3fs", reason="needs s3fs")
    server = pytest.importorskip("moto.server", reason="needs moto[server]").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("IMMUNEBENCH_CACHE", str(tmp_path / "cache"))
    import s3fs

    s3fs.S3FileSystem().mkdir("shared")
    yield "s3://shared/immunebench"
    server.stop()


@pytest.mark.filterwarnings("ignore")
def test_two_drivers_on_s3_make_nothing_twice_and_list_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str
) -> None:
    import s3fs

    asked: list[str] = []
    usual = s3fs.S3FileSystem._call_s3

    async def call(self: Any, method: str, *rest: Any, **more: Any) -> Any:
        asked.append(method)
        return await usual(self, method, *rest, **more)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
    log, specs = tmp_path / "log", chain(tmp_path / "log", seconds=0.1)
    other = SPAWN.Process(target=drive, args=(bucket, str(log), str(tmp_path / "cache1"), 0.1))
    other.start()
    store = open_at(bucket)
    outcome = execute(specs, store, Inline(store, add))
    other.join(60)
    assert other.exitcode == 0 and outcome.present == set(specs)
    assert made(log) == EVERY
    assert "put_object" in asked and not [method for method in asked if "list" in method]
