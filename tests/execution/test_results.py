"""Writing records: nothing that is there is lost, and a worse outcome replaces no better one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import synthetic
from immunebench.board.loading.load import load_results
from immunebench.cli.report import find_records, referenced
from immunebench.core.errors import UsageError
from immunebench.execution.results import Results
from immunebench.records.files import Line, read_records
from immunebench.records.record import Record, Sheet
from immunebench.store.artifacts import Store

ONE, TWO, THREE = (synthetic.record("none", task=task, artefacts={"pictures": "b" * 64}) for task in ("a", "b", "c"))
NAME = "none@1.jsonl"


class Folder:
    """A results folder with what was said of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.said = path / "results", list[str]()
        self.store = Store(path / "store")
        self.path.mkdir()

    @property
    def file(self) -> Path:
        return self.path / NAME

    def results(self, **options: bool) -> Results:
        return Results(self.path, self.store, self.said.append, **options)

    def save(self, *records: Record, **options: bool) -> None:
        for record in records:
            self.results(**options).save(record, lambda: None)

    def check(self) -> None:
        graph = SimpleNamespace(facts=SimpleNamespace(defense_version=1))
        plan: Any = SimpleNamespace(cells=[ONE.cell], roots={ONE.cell.key: graph})
        self.results().check(plan)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.save(ONE, TWO)
    return made


def failed(record: Record, status: str = "timeout") -> Record:
    return record.model_copy(update={"status": status, "reason": "stopped", "scores": {}})


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("blank lines", lambda data: b"\n" + data.replace(b"\n", b"\n\n")),
        ("a mark of the byte order", lambda data: b"\xef\xbb\xbf" + data),
        ("ends of lines of Windows", lambda data: data.replace(b"\n", b"\r\n")),
        ("a line twice", lambda data: data + data),
    ],
)
def test_what_every_editor_may_leave_is_read_through(
    folder: Folder, name: str, spoil: Callable[[bytes], bytes]
) -> None:
    folder.file.write_bytes(spoil(folder.file.read_bytes()))
    folder.check()
    assert folder.said == []
    folder.save(THREE)
    assert set(map(key, read_records(folder.path))) == {ONE.cell.key, TWO.cell.key, THREE.cell.key}
    assert [path.name for path in folder.path.iterdir()] == [NAME]


def key(record: Record) -> str:
    return record.cell.key


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"<<<<<<< HEAD\n", "mark of a merge conflict"),
        (b'{"a": "\xe9"}\n', "is no UTF-8 text"),
        (b'{"a": \n', "Expecting value"),
        (b"{}\n", "is required and missing"),
        (b'{"a": ' + b"[" * 100_000 + b"\n", "recursion"),
        (b'{"a": ' + b"9" * 5_000 + b"}\n", "integer string conversion"),
        (b'{"suite": "mini', "the file ends within this line"),
    ],
)
def test_a_damaged_line_is_said_before_the_run_and_set_aside_by_it(folder: Folder, line: bytes, said: str) -> None:
    folder.file.write_bytes(folder.file.read_bytes() + line)
    before = folder.file.read_bytes()
    folder.check()
    assert folder.said[0].startswith(f"{folder.file}:3: ") and said in folder.said[0]
    assert folder.file.read_bytes() == before, "nothing changes before something was measured"
    records, problems = load_results(folder.path)
    assert [p.line for p in problems] == [3] and len(records) == 2, "the board reads the same lines"
    folder.save(THREE)
    assert len(read_records(folder.path)) == 3
    assert (folder.path / f"{NAME}.damaged").read_bytes() == line.strip() + b"\n"
    assert load_results(folder.path)[1] == []


def test_lines_that_disagree_on_a_cell_are_set_aside_both(folder: Folder) -> None:
    folder.file.write_bytes(folder.file.read_bytes() + failed(ONE).model_dump_json().encode() + b"\n")
    folder.save(THREE)
    assert set(map(key, read_records(folder.path))) == {TWO.cell.key, THREE.cell.key}
    assert len((folder.path / f"{NAME}.damaged").read_text().splitlines()) == 2


