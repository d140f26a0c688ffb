"""Intervals of the headline with its tasks held fixed: only seeds and pictures are resampled.

Sweeps have one task per family, from which the variance between tasks cannot be estimated; their intervals are of this
kind and are labelled so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from immunebench.board.statistics.bootstrap import Array, Interval, TaskSample, p_raw
from immunebench.declared import scoring

_TAILS = ((1.0 - scoring.CONFIDENCE) / 2.0, (1.0 + scoring.CONFIDENCE) / 2.0)


@dataclass(frozen=True)
class Fixed:
    """Headlines of rows that share every draw of seeds and pictures.

    Parameters
    ----------
    estimate
        Shape (rows,): mean over families of the mean over tasks of the least P over chains.
    draws
        Shape (draws, rows).
    """

    estimate: Array
    draws: Array

    def interval(self, row: int) -> Interval:
        """Return the interval of one row, within [0, 1] and containing its estimate."""
        low, high = _around(float(self.estimate[row]), self.draws[:, row])
        estimate = float(self.estimate[row])
        return min(max(low, 0.0), estimate), max(min(high, 1.0), estimate)

    def difference(self, one: int, other: int) -> Interval:
        """Return the paired interval of row `one` minus row `other`."""
        estimate = float(self.estimate[one] - self.estimate[other])
        return _around(estimate, self.draws[:, one] - self.draws[:, other])


def fixed_tasks(samples: Sequence[TaskSample], *, draws: int = scoring.DRAWS) -> Fixed:
    """Bootstrap the headline over seeds and pictures of each task, without resampling tasks.

    Parameters
    ----------
    samples
        One per informative task, each with the same rows.
    draws
        Number of draws.
    """
    rng = np.random.default_rng(scoring.BOOTSTRAP_SEED)
    families: dict[str, list[tuple[Array, Array]]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: (sample.family, sample.task)):
        gap = np.maximum(sample.ceiling.mean((0, 2)) - sample.floor.mean(), 1e-9)
        point = (sample.ceiling.mean((0, 2)) - sample.defended.mean((1, 3))) / gap
        drawn = p_raw(rng, sample, draws)
        families[sample.family].append((np.clip(point.min(-1), 0.0, 1.0), np.clip(drawn.min(-1), 0.0, 1.0)))
    estimate = np.mean([np.mean([point for point, _ in tasks], axis=0) for tasks in families.values()], axis=0)
    spread = np.mean([np.mean([drawn for _, drawn in tasks], axis=0) for tasks in families.values()], axis=0)
    return Fixed(estimate, spread)


def _around(estimate: float, draws: Array) -> Interval:
    low, high = np.quantile(draws, _TAILS) - draws.mean()
    return estimate + float(low), estimate + float(high)
