"""What a box is made of: the filter of system calls as a machine of its own would run it, and carved folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from immunebench.api import require_box
from immunebench.box import choice, folders, landlock, seccomp
from immunebench.box.folders import Untidy
from immunebench.core.errors import UsageError

ALLOWED, EPERM, ENOSYS, KILLED = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
X86, ARM = 0xC000003E, 0xC00000B7


def verdict(steps: list[seccomp.Step], arch: int, number: int, *arguments: int) -> int:
    """Run a filter on one call, as the kernel does."""
    memory = {0: number, 4: arch, **{16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate(arguments)}}
    value, at = 0, 0
    while True:
        code, yes, no, operand = steps[at]
        at += 1
        match code:
            case 0x20:
                value = memory.get(operand, 0)
            case 0x06:
                return operand
            case 0x15:
                at += yes if value == operand else no
            case 0x35:
                at += yes if value >= operand else no
            case 0x45:
                at += yes if value & operand else no


@pytest.mark.parametrize(
    ("number", "arguments", "said"),
    [
        (0, (), ALLOWED), (1, (), ALLOWED), (9, (), ALLOWED), (202, (), ALLOWED),  # read, write, mmap, futex
        (41, (), EPERM), (57, (), EPERM), (59, (), EPERM), (101, (), EPERM), (165, (), EPERM), (321, (), EPERM),
        (56, (0x3D0F00,), ALLOWED),  # a thread
        (56, (0x1200011,), EPERM), (56, (0x10000000,), EPERM), (435, (), ENOSYS),
        (62, (77, 9), ALLOWED), (62, (1, 9), EPERM), (62, (-1, 9), EPERM), (234, (77, 80, 6), ALLOWED),
        (157, (1, 0), EPERM), (157, (15, 0), ALLOWED), (16, (0, 0x5412), EPERM), (16, (0, 0x5401), ALLOWED),
        (302, (0,), ALLOWED), (302, (5,), EPERM), (0x40000000 + 59, (), KILLED),
    ],
)  # fmt: skip
def test_calls_of_one_machine(number: int, arguments: tuple[int, ...], said: int) -> None:
    steps = seccomp.program(77, "x86_64")
    assert verdict(steps, X86, number, *arguments) == said
    assert len(steps) < 4096 and max(max(yes, no) for _, yes, no, _ in steps) < 256


@pytest.mark.parametrize(
    ("number", "arguments", "said"),
    [(63, (), ALLOWED), (198, (), EPERM), (221, (), EPERM), (117, (), EPERM), (220, (0x3D0F00,), ALLOWED),
     (220, (17,), EPERM), (129, (77,), ALLOWED), (129, (1,), EPERM)],
)  # fmt: skip
def test_calls_of_the_other(number: int, arguments: tuple[int, ...], said: int) -> None:
    assert verdict(seccomp.program(77, "aarch64"), ARM, number, *arguments) == said


def test_another_architecture_s_calls_are_not_looked_up() -> None:
    assert verdict(seccomp.program(77, "x86_64"), 0x40000003, 11) == KILLED  # execve of 32 bits


def test_a_folder_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("a/b/x", "a/c", "d"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/b/f").touch()
    parts = landlock.carved(tmp_path, [tmp_path / "a/b/x"])
    assert parts == [tmp_path / "a/b/f", tmp_path / "a/c", tmp_path / "d"]
    assert landlock.carved(tmp_path, [Path("/elsewhere")]) == [tmp_path]


def test_a_very_deep_folder_is_removed(tmp_path: Path) -> None:
    import os

    top, here = tmp_path / "deep", os.getcwd()
    top.mkdir()
    os.chdir(top)
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    folders.remove(top)
    assert not top.exists()


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("/etc/passwd")
    with pytest.raises(Untidy, match="'x', which is a symbolic link"):
        folders.regular_files(tmp_path, 10)
    with pytest.raises(Untidy, match="x cannot be read"):
        folders.read_file(tmp_path / "x", 10)


def test_a_box_that_does_not_exist_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "bubblewarp")
    with pytest.raises(UsageError, match="nearest: 'bubblewrap'"):
        choice.chosen()


def test_strangers_are_refused_where_there_is_no_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace
    from typing import Any

    from immunebench.store.artifacts import Store
    from immunebench.store.graph import StageSpec

    spec = StageSpec("adapt", {"entry": "mine", "entry_files": {"attack.py": "0" * 64}})
    plan: Any = SimpleNamespace(stages={spec.digest: spec})
    monkeypatch.setenv(choice.VARIABLE, "none")
    with pytest.raises(UsageError, match=r"entry: there is no box for its code here .* --trust: 'mine'"):
        require_box(plan, Store(tmp_path))
