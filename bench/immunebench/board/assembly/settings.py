"""P in unusual settings: where some pictures stay clean, or where surrogate and attacker have different bases.

They never meet the headline: a setting has its own floor, ceiling and power gate, and its own column.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import Power, SettingScore
from immunebench.board.scores.row import make_row
from immunebench.board.scores.task_score import power_of
from immunebench.board.statistics.fixed import fixed_tasks
from immunebench.board.statistics.intervals import HEADLINE
from immunebench.board.statistics.samples import Where, met, samples_of, seed_deviation
from immunebench.declared.suite import USUAL, Setting

Required = Mapping[str, Collection[tuple[str, str, int]]]


def setting_scores(
    cells: Sequence[Measurement],
    required: Callable[[Sequence[Measurement]], Required],
    lost: Mapping[str, Sequence[str]],
) -> tuple[SettingScore, ...]:
    """Score every defense in every unusual setting, and in the usual one on the same tasks and chains.

    Parameters
    ----------
    cells
        All measurements of a suite.
    required
        What each defense owes among measurements of one setting.
    lost
        What of a defense's records was left out.

    Returns
    -------
    tuple of SettingScore
        By defense, the usual setting first; empty where no cell is unusual. `none` has P = 0 in each by construction.
    """
    groups: dict[Setting, list[Measurement]] = defaultdict(list)
    for cell in cells:
        groups[cell.setting].append(cell)
    usual = groups.pop(USUAL, [])
    if not groups:
        return ()
    swept = {(name, cell.where) for group in groups.values() for cell in group for name in ("none", cell.defense)}
    groups[USUAL] = [cell for cell in usual if (cell.defense, cell.where) in swept]
    found = [score for setting, own in groups.items() for score in _scores(setting, own, required(own), lost)]
    return tuple(sorted(found, key=lambda score: (score.defense, order(score.setting))))


def _scores(
    setting: Setting, cells: Sequence[Measurement], required: Required, lost: Mapping[str, Sequence[str]]
) -> Iterator[SettingScore]:
    columns: dict[Where, list[Measurement]] = defaultdict(list)
    entries: dict[str, list[Measurement]] = defaultdict(list)
    for cell in cells:
        columns[cell.where].append(cell)
        entries[cell.defense].append(cell)
    power: dict[Where, Power | None] = {where: power_of(group) for where, group in sorted(columns.items())}
    families = {cell.task: cell.family for cell in cells}
    deviation = seed_deviation(cells, power) or 0.0
    for defense, group in entries.items():
        if defense == "none":
            continue
        row = make_row(group, required[defense], power, families, lost.get(defense, ()))
        members = met(row, group, HEADLINE) if row.p is not None else {}
        samples = samples_of([members], power, families, deviation) if members else []
        yield SettingScore(
            defense=defense,
            setting=setting,
            p=row.p,
            p_family=row.p_family,
            interval=fixed_tasks(samples).interval(0) if samples else None,
            tasks=len(samples),
            reason="; ".join(row.incomplete) or ("" if samples else "no informative task"),
        )


def order(setting: Setting) -> tuple[str, str, int]:
    """Return what settings are sorted by: the usual one is first, shares of clean pictures rise."""
    return setting.attacker_base or "", setting.surrogate or "", setting.clean
