"""The board against numbers computed by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.scores import scale as scores
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import Board, BoardError
from immunebench.board.tables.finding import finding, winner
from immunebench.board.tables.layout import markdown
from immunebench.declared import scoring
from immunebench.records.contact_sheet import MAX_BYTES, contact_sheet

# floor 0.1 and ceiling 0.9 in a world where anchors are 0 and 1: P_raw = (0.9 - m) / 0.8
FLOOR = (0.08, 0.12, 0.10, 0.10)
CEILING = (0.88, 0.92, 0.90, 0.90)


def cell(defense: str = "shield", m: float | None = 0.5, **changes: Any) -> Measurement:
    """A cell whose four pictures have mean metric `m`; None for a failed one."""
    base = Measurement(
        task="style-a",
        family="style",
        defense=defense,
        chain="lora",
        kind="control" if defense in CONTROLS else "model",
        m_def=() if m is None else (m - 0.02, m + 0.02, m, m),
        m_none=CEILING,
        m_floor=FLOOR,
        g=0.81,
        g_base=0.81,
        benign=0.9,
        benign_floor=0.1,
        benign_ceiling=0.9,
    )
    return dataclasses.replace(base, **changes)


CONTROLS = ("none", "none-replicate", "noise", "destroy", "destroy-mild", "blank")


def none(**changes: Any) -> Measurement:
    return cell("none", 0.9, **changes)


def row_of(board: Board, defense: str = "shield") -> Any:
    row = board.row(defense)
    assert row is not None
    return row


def p_raw(board: Board, defense: str = "shield") -> float:
    return float(row_of(board, defense).scores[0].p_raw)


@pytest.mark.parametrize(("m", "p"), [(0.9, 0.0), (0.1, 1.0), (0.5, 0.5), (0.3, 0.75)])
def test_p_runs_from_the_ceiling_to_the_floor(m: float, p: float) -> None:
    board = aggregate([none(), cell(m=m)])
    assert p_raw(board) == pytest.approx(p)
    assert row_of(board).p == pytest.approx(p)
    assert p_raw(board, "none") == 0.0


def test_anchors_leave_p_and_change_the_gate() -> None:
    assert scores.anchored(0.5, 0.9, 0.4) == pytest.approx(0.2)
    anchors: dict[str, Any] = {"m_same": 2.0, "m_other": 0.1}
    board = aggregate([none(**anchors), cell(**anchors)])
    assert p_raw(board) == pytest.approx(0.5)
    assert board.power[0].ceiling == pytest.approx(0.8 / 1.9)
    assert aggregate([none(m_same=5.0), cell(m_same=5.0)]).uninformative, "0.8 / 5 lies below 0.25"


def test_clip_comes_after_the_mean_over_seeds() -> None:
    # P_raw is 1.125 and 0.375: clipping first would give 0.6875
    board = aggregate([none(), none(seed=1), cell(m=0.0), cell(m=0.6, seed=1)])
    assert row_of(board).p == pytest.approx(0.75)


def test_overshoot_is_clipped_and_flagged() -> None:
    board = aggregate([none(), cell(m=-0.1)])
    assert p_raw(board) == pytest.approx(1.25)
    assert row_of(board).p == 1.0
    assert "below floor" in row_of(board).flags


def test_headline_takes_the_strongest_chain_of_each_task_then_tasks_then_families() -> None:
    cells = []
    # P: style-a lora 0.5, db 0.25; style-b lora 0, db 1; object-c lora 1, db 0.75
    for task, lora, db in (("style-a", 0.5, 0.7), ("style-b", 0.9, 0.1), ("object-c", 0.1, 0.3)):
        for chain, m in (("lora", lora), ("dreambooth", db)):
            where: dict[str, Any] = {"task": task, "family": task.split("-")[0], "chain": chain}
            cells += [none(**where), cell(m=m, **where)]
    row = row_of(aggregate(cells))
    assert row.p == pytest.approx(((0.25 + 0.0) / 2 + 0.75) / 2)
    # Over both styles lora gains (0.4 + 0.8) / 2, dreambooth (0.6 + 0) / 2.
    assert row.strongest == {"style-a": "lora", "style-b": "lora", "object-c": "dreambooth"}
    assert row.area.family == pytest.approx({"style": (0.5 + 0.0) / 2, "object": 0.75})
    assert row.a == pytest.approx(0.5)
    assert row.area.chain == pytest.approx({"lora": (0.25 + 1.0) / 2, "dreambooth": (0.625 + 0.75) / 2})
    assert row.area.mean_chains == pytest.approx((0.625 + 0.6875) / 2)


def test_failure_of_the_defense_scores_zero() -> None:
    row = row_of(aggregate([none(), cell(m=None, status="oom", failed_part="defense", g=None, benign=None)]))
    assert (row.p, row.u, row.scores[0].status) == (0.0, 0.0, "defense failed")
    assert not row.incomplete
    assert not row.passes


@pytest.mark.parametrize("status", ["error", "oom", "over_memory", "timeout"])
def test_attack_that_fails_on_the_defended_input_only_scores_zero(status: str) -> None:
    row = row_of(aggregate([none(), cell(m=None, status=status, failed_part="attack")]))
    assert (row.p, row.u, row.scores[0].status) == (0.0, 1.0, "attack failed")


def test_a_failed_seed_counts_as_undefended() -> None:
    cells = [none(), none(seed=1), cell(m=0.1), cell(m=None, seed=1, status="error", failed_part="attack")]
    assert row_of(aggregate(cells)).p == pytest.approx(0.5)


def test_attack_that_fails_on_none_too_makes_rows_incomplete() -> None:
    broken: dict[str, Any] = {"status": "error", "failed_part": "baseline", "m_none": ()}
    board = aggregate([none(m_def=(), **broken), cell(m=None, **broken)])
    for name in ("none", "shield"):
        assert row_of(board, name).p is None
        assert "fails on no defense" in row_of(board, name).incomplete[0]


def test_a_missing_chain_makes_the_row_incomplete() -> None:
    db: dict[str, Any] = {"chain": "dreambooth"}
    cells = [none(), none(**db), cell(), cell("armour"), cell("armour", **db)]
    board = aggregate(cells)
    assert row_of(board).p is None
    assert row_of(board).incomplete == ("style-a/dreambooth: a record is missing",)
    assert row_of(board, "armour").p == pytest.approx(0.5)
    planned = [(c.defense, c.task, c.chain, c.seed) for c in cells]
    assert row_of(aggregate(cells, planned)).p == pytest.approx(0.5)
    skipped = aggregate([none(), cell(m=None, status="skipped")])
    assert row_of(skipped).incomplete[0] == "style-a/lora: a record is missing"


def test_uninformative_is_listed_and_excluded_for_all() -> None:
    weak: dict[str, Any] = {"task": "style-b", "m_none": (0.3, 0.34, 0.32, 0.32)}
    cells = [none(), cell(m=0.5), cell("armour", 0.3)]
    cells += [none(m_def=(0.3, 0.34, 0.32, 0.32), **weak), cell(m=0.1, **weak), cell("armour", 0.3, **weak)]
    board = aggregate(cells)
    assert [(p.task, p.chain) for p in board.uninformative] == [("style-b", "lora")]
    assert row_of(board).p == pytest.approx(0.5)
    assert row_of(board, "armour").p == pytest.approx(0.75)
    assert "uninformative, excluded for all entries: style-b/lora" in markdown(board, "t")


def test_power_gate_asks_for_five_standard_errors() -> None:
    # variances 0.02 and 0.02 over four pictures each: standard error 0.1, so 0.5 is needed
    spread = [-math.sqrt(0.03), math.sqrt(0.03), 0.0, 0.0]
    floor = [0.2 + x for x in spread]
    assert scores.standard_error(floor, floor) == pytest.approx(0.1)
    assert not scores.informative(floor, [0.69 + x for x in spread])
    assert scores.informative(floor, [0.71 + x for x in spread])
    assert not scores.informative([0.1] * 4, [0.34] * 4), "0.24 lies below the least gain"
    assert not scores.informative([0.1], [0.9]), "one picture has no standard error"


def test_sgr_is_on_raw_metrics_and_undefined_near_zero() -> None:
    assert scores.similarity_gap_ratio(0.8, 0.6) == pytest.approx(0.25)
    assert scores.similarity_gap_ratio(0.0499, 0.01) is None
    assert row_of(aggregate([none(m_other=-1.0), cell(m=0.6, m_other=-1.0)])).sgr == pytest.approx(1 / 3)


def test_sgr_over_the_curve_is_the_mean_of_its_steps_up_to_the_preset_s_last() -> None:
    # (0.8 - 0.6) / 0.8 = 0.25 and (0.9 - 0.45) / 0.9 = 0.5; step 8 lies behind the preset's 4, step 1 is near zero.
    none_, own = {1: 0.04, 2: 0.8, 4: 0.9, 8: 0.9}, {1: 0.01, 2: 0.6, 4: 0.45, 8: 0.0, 16: 0.1}
    assert scores.mean_gap_ratio(none_, own, 4) == pytest.approx(0.375)
    assert scores.mean_gap_ratio({1: 0.04}, own, 4) is None
    measured = cell(m=0.45, curve=own, curve_none=none_, final=4)
    row = row_of(aggregate([none(curve=none_, final=4), measured]))
    assert (row.sgr, row.sgr_curve) == (pytest.approx(0.5), pytest.approx(0.375))
    # Over seeds the curves are averaged first, on the steps that both have.
    two = [dataclasses.replace(measured, seed=1, curve={2: 0.2, 4: 0.45}), measured]
    row = row_of(aggregate([none(seed=s, curve=none_, final=4) for s in (0, 1)] + two))
    assert row.sgr_curve == pytest.approx((0.5 + 0.5) / 2)


def test_utility_is_the_least_part_and_gates() -> None:
    # U_gen = (0.43 - 0.05) / (0.81 - 0.05) = 0.5; U_ben = (0.7 - 0.1) / 0.8 = 0.75
    row = row_of(aggregate([none(), cell(g=0.43, benign=0.7)]))
    assert (row.u_gen, row.u_ben, row.u) == pytest.approx((0.5, 0.75, 0.5))
    assert "utility gate" in row.flags
    assert not row.passes
    # 0.8 itself passes: 0.05 + 0.8 * 0.76 = 0.658
    assert row_of(aggregate([none(), cell(g=0.6581)])).passes
    assert not row_of(aggregate([none(), cell(g=0.657)])).passes


def test_utility_is_averaged_over_tasks_after_the_minimum() -> None:
    b: dict[str, Any] = {"task": "style-b"}
    row = row_of(aggregate([none(), none(**b), cell(g=0.43), cell(benign=0.3, **b)]))
    assert row.u == pytest.approx((0.5 + 0.25) / 2)


def test_pictures_have_fidelity_for_utility_and_a_budget_for_gate() -> None:
    data: dict[str, Any] = {
        "kind": "data",
        "changes_images": True,
        "changes_model": False,
        "fidelity": 0.7,
        "budget": 8.0,
    }
    row = row_of(aggregate([none(), cell(linf=8.0, **data)]))
    assert row.u == pytest.approx(0.7)
    assert row.flags == ()
    assert row_of(aggregate([none(), cell(linf=9.0, **data)])).flags == ("over budget",)


def test_unmeasured_utility_is_incomplete() -> None:
    assert "U is not measured" in row_of(aggregate([none(), cell(g=None)])).incomplete[0]


@pytest.mark.parametrize(
    ("control", "reason"),
    [
        (cell("destroy", 0.1), "U is 1.000, not below"),
        (cell("destroy-mild", 0.5), "destroy-mild: U is 1.000"),
        (cell("noise", 0.9, linf=9.0, budget=8.0), "noise: style-a is changed by 9 of 255, budget 8"),
        (cell("blank", 0.1, linf=3.0, budget=8.0), "blank: style-a passes the budget check"),
    ],
)
def test_a_misbehaving_control_refuses_the_board(control: Measurement, reason: str) -> None:
    board = aggregate([none(), cell(), control])
    with pytest.raises(BoardError, match=re.escape(reason)):
        markdown(board, "t")


@pytest.mark.parametrize(
    ("control", "reason"),
    [
        (cell("destroy", 0.7, g=0.05), "destroy: the mean similarity after the attack is 0.700, above 0.25"),
        (cell("none-replicate", 0.7), "none-replicate: mean |A| is 0.250, above 0.15"),
    ],
)
def test_a_try_out_of_few_tasks_is_shown_with_the_doubt_in_place_of_the_verdict(
    control: Measurement, reason: str
) -> None:
    def board(*tasks: str) -> Board:
        every = (none(), cell(), control)
        return aggregate([dataclasses.replace(each, task=task) for task in tasks for each in every])

    few = board("style-a", "style-b")
    assert few.refusals == ()
    assert f"{reason}" in markdown(few, "t") and "on 2 tasks, which is no verdict" in markdown(few, "t")
    with pytest.raises(BoardError, match=re.escape(reason)):
        markdown(board("style-a", "style-b", "style-c"), "t")


def test_well_behaved_controls_are_shown_last_with_the_noise_of_a_row() -> None:
    controls = [
        cell("destroy", 0.1, g=0.05),
        cell("none-replicate", 0.82),
        cell("noise", 0.9, linf=8.0, budget=8.0),
    ]
    board = aggregate([*controls, none(), cell(m=0.7), cell("armour", 0.5), cell("wall", 0.1, g=0.05)])
    assert [row.defense for row in board.rows][:3] == ["armour", "shield", "wall"]
    assert all(row.control for row in board.rows[3:])
    assert board.row_noise == pytest.approx(0.1)


def test_small_suites_print_no_interval_and_no_ranks() -> None:
    assert "no interval, no ranks" in markdown(aggregate([none(), cell()]), "t")


def test_records_that_do_not_compare_are_refused() -> None:
    with pytest.raises(BoardError, match=r"lora@1' and 'cpu lora@2' do not compare"):
        aggregate([none(key="lora@1"), cell(key="lora@2")])
    with pytest.raises(BoardError, match="two records of style-a/shield/lora/cpu/0"):
        aggregate([none(), cell(), cell()])
    with pytest.raises(BoardError, match="no record"):
        aggregate([])


def test_board_is_byte_identical_in_any_order() -> None:
    cells = [
        none(),
        cell(),
        cell("armour", 0.31),
        cell("noise", 0.88),
        none(seed=1),
        cell("noise", 0.8, seed=1),
    ]
    assert markdown(aggregate(cells), "t").encode() == markdown(aggregate(cells[::-1]), "t").encode()


def test_rules_state_the_thresholds_that_the_code_uses() -> None:
    text = (Path(__file__).parents[2] / "leaderboard" / "rules.md").read_text("utf-8")
    stated = dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]+?) \|", text, flags=re.MULTILINE))
    numbers = {
        name: f"{value:g}" for name, value in vars(scoring).items() if name.isupper() and isinstance(value, int | float)
    }
    classes = ("BUDGET_CLASSES", "PERCEPTUAL_CLASSES")
    numbers |= {name: ", ".join(map(str, getattr(scoring, name))) for name in classes}
    numbers["FIDELITY_METRIC"] = scoring.FIDELITY_METRIC
    for attack in scoring.PUBLIC_BASE_ATTACKS:
        assert f"`{attack}`" in text
    assert stated == numbers
    for family, metric in scoring.TARGET_METRIC.items():
        assert f"| {family} | `{metric}` |" in text


def test_the_sentence_follows_the_numbers() -> None:
    weak = aggregate([none(), cell(m=0.86), cell("noise", 0.84)])
    assert "shield hardly stops the lora attack: it takes away 5%" in finding(weak)
    assert "no better than random noise" in finding(weak)
    useless = aggregate([none(), cell(m=0.1, g=0.05)])
    assert winner(useless) is None
    assert "too little to be ranked" in finding(useless)
    assert finding(aggregate([none(), cell(), cell("destroy", 0.1)])).startswith("No result: destroy: U is 1.000")
    faint: dict[str, Any] = {"m_none": (0.2, 0.2), "m_floor": (0.1, 0.1)}
    measured = aggregate([none(m_def=(0.2, 0.2), **faint), cell(**faint)])
    assert "learns too little to measure" in finding(measured)


def test_contact_sheet_fits_and_names_its_digest(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    path = tmp_path / "sheets" / "a.webp"
    digest = contact_sheet(noise, noise, noise, path)
    assert path.stat().st_size <= MAX_BYTES
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet(noise[:0], noise, noise, path)


def test_names_from_strangers_are_text_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from immunebench.board.tables import layout

    layout.show(aggregate([none(), cell("[/red]x")]), "[/red]title")
    assert "[/red]x" in capsys.readouterr().out


def test_an_entry_over_its_budget_does_not_pass() -> None:
    grey = cell("data", kind="data", budget=8.0, linf=128.0, changes_images=True, changes_model=False)
    row = aggregate([none(), grey]).row("data")
    assert row is not None and not row.passes


def test_a_board_of_controls_says_where_the_attack_works() -> None:
    low = (0.2, 0.3, 0.25, 0.25)
    weak = none(task="style-b", m_none=low, m_def=low)
    found = finding(aggregate([none(), weak]))
    assert found == "Without a defense the attack learns enough to measure in 1 of 2 tasks and chains."


def test_measures_that_say_nothing_of_the_concept_have_no_p_even_where_nothing_moves() -> None:
    from immunebench.board.scores.measurement import Further

    still = {"collapse@1": Further((0.0, 0.0), (0.0, 0.0), (0.0, 0.0)), "lpips@1": Further((0.2,), (0.2,), (0.2,))}
    found = aggregate([dataclasses.replace(c, further=still) for c in (none(), cell())]).row("shield")
    assert found is not None and "collapse@1" not in found.by_metric
    assert "lpips@1" not in found.by_metric or found.by_metric["lpips@1"].p is None
