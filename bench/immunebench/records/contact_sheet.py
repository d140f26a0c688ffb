"""Contact sheet of a cell: the concept, what the attack learns, what it learns against the defense."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image, ImageFont

    from immunebench.records.building import Artifacts
    from immunebench.records.record import Sheet
    from immunebench.store.graph import CellGraph

    Pixels: TypeAlias = NDArray[np.uint8]

MAX_BYTES = 60 * 1024
FIRST_OF_PROMPT = "p*-00.png"
INK, PALE, PAPER = (28, 32, 40), (104, 112, 124), (255, 255, 255)
_SIDE, _GAP, _LABELS, _HEAD = 128, 4, 118, 26
# from best to smallest: how many columns and colours
_ATTEMPTS = tuple((columns, colours) for columns in (8, 6, 5, 4, 3) for colours in (256, 128, 64))


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it, so that a picture needs no font of the system; `size` in pixels."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def tile(picture: Pixels, side: int) -> Image.Image:
    """One picture (H, W, 3) as a square of `side` pixels, by whole pixels where that is possible."""
    from PIL import Image

    image = Image.fromarray(picture)
    whole = side % image.width == 0 and side % image.height == 0
    return image.resize((side, side), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def contact_sheet(
    reference: Pixels, undefended: Pixels, defended: Pixels, path: Path, *, title: str, note: str = ""
) -> str:
    """Write a cell's contact sheet of at most 60 KB, with fewer colours and columns where they do not fit.

    Parameters
    ----------
    reference
        Real pictures of the concept, uint8 (n, H, W, 3).
    undefended, defended
        Generated pictures, uint8 (n, H, W, 3); a column holds the same prompt and noise.
    path
        The PNG to write.
    title
        One line above the pictures, such as the cell and its P.
    note
        A few words at the right end of that line; left out where the columns leave no room.

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    ValueError
        If one of them is empty.
    """
    from PIL import Image

    rows = {"reference": reference, "undefended": undefended, "defended": defended}
    if min(len(pictures) for pictures in rows.values()) == 0:
        raise ValueError("a contact sheet needs at least one picture in each row")
    data = b""
    for columns, colours in _ATTEMPTS:
        image = _draw(rows, title, note, min(columns, *map(len, rows.values())))
        buffer = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        data = buffer.getvalue()
        if len(data) <= MAX_BYTES:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _draw(rows: dict[str, Pixels], title: str, note: str, columns: int) -> Image.Image:
    from PIL import Image, ImageDraw

    size = (_LABELS + columns * (_SIDE + _GAP), _HEAD + len(rows) * (_SIDE + _GAP))
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((8, _HEAD // 2), title, INK, font(14, bold=True), anchor="lm")
    if draw.textlength(title, font(14, bold=True)) + draw.textlength(note, font(13)) + 40 <= size[0]:
        draw.text((size[0] - 8, _HEAD // 2), note, PALE, font(13), anchor="rm")
    for y, (label, pictures) in enumerate(rows.items()):
        top = _HEAD + y * (_SIDE + _GAP)
        draw.text((8, top + _SIDE // 2), label, INK, font(14), anchor="lm")
        for x in range(columns):
            image.paste(tile(pictures[x], _SIDE), (_LABELS + x * (_SIDE + _GAP), top))
    return image


def load_pictures(folder: Path, pattern: str = "*.png") -> Pixels:
    """Pictures of a folder in the order of their names, uint8 (n, H, W, 3).

    Raises
    ------
    ValueError
        If there is none.
    """
    import numpy as np
    from PIL import Image

    files = sorted(folder.glob(pattern))
    if not files:
        raise ValueError(f"{folder.name}: no picture {pattern}")
    return np.stack([np.asarray(Image.open(file).convert("RGB"), dtype=np.uint8) for file in files])


def cell_sheet(graph: CellGraph, store: Artifacts, folder: Path) -> Sheet | None:
    """Write the contact sheet of a cell, the first picture of each prompt, from the artifacts of its stages.

    Parameters
    ----------
    graph, store
        Stages of the cell and where their artifacts lie.
    folder
        Folder of the suite's records; the sheet goes to ``sheets/`` in it.

    Returns
    -------
    Sheet | None
        Name below `folder` and SHA-256; None where an artifact is missing.
    """
    from immunebench.records.record import Sheet

    generated = graph.pictures[graph.final], graph.ceiling_pictures[graph.final]
    defended, undefended, reference = (store.path(digest) for digest in (*generated, graph.reference))
    if defended is None or undefended is None or reference is None:
        return None
    cell = graph.cell
    setting = f", {cell.setting.name}" if cell.setting.name else ""
    name = f"sheets/{cell.key.replace('/', '--')}.png"
    digest = contact_sheet(
        load_pictures(reference),
        load_pictures(undefended, FIRST_OF_PROMPT),
        load_pictures(defended, FIRST_OF_PROMPT),
        folder / name,
        title=f"{cell.task}: {cell.defense} against {cell.chain} (seed {cell.seed}{setting})",
        note=_note(graph, store),
    )
    return Sheet(file=name, sha256=digest)


def _note(graph: CellGraph, store: Artifacts) -> str:
    """What the attacked pictures measure beside the score, of what the suite asks for."""
    from immunebench.records.building import Reader

    reader, last = Reader(graph, store), graph.curve[graph.final]
    words = {"prompt_accuracy": "follow their prompt", "collapse": "collapsed"}
    found = [(reader.by_id(last, metric), text) for metric, text in words.items()]
    return ", ".join(f"{100 * part:.0f} % {text}" for part, text in found if part is not None)
