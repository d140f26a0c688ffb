"""Snapshot of a board for citations and comparisons: its scores, with the digests of the records behind them.

The JSON form is frozen in releases, so its schema may only be extended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from immunebench.board.assembly.scored import Scored
from immunebench.board.loading.load import digest
from immunebench.board.tables.columns import work_text
from immunebench.core.errors import UsageError
from immunebench.core.version import __version__
from immunebench.declared import scoring
from immunebench.declared.schema import DefenseName, Id, Model

if TYPE_CHECKING:
    from immunebench.board.scores.model import Row

Interval = tuple[float, float]


class CellScore(Model):
    """Score of one defense on one (task, chain), with its comparability key.

    `headline` is whether the chain is in the minimum of the headline.
    """

    task: Id
    family: Id
    chain: str = Field(pattern=r"^[a-z0-9@.+-]+$")
    key: str
    status: str
    p_raw: float | None
    p: float | None
    headline: bool = True
    a: float | None = None


class TaskStanding(Model):
    """A of one task, under the strongest attacks."""

    task: Id
    family: Id
    area: float


class Standing(Model):
    """One row of the board.

    `worst` has the strongest attack, or in releases of rules 1 the chain of the least P, by task. Fields of P are empty
    in releases made since, those of A in those before. `records` is the digest of the records behind the row: its own
    and those of `none`.
    """

    defense: DefenseName
    version: int
    kind: str
    p: float | None
    interval: Interval | None
    u: float | None
    p_mean_case: float | None = None
    p_family: dict[str, float] = Field(default_factory=dict)
    p_chain: dict[str, float] = Field(default_factory=dict)
    worst: dict[str, str] = Field(default_factory=dict)
    scores: tuple[CellScore, ...]
    incomplete: tuple[str, ...]
    flags: tuple[str, ...]
    records: str
    a: float | None = None
    work: str = ""
    tasks: tuple[TaskStanding, ...] | None = None
    a_family: dict[str, float] = Field(default_factory=dict)
    a_chain: dict[str, float] = Field(default_factory=dict)

    @property
    def measure(self) -> str:
        """``A``, or ``P`` in releases of rules 1, whose rows do not have A."""
        return "P" if self.tasks is None else "A"

    @property
    def headline(self) -> float | None:
        """The headline by `measure`; `interval` belongs to it."""
        return self.p if self.tasks is None else self.a

    @property
    def name(self) -> str:
        """``defense@version``."""
        return f"{self.defense}@{self.version}"

    @property
    def control(self) -> bool:
        """Whether the row is a control, which validates the benchmark and is not ranked."""
        return self.kind == "control"


class Snapshot(Model):
    """Snapshot of the board of one suite.

    Attributes
    ----------
    results
        Digest of `records`, which has the SHA-256 of every record by ``defense@version`` and cell.
    rules
        SHA-256 of the text of the rules.
    refusals
        Controls that fail their checks; a board with any can be neither cited nor released.
    """

    schema_version: int = 1
    suite: Id
    suite_version: str
    profiles: tuple[str, ...]
    bases: tuple[str, ...]
    attacks: tuple[str, ...]
    rows: tuple[Standing, ...]
    notes: tuple[str, ...]
    refusals: tuple[str, ...]
    results: str
    rules: str
    records: dict[str, str]
    newest: str = Field(description="When the newest record was made, as it says itself.")
    package: str = __version__

    @property
    def name(self) -> str:
        """``suite@version``."""
        return f"{self.suite}@{self.suite_version}"

    def row(self, defense: str) -> Standing:
        """Return the row of a defense, given with or without its version.

        Raises
        ------
        UsageError
            If it is not on the board; the message suggests the nearest name.
        """
        for row in self.rows:
            if defense in (row.defense, row.name):
                return row
        raise UsageError(f"not on the board of {self.name}:", value=defense, choices=[row.defense for row in self.rows])


def take(scored: Scored, rules: str) -> Snapshot:
    """Return the snapshot of a board.

    Parameters
    ----------
    scored
        A board and its records.
    rules
        Digest of the text of the rules; see `rules_digest`.

    Raises
    ------
    BoardError
        If the records are of several suites.
    """
    records = {f"{r.cell.defense}@{r.cell.defense_version} {r.cell.key}": digest(r) for r in scored.records}
    suite, _, version = scored.suite.partition("@")
    keys = {(r.cell.task, r.cell.chain): r.comparability for r in scored.records if r.cell.setting.usual}
    return Snapshot(
        suite=suite,
        suite_version=version,
        profiles=_several(f"{r.cell.profile}@{r.cell.profile_version}" for r in scored.records),
        bases=_several(f"{r.cell.base}@{r.cell.base_revision}" for r in scored.records),
        attacks=_several(link.attack for r in scored.records for link in r.cell.links),
        rows=tuple(_standing(row, records, keys) for row in scored.board.rows),
        notes=scored.board.notes,
        refusals=scored.board.refusals,
        results=combined(records),
        rules=rules,
        records=dict(sorted(records.items())),
        newest=max(record.created for record in scored.records),
    )


def combined(records: dict[str, str]) -> str:
    """Return one digest of several digests, independent of their order."""
    lines = "".join(f"{name} {value}\n" for name, value in sorted(records.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def rules_digest(leaderboard: Path) -> str:
    """Return the SHA-256 of ``rules.md``.

    Raises
    ------
    UsageError
        If the folder has no such file.
    """
    path = leaderboard / "rules.md"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", file=path, field="--leaderboard") from error


def _standing(row: Row, records: dict[str, str], keys: dict[tuple[str, str], str]) -> Standing:
    name = f"{row.defense}@{row.version}"
    own = {key: value for key, value in records.items() if key.split("@")[0] in (row.defense, "none")}
    return Standing(
        defense=row.defense,
        version=row.version,
        kind=row.kind,
        p=row.p,
        interval=row.a_interval,
        u=row.u,
        worst=dict(row.strongest),
        a=row.a,
        work=work_text(row),
        tasks=()
        if row.area is None
        else tuple(TaskStanding(task=t.task, family=t.family, area=t.area) for t in row.area.tasks),
        a_family={} if row.area is None else dict(row.area.family),
        a_chain={} if row.area is None else dict(row.area.chain),
        scores=tuple(
            CellScore(
                task=s.task,
                family=s.family,
                chain=s.chain,
                key=keys.get((s.task, s.chain), ""),
                status=s.status,
                p_raw=s.p_raw,
                p=s.p,
                headline=scoring.role(s.chain) == "headline",
                a=s.a,
            )
            for s in row.scores
        ),
        incomplete=row.incomplete,
        flags=row.flags,
        records=combined({"row": name, **own}),
    )


def _several(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
