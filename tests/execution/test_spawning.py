"""Programs that cannot start worker processes are refused before one is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CALL = """
from pathlib import Path
from immunebench.execution.scheduler import execute
from immunebench.execution.process_pool import Processes
from immunebench.store.artifacts import Store
from toy_stages import Toy, graph
def main():
    store, spec = Store("store"), Toy("adapt", {"value": 1, "do": "sleep", "seconds": SECONDS})
    print(len(execute(graph(spec), store, Processes(store, 2, "toy_stages:add")).made), "made")
"""


def program(call: str, seconds: float = 0) -> str:
    return CALL.replace("SECONDS", str(seconds)) + call


def started(folder: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        input=text,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )


def test_a_program_from_standard_input_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    done = started(tmp_path, "-", text=program("main()"))
    assert done.returncode == 1
    assert "UsageError: workers: more than 1 needs a program that is a file" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plain.py", "-m"])
def test_a_script_without_a_guard_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain.py").write_text(program("main()"))
    done = started(tmp_path, *(["-m", "plain"] if name == "-m" else [name]))
    assert done.returncode == 1
    assert 'plain.py:10: workers: more than 1 needs the guard if __name__ == "__main__":' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plain.py"]


@pytest.mark.parametrize(
    "guard", ['if __name__ == "__main__":', "if multiprocessing.current_process().name == 'MainProcess':"]
)
def test_a_guarded_script_runs(tmp_path: Path, guard: str) -> None:
    (tmp_path / "guarded.py").write_text(program(f"import multiprocessing\n{guard}\n    main()\n"))
    done = started(tmp_path, "guarded.py")
    assert (done.returncode, done.stdout) == (0, "1 made\n"), done.stderr


def test_workers_that_never_start_end_the_run_with_a_line(tmp_path: Path) -> None:
    # A condition that looks like a guard and is none.
    (tmp_path / "odd.py").write_text(program('if __name__ != "other":\n    main()\n'))
    done = started(tmp_path, "odd.py")
    assert done.returncode == 1 and "before its first stage, twice" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("store/failures/*"))


def test_ctrl_c_while_a_worker_starts_shows_no_traceback_of_it(tmp_path: Path) -> None:
    (tmp_path / "guarded.py").write_text(
        program(
            'if __name__ == "__main__":\n    print("now", flush=True)\n'
            "    try:\n        main()\n    except KeyboardInterrupt:\n        print('stopped')\n",
            seconds=600,
        )
    )
    for delay in (0.05, 0.3):
        process = subprocess.Popen(
            [sys.executable, "guarded.py"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
            # A run in the background hands on that it ignores the signal.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout is not None and process.stdout.readline() == "now\n"
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=300)
        assert (out, err) == ("stopped\n", "")
