"""Finds copies among pictures: with a copy in another split, an attack would train on what is scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Two copies of one picture in two file formats differ by less, a channel of 0 to 255 on a thumbnail of `_THUMBNAIL`.
_SAME, _THUMBNAIL = 6, 16
#: Side at which brightness is correlated, and the correlation that copies of a picture reach.
_DETAIL, _CORRELATION = 64, 0.8
#: Standard deviation of brightness, of 255, below which a picture counts as blank.
_BLANK = 0.25


class Likeness:
    """Recognises copies among pictures of one size, uint8 (side, side, 3).

    Two pictures are copies if their thumbnails are nearly equal and their brightness is correlated. Thumbnails alone
    are not enough: those of two pale pencil drawings are both nearly white.
    """

    def __init__(self) -> None:
        self._thumbnails: list[NDArray[np.int16]] = []
        self._details: list[NDArray[np.float64]] = []

    def find(self, pixels: NDArray[np.uint8]) -> int | None:
        """Return the number of the picture, in the order of `add`, that this one is a copy of; None if it is new."""
        thumbnail, detail = _thumbnail(pixels), _detail(pixels)
        for number, (other, seen) in enumerate(zip(self._thumbnails, self._details, strict=True)):
            if np.abs(other - thumbnail).max() <= _SAME and _agree(seen, detail):
                return number
        return None

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Remember a picture."""
        self._thumbnails.append(_thumbnail(pixels))
        self._details.append(_detail(pixels))


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    small = Image.fromarray(pixels).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.int16)


def _detail(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the brightness minus its mean, in fractions of a step of 255."""
    grey = Image.fromarray(pixels.mean(axis=2, dtype=np.float32))
    found = np.asarray(grey.resize((_DETAIL, _DETAIL), Image.Resampling.BOX), dtype=np.float64)
    centred: NDArray[np.float64] = found - found.mean()
    return centred


def _agree(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    deviations = one.std(), other.std()
    if max(deviations) < _BLANK:
        return True
    if min(deviations) == 0:
        return False
    return bool((one * other).mean() / (deviations[0] * deviations[1]) >= _CORRELATION)


def distinct(pictures: Sequence[NDArray[np.uint8]]) -> list[int | None]:
    """Return for each picture the place of the first one that it is a copy of, None for those that are new."""
    likeness, places = Likeness(), list[int]()
    found: list[int | None] = []
    for place, pixels in enumerate(pictures):
        number = likeness.find(pixels)
        found.append(None if number is None else places[number])
        if number is None:
            likeness.add(pixels)
            places.append(place)
    return found
