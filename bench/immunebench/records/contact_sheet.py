"""Contact sheet of a cell: real pictures of the concept, and pictures after the undefended and the defended attack."""

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

MAX_BYTES = 24 * 1024
SIDE = 96
FIRST_OF_PROMPT = "p*-00.png"
INK, PALE, PAPER = (28, 32, 40), (104, 112, 124), (255, 255, 255)
# Numbers of columns and WebP qualities, tried from the best to the smallest.
_ATTEMPTS = tuple((columns, quality) for columns in (12, 8, 5, 3) for quality in (90, 80, 65, 50))


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return matplotlib's DejaVu Sans, so that no system font is needed; `size` in pixels."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def tile(picture: Pixels, side: int) -> Image.Image:
    """Return a picture (H, W, 3) resized to a square of `side` pixels, by pixel repetition if `side` is a multiple."""
    from PIL import Image

    image = Image.fromarray(picture)
    whole = side % image.width == 0 and side % image.height == 0
    return image.resize((side, side), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def contact_sheet(reference: Pixels, undefended: Pixels, defended: Pixels, path: Path) -> str:
    """Write a cell's contact sheet as WebP of at most `MAX_BYTES`: three rows of pictures without text.

    Pictures keep their size up to `SIDE` pixels; the site enlarges them and labels the rows. If the file is too
    large, quality and number of columns are reduced.

    Parameters
    ----------
    reference
        Real pictures of the concept, uint8 (n, H, W, 3).
    undefended, defended
        Generated pictures, uint8 (n, H, W, 3); a column holds the same prompt and noise.
    path
        The file to write.

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    ValueError
        If one of the rows is empty.
    """
    rows = (reference, undefended, defended)
    most = min(map(len, rows))
    if most == 0:
        raise ValueError("a contact sheet needs at least one picture in each row")
    data = b""
    for columns, quality in _ATTEMPTS:
        buffer = io.BytesIO()
        _grid(rows, min(columns, most)).save(buffer, "WEBP", quality=quality, method=6)
        data = buffer.getvalue()
        if len(data) <= MAX_BYTES:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _grid(rows: tuple[Pixels, ...], columns: int) -> Image.Image:
    from PIL import Image

    side = min(SIDE, rows[0].shape[1])
    image = Image.new("RGB", (columns * side, len(rows) * side))
    for y, pictures in enumerate(rows):
        for x in range(columns):
            image.paste(tile(pictures[x], side), (x * side, y * side))
    return image


def load_pictures(folder: Path, pattern: str = "*.png") -> Pixels:
    """Return the pictures of a folder in the order of their names, uint8 (n, H, W, 3).

    Raises
    ------
    ValueError
        If there is no picture.
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
        Stages of the cell and the store with their artifacts.
    folder
        Folder of the suite's records; the sheet is written to its subfolder ``sheets/``.

    Returns
    -------
    Sheet | None
        Path relative to `folder` and SHA-256; None if an artifact is missing.
    """
    from immunebench.records.record import Sheet

    generated = graph.pictures[graph.final], graph.ceiling_pictures[graph.final]
    defended, undefended, reference = (store.path(digest) for digest in (*generated, graph.reference))
    if defended is None or undefended is None or reference is None:
        return None
    name = f"sheets/{graph.cell.key.replace('/', '--')}.webp"
    digest = contact_sheet(
        load_pictures(reference),
        load_pictures(undefended, FIRST_OF_PROMPT),
        load_pictures(defended, FIRST_OF_PROMPT),
        folder / name,
    )
    return Sheet(file=name, sha256=digest)
