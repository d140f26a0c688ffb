"""What strangers wrote in manifests and records cannot act on a reader's terminal, however long it is."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import synthetic
from immunebench.cli.common import print_columns
from immunebench.cli.report import lines
from immunebench.execution.executor import Event
from immunebench.execution.progress import Progress
from immunebench.execution.scheduler import Outcome

HOSTILE = "\x1b[31mred\x1b]0;title\x07 \u202eevil\u2066 line\nfeed\r\x9b"


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.splitlines())


def test_columns_escape_and_shorten(capsys: pytest.CaptureFixture[str]) -> None:
    print_columns([["id", "title"], ["a", HOSTILE], ["b", "x" * 10**6]])
    out = capsys.readouterr().out
    assert harmless(out) and len(out.splitlines()) == 3 and r"\x1b[31mred" in out and r"\u202eevil" in out
    assert len(out) < 5_000 and "characters left out" in out


def test_a_shown_record_escapes_every_field(tmp_path: Path) -> None:
    cell = synthetic.record().cell.model_copy(update={"defense_title": HOSTILE})
    record = synthetic.record().model_copy(
        update={"cell": cell, "reason": HOSTILE, "env": {HOSTILE: HOSTILE}, "artefacts": {"x": HOSTILE}}
    )
    shown = lines(record, tmp_path / HOSTILE)
    assert all(line.isprintable() for line in shown)
    assert sum(r"\u202eevil" in line for line in shown) >= 4


def test_a_shown_record_says_what_the_attack_was_kept_from(tmp_path: Path) -> None:
    """0.5 between a floor of 0.1 and a ceiling of 0.9: half of the gain."""
    (line,) = [line for line in lines(synthetic.record("shield", 0.5), tmp_path / "x") if line.startswith("P ")]
    assert line.startswith("P            0.50 of this seed (raw 0.500;")


def test_progress_escapes_what_stages_say() -> None:
    stream = io.StringIO()
    progress = Progress({"d": HOSTILE}, {}, {}, Outcome(), stream=stream)
    progress.tell(Event("failed", "d", HOSTILE))
    progress.tell(Event("noted", "d", HOSTILE))
    out = stream.getvalue()
    assert harmless(out) and len(out.splitlines()) == 2 and r"\x1b" in out


def test_time_left_is_not_that_of_a_first_stage_which_starts_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages of 240 s are left after one of 0.1 s that took 10; half of one is done after 240, twice its time."""
    clock = [0.0]
    monkeypatch.setattr("immunebench.execution.progress.time.monotonic", lambda: clock[0])
    seconds = {"a": 0.1, "b": 240.0, "c": 240.0}
    progress = Progress(dict.fromkeys(seconds, "n"), seconds, {}, Outcome(), stream=io.StringIO())
    progress.tell(Event("started", "a"))
    progress.tell(Event("made", "a", seconds=10.0))
    assert "about 9 min left" in progress.summary()  # (10 + 120) / (0.1 + 120) of 480 s, not 100 times as much
    progress.tell(Event("started", "b"))
    clock[0] = 240.0
    progress.tell(Event("progress", "b", "training", 5, 10))
    assert "about 9 min left" in progress.summary()  # (250 + 120) / (120.1 + 120) of 360 s
    clock[0] = 480.0
    progress.tell(Event("made", "b", seconds=480.0))
    assert "about 7 min left" in progress.summary()  # (490 + 120) / (240.1 + 120) of 240 s


def test_ctrl_c_while_the_command_line_is_imported_shows_no_traceback(tmp_path: Path) -> None:
    # A module that the command line imports stands for any: it sends the signal at that moment.
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "immunebench", "list"], capture_output=True, text=True, env=environment, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
