"""Intervals of a mean over families of the mean over tasks: stratified Student's t, without clipping.

Tasks are the sampling units. The variance between tasks already includes the noise of pictures, prompts and seeds,
which is independent between tasks. It does not include what tasks share: the judge, the base, and within a family the
choice of the strongest attack, whose effect `docs/coverage.md` has by simulation.
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
        """Return the two-sided Student's t interval."""
        half = float(stdtrit(self.degrees, (1 + confidence) / 2)) * self.error
        return self.mean - half, self.mean + half

    @property
    def power_80(self) -> float:
        """Smallest true mean that is found significant with probability 80 %."""
        factor = stdtrit(self.degrees, (1 + scoring.CONFIDENCE) / 2) + stdtrit(self.degrees, 0.8)
        return float(factor) * self.error

    @property
    def p_value(self) -> float:
        """Two-sided p-value for the null hypothesis that the mean is 0."""
        if self.error == 0:
            return 0.0 if self.mean else 1.0
        return 2 * float(stdtr(self.degrees, -abs(self.mean / self.error)))


def estimate(
    values: Mapping[str, float], families: Mapping[str, str], least: int = scoring.INTERVAL_TASKS
) -> Estimate | None:
    """Estimate the mean over families of the mean over tasks.

    Parameters
    ----------
    values
        One value per task.
    families
        Family of each task.
    least
        Least number of tasks in total.

    Returns
    -------
    Estimate | None
        None with fewer tasks than a row needs for its interval, in total or in one of its families.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for task, value in values.items():
        groups[families[task]].append(value)
    sizes = [len(group) for group in groups.values()]
    if sum(sizes) < max(least, 1) or min(sizes) < scoring.INTERVAL_TASKS_FAMILY:
        return None
    parts = [float(np.var(group, ddof=1)) / len(group) / len(groups) ** 2 for group in groups.values()]
    variance = sum(parts)
    below = sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    degrees = variance**2 / below if below > 0 else float(sum(sizes) - len(sizes))
    mean = math.fsum(math.fsum(group) / len(group) for group in groups.values()) / len(groups)
    return Estimate(mean, math.sqrt(variance), degrees)


def difference(one: Mapping[str, float], other: Mapping[str, float], families: Mapping[str, str]) -> Estimate | None:
    """Estimate the mean of `one` minus `other`, paired by task; None with too few tasks in common."""
    shared = sorted(one.keys() & other.keys())
    return estimate({task: one[task] - other[task] for task in shared}, families)


def differences(
    rows: Sequence[Mapping[str, float]], families: Mapping[str, str]
) -> dict[tuple[int, int], Estimate | None]:
    """Estimate the difference of each pair of rows i < j, paired by task; see `difference`."""
    return {(i, j): difference(rows[i], rows[j], families) for i in range(len(rows)) for j in range(i + 1, len(rows))}


def significant(found: Mapping[tuple[int, int], Estimate | None]) -> dict[tuple[int, int], bool]:
    """Test all pairs together, with Holm's correction (1979).

    Returns
    -------
    dict of (int, int) to bool
        For each pair whether the difference is significant, with the family-wise error rate over all pairs at most
        1 - `scoring.CONFIDENCE`. Rows with too few tasks in common do not differ significantly.
    """
    p_values = {pair: 1.0 if paired is None else paired.p_value for pair, paired in found.items()}
    told: dict[tuple[int, int], bool] = {}
    rejected = True
    for number, (pair, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        rejected = rejected and p <= (1 - scoring.CONFIDENCE) / (len(p_values) - number)
        told[pair] = rejected
    return told


def told_apart(rows: Sequence[Mapping[str, float]], families: Mapping[str, str]) -> dict[tuple[int, int], bool]:
    """Return for each pair of rows i < j whether they differ significantly, all pairs tested together.

    Parameters
    ----------
    rows
        One value per task for each row.
    families
        Family of each task.
    """
    return significant(differences(rows, families))
