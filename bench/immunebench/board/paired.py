"""The interval of a paired difference: tasks are drawn again, families stay what they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from immunebench.board import rules, scores

LEVEL = 0.95
DRAWS = 10_000
_SEED = 0


def mean_difference(differences_by_task: Mapping[str, float], families: Mapping[str, str] | None = None) -> float:
    """Mean over families of the mean over tasks, as the headline has it; one family where none are named."""
    return scores.mean([scores.mean(group) for group in _groups(differences_by_task, families)])


def paired_interval(
    differences_by_task: Mapping[str, float], families: Mapping[str, str] | None = None
) -> tuple[float, float] | None:
    """95 % percentile bootstrap of `mean_difference` over tasks.

    Parameters
    ----------
    differences_by_task
        One paired difference a task; what is common to both sides has cancelled.
    families
        Family of each task: tasks are drawn within their family.

    Returns
    -------
    tuple | None
        Lower and upper end; None with fewer tasks than `INTERVAL_TASKS`, where a bootstrap says nothing.
    """
    import numpy as np

    if len(differences_by_task) < rules.INTERVAL_TASKS:
        return None
    random = np.random.default_rng(_SEED)
    means = [random.choice(group, (DRAWS, len(group))).mean(axis=1) for group in _groups(differences_by_task, families)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.mean(means, axis=0), (tail, 1 - tail))
    return float(low), float(high)


def _groups(differences_by_task: Mapping[str, float], families: Mapping[str, str] | None) -> list[list[float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for task, difference in sorted(differences_by_task.items()):
        groups["" if families is None else families[task]].append(difference)
    return [groups[family] for family in sorted(groups)]
