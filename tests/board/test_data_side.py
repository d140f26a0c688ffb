"""What is measured of pictures: from a plan's stages through the record to the board's tables and the sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import house
import made_up
from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.loading.checks import complaint
from immunebench.board.scores.data_side import Table, tables
from immunebench.board.scores.measurement import DataSide, Measurement
from immunebench.board.scores.reading import measurement
from immunebench.board.tables.layout import markdown
from immunebench.board.tables.writers import to_json
from immunebench.catalog.loading import load_catalog
from immunebench.cli.report import lines
from immunebench.core.errors import UsageError
from immunebench.declared import scoring
from immunebench.plan.planning import make_plan
from immunebench.records.building import build_record
from immunebench.records.defense_sheet import ROW_BYTES, SheetRow, defense_rows, difference, write_sheet
from immunebench.records.record import Measured, Purified, Record
from immunebench.store.graph import Plan

BLUR = """\
id = "blur"
version = 1
title = "Blur"
authors = ["A. Author"]
licence = "Apache-2.0"
hooks = ["purify"]
description = "What it does."
[params]
sigma = 0.5
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    house.house(tmp_path / "house")
    house.write(tmp_path / "house/attacks/blur/attack.toml", BLUR)
    house.write(tmp_path / "house/attacks/blur/attack.py", "def purify(*arguments):\n    return arguments\n")
    suite = tmp_path / "house/suites/tiny.toml"
    suite.write_text(suite.read_text().replace('["lora"]', '["lora", "blur+lora"]'))
    return tmp_path / "house"


def plan(root: Path, **wanted: Any) -> Plan:
    catalog = load_catalog(root, models=root / "models.toml")
    return make_plan(catalog.suite("tiny"), catalog, **wanted)


class Store:
    """Every artifact is there; scores and pictures are what a test says."""

    def __init__(self, made: Plan, folder: Path) -> None:
        self.made, self.folder = made, folder
        self.scores: dict[str, dict[str, list[float]]] = {}
        self.colours: dict[str, tuple[int, int, int]] = {}

    def path(self, digest: str) -> Path | None:
        path = self.folder / digest
        path.mkdir(parents=True, exist_ok=True)
        rows = {name: {"values": v, "mean": sum(v) / max(1, len(v))} for name, v in self.scores.get(digest, {}).items()}
        known = {"m_same": 0.9, "m_other": 0.1, "metrics": rows}
        (path / "scores.json").write_text(json.dumps(known))
        if digest in self.colours:
            for name in ("000.png", "p00-00.png", "p01-00.png"):
                Image.new("RGB", (8, 8), self.colours[digest]).save(path / name)
        return path

    def manifest(self, digest: str) -> dict[str, Any]:
        stage = self.made.stages[digest].stage
        return {"stage": stage, "cost": {"seconds": 6.0}, "meta": {"pictures": 4, "peak_process_gib": 0.5}}

    def failure(self, digest: str) -> None:
        return None


def test_what_cleaning_leaves_is_scored_against_the_clean_and_the_protected_pictures(root: Path) -> None:
    made = plan(root)
    graph = made.roots["style-a/noise/blur+lora/cpu/0"]
    published, protected, cleaned = graph.published, graph.given[0], graph.given[1]
    assert protected == graph.protect["protect_images"]
    compared = {what: made.stages[digest].inputs for what, digest in graph.purified.items()}
    assert compared == {
        "clean": {"generated": cleaned, "reference": published},
        "protected": {"generated": cleaned, "reference": protected},
    }
    adapt = next(s for s in made.stages.values() if s.stage == "adapt" and s.inputs["images"] == cleaned)
    assert adapt.key["token"] == "sks", "what is measured is what the attacker trains on"
    undefended = made.roots["style-a/none/blur+lora/cpu/0"]
    assert undefended.given[0] == undefended.published == published and list(undefended.purified) == ["clean"]
    assert made.roots["style-a/noise/lora/cpu/0"].purified == {}


