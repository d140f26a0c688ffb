"""The board as a JSON document with a published schema (``leaderboard/board.schema.json``)."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from immunebench.board.scores.model import AreaScore, Board, SettingScore
from immunebench.board.scores.work import Span, Work
from immunebench.board.tables.finding import finding

SCHEMA_VERSION = 2
Interval = tuple[float, float]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PowerPart(_Part):
    """What the undefended attack learns on a (task, chain), and the verdict of the power gate."""

    task: str
    family: str
    chain: str
    floor: float
    ceiling: float
    standard_error: float | None = Field(description="None where it is unbounded: fewer than two pictures.")
    informative: bool
    curve: dict[int, float]


class TaskScorePart(_Part):
    """One defense on one (task, chain)."""

    task: str
    family: str
    chain: str
    status: str
    a: float | None
    p_raw: float | None
    p: float | None
    sgr: float | None
    sgr_curve: float | None = Field(default=None, description="Mean of SGR over the curve up to the preset's steps.")
    below_floor: bool
    reason: str


class TaskUtilityPart(_Part):
    """What a defense leaves of the use on one task."""

    task: str
    u_gen: float | None
    u_ben: float | None
    fidelity: float | None
    u: float | None


class MetricPart(_Part):
    """P of the worst chain and mean SGR on one metric of the pictures."""

    p: float | None
    sgr: float | None


class WorkPart(_Part):
    """Steps to a part of the undefended gain, with the defense over without; an end that was not seen is null."""

    low: float | None
    high: float | None
    interval: tuple[float | None, float | None] | None = Field(description="Of the median over tasks, at 95 %.")
    seen: float = Field(description="The largest ratio that could have been seen, median over tasks.")
    tasks: int


class TaskAreaPart(_Part):
    """A of one task, and the strongest attack on either side."""

    task: str
    family: str
    area: float
    strongest_none: str
    strongest_defended: str
    p: dict[str, float]


class AreaPart(_Part):
    """What a defense keeps attacks from, over their whole curves; see leaderboard/rules.md, Curves."""

    a: float
    interval: Interval | None
    family: dict[str, float]
    chain: dict[str, float]
    p: dict[str, float] = Field(description="P at parts of the preset's length.")
    work: WorkPart | None = Field(description="To half of the undefended gain.")
    work_80: WorkPart | None = Field(description="To 80 % of the undefended gain.")
    tasks: tuple[TaskAreaPart, ...]
    family_interval: dict[str, Interval]
    chain_interval: dict[str, Interval]
    mean_chains: float | None
    matched: float | None = Field(description="A on the attacks that the defense simulates.")
    best_response: float | None = Field(description="A with the ladder's attacks.")
    public_base: float | None = Field(description="A where the attacker has the base.")


class RowPart(_Part):
    """One defense."""

    defense: str
    version: int
    kind: str
    track: str
    rank: int | None
    not_apart: tuple[str, ...] = Field(description="Rows of the class that this one is not told apart from.")
    a: float | None = Field(description="Headline: mean over families of the mean over tasks of A; E of erasures.")
    a_interval: Interval | None
    strongest: dict[str, str] = Field(description="Strongest attack on the defended model, by task.")
    p: float | None = Field(description="Headline of rules 1: least P over chains, clipped, at the end of the preset.")
    u: float | None
    u_interval: Interval | None
    u_gen: float | None
    u_ben: float | None
    fidelity: float | None
    sgr: float | None
    sgr_curve: float | None = Field(default=None, description="Mean of SGR over the curve up to the preset's steps.")
    seconds: float | None = Field(description="Wall-clock seconds of `protect`, mean over cells.")
    flags: tuple[str, ...]
    badges: tuple[str, ...]
    incomplete: tuple[str, ...]
    control: bool
    passes: bool
    beside: dict[str, float | None] = Field(description="Measures beside the score; see leaderboard/rules.md.")
    by_metric: dict[str, MetricPart]
    budget_class: int | str | None
    changes: dict[str, float] = Field(description="Protected against published pictures, by metric.")
    area: AreaPart | None
    scores: tuple[TaskScorePart, ...]
    utilities: tuple[TaskUtilityPart, ...]


class LayerPart(_Part):
    """A layered defense against its layers alone, on what all of them met."""

    defense: str
    layers: tuple[str, ...]
    a: float | None
    a_alone: dict[str, float]
    better: str = Field(description="The layer with the greatest A alone.")
    difference: float | None = Field(description="A of the layers together less A of the better one alone.")
    interval: Interval | None
    tasks: int
    reason: str = Field(description="Why they cannot be compared.")


class SettingPart(_Part):
    """A of a defense in one setting, on the tasks and chains that were swept."""

    defense: str
    setting: str = Field(description="Empty for the usual one.")
    clean: int = Field(description="Percent of the attacker's pictures that were never protected.")
    surrogate: str | None = Field(description="Base on which pictures are protected, where it is not the task's.")
    attacker_base: str | None = Field(description="Base that is attacked, where it is not the task's.")
    a: float | None
    a_family: dict[str, float]
    interval: Interval | None
    tasks: int
    reason: str


class TablePart(_Part):
    """What was measured of pictures and enters no score: protected ones, cleaned ones, faces, mimicry that fails."""

    title: str
    note: str = Field(description="How to read it.")
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...] = Field(description="Cells as they are printed; - where nothing is known.")


class BoardDocument(_Part):
    """A board: rows best first, controls last."""

    schema_version: int = SCHEMA_VERSION
    suite: str
    keys: tuple[str, ...]
    finding: str
    notes: tuple[str, ...]
    interval_rule: str
    smallest_difference: float | None
    row_noise: float | None
    rows: tuple[RowPart, ...]
    power: tuple[PowerPart, ...]
    layers: tuple[LayerPart, ...] = ()
    settings: tuple[SettingPart, ...] = ()
    tables: tuple[TablePart, ...] = ()


def document(board: Board, suite: str = "") -> BoardDocument:
    """Return the document of a board; `suite` is used if the board does not name its suite.

    Raises
    ------
    BoardError
        If a control fails its check.
    """
    board.require_sound()
    rows = [
        dataclasses.asdict(row)
        | {"control": row.control, "passes": row.passes, "area": _area(row.area), "strongest": dict(row.strongest)}
        | {"a": row.a, "a_interval": row.a_interval}
        for row in board.rows
    ]
    power = [dataclasses.asdict(part) for part in board.power]
    for part in power:
        part["standard_error"] = part["standard_error"] if part["standard_error"] < float("inf") else None
    return BoardDocument.model_validate(
        {
            "suite": board.suite or suite,
            "keys": board.keys,
            "finding": finding(board),
            "notes": board.notes,
            "interval_rule": board.interval_rule,
            "smallest_difference": board.smallest_difference,
            "row_noise": board.row_noise,
            "rows": rows,
            "power": power,
            "layers": [dataclasses.asdict(score) for score in board.layers],
            "settings": [_setting(score) for score in board.settings],
            "tables": [dataclasses.asdict(table) for table in board.tables],
        }
    )


def _area(area: AreaScore | None) -> dict[str, Any] | None:
    """Return A and W as JSON values: parts of the preset as text keys, unobserved ends as null."""
    if area is None:
        return None
    found = dataclasses.asdict(area)
    found["p"] = {f"{part:g}": value for part, value in area.p.items()}
    found["tasks"] = [t | {"p": {f"{part:g}": v for part, v in t["p"].items()}} for t in found["tasks"]]
    found |= {"work": _work(area.work), "work_80": _work(area.work_80)}
    return found


def _work(work: Work | None) -> dict[str, Any] | None:
    if work is None:
        return None
    low, high = _ends(work.median)
    interval = None if work.interval is None else _ends(work.interval)
    return {"low": low, "high": high, "interval": interval, "seen": work.seen, "tasks": work.tasks}


def _ends(span: Span) -> tuple[float | None, float | None]:
    return span[0] or None, None if math.isinf(span[1]) else span[1]


def _setting(score: SettingScore) -> dict[str, Any]:
    return dataclasses.asdict(score) | {"setting": score.setting.name} | score.setting.model_dump()


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a document."""
    schema = BoardDocument.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """Return the text of the schema file, exactly as published."""
    return json.dumps(json_schema(), indent=1, sort_keys=True) + "\n"
