"""How much a released model draws otherwise, on a scale: 0 as rounding does, 1 as another noise does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from immunebench.declared import scoring

if TYPE_CHECKING:
    from collections.abc import Mapping

    from immunebench.records.record import Integrity, Measured

RESAMPLES = 2000


@dataclass(frozen=True)
class Share:
    """(I - F0) / (F1 - F0) with its interval by a bootstrap over prompts; not clipped."""

    value: float
    low: float
    high: float


def integrity_share(integrity: Integrity, metric: str = "perceptual") -> Share | None:
    """Return the released model's change of pictures on the scale of the start model's own.

    The idea of Schioppa, Hoogeboom and Heek (arXiv 2411.02068); the definition is ours: I is the mean perceptual
    distance of pictures of equal prompt and noise, the floor F0 that of the start model computed by another attention
    kernel, the ceiling F1 that of the start model from other noise.

    Parameters
    ----------
    integrity : Integrity
        Of one record.
    metric : str
        Id of the distance, without its version.

    Returns
    -------
    Share | None
        None where one of the three is missing, or another noise changes no more than rounding.
    """
    sides = [_values(found, metric) for found in (integrity.before, integrity.floor, integrity.ceiling)]
    if len({len(values) for values in sides}) != 1 or not sides[0]:
        return None
    i, f0, f1 = (np.array(values) for values in sides)
    if f1.mean() <= f0.mean():
        return None
    # The three have the same prompts, which are drawn together.
    rows = np.random.default_rng(0).integers(len(i), size=(RESAMPLES, len(i)))
    spans = (f1 - f0)[rows].mean(axis=1)
    shares = (i - f0)[rows].mean(axis=1)[spans > 0] / spans[spans > 0]
    tail = (1 - scoring.CONFIDENCE) / 2
    low, high = np.quantile(shares, [tail, 1 - tail])
    return Share(float((i.mean() - f0.mean()) / (f1.mean() - f0.mean())), float(low), float(high))


def _values(found: Mapping[str, Measured] | None, metric: str) -> tuple[float, ...]:
    return next((m.values for name, m in (found or {}).items() if name.partition("@")[0] == metric), ())
