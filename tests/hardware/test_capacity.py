"""What an entry takes on a profile: real steps, one line for what cannot be measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from immunebench.board.loading import measured_capacity
from immunebench.board.loading.measured_capacity import Capacity
from immunebench.board.site import write_site
from immunebench.catalog.loading import load_catalog
from immunebench.cli import capacity as cli_capacity
from immunebench.cli.main import app
from immunebench.core.errors import UsageError
from immunebench.hardware import capacity
from immunebench.hardware.capacity import Job, jobs, measure, run, shortened
from immunebench.hardware.doctor import Gpu
from immunebench.records.demand import Demand

CATALOG = load_catalog()


def job(entry: str, kind: str = "attack", steps: int = 3) -> Job:
    return Job(entry, kind, "cpu", None, "sd14-narrow", steps)  # type: ignore[arg-type]


def card(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setattr(capacity, "cuda_devices", lambda: (Gpu("Card", gib),) if gib else ())


@pytest.mark.parametrize(
    ("entry", "kind"),
    [("lora", "attack"), ("dreambooth", "attack"), ("textual-inversion", "attack"), ("imma-dreambooth", "defense")],
)
def test_entries_take_their_steps_on_stable_diffusions_blocks(entry: str, kind: str) -> None:
    demand = run(job(entry, kind))
    assert (demand.status, demand.reason) == ("fits", "")
    assert demand.seconds is not None
    assert demand.seconds > 0
    assert 0.1 < demand.process_gib < demand.cap_gib


@pytest.mark.slow
def test_a_measurement_runs_in_a_process_of_its_own() -> None:
    (demand,) = measure([job("lora")])
    assert demand.status == "fits"


def test_what_passes_the_cap_is_said_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    small = CATALOG.profile("cpu").model_copy(update={"memory_gib": 0.05})
    monkeypatch.setattr(
        capacity,
        "default_catalog",
        lambda: SimpleNamespace(profile=lambda name: small, attack=CATALOG.attack, defense=CATALOG.defense),
    )
    demand = run(job("lora"))
    assert demand.status == "over_memory"
    assert "cap of 0.05 GiB" in demand.reason
    assert demand.process_gib > 0.05


def test_a_failing_entry_is_an_error_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "shortened", lambda values, steps: shortened({**values, "rank": "x"}, steps))
    demand = run(job("lora"))
    assert demand.status == "error"
    assert demand.reason.startswith("lora: TypeError")


def test_a_run_saves_at_its_last_step_whatever_the_preset_says() -> None:
    params = shortened({"steps": 1000, "saves": [250, 1000], "lr": 1.0}, 4)
    assert dict(params) == {"steps": 4, "saves": [4], "lr": 1.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"profiles": ["t4-16"]}, "nearest: 't4-16g'"),
        ({"profiles": ["t4-16g"]}, "no CUDA device"),
        ({"shape": "sd15x"}, "unknown shape"),
        ({"base": "mini"}, "exactly one of the two"),
        ({"shape": None}, "exactly one of the two"),
        ({"entries": ["imma-lorra"]}, "nearest: 'imma-lora'"),
        ({"entries": ["jpeg"]}, "trains no model"),
        ({"entries": ["mist"]}, "trains no model"),
        ({"steps": 2}, "at least 3"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    change: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(monkeypatch, 0)
    asked = {"profiles": ["cpu"], "base": None, "shape": "sd14-narrow", "entries": [], "steps": 4} | change
    with pytest.raises(UsageError, match=words) as caught:
        jobs(CATALOG, **asked)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_larger_card_stands_in_and_a_smaller_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 79.0)
    assert len(jobs(CATALOG, ["t4-16g", "a100-80g"], base=None, shape="sd14", entries=["lora"])) == 2
    with pytest.raises(UsageError, match="h200-141g"):
        jobs(CATALOG, ["h200-141g"], base=None, shape="sd14", entries=["lora"])


def test_a_cap_below_the_weights_is_refused_before_anything_is_built() -> None:
    small = CATALOG.profile("cpu").model_copy(update={"memory_gib": 1.0})
    catalog = SimpleNamespace(profile=lambda name, field: small, names=CATALOG.names, attack=CATALOG.attack)
    with pytest.raises(UsageError, match=r"weights alone take 4\.0"):
        jobs(catalog, ["cpu"], base=None, shape="sd14", entries=["lora"])  # type: ignore[arg-type]


def test_one_peak_is_held_against_every_cap_of_the_same_precision() -> None:
    profiles = list(CATALOG.profiles.values())
    demand = Demand("lora", "attack", "t4-16g", "shape of sd14", 14.5, "fits", allocator_gib=9.0)
    held = cli_capacity.holding(demand, profiles)
    assert held[0] in ("t4-16g", "v100-16g")
    assert {"t4-16g", "v100-16g"} <= set(held)
    assert "cpu" not in held
    larger = cli_capacity.holding(dataclasses.replace(demand, allocator_gib=20.0), profiles)
    assert not {"t4-16g", "v100-16g"} & set(larger)
    assert cli_capacity.holding(dataclasses.replace(demand, status="oom"), profiles) == []


def test_the_command_writes_a_page_and_prints_json(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    demand = Demand("lora", "attack", "cpu", "shape of sd14-narrow", 8.0, "fits", process_gib=0.5, seconds=0.25)
    monkeypatch.setattr(capacity, "measure", lambda planned: iter([demand] * len(planned)))
    page = tmp_path / "capacity.md"
    done = CliRunner().invoke(
        app, ["capacity", "cpu", "--shape-of", "sd14-narrow", "--entry", "lora", "--json", "--out", str(page)]
    )
    assert done.exit_code == 0, done.output
    (shown,) = json.loads(done.stdout)
    assert (shown["entry"], shown["process_gib"], shown["seconds"]) == ("lora", 0.5, 0.25)
    assert "| lora " in page.read_text()
    assert "0.50" in page.read_text()


PROFILES = list(CATALOG.profiles.values())


def page_of(*demands: Demand) -> Capacity:
    held = [cli_capacity.holding(demand, PROFILES) for demand in demands]
    return measured_capacity.measured(demands, held, "2026-11-24", "x86_64", {"torch": "2.15.0"})


def test_what_was_measured_is_read_back_and_nothing_else_is(tmp_path: Path) -> None:
    fits = Demand("lora", "attack", "t4-16g", "shape of sd14", 14.5, "fits", 9.0, 3.0, 0.25, 1, "H100", emulated=True)
    short = Demand("dreambooth", "attack", "t4-16g", "shape of sd14", 14.5, "oom", 14.5, reason="out of\nmemory")
    file = tmp_path / "capacity.md"
    measured_capacity.write(page_of(fits, short), file)
    assert measured_capacity.read(tmp_path / "none.json") is None
    again = measured_capacity.read(file.with_suffix(".json"))
    assert again == page_of(fits, short)
    assert "| lora       | t4-16g (emulated) | 14.5" in file.read_text()
    assert "- dreambooth on t4-16g: out of memory" in file.read_text()
    file.with_suffix(".json").write_text(file.with_suffix(".json").read_text().replace('"oom"', '"ok"'))
    with pytest.raises(UsageError, match=r"capacity\.json: rows\.1\.status: is not valid: 'ok'"):
        measured_capacity.read(file.with_suffix(".json"))
    file.with_suffix(".json").write_text("{" + "x" * 500)
    with pytest.raises(UsageError, match=r"capacity\.json: invalid JSON: ") as error:
        measured_capacity.read(file.with_suffix(".json"))
    assert "xxx" not in str(error.value)


def test_the_site_has_a_page_of_it_that_escapes_what_a_card_calls_itself(tmp_path: Path) -> None:
    demand = Demand("lora", "attack", "t4-16g", "shape of sd14", 14.5, "fits", 9.0, device="<script>x</script>")
    write_site([], tmp_path / "with", CATALOG, capacity=page_of(demand))
    write_site([], tmp_path / "without", CATALOG)
    page = (tmp_path / "with" / "capacity.html").read_text()
    assert "<script>x" not in page and "&lt;script&gt;x" in page
    assert "9.00" in page and "v100-16g" in page
    assert 'href="capacity.html"' in (tmp_path / "with" / "index.html").read_text()
    assert not (tmp_path / "without" / "capacity.html").exists()
    assert "capacity.html" not in (tmp_path / "without" / "index.html").read_text()
