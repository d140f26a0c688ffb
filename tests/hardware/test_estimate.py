"""Peaks by arithmetic: held against what the allocator counted, and against sums by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from immunebench.catalog.loading import default_catalog
from immunebench.cli.main import app
from immunebench.core.errors import UsageError
from immunebench.core.machine import GIB
from immunebench.core.types import Numerics
from immunebench.declared.architecture import SHAPES
from immunebench.hardware.capacity import Job, parameters, shortened, take_steps
from immunebench.hardware.estimate import Estimate, estimate
from immunebench.model import runtime
from immunebench.model.shapes import build, weights_gib
from scripts import script


def job(entry: str, kind: str = "attack", profile: str = "cpu", shape: str = "sd14-narrow") -> Job:
    return Job(entry, kind, profile, None, shape, 3)  # type: ignore[arg-type]


def allocated(job: Job, out: Path) -> float:
    """Return the peak in GiB that PyTorch's CPU allocator reports while the entry really takes its steps."""
    catalog = default_catalog()
    shape = SHAPES[str(job.shape)]
    numerics = Numerics.of(catalog.profile(job.profile).numerics(sampling=True))
    numerics = dataclasses.replace(numerics, resolution=shape.resolution)
    runtime.prepare_process(numerics)
    entry = catalog.attack(job.entry) if job.kind == "attack" else catalog.defense(job.entry).layers[0]
    model = build(shape, numerics)
    with torch.profiler.profile(profile_memory=True) as trace:
        take_steps(
            catalog, entry, job, model, shortened(parameters(catalog, entry, job), job.steps), out, lambda *_: None
        )
    now = most = 0
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / GIB + weights_gib(shape, numerics)


def test_the_estimate_is_what_the_allocator_counts(tmp_path: Path) -> None:
    assert estimate(job("lora")).peak_gib == pytest.approx(allocated(job("lora"), tmp_path), rel=0.1)


def test_the_command_needs_no_card_and_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Estimate("lora", "attack", "t4-16g", "shape of sd14", 14.5, 2.5612, 2.5, (11_500, 11_500))
    monkeypatch.setattr("immunebench.hardware.estimate.estimate", lambda job: found)
    asked = ["capacity", "t4-16g", "--estimate", "--shape-of", "sd14", "--entry", "lora"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "not a measurement" in " ".join(done.stdout.split())
    assert "2.56" in done.stdout and "11,500 " in done.stdout
    (row,) = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert (row["entry"], row["peak_gib"], row["fits"]) == ("lora", 2.5612, True)


def test_the_page_has_the_figures_of_the_committed_files() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "profiles.md").read_text("utf-8")
    section = page.partition("## Peaks by arithmetic")[2].partition("\n## ")[0]
    assert "Arithmetic, not a measurement" in section
    found = [line.split(" | ")[:3] for line in section.splitlines() if line.startswith("| ")]
    rows = json.loads((docs / "gpu" / "estimates.json").read_text("utf-8"))
    assert [[cell.strip("| ") for cell in row] for row in found[1:]] == [
        [row["entry"], f"{row['peak_gib']:.2f}", f"{row['steps_gib']:.2f}"] for row in rows
    ]
    counted = json.loads((docs / "gpu" / "launches.json").read_text("utf-8"))
    assert script("launches").table(counted["entries"]) in page
    assert all(row["fits"] and row["profile"] == "t4-16g" and row["model"] == "shape of sd14" for row in rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--base", "mini"], "--base"),
        (["--shape-of", "sd14-narrow", "--out", "x.md"], "--out"),
        ([], "an estimate needs a shape"),
    ],
)
def test_an_estimate_of_weights_is_refused(options: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["capacity", "t4-16g", "--estimate", *options])
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)
