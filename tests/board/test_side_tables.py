"""Tables below the board: layers against their parts, and settings that never meet the headline."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from scipy import stats

from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import BoardError
from immunebench.board.tables.layout import markdown
from immunebench.board.tables.writers import to_json
from immunebench.declared.suite import Setting

PAIR = "imma+mist"
# In a world where anchors are 0 and 1, floor 0.1 and ceiling 0.9: P_raw = (0.9 - m) / 0.8.
FLAT = (0.0, 0.0, 0.0, 0.0)
ROUGH = (-0.06, 0.06, -0.02, 0.02)


def cell(defense: str, m: float, task: str = "style-a", shape: tuple[float, ...] = FLAT, **more: Any) -> Measurement:
    kind = {"none": "control", "imma": "model", "mist": "data", PAIR: "layered"}[defense]
    images = kind in ("data", "layered")
    base = Measurement(
        task=task, family=task.partition("-")[0], defense=defense, chain="lora", kind=kind,
        m_def=tuple(m + d for d in shape), m_none=(0.9,) * 4, m_floor=(0.1,) * 4,
        g=0.81, g_base=0.81, benign=0.9, benign_floor=0.1, benign_ceiling=0.9,
        changes_images=images, changes_model=kind != "data",
        **({"fidelity": 0.95, "linf": 8.0, "budget": 8.0} if images else {}),
    )  # fmt: skip
    return dataclasses.replace(base, **more)


TASKS = ("style-a", "object-a")


def layered(pair: float, imma: float, mist: float, tasks: tuple[str, ...] = TASKS, **more: Any) -> list[Measurement]:
    chosen = {"none": 0.9, "imma": imma, "mist": mist, PAIR: pair}
    return [cell(name, m, task, **more) for task in tasks for name, m in chosen.items()]


def test_a_pair_is_held_against_the_better_of_its_layers() -> None:
    (score,) = aggregate(layered(pair=0.3, imma=0.6, mist=0.5)).layers
    assert (score.defense, score.layers, score.better) == (PAIR, ("imma", "mist"), "mist")
    assert score.a == pytest.approx(0.75)
    assert score.a_alone == pytest.approx({"imma": 0.375, "mist": 0.5})
    assert score.difference == pytest.approx(0.25)
    assert score.tasks == 2 and score.interval is None, "two tasks have no spread to tell from"


def test_only_what_all_of_them_met_is_compared() -> None:
    cells = layered(pair=0.3, imma=0.6, mist=0.5)
    # On a task of a family that the pair does not owe, one layer alone is far better: that must not count.
    cells += [cell("none", 0.9, "relearn-a"), cell("imma", 0.1, "relearn-a")]
    (score,) = aggregate(cells).layers
    assert score.a_alone["imma"] == pytest.approx(0.375) and score.better == "mist"


def test_with_tasks_enough_the_difference_has_the_interval_of_a_paired_t() -> None:
    tasks = tuple(f"{family}-{n}" for family in ("style", "object") for n in "abc")
    cells = [
        cell(name, 0.5 if name != PAIR else 0.5 - gain, task) if name != "none" else cell("none", 0.9, task)
        for task, gain in zip(tasks, (0.0, 0.08, 0.16, 0.0, 0.08, 0.16), strict=True)
        for name in ("none", "imma", "mist", PAIR)
    ]
    (score,) = aggregate(cells).layers
    assert score.tasks == 6
    assert score.difference == pytest.approx(0.1)
    # Each family has differences 0, 0.1, 0.2: standard error of the mean of two families sqrt(2 / 4 * 0.01 / 3).
    half = stats.t.ppf(0.975, 4) * math.sqrt(0.01 / 6)
    assert score.interval == pytest.approx((0.1 - half, 0.1 + half))


def test_a_pair_whose_layer_is_absent_or_incomplete_is_named_and_not_compared() -> None:
    cells = layered(pair=0.3, imma=0.6, mist=0.5)
    (absent,) = aggregate([c for c in cells if c.defense != "mist"]).layers
    assert absent.difference is None and absent.reason == "mist is not on this board"
    (broken,) = aggregate(cells, lost={"mist": ["a line"]}).layers
    assert broken.difference is None and broken.reason == "mist has no headline"


def test_no_layers_no_table() -> None:
    board = aggregate([cell("none", 0.9), cell("mist", 0.5)])
    assert board.layers == () and board.settings == ()
    assert "layers add up" not in markdown(board, "t") and "other settings" not in markdown(board, "t")


def mixed(share: int, m: float, ceiling: float = 0.9, **more: Any) -> list[Measurement]:
    setting = Setting(clean=share)
    return [
        cell(name, ceiling if name == "none" else m, m_none=(ceiling,) * 4, setting=setting, **more)
        for name in ("none", "mist")
    ]


def test_a_share_of_clean_pictures_has_its_own_a_and_is_in_no_headline() -> None:
    usual = [cell("none", 0.9), cell("mist", 0.3)]
    swept = aggregate(usual + mixed(50, 0.6, ceiling=0.85) + mixed(100, 0.9))
    assert swept.rows == aggregate(usual).rows
    assert swept.power == aggregate(usual).power and swept.notes == aggregate(usual).notes
    found = {score.setting.clean: score.a for score in swept.settings}
    # (0.9 - 0.3) / 0.8, (0.85 - 0.6) / 0.75 with the ceiling of its own share, and nothing where all are clean.
    assert found == pytest.approx({0: 0.75, 50: 1 / 3, 100: 0.0})
    assert {score.defense for score in swept.settings} == {"mist"}
    assert [score.setting.clean for score in swept.settings] == [0, 50, 100]


def test_the_usual_point_of_a_sweep_is_over_the_tasks_that_were_swept() -> None:
    usual = [cell(name, m, task) for task in TASKS for name, m in (("none", 0.9), ("mist", 0.3))]
    usual[-1] = cell("mist", 0.9, "object-a")
    board = aggregate(usual + mixed(50, 0.5))
    assert board.row("mist").a == pytest.approx(0.375)  # type: ignore[union-attr]
    assert {s.setting.clean: s.a for s in board.settings} == pytest.approx({0: 0.75, 50: 0.5})


def test_settings_of_one_cell_are_no_twins_and_keys_are_compared_within_each() -> None:
    usual = [cell("none", 0.9, key="u"), cell("mist", 0.3, key="u")]
    aggregate(usual + mixed(50, 0.6, key="c"))
    with pytest.raises(BoardError, match="'cpu u' and 'cpu c' do not compare"):
        aggregate([*usual, *mixed(50, 0.6, key="c")[:1], *mixed(50, 0.6, key="u")[1:]])
    with pytest.raises(BoardError, match="two records of style-a/mist/lora"):
        aggregate([*usual, *mixed(50, 0.6), *mixed(50, 0.7)])
    with pytest.raises(BoardError, match="every record is of an unusual setting"):
        aggregate(mixed(50, 0.6))


def test_transfer_is_a_column_of_its_own() -> None:
    there = [dataclasses.replace(c, setting=Setting(attacker_base="mini-b")) for c in mixed(0, 0.7)]
    board = aggregate([cell("none", 0.9), cell("mist", 0.3), *there])
    text = markdown(board, "t")
    assert "on-mini-b" in text and "## A in other settings" in text
    line = next(line for line in text.splitlines() if line.startswith("| mist") and "0.25" in line)
    assert [part.strip() for part in line.split("|")[2:4]] == ["0.75", "0.25"]


def test_tables_are_in_the_markdown_and_in_the_json() -> None:
    board = aggregate(layered(pair=0.3, imma=0.6, mist=0.5) + mixed(25, 0.6))
    text, value = markdown(board, "t"), json.loads(to_json(board))
    assert "## Do layers add up" in text
    assert value["layers"][0]["better"] == "mist" and value["layers"][0]["difference"] == pytest.approx(0.25)
    assert [part["setting"] for part in value["settings"]] == ["", "clean-25"]
    assert value["settings"][1]["clean"] == 25 and value["settings"][1]["a"] == pytest.approx(0.375)
