"""Predictions of the literature: well formed, and each verdict comes out of made-up boards as it must."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import made_up
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.reading import measurement
from immunebench.catalog.loading import default_catalog
from immunebench.declared.schema import load
from immunebench.records.record import Erasure, Failure, Measured, Score
from scripts import script

findings = script("findings")
PAGE = (Path(__file__).parents[2] / "docs" / "predictions.md").read_text("utf-8")
TASKS = ("style-solano", "style-moreau", "object-mug", "object-house")
RELEARN = ("relearn-church", "relearn-mosaic", "relearn-fish")
FLOOR, CEILING = 0.1, 0.9


def cells(
    defense: str,
    ps: Iterable[float],
    tasks: Iterable[str] = TASKS,
    *,
    early: float = 0.0,
    released: float | None = None,
) -> list[Measurement]:
    """Cells with P(1) = `ps` by task, and P(1/2) more by `early`; a base that draws its concept wholly."""
    found = []
    for task, p in zip(tasks, ps, strict=True):
        ends = {n: CEILING - (CEILING - FLOOR) * (p + more) for n, more in ((60, early), (120, 0.0))}
        curve = {n: (m - 0.02, m + 0.02, m) for n, m in ends.items()}
        plain = {n: (CEILING - 0.02, CEILING + 0.02, CEILING) for n in ends}
        record = made_up.record(defense, task, "lora")
        (metric,) = record.scores
        made = {name: Score(values=at[120], n=3, mean=float(np.mean(at[120])), per_step=at)
                for name, at in (("own", curve), ("none", plain))}  # fmt: skip
        ceiling = record.baseline.ceiling
        assert ceiling is not None
        baseline = record.baseline.model_copy(
            update={"ceiling": ceiling.model_copy(update={"scores": {metric: made["none"]}})}
        )
        both = {name: Measured(values=(v,), n=1, mean=v) for name, v in (("base", 1.0), ("released", released or 0.0))}
        changes = {
            "scores": {metric: made["own"]}, "final_step": 120, "baseline": baseline,
            "erasure": None if released is None else Erasure(**both),
        }  # fmt: skip
        found.append(measurement(record.model_copy(update=changes)))
    return found


NONE = cells("none", [0.0] * 4)


def prediction(**fields: object) -> Any:
    base = {"id": "one", "statement": "s", "sources": ("x",), "suites": ("toy",), "sign": "+"}
    return findings.Prediction.model_validate(base | fields)


def outcome(made: Any, board: list[Measurement]) -> Any:
    return findings.judge_all([made], {"toy": board})["one", "toy"]


STRONG, WEAK, MIXED = [0.50, 0.60, 0.55, 0.65], [0.10, 0.15, 0.12, 0.20], [0.9, -0.7, 0.4, -0.2]


@pytest.mark.parametrize(
    ("a", "b", "verdict", "agrees"),
    [(STRONG, WEAK, "shown", True), (WEAK, STRONG, "contradicted", False), (MIXED, WEAK, "cannot be tested", False)],
)
def test_a_difference_is_paired_by_task_with_students_interval(
    a: list[float], b: list[float], verdict: str, agrees: bool
) -> None:
    made = prediction(
        a={"defense": "imma-lora", "score": "P", "at": 1.0}, b={"defense": "freeze-as-guard", "score": "P", "at": 1.0}
    )
    found = outcome(made, [*NONE, *cells("imma-lora", a), *cells("freeze-as-guard", b)])
    paired = np.subtract(a, b)
    half = stats.t.ppf(0.975, 3) * paired.std(ddof=1) / 2
    assert (found.verdict, found.agrees, found.tasks) == (verdict, agrees, 4)
    assert found.difference == pytest.approx(paired.mean())
    assert found.interval == pytest.approx((paired.mean() - half, paired.mean() + half))
    assert ("interval holds" in found.why) == (verdict == "cannot be tested")


def test_a_negative_sign_and_a_bound_turn_the_verdict() -> None:
    board = [*NONE, *cells("imma-lora", WEAK)]
    side = {"defense": "imma-lora", "score": "P", "at": 1.0}
    assert outcome(prediction(a=side, sign="-"), board).verdict == "contradicted"
    assert outcome(prediction(a=side, sign="-", least=-0.3), board).verdict == "shown", "it is below 0.3"
    assert outcome(prediction(a=side, least=0.3), board).verdict == "contradicted", "it is not above 0.3"


@pytest.mark.parametrize(("within", "verdict"), [(0.3, "shown"), (0.05, "contradicted"), (0.14, "cannot be tested")])
def test_changing_little_means_inside_the_bound_on_both_sides(within: float, verdict: str) -> None:
    made = prediction(a={"defense": "imma-lora", "score": "P", "at": 1.0}, sign=None, within=within)
    assert outcome(made, [*NONE, *cells("imma-lora", WEAK)]).verdict == verdict


def test_a_protection_that_fades_is_read_at_two_lengths() -> None:
    side = {"defense": "imma-lora", "score": "P"}
    made = prediction(a={**side, "at": 0.5}, b={**side, "at": 1.0})
    fading = outcome(made, [*NONE, *(c for p, t in zip(WEAK, TASKS, strict=True) for c in cells(
        "imma-lora", [p], [t], early=0.2 + p / 10))])  # fmt: skip
    assert fading.verdict == "shown" and fading.difference == pytest.approx(0.2 + np.mean(WEAK) / 10)
    never = prediction(a={**side, "at": 2.0})
    assert "no P" in outcome(never, [*NONE, *cells("imma-lora", WEAK)]).why, "no such length was trained"


def test_an_erasure_is_held_against_the_base_before_and_after() -> None:
    """Base 1, released 0.2, attacked 0.58, 0.54 and 0.50: E falls from 0.8 to 0.42, 0.46 and 0.50."""
    side = {"defense": "esd", "score": "E"}
    made = prediction(a={**side, "at": 0.0}, b={**side, "at": 1.0})
    found = outcome(made, cells("esd", [0.40, 0.45, 0.50], RELEARN, released=0.2))
    assert found.verdict == "shown"
    assert found.difference == pytest.approx(0.8 - np.mean([0.42, 0.46, 0.50]))


def test_other_families_are_compared_unpaired() -> None:
    side = {"defense": "imma-lora", "score": "P", "at": 1.0}
    made = prediction(a={**side, "families": ("relearn",)}, b={**side, "families": ("style", "object")})
    board = [*NONE, *cells("none", [0.0] * 3, RELEARN), *cells("imma-lora", [0.5, 0.55, 0.6], RELEARN)]
    found = outcome(made, [*board, *cells("imma-lora", WEAK)])
    welch = stats.ttest_ind([0.5, 0.55, 0.6], WEAK, equal_var=False).confidence_interval()
    assert found.verdict == "shown" and found.tasks == 7
    assert found.interval == pytest.approx((welch.low, welch.high))


def test_what_is_missing_cannot_be_tested_and_says_so() -> None:
    side = {"defense": "imma-lora"}
    board = [*NONE, *cells("imma-lora", WEAK)]
    assert "esd under lora is not on the board" in outcome(prediction(a={"defense": "esd"}), board).why
    far = prediction(a={**side, "setting": {"attacker_base": "mini-b"}})
    assert "on-mini-b is not on the board" in outcome(far, board).why
    assert outcome(prediction(a=side), cells("none", [0.0], TASKS[:1]) + board[4:5]).why == "no interval of 1 task(s)"
    assert "brisque" in outcome(prediction(a={**side, "score": "brisque"}), board).why
    assert outcome(prediction(a=side, cannot="nobody counts it"), board).why == "nobody counts it"
    assert findings.judge_all([prediction(a=side)], {})["one", "toy"].why == "no results of toy"


def test_a_failed_cell_is_no_shorter_list_of_tasks() -> None:
    failed = made_up.record("imma-lora", TASKS[0], "lora", status="error", scores={}, failure=Failure(
        stage="adapt", part="attack", digest="d" * 64, message="no"))  # fmt: skip
    board = [*NONE, *cells("imma-lora", WEAK)[1:], measurement(failed)]
    assert f"failed on {TASKS[0]}" in outcome(prediction(a={"defense": "imma-lora"}), board).why


def test_nothing_is_undone_where_nothing_was_shown() -> None:
    first = prediction(a={"defense": "imma-lora"})
    then = prediction(id="two", needs=("one",), a={"defense": "imma-lora"}, sign="-")
    weak = findings.judge_all([first, then], {"toy": [*NONE, *cells("imma-lora", MIXED)]})
    assert weak["two", "toy"].why == "rests on one, not shown here"
    strong = findings.judge_all([first, then], {"toy": [*NONE, *cells("imma-lora", STRONG)]})
    assert strong["two", "toy"].verdict == "contradicted"


READ = load(findings.FILE, findings.Predictions)


def test_every_prediction_is_explained_once_and_has_its_sources() -> None:
    ids = [one.id for one in READ.predictions]
    assert len(ids) == len(set(ids)) and all(f"`{key}`" in PAGE for key in ids)
    assert {key for one in READ.predictions for key in one.sources} == set(READ.sources)
    assert all(about.keys() == {"title", "url", "read"} for about in READ.sources.values())
    links = {key: about["url"] for key, about in READ.sources.items() if key != "memory"}
    assert all(url.startswith("https://") and url in PAGE for url in links.values())


@pytest.mark.parametrize("one", READ.predictions, ids=lambda one: one.id)
def test_a_prediction_can_be_read_from_the_suites_that_it_names(one: Any) -> None:
    assert (one.sign is None) != (one.within is None)
    above = {other.id: other for other in READ.predictions[: READ.predictions.index(one)]}
    assert all(need in above and set(one.suites) <= set(above[need].suites) for need in one.needs)
    catalog = default_catalog()
    for side in filter(None, (one.a, one.b)):
        assert catalog.defense(side.defense).id == side.defense, "records have ids, not aliases"
        assert side.at is None or side.at > 0 or side.score == "E"
        assert side.at is not None or side.score not in ("P", "gain", "speed")
        for suite in one.suites:
            blocks = catalog.suite(suite).blocks
            assert any(
                side.chain in block.chains and side.setting in block.settings
                and side.defense in {catalog.defense(name).id for name in block.defenses}
                for block in blocks
            ), f"{side} is not in {suite}"  # fmt: skip
