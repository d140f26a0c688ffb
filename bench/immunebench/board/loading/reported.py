"""Scores reported in papers (``leaderboard/reported.toml``), shown separately from measured ones and never ranked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from immunebench.board.loading.load import plain
from immunebench.core.errors import UsageError
from immunebench.declared.schema import Id, Model, Text, load

Certainty = Literal["code", "secondary", "abstract", "recalled", "computed"]
MEANING: dict[Certainty, str] = {
    "code": "read in the authors' code or README",
    "secondary": "quoted by a second source",
    "abstract": "read in the abstract or on the project page",
    "recalled": "from memory of the paper, not checked against it",
    "computed": "computed by us from released rows",
}

_ARROWS = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}


class Source(Model):
    """A publication or web page.

    Attributes
    ----------
    url
        Address or ``arXiv:<id>``; empty if neither is known.
    """

    title: Text
    url: Annotated[str, Field(pattern=r"^(https://\S+|arXiv:\d{4}\.\d{4,5})?$")]


class MetricColumn(Model):
    """One column of a published table."""

    name: Text
    unit: str = ""
    better: Literal["higher", "lower"] | None = None


class ReportedRow(Model):
    """One row of a published table, with one value per metric."""

    method: Text
    setting: str = ""
    values: tuple[float, ...]


class Block(Model):
    """A published table, or a part of it, whose values share base, source and certainty.

    Attributes
    ----------
    bound
        ``up to``, ``more than``, ``less than`` or ``about``, if the source gives no exact value.
    """

    measured: Text
    source: Id
    place: Text
    certainty: tuple[Certainty, ...] = Field(min_length=1)
    base: Text
    bound: Literal["up to", "more than", "less than", "about"] | None = None
    note: str = ""
    metrics: tuple[MetricColumn, ...] = Field(min_length=1)
    rows: tuple[ReportedRow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _as_wide_as_its_head(self) -> Block:
        for row in self.rows:
            if len(row.values) != len(self.metrics):
                raise ValueError(f"{row.method!r} has {len(row.values)} values for {len(self.metrics)} metrics")
        return self


class Reported(Model):
    """Contents of ``reported.toml``."""

    sources: dict[Id, Source]
    tables: tuple[Block, ...]

    @model_validator(mode="after")
    def _sources_are_known(self) -> Reported:
        for number, block in enumerate(self.tables):
            if block.source not in self.sources:
                raise ValueError(
                    f"tables.{number}.source {block.source!r} is none of {', '.join(sorted(self.sources))}"
                )
        return self


@dataclass(frozen=True)
class Figure:
    """One published value with its context: method, metric, setting, base and source."""

    method: str
    measured: str
    metric: str
    value: float
    unit: str
    bound: str | None
    setting: str
    base: str
    source: str
    place: str
    url: str
    certainty: tuple[Certainty, ...]
    better: str | None
    note: str
    digits: int

    @property
    def checked(self) -> bool:
        """Whether the value was checked against the publication, or against a quotation of it."""
        return "recalled" not in self.certainty

    @property
    def text(self) -> str:
        """The value with its bound, with the number of digits of its column."""
        return " ".join(part for part in (self.bound, f"{self.value:.{self.digits}f}") if part)


@dataclass(frozen=True)
class Section:
    """One published table.

    Attributes
    ----------
    measured, origin
        What was measured; base model, source and certainty.
    heads, rows
        Cells as text: method, setting if there are any, one column per metric; empty if there is no value.
    source, place, url, base, note, certainty
        The parts of `origin`; `url` is a web address, or empty.
    """

    measured: str
    origin: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str = ""
    place: str = ""
    url: str = ""
    base: str = ""
    note: str = ""
    certainty: tuple[Certainty, ...] = ()


@dataclass(frozen=True)
class ReportedTable:
    """Published values as text for a terminal, Markdown or a page, with notes."""

    sections: tuple[Section, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """Return all tables for a terminal."""
        return self._joined("simple", "", lambda cell: cell)

    def markdown(self) -> str:
        """Return all tables in Markdown; characters that would end a cell are escaped."""
        return self._joined("github", "### ", lambda cell: cell.replace("\\", "\\\\").replace("|", "\\|"))

    def _joined(self, style: str, heading: str, escape: Callable[[str], str]) -> str:
        from tabulate import tabulate

        parts = ["\n".join(f"- {note}" for note in self.notes)]
        for section in self.sections:
            cells = [[escape(cell) for cell in row] for row in section.rows]
            align = ["left" if head in ("method", "setting") else "right" for head in section.heads]
            heads = [escape(head) for head in section.heads]
            table = tabulate(cells, headers=heads, tablefmt=style, disable_numparse=True, colalign=align)
            parts.append(f"{heading}{section.measured}\n\n{section.origin}\n\n{table}")
        return "\n\n".join(parts) + "\n"


def figures(path: Path) -> list[Figure]:
    """Read all published values, in the order of the file.

    Raises
    ------
    UsageError
        If the file cannot be read, or a field is invalid; the message names file, field and value.
    """
    reported = load(path, Reported)
    return [
        Figure(
            method=row.method,
            measured=block.measured,
            metric=metric.name,
            value=value,
            unit=metric.unit,
            bound=block.bound,
            setting=row.setting,
            base=block.base,
            source=reported.sources[block.source].title,
            place=block.place,
            url=reported.sources[block.source].url,
            certainty=block.certainty,
            better=metric.better,
            note=block.note,
            digits=digits,
        )
        for block in reported.tables
        for row in block.rows
        for metric, value, digits in zip(block.metrics, row.values, _digits(block), strict=True)
    ]


def of_method(found: Iterable[Figure], method: str) -> list[Figure]:
    """Return the published values of one method, ignoring case.

    Raises
    ------
    UsageError
        If there are none; the message suggests the nearest name.
    """
    found = list(found)
    chosen = [figure for figure in found if figure.method.lower() == method.lower()]
    if not chosen:
        raise UsageError("no reported figure of", field="--method", value=method, choices={f.method for f in found})
    return chosen


def reported_table(found: Iterable[Figure], *, recalled: bool = False) -> ReportedTable:
    """Return published values as tables.

    Parameters
    ----------
    found
        Values to show.
    recalled
        Whether to show values that were not checked against the paper too; otherwise a note gives their number.
    """
    found = list(found)
    shown = [figure for figure in found if recalled or figure.checked]
    notes = ["Reported by others, on their own data, bases and settings: not comparable with measured P, not ranked."]
    notes.append(f"{_ARROWS['higher']} higher is better, {_ARROWS['lower']} lower is better, for the protection")
    used = sorted({word for figure in shown for word in figure.certainty})
    notes += [f"{word}: {MEANING[word]}" for word in used]
    if len(shown) < len(found):
        notes.append(f"{len(found) - len(shown)} figures that were not checked against their paper are left out")
    groups: dict[tuple[str, str], list[Figure]] = {}
    for figure in shown:
        groups.setdefault((plain(figure.measured), plain(_origin(figure))), []).append(figure)
    return ReportedTable(tuple(_section(*key, group) for key, group in groups.items()), tuple(notes))


def _digits(block: Block) -> list[int]:
    """Return the number of decimals of each column, since TOML numbers lose trailing zeros."""
    columns = zip(*(row.values for row in block.rows), strict=True)
    return [max(len(f"{value:g}".partition(".")[2]) for value in column) for column in columns]


def _section(measured: str, origin: str, group: list[Figure]) -> Section:
    metrics = list(dict.fromkeys(map(_metric, group)))
    values: dict[tuple[str, str], dict[str, str]] = {}
    for figure in group:
        values.setdefault((plain(figure.method), plain(figure.setting)), {})[_metric(figure)] = figure.text
    settings = any(setting for _, setting in values)
    rows = [
        (method, *([setting] if settings else []), *(row.get(metric, "") for metric in metrics))
        for (method, setting), row in values.items()
    ]
    heads = ("method", *(["setting"] if settings else []), *metrics)
    first = group[0]
    return Section(
        measured,
        origin,
        heads,
        tuple(rows),
        source=plain(first.source),
        place=plain(first.place),
        url=plain(re.sub("^arXiv:", "https://arxiv.org/abs/", first.url)),
        base=plain(first.base),
        note=plain(first.note),
        certainty=first.certainty,
    )


def _metric(figure: Figure) -> str:
    arrow = _ARROWS[figure.better] if figure.better else ""
    return plain(" ".join(part for part in (figure.metric, figure.unit, arrow) if part))


def _origin(figure: Figure) -> str:
    parts = [f"{figure.source}, {figure.place}", figure.url, f"base: {figure.base}", ", ".join(figure.certainty)]
    return "; ".join(part for part in [*parts, figure.note] if part)
