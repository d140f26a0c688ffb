"""The small tables below a board, shared by all formats: layered defenses, and A in unusual settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from immunebench.board.assembly.settings import order
from immunebench.board.loading.external import External
from immunebench.board.scores.model import Board, LayerScore, SettingScore
from immunebench.board.text import interval_text, number
from immunebench.core.errors import shortened

#: Most findings that a board lists.
_MOST = 12
USUAL_NAME = "all protected, same base"


@dataclass(frozen=True)
class SideTable:
    """A table of text cells with a title, headings and a note that explains how to read it."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def side_tables(board: Board, defense: str | None = None) -> Iterator[SideTable]:
    """Yield the non-empty tables of the whole board or of one defense."""
    layers = [score for score in board.layers if defense in (None, score.defense)]
    settings = [score for score in board.settings if defense in (None, score.defense)]
    if layers:
        yield _layers(layers)
    if settings:
        yield _settings(settings)
    outside = [found for found in board.external if defense in (None, found.defense)]
    if outside:
        yield _external(board, outside)
    if board.findings and defense is None:
        yield _findings(board.findings)


def _external(board: Board, found: list[External]) -> SideTable:
    heads = ("defense", "A here", "best known A", "attack", "what the attacker knows", "tasks", "by", "source")
    rows = []
    for one in sorted(found, key=lambda one: (one.defense, one.a, one.id)):
        row = board.row(one.defense)
        who = one.authors[0] + (" et al." if len(one.authors) > 1 else "")
        about = (one.attack, one.threat_model, str(len(one.tasks)), f"{who}, {one.published}", one.source)
        rows.append((one.defense, number(None if row is None else row.a), number(one.a), *about))
    note = (
        "Attacks that others ran with code of their own, the strongest first; nobody ran them again here, and they "
        "enter no row and no rank."
    )
    return SideTable("Best known attacks", heads, tuple(rows), note)


def _findings(found: tuple[tuple[str, str], ...]) -> SideTable:
    shown = tuple((where, shortened(said, 160)) for where, said in found[:_MOST])
    rest = f" {len(found) - _MOST} more are not shown." if len(found) > _MOST else ""
    note = "These records contradict others, the catalogue or themselves; they enter no row." + rest
    return SideTable("Records with findings", ("record", "finding"), shown, note)


def _layers(scores: list[LayerScore]) -> SideTable:
    heads = ("layered", "A together", "better alone", "A alone", "difference", "95 %", "tasks")
    rows = tuple(
        (
            score.defense,
            number(score.a),
            score.better or score.reason,
            number(score.a_alone.get(score.better)),
            number(score.difference),
            interval_text(score.interval),
            "-" if score.difference is None else str(score.tasks),
        )
        for score in scores
    )
    note = (
        "Layers add up where the interval of the difference, paired by task, lies above 0; "
        "too few tasks have no interval."
    )
    return SideTable("Do layers add up", heads, rows, note)


def _settings(scores: list[SettingScore]) -> SideTable:
    names = sorted({score.setting for score in scores}, key=order)
    by_place = {(score.defense, score.setting): score for score in scores}
    rows = []
    for defense in dict.fromkeys(score.defense for score in scores):
        found = [by_place.get((defense, setting)) for setting in names]
        rows.append((defense, *("-" if score is None else _setting(score) for score in found)))
    note = (
        "A, and 95 % where there are tasks enough, on the tasks and chains that were swept; each setting has its own "
        "floor and undefended attack, and only records of the usual one enter the headline. clean-25: 25 % of the "
        "attacker's pictures were never protected; on-B: the attacker adapts the base B; by-B: pictures were protected "
        "on the base B."
    )
    return SideTable(
        "A in other settings", ("defense", *(name.name or USUAL_NAME for name in names)), tuple(rows), note
    )


def _setting(score: SettingScore) -> str:
    if score.a is None:
        return score.reason
    return number(score.a) + (f" ({interval_text(score.interval)})" if score.interval else "")
