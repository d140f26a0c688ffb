"""Entries that reach for what is not theirs: files, the environment, processes, the network, the clock, the store.

Each is run in every box that this machine has. Either the attempt fails in the entry's own line, or it has no effect:
the artifact is that of the honest entry, and nothing else changed.
"""

from __future__ import annotations

import os
import time

import psutil
import pytest
from conftest import HONEST, TASK, World, indented

#: Everything that a cheat may raise is swallowed, so that what it achieved is looked at alone.
TRY = """
def attempt(what):
    try:
        return what()
    except BaseException as error:
        return error
"""


_honest: dict[str, dict[str, str]] = {}


def honest(world: World, *, again: bool = False) -> dict[str, str]:
    """Files of the entry that does not cheat, by their SHA-256; made once for each box."""
    if again or world.boxes.kind not in _honest:
        assert world.cheat("pass") == ""
        _honest[world.boxes.kind] = world.files(world.spec())
    return _honest[world.boxes.kind]


def harmless(world: World, code: str) -> None:
    """Assert that a cheat comes to the honest bytes and leaves everything else as it was."""
    expected, before = honest(world), world.snapshot()
    assert world.cheat(TRY + code) == ""
    assert world.files(world.spec()) == expected
    assert world.snapshot() == before


def test_files_of_the_evaluation_other_entries_and_results_are_not_there(world: World) -> None:
    root = str(world.root)
    harmless(
        world,
        f"""
from pathlib import Path
import immunebench
package = Path(immunebench.__file__).parent
wanted = [
    "{root}/tasks/style/style-a.toml", "{root}/results/tiny/none@1.jsonl", "{root}/defenses/shield/defense.py",
    "{root}/defenses/cheat/defense.py", "{root}/models.toml", "{root}/weights/judge.safetensors",
    package / "suites/mini-smoke.toml", package / "mini/weights/judges/reader.safetensors", "/etc/passwd",
    package / "mini/weights/mini/unet/config.json", package.parent.parent / "tasks/style/style-solano.toml",
    *Path(ctx.out).parent.parent.parent.parent.glob("pictures/*/*/manifest.json"),
]
wanted += [p for p in Path(ctx.out).parent.rglob("manifest.json")]
seen = [str(path) for path in wanted if isinstance(attempt(lambda: open(path, "rb").read(1)), bytes)]
assert not seen, seen
""",
    )


def test_the_environment_the_parent_s_memory_and_the_concept_s_name_are_not_there(world: World) -> None:
    harmless(
        world,
        f"""
import gc, os
secret, task = "hunter2-" + "of-the-parent", "{TASK[:12]}" + "{TASK[12:]}"
texts = [str(dict(os.environ))]
for pid in ("self", os.getppid(), 1):
    for name in ("environ", "cmdline", "maps"):
        text = attempt(lambda: open(f"/proc/{{pid}}/{{name}}", "rb").read())
        texts.append(text.decode("latin-1") if isinstance(text, bytes) else "")
for thing in gc.get_objects():
    if type(thing) is dict:
        texts += [value for value in thing.values() if isinstance(value, str)]
found = [text[:200] for text in texts if secret in text or task in text or "the-secret-name" in text]
own = [text for text in found if "hunter2-" in text and "def protect_model" in text]
assert len(found) == len(own), found
assert concepts[0].id.startswith("concept-") and task not in repr(concepts[0].id)
""",
    )


def test_a_concept_has_another_name_in_every_run_and_the_same_bytes(world: World) -> None:
    harmless(world, f'assert concepts[0].id != "{TASK}"')


def test_nobody_is_killed_watched_or_outlived(world: World) -> None:
    harmless(
        world,
        """
import ctypes, os, signal, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
for pid in (os.getppid(), 1, -1, 0):
    assert isinstance(attempt(lambda: os.kill(pid, signal.SIGKILL)), OSError), pid
assert isinstance(attempt(os.fork), OSError)
assert isinstance(attempt(lambda: subprocess.run(["/bin/sleep", "97531"])), OSError)
assert isinstance(attempt(lambda: os.execv("/bin/sleep", ["sleep", "97531"])), OSError)
ptrace, process_vm_readv = 101, 310
if os.uname().machine == "x86_64":
    assert libc.syscall(ptrace, 16, os.getppid(), 0, 0) == -1
    assert libc.syscall(process_vm_readv, os.getppid(), 0, 0, 0, 0, 0) == -1
    assert libc.syscall(272, 0x10000000) == -1  # unshare: a new namespace, to be root in
    assert libc.syscall(165, b"none", b"/", b"tmpfs", 0, 0) == -1  # mount
    assert libc.syscall(321, 0, 0, 0) == -1 and ctypes.get_errno() == 1  # bpf
assert libc.prctl(1, 0, 0, 0, 0) == -1  # to live on when the parent dies
""",
    )
    assert not [p for p in psutil.process_iter(["cmdline"]) if "97531" in (p.info["cmdline"] or [])]


