"""What a small run of an entry finds, with stages of a few lines in the place of the entry's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import toy_stages
from immunebench.authoring import templates
from immunebench.catalog.loading import load_catalog
from immunebench.submission import conformance
from immunebench.submission.check import check_entry, entries_at


def found(folder: Path, protect: Callable[[Path], None], **options: Any) -> list[str]:
    """Return the codes of the findings where `protect` stands in for the entry's own stage."""

    def run_stage(spec: Any, inputs: dict[str, Path], out: Path, report: Any) -> dict[str, object]:
        made = toy_stages.every_stage(spec, inputs, out, report)
        if spec.stage == "protect" and spec.key["entry"] == "mine":
            protect(out)
        return made

    with entries_at(folder) as catalog:
        entry = catalog.defense("mine")
        return [one.code for one in conformance.conformance(entry, catalog, run_stage=run_stage, **options)]


@pytest.fixture
def entry(own_entries: Path) -> Path:
    templates.new_defense("mine", "model", load_catalog())
    return own_entries / "defenses" / "mine"


def weights(values: list[float]) -> Callable[[Path], None]:
    return lambda out: save_file({"a": np.array(values, np.float32)}, out / "weights.safetensors")


def test_sound_weights_have_no_finding(entry: Path) -> None:
    assert found(entry, weights([1.0, -2.0])) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_what_half_precision_cannot_hold_is_named(entry: Path, value: float) -> None:
    assert found(entry, weights([1.0, value])) == ["finite"]


def test_a_second_run_of_one_seed_must_give_the_same_bytes(entry: Path) -> None:
    count = itertools.count()
    assert found(entry, lambda out: weights([float(next(count))])(out)) == ["nondeterministic"]


def test_a_mask_is_no_picture(entry: Path) -> None:
    assert found(entry, lambda out: (out / "mask.json").write_text("{}") and None) == []


def test_a_failure_is_a_finding(entry: Path) -> None:
    def fail(out: Path) -> None:
        raise ValueError("it cannot be done")

    assert found(entry, fail) == ["run"]


def test_a_strangers_entry_is_not_run_where_there_is_no_box(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMMUNEBENCH_BOX", "none")
    monkeypatch.setattr(conformance, "_run", lambda *given: pytest.fail("it was run"))
    codes = [(one.code, one.severity) for one in check_entry(entry) if one.code != "unfinished"]
    assert ("box", "warning") in codes