def test_cleaning_of_a_mixed_set_is_measured_picture_by_picture_against_what_it_was_before(root: Path) -> None:
    block = '[[cells]]\ntasks = ["style-a"]\ndefenses = ["none", "noise"]\nchains = ["blur+lora"]\nclean = [50, 100]\n'
    suite = root / "suites/tiny.toml"
    kept = [row for row in suite.read_text().splitlines() if not row.startswith(("tasks", "defenses", "chains"))]
    suite.write_text("\n".join([*kept, block]))
    made = plan(root)
    half, none, whole = (
        made.roots[f"style-a/{name}/blur+lora/cpu/0/clean-{share}"]
        for name, share in (("noise", 50), ("none", 50), ("noise", 100))
    )
    clean, protected = (made.stages[half.purified[what]].inputs["reference"] for what in ("clean", "protected"))
    # Half of the places hold other pictures of the concept, on either side the same ones.
    assert (clean, protected) == (none.given[0], half.given[0])
    assert made.stages[clean].key == made.stages[protected].key
    assert made.stages[clean].inputs["images"] == half.published
    # Nothing that the attacker has was protected.
    assert list(none.purified) == list(whole.purified) == ["clean"]


def test_nothing_new_is_scored_where_no_picture_is_protected_or_cleaned(root: Path) -> None:
    made = plan(root)
    for cell in ("none", "shield", "none-replicate"):
        graph = made.roots[f"style-a/{cell}/lora/cpu/0"]
        assert (graph.purified, graph.beside) == ({}, {})
    assert set(made.roots["style-a/shield/blur+lora/cpu/0"].beside) == {"attacked", "undefended", "unseen"}


def test_a_record_holds_what_cleaning_left_and_cost(root: Path, tmp_path: Path) -> None:
    made = plan(root)
    graph, store = made.roots["style-a/noise/blur+lora/cpu/0"], Store(made, tmp_path / "store")
    store.scores = {
        graph.purified["clean"]: {"psnr@1": [30.0, 34.0], "perceptual@1": [0.25]},
        graph.purified["protected"]: {"psnr@1": [20.0]},
        graph.beside["attacked"]: {"poor_match@1": [1.0, 0.0, 1.0, 1.0]},
        graph.beside["undefended"]: {"poor_match@1": [0.0, 0.0, 0.0, 1.0]},
        # No face was found: there is no ISM, which is not an ISM of 0.
        graph.beside["unseen"]: {"ism@1": [], "poor_match@1": [0.0]},
    }
    got = build_record(graph.cell, graph, store)
    assert got.purified == Purified(
        params={"blur": {"sigma": 0.5}},
        to_clean={
            "psnr@1": Measured(values=(30.0, 34.0), n=2, mean=32.0),
            "perceptual@1": Measured(values=(0.25,), n=1, mean=0.25),
        },
        to_protected={"psnr@1": Measured(values=(20.0,), n=1, mean=20.0)},
        seconds_per_picture=1.5,
        peak_reserved_gib=0.0,
        peak_process_gib=0.5,
    )
    assert got.beside["attacked"]["poor_match@1"].mean == 0.75
    assert set(got.beside["unseen"]) == {"poor_match@1"}
    assert got.artefacts["purified"] == graph.given[1]
    assert Record.model_validate_json(got.model_dump_json()) == got
    shown = "\n".join(lines(got, Path("results/x.jsonl")))
    for wanted in ("psnr@1 32.000 to the clean", "1.500 s a picture", "poor_match@1 0.750 over 4 pictures, attacked"):
        assert wanted in shown


def test_a_record_without_these_measures_is_written_as_before() -> None:
    old = made_up.record("none", "object-robot", "lora")
    assert old.purified is None and old.beside == {}
    new = json.loads(old.model_dump_json())
    assert not {"purified", "beside"} & set(new) and "perceptual_budget" not in new["cell"]
    assert Record.model_validate_json(json.dumps(new)) == old


def test_a_value_out_of_range_beside_the_score_is_named() -> None:
    wrong = made_up.record("none", "identity-ada", "lora")
    wrong = wrong.model_copy(update={"beside": {"attacked": {"fdfr@1": Measured(values=(1.5,), n=1, mean=1.5)}}})
    assert complaint(wrong) == ("range", "beside.attacked.fdfr@1: must be in [0, 1], not 1.5")


