"""The columns of a board, shared by all formats: names, values and rounding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from immunebench.board.scores.beside import HEADS
from immunebench.board.scores.model import Board, Row
from immunebench.board.scores.work import Work
from immunebench.board.text import number

Interval = tuple[float, float]


@dataclass(frozen=True)
class Column:
    """One column of the board.

    Parameters
    ----------
    key
        Name in files, such as ``a`` or ``a_chain.lora``.
    title
        Heading on pages and in LaTeX.
    group
        ``headline``, ``curve``, ``utility``, ``changes``, ``family``, ``attack``, ``readings``, ``beside`` or ``cost``.
    value
        Returns the value of a row; None if it has none.
    interval
        Returns the interval of the value; None if it has none.
    digits
        Number of decimals where the value is rounded.
    help
        Description in one line.
    words
        Returns text that is shown instead of the rounded value.
    """

    key: str
    title: str
    group: str
    value: Callable[[Row], float | int | None]
    interval: Callable[[Row], Interval | None] = lambda row: None
    digits: int = 2
    help: str = ""
    words: Callable[[Row], str] | None = None

    def text(self, row: Row) -> str:
        """Return the rounded value of a row as text, a dash if it has none."""
        return number(self.value(row), self.digits) if self.words is None else self.words(row)

    def text_interval(self, row: Row) -> str:
        """Return the rounded interval of a row in brackets, an empty string if it has none."""
        return interval_text(self.interval(row), self.digits)


def interval_text(interval: Interval | None, digits: int = 2) -> str:
    """Return an interval as ``[0.35, 0.49]``, with an end at infinity as ``[4.00, inf]``.

    An empty string for None, and for an interval of times from 0 to infinity, which says nothing.
    """
    if interval is None or (interval[0] <= 0 and math.isinf(interval[1])):
        return ""
    low, high = ("inf" if math.isinf(end) else number(end, digits) for end in interval)
    return f"[{low}, {high}]"


def families(board: Board) -> list[str]:
    """Return the families of the board's tasks in alphabetical order."""
    return sorted(
        {power.family for power in board.power}
        | {name for row in board.rows for name in (row.area.family if row.area else ())}
    )


def chains(board: Board) -> list[str]:
    """Return the chains of the board in alphabetical order."""
    return sorted(
        {power.chain for power in board.power}
        | {name for row in board.rows for name in (row.area.chain if row.area else ())}
    )


def columns(board: Board) -> list[Column]:
    """Return all columns of a board, in the order of pages and files."""
    return [
        Column("rank", "rank", "headline", lambda r: r.rank, digits=0, help="Tie group: entries that share a rank."),
        Column(
            "a",
            "A",
            "headline",
            lambda r: r.a,
            lambda r: r.a_interval,
            help="Part of the attack's gain that is stopped, mean over its whole curve, strongest attack.",
        ),
        Column(
            "work",
            "W",
            "headline",
            lambda r: _observed(_work(r)),
            lambda r: None if (work := _work(r)) is None else work.interval,
            words=lambda r: span_text(_work(r)),
            help="Times the undefended steps to half of the undefended gain, median over tasks.",
        ),
        Column("u", "U", "headline", lambda r: r.u, lambda r: r.u_interval, help="Part of the use that is left."),
        *(_part(part) for part in sorted({part for row in board.rows if row.area for part in row.area.p})),
        Column(
            "work_80",
            "W(80 %)",
            "curve",
            lambda r: _observed(_work_80(r)),
            lambda r: None if (work := _work_80(r)) is None else work.interval,
            words=lambda r: span_text(_work_80(r)),
            help="The same to 80 % of the undefended gain.",
        ),
        Column("u_gen", "U gen", "utility", lambda r: r.u_gen, help="Unrelated prompts still drawn right."),
        Column("u_ben", "U ben", "utility", lambda r: r.u_ben, help="A harmless concept can still be learnt."),
        Column("fidelity", "fidelity", "utility", lambda r: r.fidelity, help="Protected against published pictures."),
        *(_change(name) for name in sorted({name for row in board.rows for name in row.changes})),
        *(_family(name) for name in families(board)),
        *(_chain(name) for name in chains(board)),
        _reading("matched", "matched", "A on the attack it was made against."),
        _reading("mean_chains", "mean of chains", "Mean over chains of A."),
        _reading("best_response", "best response", "A with the ladder's attacks."),
        _reading("public_base", "public base", "A where the attacker has the base."),
        Column(
            "p", "P worst", "readings", lambda r: r.p, help="Headline of rules 1: P at the end, worst chain, clipped."
        ),
        Column("sgr", "SGR", "readings", lambda r: r.sgr, help="IMMA's similarity gap ratio, raw metrics."),
        Column("sgr_curve", "SGR, mean", "readings", lambda r: r.sgr_curve, help="Mean of SGR over the curve."),
        *(_beside(name, title) for name, title in HEADS.items()),
        Column("seconds", "protect s", "cost", lambda r: r.seconds, digits=1, help="Seconds to protect one task."),
    ]


