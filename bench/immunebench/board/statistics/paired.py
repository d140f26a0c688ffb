"""Interval of a paired difference, by resampling tasks within families."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from immunebench.board.scores import scale as scores
from immunebench.declared import scoring


def mean_difference(differences_by_task: Mapping[str, float], families: Mapping[str, str] | None = None) -> float:
    """Return the mean over families of the mean over tasks, as in the headline; without families, over all tasks."""
    groups: dict[str, list[float]] = {}
    for task, difference in sorted(differences_by_task.items()):
        groups.setdefault("" if families is None else families[task], []).append(difference)
    return scores.mean([scores.mean(group) for group in groups.values()])


def paired_interval(
    differences_by_task: Mapping[str, float], families: Mapping[str, str] | None = None
) -> tuple[float, float] | None:
    """Return the interval of `mean_difference` over tasks, computed as for paired rows of the board.

    Parameters
    ----------
    differences_by_task
        One paired difference per task.
    families
        Family of each task: tasks are resampled within their family.

    Returns
    -------
    tuple | None
        Lower and upper end; None with fewer tasks than a row needs for its interval, in total or in a family.
    """
    import numpy as np

    from immunebench.board.statistics.bootstrap import mean_over_tasks, spread

    tasks = sorted(differences_by_task)
    names = ["" if families is None else families[task] for task in tasks]
    if len(tasks) < scoring.INTERVAL_TASKS or min(Counter(names).values()) < scoring.INTERVAL_TASKS_FAMILY:
        return None
    drawn = mean_over_tasks(np.array([[differences_by_task[task] for task in tasks]]), names, by_family=True)
    below, above = spread(drawn.draws[:, 0], drawn.deviations[:, 0], drawn.degrees)
    return float(drawn.estimate[0]) - below, float(drawn.estimate[0]) + above
