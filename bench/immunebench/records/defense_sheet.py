"""Picture sheet of a defense: clean, protected, difference and purified pictures, and pictures after each attack."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from immunebench.records.building import Artifacts
    from immunebench.store.graph import CellGraph, Plan

    Pixels: TypeAlias = NDArray[np.uint8]

#: Maximum size of the PNG in bytes, per row of pictures.
ROW_BYTES = 24 * 1024
#: Amplification factor of the difference picture.
TIMES = 10
_SIDE, _GAP, _MIDDLE, _LABELS, _HEAD = 128, 3, 18, 150, 44
# Numbers of pictures per half of a row and of colours, tried from the best to the smallest.
_ATTEMPTS = tuple((columns, colours) for columns in (5, 4, 3, 2) for colours in (256, 128, 64))


@dataclass(frozen=True)
class SheetRow:
    """Pictures that the attacker trains on, and pictures generated after the attack; None where there are none."""

    label: str
    given: Pixels | None
    drawn: Pixels | None


def difference(protected: Pixels, published: Pixels) -> Pixels:
    """Return `TIMES` times the change of each value around mid-grey, 8 bits; changes from 13 of 255 saturate."""
    import numpy as np

    change = protected.astype(np.int16) - published.astype(np.int16)
    return (128 + TIMES * change).clip(0, 255).astype(np.uint8)


def defense_sheet(plan: Plan, store: Artifacts, task: str, path: Path) -> int:
    """Write the picture sheet of a plan's only defense on a task; return the size of the PNG in bytes.

    Raises
    ------
    UsageError
        If the plan has no such cell, the defense changes no picture, or a picture is not in the store.
    """
    from immunebench.metrics.pixels import linf, psnr

    rows = defense_rows(plan, store, task)
    clean, protected = rows[0].given, rows[1].given
    assert clean is not None and protected is not None
    change = f"Linf {linf(protected, clean).max():.0f} of 255, PSNR {psnr(protected, clean).mean():.1f} dB"
    cell = next(cell for cell in plan.cells if cell.task == task)
    return write_sheet(rows, path, title=f"{cell.defense} on {task}", note=change)


def defense_rows(plan: Plan, store: Artifacts, task: str) -> list[SheetRow]:
    """Return the rows of a plan's only defense on a task, from the artifacts of the first seed.

    Only chains with the same attack as the plan's first chain are shown, so that rows differ only in the pictures that
    the attacker trains on.

    Raises
    ------
    UsageError
        As in `defense_sheet`.
    """
    cells = [cell for cell in plan.cells if cell.task == task]
    cells = [cell for cell in cells if cell.seed == cells[0].seed]
    if not cells:
        raise UsageError("the suite has no cell of the defense on the task", field="--task", value=task)
    graphs = {cell.chain: plan.roots[cell.key] for cell in cells}
    if any(graph.given[0] == graph.published for graph in graphs.values()):
        raise UsageError("changes no picture:", field="DEFENSE", value=cells[0].defense)
    attack = cells[0].chain.split("+")[-1]
    chains = sorted((chain for chain in graphs if chain.split("+")[-1] == attack), key=lambda c: c.count("+"))
    first = graphs[chains[0]]

    def read(digest: str, what: str, *, drawn: bool = False) -> Pixels:
        from immunebench.records.contact_sheet import FIRST_OF_PROMPT, load_pictures

        folder = store.path(digest)
        if folder is None:
            raise UsageError(f"{what} is not in the store; run the suite first", value=digest[:16])
        return load_pictures(folder, FIRST_OF_PROMPT) if drawn else load_pictures(folder)

    def last(graph: CellGraph, *, undefended: bool = False) -> Pixels:
        made = graph.ceiling_pictures if undefended else graph.pictures
        return read(made[max(made)], f"what {graph.cell.chain} draws", drawn=True)

    clean, protected = read(first.published, "the clean set"), read(first.given[0], "the protected set")
    rows = [SheetRow("clean", clean, last(first, undefended=True) if chains[0] == attack else None)]
    rows.append(SheetRow("protected", protected, last(first) if chains[0] == attack else None))
    rows.append(SheetRow(f"difference x{TIMES}", difference(protected, clean), None))
    for chain in chains:
        if "+" in chain:
            graph = graphs[chain]
            name = chain.removesuffix(f"+{attack}")
            rows.append(SheetRow(name, read(graph.given[-1], f"the set after {name}"), last(graph)))
    return rows


def write_sheet(rows: Sequence[SheetRow], path: Path, *, title: str, note: str = "") -> int:
    """Write rows as a PNG of at most `ROW_BYTES` per row, with fewer colours and columns if necessary.

    Returns
    -------
    int
        Size of the file in bytes.
    """
    from PIL import Image

    data = b""
    for columns, colours in _ATTEMPTS:
        buffer = io.BytesIO()
        image = _draw(rows, title, note, columns)
        image.quantize(colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        data = buffer.getvalue()
        if len(data) <= ROW_BYTES * len(rows):
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return len(data)


def _draw(rows: Sequence[SheetRow], title: str, note: str, columns: int) -> Image.Image:
    from PIL import Image, ImageDraw

    from immunebench.records.contact_sheet import INK, PALE, PAPER, font, tile

    half = columns * (_SIDE + _GAP)
    starts = _LABELS, _LABELS + half + _MIDDLE
    width = starts[1] + half
    image = Image.new("RGB", (width, _HEAD + len(rows) * (_SIDE + _GAP)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((8, 12), title, INK, font(14, bold=True), anchor="lm")
    if draw.textlength(title, font(14, bold=True)) + draw.textlength(note, font(12)) + 40 <= width:
        draw.text((width - 8, 12), note, PALE, font(12), anchor="rm")
    for x, text in zip(starts, ("the attacker trains on", "and then draws"), strict=True):
        draw.text((x, _HEAD - 12), text, PALE, font(12), anchor="lm")
    for y, row in enumerate(rows):
        top = _HEAD + y * (_SIDE + _GAP)
        draw.text((8, top + _SIDE // 2), row.label, INK, font(13), anchor="lm")
        for x, pictures in zip(starts, (row.given, row.drawn), strict=True):
            for column, picture in enumerate([] if pictures is None else pictures[:columns]):
                image.paste(tile(picture, _SIDE), (x + column * (_SIDE + _GAP), top))
    return image
