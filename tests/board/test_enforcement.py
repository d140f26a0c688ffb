"""The track of masks on the board: its own league, its badge, its table, and the rules that say so."""

from __future__ import annotations

import re
from pathlib import Path

from immunebench.board.scores.model import Board
from immunebench.board.tables.json_document import document
from immunebench.board.tables.layout import markdown
from immunebench.declared import scoring
from immunebench.records.record import Enforcement, Record, Training
from made_up import board, record

TASKS = ("style-solano", "object-mug")


def training(parameters: int, seconds: float) -> Training:
    return Training(
        parameters=parameters, optimiser_bytes=8 * parameters, seconds=seconds, peak_reserved_gib=0.0,
        peak_process_gib=1.5,
    )  # fmt: skip


def masked(defense: str, task: str, chain: str, *, binds: bool = True, frozen: int = 57) -> Record:
    """A record with a mask that freezes some of 286 tensors and saves a quarter of what is trained."""
    made = record(defense, task, chain)
    mask = Enforcement(
        tensors=286, frozen_tensors=frozen, parameters=4_000_000, frozen_parameters=1_000_000, binds=binds,
        enforced=training(3_000_000, 30.0), free=training(4_000_000, 40.0), ignored="c" * 64,
    )  # fmt: skip
    return made.model_copy(update={"enforcement": mask, "cell": made.cell.model_copy(update={"hooks": ("freeze",)})})


def shown() -> Board:
    chains = ("lora", "textual-inversion")
    made = [record("none", task, chain) for task in TASKS for chain in chains]
    made += [record("imma-lora", task, chain) for task in TASKS for chain in chains]
    made += [masked("freeze-as-guard", task, chain, binds=chain == "lora") for task in TASKS for chain in chains]
    return board(made)


def test_a_mask_is_of_its_own_track_and_says_on_what_it_rests_and_what_it_does_not_bind() -> None:
    found = shown()
    row, other = found.row("freeze-as-guard"), found.row("imma-lora")
    assert row is not None and other is not None
    assert row.league == "api-enforced" and other.league == "model"
    assert row.badges[0] == "needs enforcement"
    assert "mask does not bind textual-inversion" in row.flags
    assert not any("bind" in flag for flag in other.flags)


def test_the_table_holds_ratio_and_savings_in_every_format() -> None:
    found = shown()
    (table,) = [table for table in found.tables if table.title == "Enforced by the fine-tuning interface"]
    assert table.rows == (
        # 57 of 286 are 20 %, 3 of 4 million are 75 %; 8 bytes of moments a parameter.
        (
            "freeze-as-guard", "lora", "57 of 286 (20%)", "25%", "3000000 (75%)", "24.0 (75%)", "30.0 (75%)",
            "1.50 (100%)", "0.00, as `none`",
        ),
        (
            "freeze-as-guard", "textual-inversion", "57 of 286 (20%)", "25%", "not bound", "-", "-", "-",
            "0.00, as `none`",
        ),
    )  # fmt: skip
    text = markdown(found, "t")
    assert "## Enforced by the fine-tuning interface" in text and "57 of 286 (20%)" in text
    assert table.title in {part.title for part in document(found).tables}


def test_a_board_without_masks_has_no_such_table() -> None:
    made = [record(name, task, "lora") for name in ("none", "imma-lora") for task in TASKS]
    assert not [table for table in board(made).tables if "interface" in table.title]


def test_the_rules_name_the_tracks_with_the_families_that_the_code_asks_of_them() -> None:
    text = (Path(__file__).parents[2] / "leaderboard/rules.md").read_text("utf-8")
    (stated,) = re.findall(r"Tracks and the families that they owe: ([^.]+)\.", text)
    families = {}
    for part in " ".join(stated.split()).split("; "):
        tracks, _, owed = part.partition(": ")
        families |= {track: frozenset(owed.split(", ")) for track in tracks.split(" and ")}
    assert families == scoring.FAMILIES
    (section,) = re.findall(r"## Enforced by an interface\n(.*?)\n## ", text, flags=re.DOTALL)
    assert "`needs enforcement`" in section and "*Enforced by the fine-tuning interface*" in section
