"""A in unusual settings: some pictures stay clean, or surrogate and attacker use different base models.

Settings do not enter the headline: each has its own floor, ceiling and power gate, and its own column.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from immunebench.board.assembly.areas import with_areas
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import Power, SettingScore
from immunebench.board.scores.row import make_row
from immunebench.board.scores.task_score import power_of
from immunebench.declared.suite import USUAL, Setting

Where = tuple[str, str]
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
        Returns the (task, chain, seed) that each defense must have, given the measurements of one setting.
    lost
        Messages by defense, one per record that was left out.

    Returns
    -------
    tuple of SettingScore
        By defense, the usual setting first; empty where no cell has an unusual setting. `none` is left out, since it
        has A = 0 in each by construction.
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
    for defense, group in entries.items():
        if defense == "none":
            continue
        made = make_row(group, required[defense], power, families, lost.get(defense, ()))
        (row,) = with_areas([made], entries)
        yield SettingScore(
            defense=defense,
            setting=setting,
            a=row.a,
            a_family={} if row.area is None else row.area.family,
            interval=row.a_interval,
            tasks=0 if row.area is None else len(row.area.tasks),
            reason="; ".join(row.incomplete) or ("" if row.area is not None else "no informative task"),
        )


def order(setting: Setting) -> tuple[str, str, int]:
    """Return the sort key of a setting: the usual one first, then by base models and rising share of clean pictures."""
    return setting.attacker_base or "", setting.surrogate or "", setting.clean
