"""The command `fid`: parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from immunebench.metrics import Pixels

#: Pictures of a set, which is held in memory whole: 100,000 of 299 x 299 are 27 GB.
MOST = 100_000


def fid(
    drawn: Annotated[Path, typer.Argument(help="Folder of drawn pictures, at least 1,000.")],
    reference: Annotated[Path, typer.Argument(help="Folder of real ones, or of those that the base draws.")],
    side: Annotated[int, typer.Option("--side", min=8, help="Pictures are cut square and scaled to it.")] = 299,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how far two sets of pictures are apart: FID and KID, the usual test of a full-size model's use.

    Neither enters P or U: a suite draws too few pictures. Draw 1,000 from the exported model and from the base.

    Example: immunebench fid drawn/ real/
    """
    from immunebench.metrics import sets

    # Reading thousands of pictures takes minutes, so what may be missing is looked at first.
    found_files = [_files(folder, field) for folder, field in ((drawn, "DRAWN"), (reference, "REFERENCE"))]
    sets.inception()
    ours, theirs = (_read(files, side) for files in found_files)
    distance, (mean, deviation) = sets.fid(ours, theirs), sets.kid(ours, theirs)
    counts = f"{len(ours):,} and {len(theirs):,}"
    found = {"fid": distance, "kid": mean, "kid_deviation": deviation, "pictures": [len(ours), len(theirs)]}
    print(
        json.dumps(found)
        if as_json
        else f"FID {distance:.2f}\nKID {mean:.5f} (deviation {deviation:.5f})\n{counts} pictures of {side} x {side}"
    )


def _files(folder: Path, field: str) -> list[Path]:
    from immunebench.metrics.sets import require_enough
    from immunebench.pictures import intake

    files, notes = intake.picture_files(folder, most=MOST, field=field)
    for note in notes:
        typer.echo(f"{folder}: {note}", err=True)
    require_enough(field, len(files))
    return files


def _read(files: list[Path], side: int) -> Pixels:
    import numpy as np

    from immunebench.pictures import intake

    pixels = np.empty((len(files), side, side, 3), np.uint8)
    for i, file in enumerate(files):
        pixels[i] = intake.read_picture(file, side)
    return pixels


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(fid)