def cell(defense: str, chain: str = "lora", task: str = "style-a", **values: Any) -> Measurement:
    data = values.pop("data", {})
    return Measurement(
        task=task,
        family=task.partition("-")[0],
        defense=defense,
        chain=chain,
        kind="control" if defense == "none" else "data",
        changes_images=defense != "none",
        changes_model=False,
        data=DataSide(**data),
        **values,
    )


def table(cells: list[Measurement], title: str) -> Table:
    (found,) = (table for table in tables(cells) if table.title == title)
    return found


def test_the_levels_of_noise_stand_in_their_order_whatever_they_are_called() -> None:
    def at(chain: str, sigma: float | None, attacked: float, none: float, **more: Any) -> Measurement:
        beside = {"attacked": {"poor_match": attacked}, "undefended": {"poor_match": none}, "unseen": {"poor_match": 0}}
        params = {} if sigma is None else {chain.split("+")[0]: {"sigma": sigma}}
        return cell("mist", chain, data={"beside": beside, "params": params}, **more)

    cells = [
        at("alpha+lora", 0.15, 0.5, 0.4),
        at("lora", None, 1.0, 0.1),
        at("zeta+lora", 0.05, 0.75, 0.2),
        # Two tasks: the mean of tasks, (0.75 + 0.25) / 2.
        at("zeta+lora", 0.05, 0.25, 0.2, task="style-b"),
        at("beta+lora", 0.1, 0.5, 0.3, status="invalidated"),
    ]
    found = table(cells, "Protection success by chain")
    assert found.heads == ("chain", "parameters", "no defense", "mist", "real")
    assert found.rows == (
        ("lora", "-", "0.10", "1.00", "0.00"),
        ("zeta+lora", "sigma 0.05", "0.20", "0.50", "0.00"),
        ("alpha+lora", "sigma 0.15", "0.40", "0.50", "0.00"),
    )


def test_protected_pictures_show_their_mean_and_their_worst_inside_their_class() -> None:
    fidelity = {"linf": (7.0, 8.0), "psnr": (40.0, 30.0), "ssim": (0.9, 0.7), "perceptual": (0.1, 0.3)}
    cells = [cell("mist", chain, budget=8, linf=8.0, data={"fidelity": fidelity}) for chain in ("lora", "jpeg+lora")]
    cells.append(
        cell(
            "glaze",
            perceptual_budget=0.05,
            linf=40.0,
            changes={"perceptual": 0.09},
            data={"fidelity": {"linf": (40.0,), "psnr": (28.0,)}},
        )
    )
    found = table(cells, "Protected pictures")
    rows = [dict(zip(found.heads, row, strict=True)) for row in found.rows]
    assert rows[0] == {
        "defense": "mist", "declared": "8 of 255", "class": "8", "linf worst": "8", "psnr": "35.0",
        "psnr worst": "30.0", "ssim": "0.80", "ssim worst": "0.70", "perceptual": "0.200", "perceptual worst": "0.300",
    }  # fmt: skip
    assert (rows[1]["declared"], rows[1]["class"], rows[1]["ssim"]) == ("LPIPS 0.05", "perceptual 0.1", "-")


@pytest.mark.parametrize(
    ("changes", "perceptual", "seen", "expected"),
    [([3.0, 7.0], None, [], 8), ([4.0], None, [0.3], 4), ([4.01], None, [], 8), ([17.0, 2.0], None, [], None),
     ([], None, [], None), ([40.0], 0.05, [], "LPIPS 0.05"), ([], 0.05, [0.01], None),
     ([40.0], 0.05, [0.15, 0.25], "perceptual 0.2"), ([40.0], 0.05, [0.15, 0.26], "perceptual 0.4"),
     ([40.0], 0.2, [0.04], "perceptual 0.05"), ([40.0], 0.05, [0.3, 0.6], None)],
)  # fmt: skip
def test_a_budget_class_holds_every_measured_change(
    changes: list[float], perceptual: float | None, seen: list[float], expected: int | str | None
) -> None:
    """What an entry declares by the network that it was lent is no class: the judge's network says how much is seen."""
    assert scoring.budget_class(changes, perceptual, seen) == expected


