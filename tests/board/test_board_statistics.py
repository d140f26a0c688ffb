"""Intervals, tie groups, tracks and gates of the board against hand-made answers and scipy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy import stats

from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.scores.measurement import Further, Measurement
from immunebench.board.scores.model import Board
from immunebench.board.statistics.bootstrap import TaskSample, mean_over_tasks, p_raw, resample, spread, tie_groups
from immunebench.board.tables.layout import markdown
from immunebench.declared import scoring

FAMILIES = ("style", "object", "identity", "relearn")


def cell(defense: str, task: str, p: float, **changes: Any) -> Measurement:
    """A cell with floor 0 and ceiling 1, so that P is `p`; pictures spread by 0.02 around the mean."""
    wave = (-0.02, 0.02, 0.0, 0.0)
    base = Measurement(
        task=task,
        family=task.split("-")[0],
        defense=defense,
        chain="lora",
        kind="control" if defense == "none" else "model",
        m_def=tuple(1.0 - p + x for x in wave),
        m_none=tuple(1.0 + x for x in wave),
        m_floor=wave,
        g=0.81,
        g_base=0.81,
        benign=0.9,
        benign_floor=0.1,
        benign_ceiling=0.9,
    )
    return dataclasses.replace(base, **changes)


def suite(entries: dict[str, float], tasks: int = 2, spread: float = 0.02, **changes: Any) -> list[Measurement]:
    """`none` and entries of a given mean P on every family; tasks differ by `spread` alike for all entries."""
    cells = []
    for family in FAMILIES:
        for t in range(tasks):
            task, shift = f"{family}-{t}", spread * (2 * t - tasks + 1)
            cells.append(cell("none", task, 0.0))
            cells += [cell(name, task, p + shift, **changes) for name, p in entries.items()]
    return cells


def ranks(board: Board) -> dict[str, int | None]:
    return {row.defense: row.rank for row in board.rows if not row.control}


def row(board: Board, name: str) -> Any:
    found = board.row(name)
    assert found is not None
    return found


def test_mean_over_tasks_has_the_unbiased_spread_of_scipys_bootstrap() -> None:
    values = np.array([0.1, 0.4, 0.35, 0.8, 0.6, 0.2])
    ours = mean_over_tasks(values[None], ["style"] * 6).draws[:, 0]
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=1)
    assert ours.mean() == pytest.approx(values.mean(), abs=0.005)
    # scipy draws all six, which gives a variance too small by 5/6
    assert ours.std() == pytest.approx(theirs.standard_error * np.sqrt(6 / 5), rel=0.03)
    assert ours.std() == pytest.approx(values.std(ddof=1) / np.sqrt(6), rel=0.03)


def test_two_families_of_two_tasks_stretch_by_student_with_two_degrees() -> None:
    draws = np.random.default_rng(0).standard_normal(200_000)
    half = np.full(4, 0.5)
    # the tasks show all of the variance of 1
    assert spread(draws, half, 2) == pytest.approx((4.303, 4.303), rel=0.02)
    # they show a quarter; the rest is noise of pictures, of which one drawn task of two holds twice what a mean has
    assert spread(draws, half / 2, 2) == pytest.approx((4.303 * np.sqrt(0.375),) * 2, rel=0.02)


def noisy(values: np.ndarray, noise: float) -> list[TaskSample]:
    """Tasks of one family with these P of each row, shape (tasks, rows), and noisy pictures; floor 0, ceiling 1."""
    rng = np.random.default_rng(8)
    wave = noise * rng.standard_normal((*values.shape, 8))
    wave -= wave.mean(-1, keepdims=True)
    return [
        TaskSample(
            f"{t:02}",
            "style",
            ("lora",),
            np.zeros((1, 8)),
            np.ones((1, 1, 8)),
            (1 - values[t, :, None] + wave[t])[:, None, None],
        )
        for t in range(len(values))
    ]


def test_noise_of_pictures_that_the_tasks_show_already_is_counted_once() -> None:
    values = 0.5 + 0.1 * np.random.default_rng(4).standard_normal((12, 2))
    for noise in (0.0, 0.25):
        drawn = resample(noisy(values, noise))
        sem = stats.sem(values[:, 0])
        assert drawn.headline.interval(0) == pytest.approx(
            stats.t.interval(0.95, 11, values[:, 0].mean(), sem), abs=0.006
        )
        difference = values[:, 0] - values[:, 1]
        theirs = stats.ttest_1samp(difference, 0.0).confidence_interval()
        assert drawn.difference(0, 1) == pytest.approx((theirs.low, theirs.high), abs=0.008)


def test_tasks_that_are_alike_have_the_interval_of_their_pictures() -> None:
    drawn = resample(noisy(np.full((12, 1), 0.5), 0.2))
    pictures = 0.2 / np.sqrt(8 * 12)
    below, above = np.subtract(drawn.headline.interval(0), 0.5)
    assert (-below, above) == pytest.approx((stats.t.ppf(0.975, 11) * pictures,) * 2, rel=0.2)


def test_pictures_are_drawn_as_a_plain_resample_draws_them() -> None:
    rng = np.random.default_rng(3)
    shared = 0.3 * rng.standard_normal(12)
    floor, ceiling = 0.1 + shared, 0.9 + shared + 0.1 * rng.standard_normal(12)
    defended = 0.5 + shared + 0.2 * rng.standard_normal(12)
    sample = TaskSample("a", "style", ("lora",), floor[None], ceiling[None, None], defended[None, None, None])
    fast = p_raw(np.random.default_rng(1), sample, 20_000)[:, 0, 0]
    index = np.random.default_rng(2).integers(0, 12, (20_000, 12))
    gain = ceiling[index].mean(1) - floor[index].mean(1)
    plain = (ceiling[index].mean(1) - defended[index].mean(1)) / gain
    assert fast.mean() == pytest.approx(plain.mean(), abs=0.005)
    assert np.quantile(fast, [0.025, 0.5, 0.975]) == pytest.approx(np.quantile(plain, [0.025, 0.5, 0.975]), abs=0.01)


def test_a_draw_takes_the_minimum_over_chains_anew() -> None:
    # each chain is worse on one of two pictures, so a draw of one picture twice has P 0 where the estimate is 0.5
    floor, ceiling = np.zeros((1, 2)), np.ones((1, 2, 2))
    defended = np.array([[[[0.0, 1.0], [1.0, 0.0]]]])
    drawn = resample([TaskSample("a", "style", ("x", "y"), floor, ceiling, defended)], draws=4_000).headline
    assert drawn.estimate[0] == pytest.approx(0.5)
    assert set(np.round(drawn.draws[:, 0], 9)) == {0.0, 0.5}
    assert np.mean(drawn.draws == 0.0) == pytest.approx(0.5, abs=0.03)
    assert drawn.bias[0] < 0.0


def test_tie_groups_open_where_the_difference_excludes_zero() -> None:
    p = [0.9, 0.85, 0.7, 0.65, 0.5]

    def difference(one: int, other: int) -> tuple[float, float]:
        return p[one] - p[other] - 0.1, p[one] - p[other] + 0.1

    # 0.7 is told from 0.9 and opens group 2, which 0.65 joins; 0.5 is told from 0.7
    assert tie_groups(range(5), difference) == {0: 1, 1: 1, 2: 2, 3: 2, 4: 3}


def test_ranks_and_intervals_of_a_suite_with_enough_tasks() -> None:
    # the twin is better on one task of each family and worse on the other
    twin = [c for c in suite({"twin": 0.79}, spread=-0.05) if c.defense == "twin"]
    board = aggregate(suite({"strong": 0.8, "weak": 0.3}) + twin)
    assert ranks(board) == {"strong": 1, "twin": 1, "weak": 2}
    for found in board.rows:
        assert found.p_interval is not None
        assert found.p_interval[0] <= found.p <= found.p_interval[1]
    assert row(board, "none").p_interval == (0.0, 0.0)
    assert row(board, "strong").u_interval == pytest.approx((1.0, 1.0))
    assert row(board, "strong").p_family_interval == {}, "two tasks are too few for a family of its own"
    assert row(board, "strong").scores[0].interval is not None
    assert board.smallest_difference is not None and 0.0 < board.smallest_difference < 0.5
    assert "tie" not in board.interval_rule and "95% intervals" in board.interval_rule


def test_paired_rows_are_told_apart_where_their_own_intervals_overlap() -> None:
    board = aggregate(suite({"better": 0.55, "worse": 0.5}, spread=0.2))
    better, worse = row(board, "better"), row(board, "worse")
    assert worse.p_interval[1] > better.p_interval[0]
    assert (better.rank, worse.rank) == (1, 2)


@pytest.mark.parametrize("families", [("style", "object"), ("style",) * 3 + ("object",)])
def test_too_few_tasks_have_neither_interval_nor_rank(families: tuple[str, ...]) -> None:
    names = [f"{family}-{i}" for i, family in enumerate(families * 2)][:4]
    names += ["identity-single", "style-more"] if len(families) == 4 else []
    board = aggregate([part for name in names for part in (cell("none", name, 0.0), cell("a", name, 0.5))])
    assert row(board, "a").p_interval is None
    assert row(board, "a").rank is None
    assert "no interval, no ranks" in markdown(board, "t")
    assert board.smallest_difference is None


def test_ranks_stay_within_track_and_budget_class() -> None:
    data: dict[str, Any] = {"kind": "data", "changes_images": True, "changes_model": False, "fidelity": 0.9}
    cells = suite({"model-a": 0.8, "model-b": 0.2})
    for family in FAMILIES[:3]:
        for t in range(2):
            for name, p, change in (("d8", 0.3, 7.0), ("d16", 0.9, 16.0), ("d8-weak", 0.1, 8.0), ("d40", 0.9, 40.0)):
                cells.append(cell(name, f"{family}-{t}", p, **data, linf=change, budget=64.0))
    board = aggregate(cells)
    assert ranks(board) == {"model-a": 1, "model-b": 2, "d8": 1, "d8-weak": 2, "d16": 1, "d40": None}
    assert (row(board, "d8").track, row(board, "d8").budget_class) == ("data", 8)
    assert "Linf 8" in row(board, "d8").badges
    assert "no budget class" in row(board, "d40").badges


def test_entries_of_one_perceptual_budget_are_a_class_of_their_own() -> None:
    data: dict[str, Any] = {"kind": "data", "changes_images": True, "changes_model": False, "fidelity": 0.9}
    bounds = {"d8": {"linf": 8.0, "budget": 8.0}}
    bounds |= {f"cloak-{p}": {"linf": 90.0, "perceptual_budget": p / 100} for p in (5, 10)}
    bounds["cloak-5-weak"] = bounds["cloak-5"]
    means = {"d8": 0.9, "cloak-10": 0.8, "cloak-5": 0.5, "cloak-5-weak": 0.1}
    cells = suite({"model-a": 0.8, "model-b": 0.2})
    for family in FAMILIES[:3]:
        for t in range(2):
            cells += [cell(name, f"{family}-{t}", p, **data, **bounds[name]) for name, p in means.items()]
    board = aggregate(cells)
    found = {name: rank for name, rank in ranks(board).items() if not name.startswith("model")}
    assert found == {"d8": 1, "cloak-10": 1, "cloak-5": 1, "cloak-5-weak": 2}
    assert row(board, "cloak-5").budget_class == "LPIPS 0.05"
    assert row(board, "cloak-5").badges == ("LPIPS 0.05",)


def test_a_row_below_the_gate_or_incomplete_has_no_rank() -> None:
    cells = suite({"a": 0.5}) + [c for c in suite({"poor": 0.9}, g=0.05, benign=0.1) if c.defense == "poor"]
    cells += [c for c in suite({"part": 0.9}) if c.defense == "part" and c.task != "style-0"]
    board = aggregate(cells)
    assert ranks(board) == {"a": 1, "poor": None, "part": None}
    assert row(board, "part").incomplete == ("style-0/lora: a record is missing",)
    assert row(board, "part").p_interval is None


def test_an_entry_owes_the_tasks_of_its_track_that_none_has() -> None:
    cells = [c for c in suite({"alone": 0.5}) if c.defense == "none" or c.family != "relearn"]
    assert "relearn-0/lora: a record is missing" in row(aggregate(cells), "alone").incomplete
    erasure = [dataclasses.replace(c, kind="erasure") for c in suite({"esd": 0.1}) if c.defense == "esd"]
    cells = [c for c in suite({}) if c.defense == "none"] + [c for c in erasure if c.family == "relearn"]
    assert row(aggregate(cells), "esd").incomplete == ()


def ladder(p: float, chain: str = "lora-rank-x8") -> list[Measurement]:
    extra = [cell("none", f"{f}-{t}", 0.0, chain=chain) for f in FAMILIES for t in range(2)]
    return extra + [cell("a", f"{f}-{t}", p + 0.02 * (2 * t - 1), chain=chain) for f in FAMILIES for t in range(2)]


def test_a_weaker_best_response_is_brittle_and_unranked() -> None:
    cells = suite({"a": 0.8, "b": 0.5})
    board = aggregate(cells + ladder(0.2))
    broken = row(board, "a")
    assert broken.p == pytest.approx(0.8)
    assert broken.p_best_response == pytest.approx(0.2)
    assert "brittle" in broken.badges
    assert broken.rank is None
    assert row(board, "b").incomplete == (), "an attack run against one entry is not asked of the others"
    assert row(board, "b").rank == 1
    equal = row(aggregate(cells + ladder(0.8)), "a")
    assert "brittle" not in equal.badges
    assert equal.rank == 1


def test_blind_rungs_are_in_the_minimum_and_a_public_base_is_not() -> None:
    cells = suite({"a": 0.8})
    assert row(aggregate(cells + ladder(0.1, "lora-lr-x3")), "a").p == pytest.approx(0.1)
    public = row(aggregate(cells + ladder(0.1, "restore+lora")), "a")
    assert (public.p, public.p_public_base) == pytest.approx((0.8, 0.1))
    assert public.p_best_response is None
    assert "brittle" not in public.badges


def test_matched_is_p_on_the_attack_that_the_defense_names() -> None:
    cells = suite({"a": 0.8}) + ladder(0.3, "dreambooth")
    cells = [dataclasses.replace(c, against=("lora",)) if c.defense == "a" else c for c in cells]
    found = row(aggregate(cells), "a")
    assert (found.p, found.matched) == pytest.approx((0.3, 0.8))


def test_an_invalidated_record_counts_as_missing() -> None:
    cells = suite({"a": 0.8})
    cells[-1] = dataclasses.replace(cells[-1], status="invalidated")
    found = row(aggregate(cells), "a")
    assert found.p is None
    assert found.incomplete == (f"{cells[-1].task}/lora: a record is missing",)


def test_one_seed_takes_its_variance_from_further_seeds_of_none() -> None:
    cells = suite({"a": 0.5})
    assert "one seed, and none to take" in aggregate(cells).interval_rule
    # the three seeds' means are 1, 1.1 and 0.9: standard deviation 0.1, pictures explain almost nothing of it
    more = [
        cell("none", f"{f}-{t}", -shift, seed=seed, m_none=tuple(1.0 + shift + x for x in (-0.02, 0.02, 0.0, 0.0)))
        for f in FAMILIES
        for t in range(2)
        for seed, shift in ((1, 0.1), (2, -0.1))
    ]
    board = aggregate(cells + more)
    assert "standard deviation of 0.10" in board.interval_rule
    narrow, wide = row(aggregate(cells), "a").p_interval, row(board, "a").p_interval
    assert wide[1] - wide[0] > narrow[1] - narrow[0]


def test_further_metrics_have_their_own_p_and_turn_where_the_attack_lowers_them() -> None:
    def distance(c: Measurement) -> Measurement:
        # floor 10, undefended 2, defended 8: three quarters of the gain are stopped
        defended = 2.0 if c.defense == "none" else 8.0
        values = {name: tuple(m + x for x in (-0.1, 0.1)) for name, m in (("d", defended), ("n", 2.0), ("f", 10.0))}
        return dataclasses.replace(
            c, metric="ism0@1", further={"perceptual@1": Further(values["d"], values["n"], values["f"])}
        )

    found = row(aggregate(map(distance, suite({"a": 0.5}))), "a").by_metric
    assert found["perceptual@1"].p == pytest.approx(0.75)
    assert found["perceptual@1"].p_interval == pytest.approx((0.75, 0.75), abs=0.05)
    assert found["ism0@1"].p == pytest.approx(0.5)


def test_statistics_do_not_depend_on_the_order_of_records() -> None:
    cells = suite({"a": 0.52, "b": 0.5, "c": 0.3}, spread=0.1)
    shuffled = [cells[i] for i in np.random.default_rng(5).permutation(len(cells))]
    assert aggregate(cells) == aggregate(shuffled)


def test_roles_of_chains() -> None:
    assert scoring.role("jpeg50+lora") == "headline"
    assert scoring.role("lora-lr-x3") == "headline"
    assert scoring.role("jpeg50+lora-rank-x16") == "ladder"
    assert scoring.role("adaptive-lora") == "ladder"
    assert scoring.role("merge-back+lora") == "public base"