def test_a_file_that_cannot_be_read_is_refused_before_anything_is_computed(folder: Folder) -> None:
    folder.file.unlink()
    folder.file.mkdir()
    with pytest.raises(UsageError, match=rf"{NAME}: cannot be read: Is a directory"):
        folder.check()


@pytest.mark.parametrize("status", ["timeout", "error", "oom", "skipped"])
def test_a_worse_outcome_is_written_beside_the_record_and_said(folder: Folder, status: str) -> None:
    before = folder.file.read_bytes()
    folder.results().save(failed(ONE, status), lambda: pytest.fail("its sheet would replace the record's"))
    assert folder.file.read_bytes() == before
    (beside,) = read_records(folder.path / f"{NAME}.worse")
    assert beside.status == status
    assert f"the record with status ok stays, the new one ({status})" in folder.said[0]
    assert load_results(folder.path)[1] == [], "no board reads it"


def test_a_failure_replaces_a_record_only_if_asked_or_if_it_is_no_worse(folder: Folder) -> None:
    folder.save(failed(ONE), replace=True)
    assert {r.cell.key: r.status for r in read_records(folder.path)}[ONE.cell.key] == "timeout"
    folder.save(failed(ONE, "skipped"))
    assert {r.cell.key: r.status for r in read_records(folder.path)}[ONE.cell.key] == "timeout"
    folder.save(failed(ONE, "error"))
    assert {r.cell.key: r.status for r in read_records(folder.path)}[ONE.cell.key] == "error"
    folder.save(ONE)
    assert {r.cell.key: r.status for r in read_records(folder.path)}[ONE.cell.key] == "ok"
    # What was measured before the task changed says nothing of this measurement.
    folder.save(failed(ONE).model_copy(update={"comparability": "another"}))
    assert {r.cell.key: r.status for r in read_records(folder.path)}[ONE.cell.key] == "timeout"


def test_a_record_gets_its_sheet_when_it_is_written(folder: Folder) -> None:
    sheet = Sheet(file="sheets/x.png", sha256="0" * 64)
    assert folder.results().save(THREE, lambda: sheet).sheet == sheet
    assert {r.cell.key: r.sheet for r in read_records(folder.path)}[THREE.cell.key] == sheet


def test_show_and_collection_pass_over_a_damaged_line_and_lose_nothing_of_it(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.file.write_bytes(folder.file.read_bytes() + b'{"artefacts": {"x": "' + b"e" * 64 + b'\xe9"}}\n')
    ((_, found),) = find_records(ONE.cell.key, folder.path)
    assert found == ONE and f"passed over: {folder.file}:3: is no UTF-8 text" in capsys.readouterr().err
    assert {"e" * 64, "b" * 64} <= referenced(folder.path)


def test_a_run_reads_what_it_wrote_no_second_time_and_what_another_wrote_it_does(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    usual = Line.record

    def record(self: Line) -> Record:
        read.append(self.number)
        return usual(self)

    monkeypatch.setattr(Line, "record", record)
    mine = folder.results()
    several = [ONE.model_copy(update={"cell": ONE.cell.model_copy(update={"seed": seed})}) for seed in range(1, 9)]
    for one in several:
        mine.save(one, lambda: None)
    assert len(read) == 2, "the two that were there before"
    folder.save(THREE)  # Another run.
    assert len(read) == 2 + 10
    mine.save(failed(THREE), lambda: None)
    assert "the record with status ok stays" in folder.said[-1]
    monkeypatch.undo()
    there = read_records(folder.file)
    assert sorted(r.cell.key for r in there) == sorted(r.cell.key for r in [ONE, TWO, THREE, *several])
    assert next(r for r in there if r.cell.key == THREE.cell.key) == THREE
