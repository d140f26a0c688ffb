"""Tables on pictures rather than models: protected and purified pictures, protection success, genre shift, faces.

They enter neither P, U nor a rank. A table is made only if a record has values for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from immunebench.board.scores import scale as scores
from immunebench.board.text import shorten
from immunebench.metrics.table import METRICS

if TYPE_CHECKING:
    from immunebench.board.scores.measurement import Measurement
    from immunebench.declared.schema import Values
from immunebench.board.scores.measurement import Measurement, budget_class
from immunebench.board.text import number

K = TypeVar("K", bound=tuple[Any, ...])


@dataclass(frozen=True)
class Table:
    """A table of text cells with a title, column headings and a note that explains how to read it."""

    title: str
    note: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(cells: Iterable[Measurement]) -> tuple[Table, ...]:
    """Return the tables that have rows, from all cells except those skipped or invalidated."""
    cells = sorted(
        (cell for cell in cells if cell.status not in ("skipped", "invalidated")),
        key=lambda cell: (cell.defense, cell.task, cell.seed, cell.chain),
    )
    made = (_protected(cells), _cleaned(cells), _success(cells), _shift(cells), _faces(cells))
    return tuple(table for table in made if table.rows)


def _protected(cells: Sequence[Measurement]) -> Table:
    names = [name for name in METRICS if any(name in cell.data.fidelity for cell in cells)]
    heads = [head for name in names for head in ([f"{name} worst"] if name == "linf" else [name, f"{name} worst"])]
    rows = []
    for (*_, defense), group in _grouped(cells, lambda c: (c.perceptual_budget or 0, c.budget or 0, c.defense)):
        # Protected pictures of one task and seed are the same for every chain, so they count once.
        sets = list({(cell.task, cell.seed): cell.data.fidelity for cell in group if cell.data.fidelity}.values())
        if not sets:
            continue
        row = [defense, declared(group[0]), _class(group)]
        for name in names:
            known = [found[name] for found in sets if name in found]
            worst = min if METRICS[name].direction == "higher" else max
            mean = [] if name == "linf" else [_number(_mean_of(scores.mean(values) for values in known), name)]
            row += [*mean, _number(worst((worst(values) for values in known), default=None), name)]
        rows.append(tuple(row))
    note = "Protected against published pictures, as saved: mean over tasks, and the worst picture."
    return Table("Protected pictures", note, ("defense", "declared", "class", *heads), tuple(rows))


def declared(cell: Measurement) -> str:
    """Return the declared budget as text: a largest pixel change of 255, or an LPIPS distance."""
    if cell.perceptual_budget is not None:
        return f"LPIPS {cell.perceptual_budget:g}"
    return "-" if cell.budget is None else f"{cell.budget:g} of 255"


def _class(cells: Sequence[Measurement]) -> str:
    found = budget_class(cells)
    return "none" if found is None else str(found)


def _cleaned(cells: Sequence[Measurement]) -> Table:
    found = [cell for cell in cells if cell.data.to_clean]
    names = [name for name in METRICS if any(name in cell.data.to_clean for cell in found)]
    rows = []
    for (_, chain, defense), group in _grouped(found, lambda cell: (_order(cell)[:-1], _purifiers(cell), cell.defense)):
        sides = [[getattr(cell.data, side) for cell in group] for side in ("to_clean", "to_protected")]
        values = [_mean_of(m[name] for m in side if name in m) for side in sides for name in names]
        seconds, memory = (_mean_of(getattr(cell.data, what) for cell in group) for what in ("seconds", "memory"))
        numbers = [_number(value, name) for value, name in zip(values, [*names, *names], strict=True)]
        rows.append((chain, _parameters(group[0]), defense, *numbers, _number(seconds, "", 3), _number(memory, "")))
    heads = [f"{name} to {side}" for side in ("clean", "protected") for name in names]
    note = "What the attacker's cleaning leaves of the pictures, mean over tasks, and what it costs."
    heads = ["purifiers", "parameters", "defense", *heads, "seconds a picture", "peak GiB"]
    return Table("Cleaned pictures", note, tuple(heads), tuple(rows))


def _success(cells: Sequence[Measurement]) -> Table:
    note = (
        "Share of the pictures drawn after the attack that the judge rates a poor match of the artist: the table of "
        "noise level against protection success. The last column is the share among real unseen pictures, the judge's "
        "mistakes."
    )
    return _pivot(cells, "poor_match", "Protection success by chain", note)


def _shift(cells: Sequence[Measurement]) -> Table:
    note = "Share of the pictures drawn after the attack whose three nearest genres lack the artist's own."
    return _pivot(cells, "genre_shift", "Genre shift by chain", note)


def _pivot(cells: Sequence[Measurement], metric: str, title: str, note: str) -> Table:
    found = [cell for cell in cells if metric in cell.data.beside.get("undefended", {})]
    defenses = list(dict.fromkeys(cell.defense for cell in found if cell.changes_images))
    rows = []
    for (_, chain), group in _grouped(found, lambda cell: (_order(cell), cell.chain)):
        own = [[c for c in group if c.defense == defense] for defense in defenses]
        columns = [_of(group, "undefended", metric), *(_of(part, "attacked", metric) for part in own)]
        real = _of(group, "unseen", metric)
        rows.append((chain, _parameters(group[0]), *(_number(value, metric) for value in (*columns, real))))
    return Table(title, note, ("chain", "parameters", "no defense", *defenses, "real"), tuple(rows))


def _faces(cells: Sequence[Measurement]) -> Table:
    found = [cell for cell in cells if "fdfr" in cell.data.beside.get("attacked", {})]
    rows = []
    for (defense, _, chain), group in _grouped(found, lambda cell: (cell.defense, _order(cell), cell.chain)):
        fdfr, ism = ([_of(group, whose, name) for whose in ("attacked", "undefended")] for name in ("fdfr", "ism"))
        likeness = [
            _mean_of(scores.mean(values) for cell in group if (values := getattr(cell, side)))
            for side in ("m_def", "m_none")
        ]
        real = _of(group, "unseen", "fdfr")
        rows.append((defense, chain, *(_number(value, "fdfr") for value in (*fdfr, real, *ism, *likeness))))
    heads = ("FDFR", "no defense", "real", "ISM", "no defense", "likeness", "no defense")
    note = (
        "FDFR: share of the pictures without a face, and that of real pictures. ISM: mean cosine of the faces "
        "that are found; a dash where none is. Likeness: the task's target metric, which A is made of, not anchored."
    )
    return Table("Faces", note, ("defense", "chain", *heads), tuple(rows))


def _of(cells: Iterable[Measurement], whose: str, metric: str) -> float | None:
    """Return the mean over tasks of a measure; pictures shared by several records count once."""
    tasks: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for cell in cells:
        value = cell.data.beside.get(whose, {}).get(metric)
        if value is not None:
            place = (cell.chain, cell.seed) if whose != "unseen" else ("", 0)
            tasks[cell.task][place] = value
    return _mean_of(scores.mean(list(values.values())) for values in tasks.values())


def _grouped(cells: Iterable[Measurement], key: Callable[[Measurement], K]) -> Iterator[tuple[K, list[Measurement]]]:
    groups: dict[K, list[Measurement]] = defaultdict(list)
    for cell in cells:
        groups[key(cell)].append(cell)
    yield from sorted(groups.items(), key=lambda item: item[0])


def _order(cell: Measurement) -> tuple[object, ...]:
    """Return the sort key of a chain: number of purifiers, names of their parameters, their values, then the attack."""
    parts = [(tuple(sorted(p)), tuple(v for _, v in sorted(p.items()) if _is_number(v))) for p in _params(cell)]
    return len(parts), tuple(parts), cell.chain.split("+")[-1]


def _params(cell: Measurement) -> list[Values]:
    return [cell.data.params.get(name, {}) for name in cell.chain.split("+")[:-1]]


def _purifiers(cell: Measurement) -> str:
    return "+".join(cell.chain.split("+")[:-1])


def _parameters(cell: Measurement) -> str:
    """Return the purifiers' parameters as text, such as ``sigma 0.1``, shortened and escaped for a table cell."""
    parts = [
        f"{name} {value:g}" if _is_number(value) else f"{name} {value}"
        for params in _params(cell)
        for name, value in sorted(params.items())
    ]
    return " ".join(shorten(", ".join(parts), 80).replace("|", "/").split()) or "-"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return scores.mean(known) if known else None


def _number(value: float | None, metric: str, digits: int = 2) -> str:
    return number(value, {"psnr": 1, "linf": 0, "perceptual": 3, "lpips": 3}.get(metric, digits))
