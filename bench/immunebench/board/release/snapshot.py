"""A board in numbers, with the digests of all that it was made of: what citations and comparisons read.

Its JSON form is frozen into releases, so its schema changes by addition only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from immunebench.board.assembly.scored import Scored
from immunebench.board.loading.load import digest
from immunebench.core.errors import UsageError
from immunebench.core.version import __version__
from immunebench.declared.schema import DefenseName, Id, Model

if TYPE_CHECKING:
    from immunebench.board.scores.model import Row

Interval = tuple[float, float]


class CellScore(Model):
    """One defense on one (task, chain), under its comparability key.

    `headline` says whether the chain is among those that the headline's minimum is taken over.
    """

    task: Id
    family: Id
    chain: str = Field(pattern=r"^[a-z0-9@.+-]+$")
    key: str
    status: str
    p_raw: float | None
    p: float | None
    headline: bool = True


class Standing(Model):
    """One row of the board.

    `records` is the digest of what the row was made of: its own records and those of `none`.
    """

    defense: DefenseName
    version: int
    kind: str
    p: float | None
    interval: Interval | None
    u: float | None
    p_mean_case: float | None
    p_family: dict[str, float]
    p_chain: dict[str, float]
    worst: dict[str, str]
    scores: tuple[CellScore, ...]
    incomplete: tuple[str, ...]
    flags: tuple[str, ...]
    records: str

    @property
    def name(self) -> str:
        """``defense@version``."""
        return f"{self.defense}@{self.version}"

    @property
    def control(self) -> bool:
        """Whether the row checks the benchmark rather than competes in it."""
        return self.kind == "control"


class Snapshot(Model):
    """One suite's board.

    Attributes
    ----------
    results
        Digest over `records`: the SHA-256 of every record, by ``defense@version`` and cell.
    rules
        SHA-256 of the rules' text.
    refusals
        Controls that misbehave; such a board is neither cited nor released.
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
        """The row of a defense, with or without its version.

        Raises
        ------
        UsageError
            It is not on the board; the nearest name is said.
        """
        for row in self.rows:
            if defense in (row.defense, row.name):
                return row
        raise UsageError(f"not on the board of {self.name}:", value=defense, choices=[row.defense for row in self.rows])


def take(scored: Scored, rules: str) -> Snapshot:
    """The snapshot of a board.

    Parameters
    ----------
    scored
        A board and its records.
    rules
        Digest of the rules' text; see `rules_digest`.

    Raises
    ------
    BoardError
        The records are of several suites.
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
    """One digest of several, whatever their order."""
    lines = "".join(f"{name} {value}\n" for name, value in sorted(records.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def rules_digest(leaderboard: Path) -> str:
    """SHA-256 of ``rules.md``.

    Raises
    ------
    UsageError
        The folder has no such file.
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
        # A board without intervals has no such field.
        interval=getattr(row, "p_interval", None),
        u=row.u,
        p_mean_case=row.p_mean_case,
        p_family=dict(row.p_family),
        p_chain=dict(row.p_chain),
        worst=dict(row.worst),
        scores=tuple(
            CellScore(
                task=s.task,
                family=s.family,
                chain=s.chain,
                key=keys.get((s.task, s.chain), ""),
                status=s.status,
                p_raw=s.p_raw,
                p=s.p,
            )
            for s in row.scores
        ),
        incomplete=row.incomplete,
        flags=row.flags,
        records=combined({"row": name, **own}),
    )


def _several(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
