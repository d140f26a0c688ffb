"""`benchmarks/gpu.py` on a CPU: a figure is on the disk as it comes, a failure costs itself, a stopped run goes on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import script

ROOT = Path(__file__).parents[2]


GPU, WHEELS = script("gpu"), script("repack_wheel")


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    yield
    logging.disable(logging.NOTSET)


def run(out: Path, *options: str) -> list[dict[str, Any]]:
    """What lines there are after a run; the process of these tests may be old."""
    GPU.main(["--device", "cpu", "--shape", "sd14-narrow", "--out", str(out), "--minutes", "10000", *options])
    return lines(out)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "gpu.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_the_whole_rehearsal_on_a_processor(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--shape", "sd14-narrow", "--minutes", "10"]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    about, *rows = lines(tmp_path)
    named = {(section, name) for section, names in about["plan"].items() for name in names}
    assert {(row["section"], row["name"]) for row in rows} == named
    by = {row["name"]: row for row in rows}
    assert {row["status"] for row in rows} == {"fits", "ran", "over_memory"}
    assert by["cap too small"]["status"] == "over_memory"
    losses = {row["name"]: row["losses"] for row in rows if row["section"] == GPU.IMMA}
    plain, other = losses["reference"], losses["speed preset, other noise"]
    assert losses["memory preset, t4-16g"] == pytest.approx(plain, abs=1e-3)
    assert other != pytest.approx(plain, abs=1e-3)
    assert losses["reference, no TF32"] == plain
    equal = [row for row in rows if row["section"] == GPU.EQUAL]
    assert all(row["equal bytes"] and row["moved at all"] and row["moments"] in ("8bit", "float32") for row in equal)
    assert by["batch 4"]["TFLOP a step"] == pytest.approx(4 * by["batch 1"]["TFLOP a step"], abs=4e-6)
    page = (tmp_path / "gpu.md").read_text("utf-8")
    assert GPU.SELF_CHECK in page and "Not run" not in page
    assert json.loads((tmp_path / "gpu.json").read_text("utf-8"))["rows"] == rows
    assert (tmp_path / "gpu.png").stat().st_size > 10_000


def test_a_failure_costs_itself_and_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def fake(name: str, **figures: Any) -> Any:
        def measured(bench: Any) -> dict[str, Any]:
            ran.append(name)
            if name == "breaks" and ran.count(name) == 1:
                raise RuntimeError("no kernel\nfor it")
            return {"status": "ran", **figures}

        return GPU.Task(GPU.PEAKS if figures else GPU.GUARD, name, measured)

    tasks = [fake("a", peak=1.5), fake("breaks"), fake("b", peak=2.5), fake("c")]
    monkeypatch.setattr(GPU, "plan", lambda bench: tasks)
    monkeypatch.setattr(GPU.Bench, "begin", lambda bench: None)
    rows = run(tmp_path)[1:]
    assert [(row["name"], row["status"]) for row in rows] == [
        ("a", "ran"), ("breaks", "error"), ("b", "ran"), ("c", "ran"),
    ]  # fmt: skip
    assert rows[1]["reason"] == "RuntimeError: no kernel for it"
    assert "- breaks: RuntimeError: no kernel for it" in (tmp_path / "gpu.md").read_text("utf-8")

    # Cut off while the last line was written; only what has no line is measured, and what failed again.
    path = tmp_path / "gpu.jsonl"
    path.write_text(path.read_text("utf-8")[:-20], "utf-8")
    ran.clear()
    ran.append("breaks")
    rows = run(tmp_path, "--resume")[1:]
    assert ran == ["breaks", "breaks", "c"]
    assert [(row["name"], row["status"]) for row in rows] == [
        ("a", "ran"), ("breaks", "error"), ("b", "ran"), ("breaks", "ran"), ("c", "ran"),
    ]  # fmt: skip
    page = (tmp_path / "gpu.md").read_text("utf-8")
    assert "no kernel" not in page and "2.5" in page

    # What was measured elsewhere is not gone on from.
    with pytest.raises(SystemExit, match="the lines there have another what: shape of sd14-narrow"):
        GPU.main(["--device", "cpu", "--shape", "sdxl-narrow", "--out", str(tmp_path), "--resume"])


def test_the_page_is_made_when_the_time_is_up_and_without_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(bench: Any) -> dict[str, Any]:
        bench.ends = 0.0
        return {"status": "ran"}

    def cut(bench: Any) -> dict[str, Any]:
        clock = GPU.Clock(bench)
        bench.ends = 0.0
        clock()
        raise AssertionError("not reached")

    task = GPU.Task(GPU.GUARD, "first", slow)
    monkeypatch.setattr(GPU.Bench, "begin", lambda bench: None)
    monkeypatch.setattr(GPU, "plan", lambda bench: [task, GPU.Task(GPU.GUARD, "second", cut)])
    assert [row["name"] for row in run(tmp_path)[1:]] == ["first"]
    run(tmp_path, "--resume")
    page = (tmp_path / "gpu.md").read_text("utf-8")
    assert "Not run: Guard: second." in page
    for made in ("gpu.md", "gpu.json", "gpu.png"):
        (tmp_path / made).unlink()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    GPU.main(["--out", str(tmp_path), "--resume", "--minutes", "0"])
    assert (tmp_path / "gpu.md").read_text("utf-8") == page
    with pytest.raises(SystemExit, match="no CUDA device here"):
        GPU.main(["--out", str(tmp_path / "other")])


@pytest.mark.slow
def test_networks_come_back_untouched_and_as_each_profile_has_them(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--shape", "sd14-narrow", "--out", str(tmp_path), "--minutes", "10000"]
    bench = GPU.Bench(GPU.options(options))
    model = bench.model(bench.numerics(GPU.SPEED))
    before = {name: p.detach().clone() for name, p in model.unet_tensors("all").items()}
    GPU.stage(bench, "dreambooth", GPU.SPEED, steps=1)
    assert any(not torch.equal(p, before[name]) for name, p in model.unet_tensors("all").items())
    half = bench.model(GPU.dataclasses.replace(bench.numerics(GPU.SPEED), checkpointing=True, offload=True))
    assert half is model and half.unet.is_gradient_checkpointing and not half.autoencoder.on_device
    again = bench.model(bench.numerics(GPU.SPEED))
    assert not again.unet.is_gradient_checkpointing and again.autoencoder.on_device and again.text.resident.on_device
    assert all(torch.equal(p, before[name]) for name, p in again.unet_tensors("all").items())
    assert all(p.data_ptr() != again._pristine[name].data_ptr() for name, p in again.unet_tensors("all").items())


def test_a_repacked_wheel_holds_the_libraries_asked_for_and_a_record_of_them(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        for name in ("cpu", "cuda118", "cuda130"):
            packed.writestr(f"bitsandbytes/libbitsandbytes_{name}.so", name)
        packed.writestr("bitsandbytes/__init__.py", "")
        packed.writestr("bitsandbytes-1.dist-info/RECORD", "old")
    WHEELS.repack(wheel, ["cpu", "cuda130"])
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        record = packed.read("bitsandbytes-1.dist-info/RECORD").decode()
    assert not any("118" in name for name in names)
    assert [row.split(",")[0] for row in record.splitlines()] == names
    assert "libbitsandbytes_cuda130.so,sha256=" in record and record.endswith("RECORD,,\n")


def test_the_wheels_that_travel_are_those_of_the_lock() -> None:
    lock = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    wanted = [line.split()[0] for line in (ROOT / "benchmarks" / "gpu_wheels.txt").read_text("utf-8").splitlines()
              if line and not line.startswith("#")]  # fmt: skip
    assert wanted and set(wanted) <= {line.split()[0] for line in lock if line.strip()}
