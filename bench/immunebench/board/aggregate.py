"""Measurements -> board (`leaderboard/rules.md`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from immunebench.board import rules
from immunebench.board.controls import misbehaving, replicate_noise
from immunebench.board.measurement import Measurement
from immunebench.board.model import Board, BoardError, Power
from immunebench.board.row import make_row
from immunebench.board.task_score import power_of

CellName = tuple[str, str, str, int]


def aggregate(
    measurements: Iterable[Measurement],
    planned: Collection[CellName] | None = None,
    *,
    lost: Mapping[str, Sequence[str]] | None = None,
) -> Board:
    """Compute every score of a suite on one profile.

    Parameters
    ----------
    measurements
        One per record, in any order: the result does not depend on it.
    planned
        The cells that should exist, as (defense, task, chain, seed). By default a defense should have every
        (task, chain, seed) that any other entry of its kind has.
    lost
        What of a defense's records was left out, a line each: its row is incomplete, whatever else it has.

    Returns
    -------
    Board
        Rows by falling P: complete entries that pass the utility gate, then the others, then controls.

    Raises
    ------
    BoardError
        If there is no record, if records of different comparability keys meet in one column, or if two
        records claim one cell.
    """
    cells = sorted(measurements, key=lambda cell: (cell.defense, cell.task, cell.chain, cell.seed))
    if not cells:
        raise BoardError("there is no record to make a board of")
    _check_comparable(cells)
    columns: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    entries: dict[str, list[Measurement]] = defaultdict(list)
    for cell in cells:
        columns[cell.where].append(cell)
        entries[cell.defense].append(cell)
    power = {where: power_of(group) for where, group in sorted(columns.items())}
    families = {cell.task: cell.family for cell in cells}
    required = _required(cells, planned)
    rows = [
        make_row(group, required[defense], power, families, (lost or {}).get(defense, ()))
        for defense, group in entries.items()
    ]
    rows.sort(key=lambda row: (row.control, not row.passes, 1.0 if row.p is None else -row.p, row.defense))
    gates = tuple(gate for gate in power.values() if gate is not None)
    return Board(
        tuple(rows),
        gates,
        replicate_noise(rows),
        tuple(misbehaving(rows, cells)),
        tuple(_notes(cells, gates)),
    )


def _check_comparable(cells: Iterable[Measurement]) -> None:
    keys: dict[tuple[str, str], str] = {}
    seen: set[CellName] = set()
    for cell in cells:
        key = f"{cell.profile} {cell.key}".strip()
        if keys.setdefault(cell.where, key) != key:
            raise BoardError(f"{cell.task}/{cell.chain}: records of '{keys[cell.where]}' and '{key}' do not compare")
        name = (cell.defense, cell.task, cell.chain, cell.seed)
        if name in seen:
            raise BoardError(f"two records of {cell.task}/{cell.defense}/{cell.chain}/{cell.profile}/{cell.seed}")
        seen.add(name)


def _required(
    cells: Iterable[Measurement], planned: Collection[CellName] | None
) -> dict[str, set[tuple[str, str, int]]]:
    own: dict[str, set[tuple[str, str, int]]] = defaultdict(set)
    kinds = {}
    for cell in cells:
        own[cell.defense].add((cell.task, cell.chain, cell.seed))
        kinds[cell.defense] = cell.kind
    if planned is not None:
        for defense, task, chain, seed in planned:
            own[defense].add((task, chain, seed))
        return own
    # `none` serves every track and may carry further seeds, so it asks nothing of other rows
    peers = {
        defense: [
            other for other in own if other == defense or ("none" not in (other, defense) and kinds[other] == kind)
        ]
        for defense, kind in kinds.items()
    }
    return {defense: set[tuple[str, str, int]]().union(*(own[other] for other in peers[defense])) for defense in peers}


def _notes(cells: Sequence[Measurement], power: Sequence[Power]) -> Iterable[str]:
    tasks = {gate.task for gate in power if gate.informative}
    seeds = {cell.seed for cell in cells}
    yield (
        f"{len(tasks)} informative task{'' if len(tasks) == 1 else 's'}, "
        f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}: no interval, no ranks"
        + (f" (at least {rules.INTERVAL_TASKS} tasks needed)" if len(tasks) < rules.INTERVAL_TASKS else "")
    )
    if bases := sorted({cell.base for cell in cells} - {""}):
        yield f"measured on the base {', '.join(bases)}"
    absent = [name for name in ("none", "none-replicate", "noise", "destroy", "blank") if not _present(name, cells)]
    if absent:
        yield "controls not on this board: " + ", ".join(absent)


def _present(control: str, cells: Iterable[Measurement]) -> bool:
    exact = control.startswith("none")
    return any(c.defense == control or (not exact and c.defense.startswith(control + "-")) for c in cells)