def test_faces_that_nobody_found_leave_a_dash_and_not_a_zero() -> None:
    beside = {"attacked": {"fdfr": 1.0}, "undefended": {"fdfr": 0.25, "ism": 0.5}, "unseen": {"fdfr": 0.0}}
    (row,) = table([cell("aspl", task="identity-a", m_def=(0.0, 0.0), m_none=(0.5, 0.25), data={"beside": beside})],
                   "Faces").rows  # fmt: skip
    assert row == ("aspl", "lora", "1.00", "0.25", "0.00", "-", "0.50", "0.00", "0.38")


def test_the_tables_stand_on_the_page_and_a_strangers_parameter_breaks_none() -> None:
    records = [made_up.record(name, task, "jpeg50+lora") for name in ("none", "mist-8") for task in made_up.TASKS]
    cleaned = Purified(
        params={"jpeg50": {"quality": 50, "note": "a | b\n<script>"}},
        to_clean={"psnr@1": Measured(values=(31.0,), n=1, mean=31.0)},
        seconds_per_picture=0.25,
        peak_process_gib=1.5,
    )
    board = aggregate(measurement(r.model_copy(update={"purified": cleaned})) for r in records)
    page = markdown(board, "t")
    (line,) = (line for line in page.splitlines() if line.startswith("| jpeg50 ") and "mist-8" in line)
    cells = [part.strip() for part in line.strip("|").split("|")]
    assert cells == ["jpeg50", "note a / b <script>, quality 50", "mist-8", "31.0", "-", "0.250", "1.50"]
    assert "## Protected pictures" in page and "## Faces" not in page
    (written,) = (t for t in json.loads(to_json(board))["tables"] if t["title"] == "Cleaned pictures")
    own = next(row for row in written["rows"] if row[0] == "jpeg50" and "mist-8" in row)
    assert dict(zip(written["heads"], own, strict=True))["psnr to clean"] == "31.0"
    assert own[1] == "note a / b <script>, quality 50"


def test_the_difference_is_ten_times_the_change_about_grey() -> None:
    clean = np.full((1, 2, 2, 3), 100, np.uint8)
    protected = clean.copy()
    protected[0, 0] = [[101, 97, 100], [113, 87, 100]]
    assert difference(protected, clean)[0].tolist() == [
        [[138, 98, 128], [255, 0, 128]],
        [[128, 128, 128], [128, 128, 128]],
    ]


def test_a_sheet_shows_what_was_given_and_what_was_drawn_row_by_row(root: Path, tmp_path: Path) -> None:
    made = plan(root, defense="noise")
    store = Store(made, tmp_path / "store")
    plain, cleaned = (made.roots[f"style-a/noise/{chain}/cpu/0"] for chain in ("lora", "blur+lora"))
    store.colours = {
        plain.published: (10, 20, 30), plain.given[0]: (11, 20, 30), cleaned.given[1]: (50, 60, 70),
        plain.ceiling_pictures[2]: (200, 0, 0), plain.pictures[2]: (0, 200, 0), cleaned.pictures[2]: (0, 0, 200),
    }  # fmt: skip
    rows = defense_rows(made, store, "style-a")
    seen = {
        row.label: [None if part is None else tuple(part[0, 0, 0]) for part in (row.given, row.drawn)] for row in rows
    }
    assert seen == {
        "clean": [(10, 20, 30), (200, 0, 0)],
        "protected": [(11, 20, 30), (0, 200, 0)],
        "difference x10": [(138, 128, 128), None],
        "blur": [(50, 60, 70), (0, 0, 200)],
    }
    size = write_sheet(rows, tmp_path / "sheet.png", title="noise on style-a")
    with Image.open(tmp_path / "sheet.png") as image:
        shown = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
    assert {colour for pair in seen.values() for colour in pair if colour is not None} <= shown
    assert size == (tmp_path / "sheet.png").stat().st_size
    with pytest.raises(UsageError, match="changes no picture: 'shield'"):
        defense_rows(plan(root, defense="shield"), store, "style-a")


def test_a_sheet_of_any_pictures_stays_under_its_limit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    rows = [SheetRow(f"row {i}", noise, noise) for i in range(12)]
    assert write_sheet(rows, tmp_path / "sheet.png", title="t") <= 12 * ROW_BYTES
