"""Intervals, tie groups, tracks and gates of the board against hand-made answers and scipy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.scores.measurement import Further, Measurement
from immunebench.board.scores.model import Board
from immunebench.board.tables.finding import finding
from immunebench.board.tables.layout import markdown
from immunebench.declared import scoring

FAMILIES = ("style", "object", "identity", "relearn")


def cell(defense: str, task: str, p: float, **changes: Any) -> Measurement:
    """A cell with floor 0 and an undefended gain of 1, so that A and P are `p`; pictures spread by 0.02."""
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


def test_ranks_and_intervals_of_a_suite_with_enough_tasks() -> None:
    # the twin is better on one task of each family and worse on the other
    twin = [c for c in suite({"twin": 0.79}, spread=-0.05) if c.defense == "twin"]
    board = aggregate(suite({"strong": 0.8, "weak": 0.3}) + twin)
    assert ranks(board) == {"strong": 1, "twin": 1, "weak": 2}
    for found in board.rows:
        assert found.a_interval is not None and found.a is not None
        assert found.a_interval[0] <= found.a <= found.a_interval[1]
    assert row(board, "none").a_interval == (0.0, 0.0)
    assert row(board, "strong").not_apart == ("twin",) and row(board, "weak").not_apart == ()
    assert row(board, "strong").u_interval == pytest.approx((1.0, 1.0))
    assert row(board, "strong").area.family_interval == {}, "two tasks are too few for a family of its own"
    assert row(board, "strong").scores[0].a == pytest.approx(0.78)
    assert board.smallest_difference is not None and 0.0 < board.smallest_difference < 0.5
    assert "95% intervals of A" in board.interval_rule and "Holm" in board.interval_rule
    assert "strong is not told apart from twin" in markdown(board, "t")


def test_paired_rows_are_told_apart_where_their_own_intervals_overlap() -> None:
    board = aggregate(suite({"better": 0.55, "worse": 0.5}, spread=0.2))
    better, worse = row(board, "better"), row(board, "worse")
    assert worse.a_interval[1] > better.a_interval[0]
    assert (better.rank, worse.rank) == (1, 2)


@pytest.mark.parametrize("families", [("style", "object"), ("style",) * 3 + ("object",)])
def test_too_few_tasks_have_neither_interval_nor_rank(families: tuple[str, ...]) -> None:
    names = [f"{family}-{i}" for i, family in enumerate(families * 2)][:4]
    names += ["identity-single", "style-more"] if len(families) == 4 else []
    board = aggregate([part for name in names for part in (cell("none", name, 0.0), cell("a", name, 0.5))])
    assert row(board, "a").a_interval is None
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
    assert row(board, "part").a_interval is None


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
    assert broken.a == pytest.approx(0.8)
    assert broken.area.best_response == pytest.approx(0.2)
    assert "brittle" in broken.badges
    assert broken.rank is None
    assert row(board, "b").incomplete == (), "an attack run against one entry is not asked of the others"
    assert row(board, "b").rank == 1
    equal = row(aggregate(cells + ladder(0.8)), "a")
    assert "brittle" not in equal.badges
    assert equal.rank == 1


def test_a_public_base_is_in_no_headline() -> None:
    public = row(aggregate(suite({"a": 0.8}) + ladder(0.1, "restore+lora")), "a")
    assert (public.a, public.area.public_base) == pytest.approx((0.8, 0.1))
    assert public.area.best_response is None
    assert "brittle" not in public.badges


def test_matched_is_a_on_the_attack_that_the_defense_names() -> None:
    cells = suite({"a": 0.8}) + ladder(0.3, "dreambooth")
    cells = [dataclasses.replace(c, against=("lora",)) if c.defense == "a" else c for c in cells]
    found = row(aggregate(cells), "a")
    assert (found.a, found.area.matched) == pytest.approx((0.3, 0.8))


def test_a_model_is_gated_by_the_upper_end_of_its_utility() -> None:
    """U of 0.79 in the mean, whose interval reaches 0.8, is no proof of harm; 0.6 everywhere is."""

    def use(mean: float, wave: float) -> list[Measurement]:
        cells = [c for c in suite({"a": 0.5}) if c.defense == "a"]
        return [dataclasses.replace(c, benign=0.1 + 0.8 * (mean + wave * (-1) ** i)) for i, c in enumerate(cells)]

    none = [c for c in suite({}) if c.defense == "none"]
    doubtful, harmful = row(aggregate(none + use(0.79, 0.1)), "a"), row(aggregate(none + use(0.6, 0.1)), "a")
    assert doubtful.u == pytest.approx(0.79) and doubtful.rank == 1 and doubtful.flags == ()
    assert harmful.u_interval[1] < 0.8 and harmful.rank is None and "utility gate" in harmful.flags


def test_an_invalidated_record_counts_as_missing() -> None:
    cells = suite({"a": 0.8})
    cells[-1] = dataclasses.replace(cells[-1], status="invalidated")
    found = row(aggregate(cells), "a")
    assert found.p is None
    assert found.incomplete == (f"{cells[-1].task}/lora: a record is missing",)


def test_the_noise_of_seeds_is_said_where_none_has_several() -> None:
    cells = suite({"a": 0.5})
    assert "one seed" not in aggregate(cells).interval_rule
    # the three seeds' means are 1, 1.1 and 0.9: standard deviation 0.1, pictures explain almost nothing of it
    more = [
        cell("none", f"{f}-{t}", -shift, seed=seed, m_none=tuple(1.0 + shift + x for x in (-0.02, 0.02, 0.0, 0.0)))
        for f in FAMILIES
        for t in range(2)
        for seed, shift in ((1, 0.1), (2, -0.1))
    ]
    assert "would move the similarity of one task by 0.10" in aggregate(cells + more).interval_rule


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
    assert found["ism0@1"].p == pytest.approx(0.5)


def test_statistics_do_not_depend_on_the_order_of_records() -> None:
    cells = suite({"a": 0.52, "b": 0.5, "c": 0.3}, spread=0.1)
    shuffled = [cells[i] for i in np.random.default_rng(5).permutation(len(cells))]
    assert aggregate(cells) == aggregate(shuffled)


def test_roles_of_chains() -> None:
    assert scoring.role("jpeg50+lora") == "headline"
    assert scoring.role("lora-tuned") == "headline"
    assert scoring.role("lora-lr-x3") == "ladder"
    assert scoring.role("jpeg50+lora-rank-x16") == "ladder"
    assert scoring.role("adaptive-lora") == "ladder"
    assert scoring.role("merge-back+lora") == "public base"


def test_the_sentence_is_on_what_its_interval_tells_from_none() -> None:
    """A high mean of tasks that disagree comes after a low one of tasks that agree."""
    data: dict[str, Any] = {"kind": "data", "changes_images": True, "changes_model": False, "fidelity": 0.9}
    wild = [c for c in suite({"wild": 0.45}, spread=0.9, **data, linf=8.0, budget=8.0) if c.defense == "wild"]
    board = aggregate(suite({"steady": 0.3}) + wild)
    assert row(board, "wild").a > row(board, "steady").a
    assert row(board, "wild").a_interval[0] < 0 < row(board, "steady").a_interval[0]
    said = finding(board)
    assert said.startswith("steady partly stops the lora attack: it takes away 30%")
    assert "ranked apart: wild (data, Linf 8) 45%, not told from none;" in said
    restyled = suite({"restyle-20": 0.25}, **data, linf=90.0, perceptual_budget=0.2, changes={"perceptual": 0.15})
    restyled = [dataclasses.replace(c, kind="control") for c in restyled if c.defense != "none"]
    beside = finding(aggregate([*suite({"steady": 0.3}), *restyled]))
    assert "; restyling them without optimisation (perceptual 0.2) 25%;" in beside