def test_there_is_no_network(world: World) -> None:
    harmless(
        world,
        """
import socket
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    assert isinstance(attempt(lambda: socket.socket(family)), OSError)
assert isinstance(attempt(socket.socketpair), OSError)
""",
    )


def test_store_results_and_entries_cannot_be_written(world: World) -> None:
    root, store = str(world.root), str(world.store.root)
    harmless(
        world,
        f"""
import os
from pathlib import Path
for place in ("{root}/results/tiny/none@1.jsonl", "{root}/defenses/shield/defense.py", "{root}/new", "{store}/score/x",
              "{store}/forged", "{store}/locks/x", "/tmp/forged-by-a-cheat", "/forged", "/dev/shm/forged-by-a-cheat"):
    attempt(lambda: Path(place).parent.mkdir(parents=True, exist_ok=True))
    attempt(lambda: Path(place).write_text("forged"))
    attempt(lambda: os.chmod(place, 0o000))
for file in Path(ctx.out).parent.rglob("*.png"):
    attempt(lambda: file.write_bytes(b"forged"))
""",
    )
    for place in ("/tmp/forged-by-a-cheat", "/forged", "/dev/shm/forged-by-a-cheat", f"{store}/forged"):
        assert not os.path.exists(place), place


def test_what_is_patched_in_the_process_stays_there(world: World) -> None:
    harmless(
        world,
        """
import torch, json, pathlib
from immunebench.execution import stages, grading, admission, tensors
from immunebench.model import optim, diffusion
for module in (stages, grading, admission, tensors):
    for name in list(vars(module)):
        if callable(getattr(module, name)) and name not in ("call_hook", "named", "Weights"):
            pass
stages.adapt = stages.generate = grading.run_score = admission.admit = lambda *a: {}
torch.optim.AdamW.step = lambda self, *a: None
torch.isfinite = lambda tensor: torch.ones(1, dtype=torch.bool)
open(pathlib.Path(ctx.out).parent / "tmp" / "left.pyc", "w").write("x")
""",
    )
    before = dict(honest(world))
    world.store.fail(world.spec(), "error", "", "")
    assert honest(world, again=True) == before


def test_the_clock_is_the_parent_s(world: World) -> None:
    began = time.monotonic()
    assert (
        world.cheat("""
import time
time.sleep(0.6)
for name in ("time", "monotonic", "perf_counter", "process_time"):
    setattr(time, name, lambda: 1e9)
""")
        == ""
    )
    cost = world.store.manifest(world.spec().digest)
    assert cost is not None and 0.6 <= cost["cost"]["seconds"] <= time.monotonic() - began


def test_what_it_prints_reaches_no_terminal(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    line = world.cheat("""
import os, sys
for stream in (sys.stdout, sys.stderr):
    stream.write("\\x1b]0;owned\\x07" * 1000)
os.write(1, b"\\x1b[2J" * 100_000)
raise ValueError("\\x1b[31mred\\x07 \\u202e backwards")
""")
    out, err = capfd.readouterr()
    assert "\x1b" not in out + err and "cheat/defense.py, line" in line
    note = world.store.failure(world.spec().digest)
    assert note is not None and len(note["traceback"]) < 50_000


def test_a_box_is_named_in_the_manifest(world: World) -> None:
    honest(world, again=True)
    manifest = world.store.manifest(world.spec().digest)
    assert manifest is not None and manifest["meta"]["box"] == world.boxes.kind


def test_what_an_entry_leaves_running_ends_with_its_stage_without_a_box_too(any_world: World) -> None:
    """Where there is a box, the entry cannot start it in the first place."""
    any_world.cheat("""
import os, subprocess
try:
    subprocess.Popen(["/bin/sleep", "86421"], start_new_session=True)
except OSError:
    pass
""")
    assert not [p for p in psutil.process_iter(["cmdline"]) if "86421" in (p.info["cmdline"] or [])]


def test_code_in_files_that_are_not_hashed_is_not_there(any_world: World) -> None:
    code = 'import pathlib\nhere = pathlib.Path(__file__).parent\nexec((here / "README.md").read_text())'
    folder = any_world.entry(HONEST.replace("{cheat}\n", indented(code)))
    (folder / "README.md").write_text("raise SystemExit")
    line = any_world.run(any_world.spec())
    assert "FileNotFoundError" in line and line.endswith("(cheat/defense.py, line 13)")
