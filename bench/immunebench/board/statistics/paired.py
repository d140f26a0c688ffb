"""Mean over families of the mean over tasks."""

from __future__ import annotations

from collections.abc import Mapping

from immunebench.board.scores import scale as scores


def mean_difference(differences_by_task: Mapping[str, float], families: Mapping[str, str] | None = None) -> float:
    """Return the mean over families of the mean over tasks, as in the headline; without families, over all tasks."""
    groups: dict[str, list[float]] = {}
    for task, difference in sorted(differences_by_task.items()):
        groups.setdefault("" if families is None else families[task], []).append(difference)
    return scores.mean([scores.mean(group) for group in groups.values()])
