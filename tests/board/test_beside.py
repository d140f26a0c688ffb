"""Measures beside the score: their means, their flag and their table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.scores.beside import collapsed, overall
from immunebench.board.scores.integrity import Share, integrity_share
from immunebench.board.scores.measurement import Beside, Measurement
from immunebench.board.tables.layout import markdown
from immunebench.records.record import Integrity, Measured


def cell(defense: str = "shield", task: str = "style-a", seed: int = 0, **beside: float) -> Measurement:
    """A cell that is half protected, with measures beside its score."""
    m = 0.9 if defense == "none" else 0.5
    values: dict[str, Any] = {"m_def": (m, m), "m_none": (0.9, 0.9), "m_floor": (0.1, 0.1), "g": 0.8, "g_base": 0.8}
    return Measurement(
        task=task,
        family="style",
        defense=defense,
        chain="lora",
        kind="control" if defense == "none" else "model",
        seed=seed,
        benign=0.9,
        benign_floor=0.1,
        benign_ceiling=0.9,
        beside=Beside(**beside),
        **values,
    )


def integrity(before: list[float], floor: list[float], ceiling: list[float]) -> Integrity:
    sides = {"before": before, "floor": floor, "ceiling": ceiling}
    found = {name: Measured(mean=float(np.mean(v)), values=tuple(v), n=len(v)) for name, v in sides.items()}
    return Integrity(**{name: {"perceptual@1": measured} for name, measured in found.items()})


def test_integrity_is_held_against_what_rounding_and_another_noise_change() -> None:
    rng = np.random.default_rng(0)
    f0, f1 = rng.uniform(0, 0.01, 40), rng.uniform(0.4, 0.6, 40)
    assert integrity_share(integrity([*f0], [*f0], [*f1])) == Share(0.0, 0.0, 0.0)
    whole = integrity_share(integrity([*f1], [*f0], [*f1]))
    assert whole is not None and (whole.low, whole.value, whole.high) == pytest.approx((1, 1, 1))
    # A quarter of the way on average, unevenly over the prompts: scipy's bootstrap of the ratio of means agrees.
    i = f0 + 0.25 * (f1 - f0) * rng.uniform(0, 2, 40)
    found = integrity_share(integrity([*i], [*f0], [*f1]))
    assert found is not None
    assert found.value == pytest.approx((i - f0).mean() / (f1 - f0).mean())
    expected = scipy.stats.bootstrap(
        (i - f0, f1 - f0), lambda a, b, axis: a.mean(axis) / b.mean(axis), paired=True, n_resamples=4000,
        method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_without_a_floor_and_a_ceiling_there_is_no_such_scale() -> None:
    assert integrity_share(Integrity(before=None, after_benign=None)) is None
    assert integrity_share(integrity([0.1, 0.2], [0.3, 0.3], [0.3, 0.2])) is None, "another noise changes no more"
    assert integrity_share(integrity([0.1, 0.2], [0.0], [0.3])) is None


def test_a_measure_is_the_mean_over_tasks_of_what_is_known() -> None:
    cells = [
        cell(seed=0, prompt_accuracy=1.0, nearest=0.2),
        cell(seed=1, prompt_accuracy=0.5),
        cell(task="style-b", prompt_accuracy=0.25),
    ]
    # Two seeds of one task count as one task: ((1 + 0.5) / 2 + 0.25) / 2.
    assert overall(cells) == Beside(prompt_accuracy=0.5, nearest=0.2)
    assert overall([cell()]) == Beside()


@pytest.mark.parametrize(("parts", "flagged"), [((0.5, 0.5), False), ((1.0, 0.25), True), ((0.0, 0.5), False)])
def test_a_row_is_flagged_where_more_than_half_of_a_tasks_pictures_collapse(
    parts: tuple[float, float], flagged: bool
) -> None:
    attacked = [cell(seed=seed, collapse=part) for seed, part in enumerate(parts)]
    fine = [cell(task="style-b", seed=seed, collapse=0.0) for seed in (0, 1)]
    assert collapsed([*attacked, *fine]) == (["style-a"] if flagged else [])
    none = [cell("none", seed=seed, task=task) for seed in (0, 1) for task in ("style-a", "style-b")]
    row = aggregate([*none, *attacked, *fine]).row("shield")
    assert row is not None
    assert ("collapsed" in row.flags) == flagged
    assert row.p == pytest.approx(0.5), "no score depends on it"


def test_the_table_stands_on_the_board_where_anything_was_measured() -> None:
    measured = cell(prompt_accuracy=0.75, prompt_chance=0.125, nearest=0.25, collapse=0.0, integrity_before=0.5)
    page = markdown(aggregate([cell("none"), measured]), "t")
    (line,) = (line for line in page.partition("## Beside the score")[2].splitlines() if line.startswith("| shield "))
    assert [part.strip() for part in line.strip("|").split("|")] == [
        "shield", "0.75", "0.12", "0.25", "-", "0.00", "-", "-", "0.50", "-", "-", "-", "-", "-", "-", "-",
    ]  # fmt: skip
    assert "Beside the score" not in markdown(aggregate([cell("none"), cell()]), "t")
