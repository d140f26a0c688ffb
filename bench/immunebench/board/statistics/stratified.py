"""Intervals of a mean over families of the mean over tasks: Student's t by strata, nothing clipped.

Tasks are the units. What pictures, prompts and seeds add is in the spread of the tasks' values already, for it differs
from task to task; what all tasks share is not, and there is nothing of the kind but the judge.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from immunebench.declared import scoring


@dataclass(frozen=True)
class Estimate:
    """A stratified mean with its standard error and Satterthwaite's degrees of freedom (1946)."""

    mean: float
    error: float
    degrees: float

    def interval(self, confidence: float = scoring.CONFIDENCE) -> tuple[float, float]:
        """The two-sided interval of Student's t."""
        half = float(stdtrit(self.degrees, (1 + confidence) / 2)) * self.error
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float:
        """Two-sided probability of a mean at least as far from 0 where it is 0 in truth."""
        if self.error == 0:
            return 0.0 if self.mean else 1.0
        return 2 * float(stdtr(self.degrees, -abs(self.mean / self.error)))


def estimate(values: Mapping[str, float], families: Mapping[str, str]) -> Estimate | None:
    """Estimate the mean over families of the mean over tasks.

    Parameters
    ----------
    values
        One number a task.
    families
        Family of each task.

    Returns
    -------
    Estimate | None
        None with fewer tasks than a row needs for its interval, in all or in one of its families.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for task, value in values.items():
        groups[families[task]].append(value)
    sizes = [len(group) for group in groups.values()]
    if sum(sizes) < scoring.INTERVAL_TASKS or min(sizes) < scoring.INTERVAL_TASKS_FAMILY:
        return None
    parts = [float(np.var(group, ddof=1)) / len(group) / len(groups) ** 2 for group in groups.values()]
    variance = sum(parts)
    below = sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    degrees = variance**2 / below if below > 0 else float(sum(sizes) - len(sizes))
    mean = math.fsum(math.fsum(group) / len(group) for group in groups.values()) / len(groups)
    return Estimate(mean, math.sqrt(variance), degrees)


def told_apart(rows: Sequence[Mapping[str, float]], families: Mapping[str, str]) -> dict[tuple[int, int], bool]:
    """Say which pairs of rows differ: paired over their tasks, all pairs together (Holm 1979).

    Parameters
    ----------
    rows
        One number a task for each row.
    families
        Family of each task.

    Returns
    -------
    dict of (int, int) to bool
        For each pair i < j whether the difference is told from 0 at the board's confidence for all pairs at once.
        Rows that share too few tasks are not told apart.
    """
    found: dict[tuple[int, int], float] = {}
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            shared = sorted(rows[i].keys() & rows[j].keys())
            paired = estimate({task: rows[i][task] - rows[j][task] for task in shared}, families) if shared else None
            found[i, j] = 1.0 if paired is None else paired.p_value
    told: dict[tuple[int, int], bool] = {}
    rejected = True
    for number, (pair, p) in enumerate(sorted(found.items(), key=lambda item: item[1])):
        rejected = rejected and p <= (1 - scoring.CONFIDENCE) / (len(found) - number)
        told[pair] = rejected
    return told
