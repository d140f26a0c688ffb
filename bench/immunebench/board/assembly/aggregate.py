"""Computation of the board from measurements (`leaderboard/rules.md`)."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from immunebench.board.scores.by_metric import metrics_of, read
from immunebench.board.scores.controls import doubts, misbehaving, replicate_noise
from immunebench.board.scores.data_side import tables
from immunebench.board.scores.enforcement import enforced
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import SELF_REPORTED, Board, BoardError, MetricScore, Power, Row
from immunebench.board.scores.row import make_row
from immunebench.board.scores.task_score import power_of
from immunebench.declared import scoring

CellName = tuple[str, str, str, int]


def aggregate(
    measurements: Iterable[Measurement],
    planned: Collection[CellName] | None = None,
    *,
    lost: Mapping[str, Sequence[str]] | None = None,
) -> Board:
    """Compute all scores of a suite on one profile.

    Parameters
    ----------
    measurements
        One per record, in any order: the result does not depend on the order.
    planned
        The cells that must exist, as (defense, task, chain, seed). By default a defense must have every
        (task, chain, seed) that any other entry of its kind has; see `_owed`.
    lost
        Messages by defense, one per record that was left out: the row of such a defense is incomplete.

    Returns
    -------
    Board
        Rows by falling A: complete entries that pass the utility gate, then the others, then controls.

    Raises
    ------
    BoardError
        If there is no record, if one column has records of different comparability keys, or if two records are of
        the same cell.
    """
    # Imported here because every command imports this package, and these modules import numpy and scipy.
    from immunebench.board.assembly.areas import with_areas
    from immunebench.board.assembly.layered import layer_scores
    from immunebench.board.assembly.settings import setting_scores
    from immunebench.board.statistics.ranks import with_ranks
    from immunebench.board.statistics.seeds import seed_deviation

    every = sorted(measurements, key=lambda cell: (cell.defense, cell.task, cell.chain, cell.seed, cell.setting.name))
    if not every:
        raise BoardError("there is no record to make a board of")
    _check_comparable(every)
    cells = [cell for cell in every if cell.setting.usual]
    if not cells:
        raise BoardError("every record is of an unusual setting, of which no headline is made")
    columns: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    entries: dict[str, list[Measurement]] = defaultdict(list)
    for cell in cells:
        columns[cell.where].append(cell)
        entries[cell.defense].append(cell)
    # Self-reported records decide nothing for the rows of others where there are vouched ones.
    power = {
        where: power_of([cell for cell in group if cell.vouched] or group) for where, group in sorted(columns.items())
    }
    families = {cell.task: cell.family for cell in cells}
    apart = _apart(entries)
    required = _required(cells, planned, apart)
    rows = [
        make_row(group, required[defense], power, families, (lost or {}).get(defense, ()))
        for defense, group in entries.items()
    ]
    rows = [
        dataclasses.replace(row, badges=(SELF_REPORTED, *row.badges)) if row.defense in apart else row for row in rows
    ]
    whole = {defense: group for defense, group in entries.items() if not (lost or {}).get(defense)}
    rows = with_areas(_by_metric(rows, whole, required, families), entries)
    seeds = {cell.seed for cell in cells if cell.defense != "none"}
    ranked = with_ranks(rows, len(seeds), seed_deviation(cells, power))
    rows = sorted(
        ranked.rows,
        key=lambda row: (row.control, row.apart, not row.passes, row.a is None, -(row.a or 0.0), row.defense),
    )
    gates = tuple(gate for gate in power.values() if gate is not None)
    return Board(
        tuple(rows),
        gates,
        replicate_noise(rows, entries),
        tuple(misbehaving(rows, cells)),
        (*_notes(cells, gates, ranked.rule), *_vouching(cells, apart), *doubts(rows, cells)),
        smallest_difference=ranked.smallest_difference,
        suite=", ".join(sorted({cell.suite for cell in cells} - {""})),
        keys=tuple(sorted({cell.key for cell in cells} - {""})),
        interval_rule=ranked.rule,
        layers=layer_scores(rows, whole, families),
        settings=setting_scores(every, lambda own: _required(own, None), lost or {}),
        tables=(*tables(cells), *enforced(cells)),
    )


def _by_metric(
    rows: Sequence[Row],
    entries: Mapping[str, Sequence[Measurement]],
    required: Mapping[str, set[tuple[str, str, int]]],
    families: Mapping[str, str],
) -> list[Row]:
    found: dict[str, dict[str, MetricScore]] = defaultdict(dict)
    for metric in metrics_of(cell for group in entries.values() for cell in group):
        reading = read(metric, entries, required, families)
        for defense, row in reading.rows.items():
            found[defense][metric] = MetricScore(row.p, row.sgr)
    return [dataclasses.replace(row, by_metric=found[row.defense]) for row in rows]


def _check_comparable(cells: Iterable[Measurement]) -> None:
    keys: dict[tuple[str, str, str], str] = {}
    seen: set[tuple[str, str, str, int, str]] = set()
    for cell in cells:
        key = f"{cell.profile} {cell.key}".strip()
        column = (*cell.where, cell.setting.name)
        if keys.setdefault(column, key) != key:
            raise BoardError(f"{cell.task}/{cell.chain}: records of '{keys[column]}' and '{key}' do not compare")
        name = (cell.defense, cell.task, cell.chain, cell.seed, cell.setting.name)
        if name in seen:
            raise BoardError(f"two records of {cell.task}/{cell.defense}/{cell.chain}/{cell.profile}/{cell.seed}")
        seen.add(name)


def _apart(entries: Mapping[str, Sequence[Measurement]]) -> set[str]:
    """Return the defenses of self-reported records; none where every record is self-reported."""
    apart = {defense for defense, group in entries.items() if not all(cell.vouched for cell in group)}
    return apart if len(apart) < len(entries) else set()


def _required(
    cells: Iterable[Measurement], planned: Collection[CellName] | None, apart: Collection[str] = ()
) -> dict[str, set[tuple[str, str, int]]]:
    own: dict[str, set[tuple[str, str, int]]] = defaultdict(set)
    kinds, family_of = {}, {}
    for cell in cells:
        own[cell.defense].add((cell.task, cell.chain, cell.seed))
        kinds[cell.defense] = cell.kind
        family_of[cell.task] = cell.family
    if planned is not None:
        for defense, task, chain, seed in planned:
            own[defense].add((task, chain, seed))
        return own
    # What somebody reports of an own entry is no duty of vouched ones.
    vouched = {name: places for name, places in own.items() if name not in apart}
    owed = {
        kind: _owed(kind, vouched if kind in {kinds[name] for name in vouched} else own, kinds, family_of)
        for kind in sorted(set(kinds.values()) - {"control"})
    }
    return {defense: asked | owed.get(kinds[defense], set()) for defense, asked in own.items()}


def _owed(
    kind: str, own: Mapping[str, set[tuple[str, str, int]]], kinds: Mapping[str, str], family_of: Mapping[str, str]
) -> set[tuple[str, str, int]]:
    """Return the (task, chain, seed) that every entry of a kind must have.

    These are all that any entry of the kind has, and the same chains and seeds on the other tasks of the track's
    families. The tasks and chains of a suite are those of `none`; its additional seeds are not required of other
    entries. Attacks outside the headline that were run against one entry are not required of the others.
    """
    peers = set().union(*(own[name] for name in own if kinds[name] == kind))
    peers = {(task, chain, seed) for task, chain, seed in peers if scoring.role(chain) == "headline"}
    ways = {(chain, seed) for _, chain, seed in peers}
    suite = {(task, chain) for task, chain, _ in own.get("none", ())}
    families = scoring.FAMILIES.get(scoring.TRACK.get(kind, kind))
    return peers | {
        (task, chain, seed)
        for task, chain in suite
        if families is None or family_of[task] in families
        for way, seed in ways
        if way == chain
    }


def _notes(cells: Sequence[Measurement], power: Sequence[Power], rule: str) -> Iterable[str]:
    tasks = {gate.task for gate in power if gate.informative}
    seeds = {cell.seed for cell in cells}
    yield (
        f"{len(tasks)} informative task{'' if len(tasks) == 1 else 's'}, "
        f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}: {rule}"
    )
    if bases := sorted({cell.base for cell in cells} - {""}):
        yield f"measured on the base {', '.join(bases)}"
    # Further seeds of `none` are replicates.
    replicated = len({cell.seed for cell in cells if cell.defense == "none"}) > 1
    names = ("none", *(() if replicated else ("none-replicate",)), "noise", "destroy", "blank")
    absent = [name for name in names if not _present(name, cells)]
    if absent:
        yield "controls not on this board: " + ", ".join(absent)


def _vouching(cells: Sequence[Measurement], apart: Collection[str]) -> Iterable[str]:
    if not any(cell.vouched for cell in cells):
        yield "every record is self-reported: nobody has run any of it again (immunebench verify)"
    elif apart:
        yield f"self-reported, ranked apart: {', '.join(sorted(apart))}"


def _present(control: str, cells: Iterable[Measurement]) -> bool:
    exact = control.startswith("none")
    return any(c.defense == control or (not exact and c.defense.startswith(control + "-")) for c in cells)
