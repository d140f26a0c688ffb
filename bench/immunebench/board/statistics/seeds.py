"""The noise of adaptation seeds, measured on `none`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from immunebench.board.scores import scale as scores
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import Power

Where = tuple[str, str]


def seed_deviation(cells: Iterable[Measurement], power: Mapping[Where, Power | None]) -> float | None:
    """Return the standard deviation between adaptation seeds of `none`, in anchored similarity.

    It comes from the variance between the means of the seeds minus the part due to the finite number of pictures,
    averaged over every informative (task, chain) with several seeds; None where there is none. Intervals do not need
    it, since the variance between tasks includes it; it says what a single task's number is worth.
    """
    groups: dict[Where, list[list[float]]] = defaultdict(list)
    for cell in cells:
        gate = power.get(cell.where)
        if cell.defense == "none" and cell.measured and gate is not None and gate.informative:
            groups[cell.where].append([scores.anchored(m, cell.m_same, cell.m_other) for m in cell.m_def])
    excess = []
    for values in groups.values():
        if len(values) < 2 or min(map(len, values)) < 2:
            continue
        between = float(np.var([np.mean(part) for part in values], ddof=1))
        excess.append(between - scores.mean([float(np.var(part, ddof=1)) / len(part) for part in values]))
    return max(scores.mean(excess), 0.0) ** 0.5 if excess else None