def _reading(name: str, title: str, text: str) -> Column:
    return Column(name, title, "readings", lambda r: None if r.area is None else getattr(r.area, name), help=text)


def _of(mapping: str, name: str) -> Callable[[Row], Any]:
    return lambda row: None if row.area is None else getattr(row.area, mapping).get(name)


def _work(row: Row) -> Work | None:
    return None if row.area is None else row.area.work


def _work_80(row: Row) -> Work | None:
    return None if row.area is None else row.area.work_80


def _observed(work: Work | None) -> float | None:
    """Return W if it was observed, None if there are only bounds."""
    return None if work is None or work.median[0] != work.median[1] else work.median[0]


def work_text(row: Row) -> str:
    """Return W of a row as text; see `span_text`."""
    return span_text(_work(row))


def span_text(work: Work | None) -> str:
    """Return W as text, or the bounds that the observations give: ``>4.0``, ``<0.5``, ``0.5 to 4.0``."""
    if work is None:
        return number(None)
    low, high = work.median
    if low == high:
        return number(low)
    if math.isinf(high):
        return f">{number(low)}" if low > 0 else "unseen"
    return f"<{number(high)}" if low == 0 else f"{number(low)} to {number(high)}"


def _part(part: float) -> Column:
    name = f"{part:g}" if part >= 1 else f"1/{1 / part:g}"
    return Column(
        f"p_at.{name}", f"P({name})", "curve", lambda row: None if row.area is None else row.area.p.get(part),
        help=f"The same at {name} of the attack's preset length alone; P(1) is what papers report.",
    )  # fmt: skip


def strongest_chains(row: Row) -> list[tuple[str, int]]:
    """Return the strongest chains on the defended model and on how many tasks each is, most frequent first."""
    return sorted(Counter(row.strongest.values()).items(), key=lambda item: (-item[1], item[0]))


def remarks(row: Row) -> list[str]:
    """Return short remarks on a row: whether it is incomplete, its flags and its badges."""
    return ["incomplete"] * bool(row.incomplete) + list(row.flags) + list(row.badges)


def _change(name: str) -> Column:
    text = f"Protected against published pictures: {name}{', the largest, of 255' if name == 'linf' else ''}."
    return Column(f"changes.{name}", name, "changes", lambda row: row.changes.get(name), digits=3, help=text)


def _beside(name: str, title: str) -> Column:
    return Column(f"beside.{name}", title, "beside", lambda row: getattr(row.beside, name), help=f"Not in A: {title}.")


def _family(name: str) -> Column:
    return Column(
        f"a_family.{name}",
        name,
        "family",
        _of("family", name),
        _of("family_interval", name),
        help=f"A over the tasks of the family {name}.",
    )


def _chain(name: str) -> Column:
    return Column(
        f"a_chain.{name}",
        name,
        "attack",
        _of("chain", name),
        _of("chain_interval", name),
        help=f"A against the chain {name} alone.",
    )
