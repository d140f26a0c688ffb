"""Demo: runs the suite ``mini-demo`` and draws an overview of scores, cost and pictures.

``python -m immunebench.demo`` (``make demo``) attacks a few defenses on the embedded base, prints the scores, and draws
``results/demo/demo.png``. A second call reuses everything in the store.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.scores.model import Board, Row
from immunebench.board.scores.reading import measurement
from immunebench.board.tables.finding import finding, winner
from immunebench.board.text import number
from immunebench.records.contact_sheet import FIRST_OF_PROMPT, INK, PALE, PAPER, font, load_pictures, tile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import ImageDraw

    from immunebench.records.building import Artifacts
    from immunebench.records.record import Record

    Colour = tuple[int, int, int]

COLUMNS = 4
_SIDE, _GAP, _ROW, _MARGIN = 128, 6, 146, 32
_PANEL, _SCORE, _HEAD, _FOOT = 286, 86, 196, 80
#: Least A of a row that is marked as the answer to the question in the title: half of the attack's gain.
_HOLDS = 0.5
_GREEN, _BLUE, _RED, _TRACK = (18, 140, 96), (52, 104, 192), (196, 62, 50), (228, 232, 238)
_BAND, _ZEBRA = (226, 245, 236), (247, 248, 250)
_FIXED = {
    "reference": ("the concept", "real pictures of it"),
    "before": ("before the attack", "the model as released"),
}
_ROLES = {
    "none": "attacked without a defense",
    "none-replicate": "control: the attack repeated",
    "noise": "control: random noise on pictures",
    "destroy": "control: the model wrecked",
}


@dataclass(frozen=True)
class Block:
    """Pictures of one task.

    Parameters
    ----------
    task
        Id of the task.
    prompts
        Caption of each column.
    rows
        uint8 (n, H, W, 3) per row: ``reference``, ``before`` (the attack) and one per defense. All pictures of a column
        have the same prompt and noise, except in ``reference``.
    """

    task: str
    prompts: tuple[str, ...]
    rows: Mapping[str, NDArray[np.uint8]]


def write_demo(records: Iterable[Record], store: Artifacts, path: Path) -> str:
    """Draw the overview of a run from its records and the pictures in its store; return a summary sentence.

    Raises
    ------
    BoardError
        If the records do not form one board.
    """
    records = list(records)
    board = aggregate(map(measurement, records))
    return render(board, blocks(records, store), path)


def blocks(records: Iterable[Record], store: Artifacts) -> list[Block]:
    """Return one block per task: the first chain and seed of each defense, the first picture of each prompt."""
    by_task: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: (record.cell.task, record.cell.seed, record.cell.chain)):
        by_task.setdefault(record.cell.task, []).append(record)
    return [_block(task, group, store) for task, group in by_task.items()]


def _block(task: str, records: Sequence[Record], store: Artifacts) -> Block:
    rows: dict[str, NDArray[np.uint8]] = {}
    prompts: tuple[str, ...] = ()
    for record in records:
        for row, artefact, pattern in (
            ("reference", "reference", "*.png"),
            ("before", "floor_pictures", FIRST_OF_PROMPT),
            (record.cell.defense, "pictures", FIRST_OF_PROMPT),
        ):
            digest = record.artefacts.get(artefact)
            folder = None if digest is None else store.path(digest)
            if folder is None or row in rows:
                continue
            rows[row] = load_pictures(folder, pattern)
            if not prompts and row != "reference":
                prompts = tuple(json.loads((folder / "prompts.json").read_text("utf-8"))["prompts"])
    return Block(task, prompts, rows)


def render(board: Board, blocks: Sequence[Block], path: Path) -> str:
    """Draw the board with its pictures, one block of columns per task; return the summary sentence."""
    from PIL import Image, ImageDraw

    controls = ("none", "noise")
    shown = [*controls, *(row.defense for row in board.rows if not row.control)]
    shown += [row.defense for row in board.rows if row.control and row.defense not in controls]
    names = ["reference", "before", *(name for name in shown if board.row(name) is not None)]
    # The words above and below need the width of six.
    most = COLUMNS if len(blocks) > 1 else COLUMNS + 2
    columns = min([most, *(len(pictures) for block in blocks for pictures in block.rows.values())])
    block_width = columns * (_SIDE + _GAP) + _SCORE
    width = 2 * _MARGIN + _PANEL + len(blocks) * block_width
    image = Image.new("RGB", (width, _HEAD + len(names) * _ROW + _FOOT), PAPER)
    draw = ImageDraw.Draw(image)
    sentence = finding(board)
    _heading(draw, board, sentence, width)
    best = winner(board)
    for y, name in enumerate(names):
        top = _HEAD + y * _ROW
        won = best is not None and best.defense == name and (best.a or 0.0) >= _HOLDS
        if won or y % 2 == 0:
            draw.rectangle((0, top, width, top + _ROW - 1), _BAND if won else _ZEBRA)
        if won:
            draw.rectangle((0, top, 8, top + _ROW - 1), _GREEN)
        _label(draw, name, board.row(name), top, won)
        for x, block in enumerate(blocks):
            left = _MARGIN + _PANEL + x * block_width
            pictures = block.rows.get(name)
            for column in range(columns):
                place = left + column * (_SIDE + _GAP), top + (_ROW - _SIDE) // 2
                if pictures is not None:
                    image.paste(tile(pictures[column], _SIDE), place)
                else:
                    box = (*place, place[0] + _SIDE, place[1] + _SIDE)
                    draw.rectangle(box, _TRACK)
                    draw.text(
                        (place[0] + _SIDE // 2, place[1] + _SIDE // 2),
                        "no picture",
                        PALE,
                        font(12),
                        anchor="mm",
                    )
            _task_score(draw, board.row(name), block.task, (left + columns * (_SIDE + _GAP) + 4, top + _ROW // 2))
    for x, block in enumerate(blocks):
        _columns(draw, block, _MARGIN + _PANEL + x * block_width, columns)
    foot = "; ".join(board.notes) + ". Each column of generated pictures has one prompt and one noise."
    legend = (
        "A: part of the attack's gain that is stopped over its course.  U: part of the use that is left (gate 0.8)."
    )
    lines = [legend, *textwrap.wrap(foot, int((width - 2 * _MARGIN) / 7.2))[:2]]
    for y, line in enumerate(lines):
        draw.text((_MARGIN, image.height - 20 - 20 * (len(lines) - 1 - y)), line, PALE, font(13), anchor="lm")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG", optimize=True)
    return sentence


def _heading(draw: ImageDraw.ImageDraw, board: Board, sentence: str, width: int) -> None:
    chains = " and ".join(sorted({power.chain for power in board.power})) or "the attack"
    draw.text((_MARGIN, 38), f"Which defense holds against {chains}?", INK, font(30, bold=True), anchor="lm")
    characters = int((width - 2 * _MARGIN) / 9.4)
    for y, line in enumerate(textwrap.wrap(sentence, characters)[:3]):
        draw.text((_MARGIN, 74 + 23 * y), line, INK, font(17), anchor="lm")


def _columns(draw: ImageDraw.ImageDraw, block: Block, left: int, columns: int) -> None:
    draw.text((left, _HEAD - 50), block.task, INK, font(17, bold=True), anchor="lm")
    for column, prompt in enumerate(block.prompts[:columns]):
        lines = textwrap.wrap(prompt, 21)[:2]
        for y, line in enumerate(lines):
            place = (left + column * (_SIDE + _GAP), _HEAD - 30 + 14 * y)
            draw.text(place, line, PALE, font(11), anchor="lm")


def _label(draw: ImageDraw.ImageDraw, name: str, row: Row | None, top: int, won: bool) -> None:
    title, role = _FIXED.get(name, (name, _ROLES.get(name, "")))
    if row is not None and not role:
        role = f"{'control' if row.control else row.kind + '-side defense'}"
    if row is not None and row.seconds is not None and not row.control:
        role += f", {row.seconds:.0f} s to protect"
    middle = top + _ROW // 2 - (0 if row is None else 28)
    draw.text((_MARGIN, middle - 10), title, _GREEN if won else INK, font(19, bold=True), anchor="lm")
    draw.text((_MARGIN, middle + 12), role, PALE, font(12), anchor="lm")
    if row is None:
        return
    _bar(draw, "A", row.a, PALE if row.control else _GREEN, middle + 38)
    _bar(draw, "U", row.u, _RED if "utility gate" in row.flags else _BLUE, middle + 62)


def _bar(draw: ImageDraw.ImageDraw, label: str, value: float | None, colour: Colour, middle: int) -> None:
    left, length = _MARGIN + 22, 150
    draw.text((_MARGIN, middle), label, INK, font(14, bold=True), anchor="lm")
    draw.rectangle((left, middle - 7, left + length, middle + 7), _TRACK)
    if value is not None and value > 0.0:
        draw.rectangle((left, middle - 7, left + round(length * min(value, 1.0)), middle + 7), colour)
    draw.text((left + length + 10, middle), number(value), INK, font(17, bold=True), anchor="lm")


def _task_score(draw: ImageDraw.ImageDraw, row: Row | None, task: str, place: tuple[int, int]) -> None:
    found = [score for score in row.scores if score.task == task] if row is not None else []
    if not found:
        return
    x, y = place
    areas = [] if row is None or row.area is None else [area.area for area in row.area.tasks if area.task == task]
    draw.text((x, y - 8), number(areas[0]) if areas else "-", INK, font(16, bold=True), anchor="lm")
    draw.text((x, y + 11), "A here" if areas else found[0].status, PALE, font(11), anchor="lm")


def main() -> None:
    """Run the suite ``mini-demo``; exits with 0 if every cell is ok and the board is valid, else with 1."""
    from immunebench import api
    from immunebench.board.scores.model import BoardError
    from immunebench.board.tables import layout
    from immunebench.core.errors import UsageError

    folder = api.results_folder() / "demo"
    try:
        plan = api.plan_suite("mini-demo")
        store = api.open_store()
        records = api.measure(plan, store, folder, workers=2, processes=True)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(1) from None
    sentence = write_demo(records, store, folder / "demo.png")
    scored = aggregate(map(measurement, records))
    try:
        layout.show(scored, "mini-demo")
        layout.write_markdown(scored, "mini-demo", folder / "board.md")
    except BoardError as error:
        print(f"no board: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"\n{sentence}\npicture: {folder / 'demo.png'}\nrecords: {folder}")
    failed = [record for record in records if record.status != "ok"]
    for record in failed:
        print(f"{record.cell.key}: {record.status}: {record.reason}", file=sys.stderr)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
