"""The statistics behind published sentences on sweeps: by hand, and where noise alone must not become a finding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from immunebench.board.scores.measurement import Measurement
from scripts import script

ROOT = Path(__file__).parents[2]


SWEEPS, PRECISION, SHIFT = script("data_side"), script("precision"), script("latent_shift")


def cell(
    defense: str,
    m: list[float],
    task: str = "object-a",
    seed: int = 0,
    undefended: Sequence[float] = (1.0, 0.98, 1.02, 1.0) * 2,
    chain: str = "lora",
    **more: Any,
) -> Measurement:
    """Floor 0 and ceiling 1 of eight pictures each: P_raw of a picture is 1 - m."""
    kind = "control" if defense.startswith("none") else "data"
    return Measurement(
        task=task, family=task.split("-")[0], defense=defense, chain=chain, seed=seed, kind=kind,
        m_def=tuple(m), m_none=tuple(undefended), m_floor=(0.0, 0.02, -0.02, 0.0) * 2, **more,
    )  # fmt: skip


FLAT = [1.0, 0.98, 1.02, 1.0] * 2


def test_two_seeds_that_lie_apart_by_a_constant_have_its_square_as_variance() -> None:
    cells = [cell("none", [m + shift for m in FLAT], seed=seed) for seed, shift in ((0, 0.1), (1, -0.1))]
    assert SWEEPS.seed_variance(cells) == {"lora": pytest.approx(0.04, rel=1e-6)}


def test_pictures_that_scatter_are_no_noise_of_seeds() -> None:
    rng = np.random.default_rng(0)
    cells = [
        cell("none", list(1 + rng.normal(0, 0.1, 8)), task=f"object-{task}", seed=seed)
        for task in range(40) for seed in (0, 1)
    ]  # fmt: skip
    # The mean of eight gaps has the variance 2 * 0.01 / 8 = 0.0025 from the pictures alone, all of which goes.
    assert SWEEPS.seed_variance(cells)["lora"] < 0.001


def test_a_contrast_is_paired_and_a_failed_cell_counts_as_undefended() -> None:
    wild = [0.1, 1.9, 0.3, 1.7, 0.2, 1.8, 0.4, 1.6]
    cells = [
        cell("none", FLAT), cell("strong", [m - 0.5 for m in wild]), cell("weak", wild),
        cell("broken", [], status="oom", failed_part="defense"),
    ]  # fmt: skip
    found = SWEEPS.places(cells)
    still = SWEEPS.contrast(found, "strong", "weak", {"lora": 0.0})
    # Pictures scatter by 0.8 and the pairs not at all.
    assert (still["difference"], still["interval"]) == (0.5, [0.5, 0.5])
    low, high = SWEEPS.contrast(found, "strong", "weak", {"lora": 0.01})["interval"]
    assert (low, high) == (pytest.approx(0.5 - 0.196, abs=0.01), pytest.approx(0.5 + 0.196, abs=0.01))
    assert SWEEPS.headline(found, "broken") == 0.0
    assert SWEEPS.headline(found, "strong") == pytest.approx(0.5, abs=1e-6)


def test_seeds_of_a_contrast_are_paired_and_their_scatter_is_student_t() -> None:
    # Undefended the three seeds lie far apart; what the defense takes from each is .4, .5 and .6.
    cells = []
    for seed, base in enumerate((0.7, 1.0, 1.3)):
        none = [base] * 8
        cells += [cell("none", none, seed=seed, undefended=none)]
        cells += [cell("strong", [base - 0.4 - 0.1 * seed] * 8, seed=seed, undefended=none)]
        cells += [cell("weak", none, seed=seed, undefended=none)]
    found = SWEEPS.places(cells)
    made = SWEEPS.contrast(found, "strong", "weak", {"lora": 99.0})
    assert (made["difference"], made["seeds"]) == (0.5, 3)
    half = 4.303 * 0.1 / math.sqrt(3)  # Student's t of two degrees of freedom
    assert made["interval"] == [pytest.approx(0.5 - half, abs=0.02), pytest.approx(0.5 + half, abs=0.02)]
    assert SWEEPS.headline(found, "strong") == pytest.approx(0.5)


def test_one_seed_less_is_compared_over_what_both_have() -> None:
    cells = [cell("none", FLAT, seed=seed) for seed in (0, 1)]
    cells += [cell("one", [m - 0.3 for m in FLAT]), cell("one", [m - 0.9 for m in FLAT], seed=1), cell("other", FLAT)]
    made = SWEEPS.contrast(SWEEPS.places(cells), "one", "other", {"lora": 0.0})
    assert (made["difference"], made["interval"], made["seeds"]) == (0.3, [0.3, 0.3], 1)


def test_chains_of_one_entry_are_compared_by_task() -> None:
    cells = []
    for chain, kept in (("lora", 0.2), ("jpeg+lora", 0.7)):
        cells += [cell("none", FLAT, chain=chain), cell("mist", [kept] * 8, chain=chain)]
    own = SWEEPS.by_chain(SWEEPS.places(cells), "mist")
    # Cleaning gave the attacker half of the gain back.
    assert SWEEPS.contrast(own, "jpeg+lora", "lora", {"lora": 0.0})["difference"] == -0.5
    assert SWEEPS.headline(own, "jpeg+lora") == pytest.approx(0.3)


def test_the_noise_of_unequal_places_has_welchs_freedom() -> None:
    # One family of two places: one certain, one of variance 4 from three seeds; the mean has variance 1, two degrees.
    drawn = SWEEPS.seed_noise({"object": [(0.0, 2), (4.0, 2)]}, np.random.default_rng(0))
    assert float(np.quantile(drawn, 0.975)) == pytest.approx(4.303, rel=0.05)
    known = SWEEPS.seed_noise({"object": [(0.0, math.inf), (4.0, math.inf)]}, np.random.default_rng(0))
    assert float(np.quantile(known, 0.975)) == pytest.approx(1.96, rel=0.05)


def test_what_two_sets_are_odd_by_is_paired() -> None:
    wild = torch.tensor([0.1, 5.0, 0.3, 2.0, 0.2, 4.0])
    assert SHIFT.ratio(1.5 * wild, wild) == (pytest.approx(1.5), [1.5, 1.5])
    # One picture of six is odd: a draw holds it not at all or several times.
    value, (low, high) = SHIFT.ratio(torch.tensor([7.0, 1.0, 1.0, 1.0, 1.0, 1.0]), torch.ones(6))
    assert (value, low, high) == (2.0, 1.0, 4.0)


def test_precisions_are_paired_and_what_defenses_share_is_counted_once() -> None:
    place = [(defense, task, "lora", 0) for defense in ("a", "b") for task in ("s", "t")]
    one = {p: {"P": 0.5} for p in place} | {("none", "s", "lora", 0): {"P": 0.0}}
    # Both defenses move alike on a task: two places, not four, tell how sure the mean is.
    other = {p: {"P": 0.5 + (0.3 if p[1] == "s" else -0.1)} for p in place} | {("none", "s", "lora", 0): {"P": 9.0}}
    rows = {row["defense"]: row for row in PRECISION.paired(one, other, "P")}
    assert rows.keys() == {"a", "b", "all"}
    whole = rows["all"]
    assert (whole["pairs"], whole["difference"], whole["largest"]) == (4, 0.1, 0.3)
    assert whole["standard error"] == pytest.approx(np.std([0.3, -0.1], ddof=1) / math.sqrt(2), abs=1e-3)
    assert PRECISION.paired({}, {}, "P") == []
