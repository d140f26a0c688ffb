"""The protected copies of pictures and their report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from immunebench.catalog.catalog import Catalog
from immunebench.core.errors import UsageError
from immunebench.pictures.decoding import Photo, decode, read_picture
from immunebench.protecting.planning import Planned

Pixels = NDArray[np.uint8]
REPORT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Saved:
    """A copy on disk and what it was made from.

    Attributes
    ----------
    clean, pixels
        uint8, (height, width, 3): the picture before, and the copy as read from its file.
    square
        uint8, (side, side, 3): the copy as somebody reads it who trains on its middle square.
    sha256
        Of the file.
    """

    clean: Pixels
    pixels: Pixels
    square: Pixels
    sha256: str


@dataclass(frozen=True, slots=True)
class Copy:
    """One protected picture, measured on its saved file.

    Attributes
    ----------
    file, output, sha256
        Name of the picture, name and digest of the copy.
    width, height
        Of the copy, in pixels.
    linf, psnr
        Largest change of a value (of 255) and PSNR in dB, at the copy's size.
    ssim, perceptual
        Of the middle square at the base's resolution; `perceptual` is None where its weights are missing.
    seconds
        Of the set, shared evenly.
    covered
        Share of the picture's area that the change covers; 1 for squares.
    survives
        Mean change of the middle square, read from the copy as somebody reads it who trains on it, over that of the
        square that the defense made; 1 for squares. None where the defense changed nothing.
    within_budget
        Whether the copy keeps the declared budget.
    """

    file: str
    output: str
    sha256: str
    width: int
    height: int
    linf: int
    psnr: float
    ssim: float
    perceptual: float | None
    seconds: float
    covered: float
    survives: float | None
    within_budget: bool


@dataclass(frozen=True, slots=True)
class Done:
    """All copies, by the names of their pictures, and the folder that they are in."""

    copies: tuple[Copy, ...]
    out: Path

    @property
    def within_budget(self) -> bool:
        """Whether every copy keeps the declared budget."""
        return all(copy.within_budget for copy in self.copies)


def write_copy(plan: Planned, photo: Photo, protected: Pixels, file: Path) -> Saved:
    """Save a protected picture as PNG, which loses nothing, and read it again.

    Parameters
    ----------
    plan
        Says which size is asked for.
    photo
        The picture and its square before.
    protected
        uint8, (side, side, 3): the square that the defense made.
    file
        Where to write; new.

    Raises
    ------
    UsageError
        The picture is no longer the one that was read.
    """
    clean = photo.pixels
    if plan.request.size == "own":
        source = plan.request.folder.expanduser() / photo.name
        clean = read_picture(source)
        if not np.array_equal(read_picture(source, plan.side), photo.pixels):
            raise UsageError("changed meanwhile; start the command again", file=source)
        Image.fromarray(enlarged(clean, photo.pixels, protected)).save(file)
    else:
        Image.fromarray(protected).save(file)
    data = file.read_bytes()
    return Saved(
        clean, decode(data, file, formats=("PNG",)), decode(data, file, plan.side, ("PNG",)),
        hashlib.sha256(data).hexdigest(),
    )  # fmt: skip


def enlarged(picture: Pixels, clean: Pixels, protected: Pixels) -> Pixels:
    """Add the change of a square to the middle square of a picture of any size.

    The change is scaled by triangles: every value is a mean of values of the small one with weights above 0, so that
    none is larger than the largest of those and an L_inf budget is kept.

    Parameters
    ----------
    picture
        uint8, (height, width, 3).
    clean, protected
        uint8, (side, side, 3): its middle square, scaled, and what a defense made of that.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
    """
    height, width = picture.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    change = np.moveaxis(protected.astype(np.float32) - clean.astype(np.float32), -1, 0)
    scaled = [Image.fromarray(channel).resize((side, side), Image.Resampling.BILINEAR) for channel in change]
    whole = picture.copy()
    middle = whole[top : top + side, left : left + side]
    moved = middle + np.stack([np.asarray(channel) for channel in scaled], axis=-1).round()
    middle[:] = np.clip(moved, 0, 255).astype(np.uint8)
    return whole


def write_report(plan: Planned, catalog: Catalog, done: Done, known: Mapping[str, Any], file: Path) -> None:
    """Write ``report.json``; it names no folder of this machine."""
    file.write_text(json.dumps(report(plan, catalog, done, known), indent=1, allow_nan=False) + "\n", "utf-8")


def report(plan: Planned, catalog: Catalog, done: Done, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was done, as JSON has it."""
    request, entry, task = plan.request, plan.entry, plan.task
    return {
        "schema_version": REPORT_VERSION,
        "defense": entry.id,
        "version": entry.version,
        "title": entry.title,
        "layers_left_out": list(plan.left_out),
        "budget": entry.budget,
        "perceptual_budget": entry.perceptual_budget,
        "within_budget": done.within_budget,
        "base": request.base,
        "base_revision": catalog.base_revision(request.base),
        "profile": f"{plan.profile.id}@{plan.profile.version}",
        "resolution": plan.side,
        "size": request.size,
        "seed": request.seed,
        "family": task.family,
        "noun": task.concept.noun,
        "caption": task.owner.caption,
        "sets": [
            {"stage": part.protect, "pictures": sorted(photo.name for photo in part.photos)} for part in plan.sets
        ],
        "pictures": [asdict(copy) for copy in done.copies],
        "skipped": list(plan.notes),
        "known": dict(known),
    }
