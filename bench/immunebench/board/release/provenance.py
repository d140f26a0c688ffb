"""Provenance lines of cited scores: writing, parsing, and checking them against a board."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from immunebench.board.release.snapshot import Interval, Snapshot, Standing, combined
from immunebench.core.errors import UsageError

DIGITS = 4
"""Digits after the point of a cited score."""

_MARK = "immunebench"
_HEX = 16
_NUMBER = rf"-?[0-9]\.[0-9]{{{DIGITS}}}"
_ID = r"[a-z0-9]+(?:[-+][a-z0-9]+)*"
_SCORE = re.compile(rf"([AP])\(({_ID})@([0-9]+)\)=({_NUMBER}|none)(?:\[({_NUMBER}),({_NUMBER})\])?")
_FIELDS = {
    "suite": re.compile(rf"{_ID}@[0-9]+\.[0-9]+"),
    "results": re.compile(r"[0-9a-f]{16,64}"),
    "rows": re.compile(r"[0-9a-f]{16,64}"),
    "rules": re.compile(r"[0-9a-f]{16,64}"),
    "release": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*@[0-9a-f]{16,64}"),
    "package": re.compile(r"[0-9A-Za-z.+!-]+"),
}
_OPTIONAL = frozenset({"release"})


@dataclass(frozen=True)
class Claim:
    """A cited score with the printed digits: ``0.4321``, or ``none`` for a row without a headline.

    `measure` is ``A``, or ``P`` where a release of rules 1 is cited.
    """

    defense: str
    version: int
    value: str
    interval: tuple[str, str] | None = None
    measure: str = "A"

    @property
    def name(self) -> str:
        """``defense@version``."""
        return f"{self.defense}@{self.version}"

    def __str__(self) -> str:
        span = "" if self.interval is None else f"[{','.join(self.interval)}]"
        return f"{self.value}{span}"


@dataclass(frozen=True)
class Provenance:
    """The provenance of cited scores.

    Attributes
    ----------
    suite
        ``suite@version``.
    claims
        One per defense.
    results, rows, rules
        Digests, or prefixes of them: of all records of the suite, of the records behind the cited rows, and of the
        text of the rules.
    release
        ``id@digest`` of a release, with the digest of its ``SHA256SUMS``; None for scores outside a release.
    package
        Version of the package.
    """

    suite: str
    claims: tuple[Claim, ...]
    results: str
    rows: str
    rules: str
    package: str
    release: str | None = None

    def __str__(self) -> str:
        scores = (f"{claim.measure}({claim.name})={claim}" for claim in self.claims)
        fields = {"results": self.results, "rows": self.rows, "rules": self.rules, "release": self.release}
        parts = [f"{name}={value}" for name, value in {**fields, "package": self.package}.items() if value]
        return " ".join([_MARK, f"suite={self.suite}", *scores, *parts])


@dataclass(frozen=True)
class Verdict:
    """Whether cited scores are still valid.

    `differences` are reasons why they are not; `notes` are changes that affect no cited score.
    """

    differences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def stands(self) -> bool:
        """Whether all cited scores are still valid."""
        return not self.differences


def cite_rows(snapshot: Snapshot, rows: Iterable[Standing], release: str | None = None) -> Provenance:
    """Return the provenance of rows of a board.

    Parameters
    ----------
    snapshot
        The board.
    rows
        Rows that are cited.
    release
        ``id@digest`` of the release that the board belongs to.
    """
    chosen = tuple(rows)
    return Provenance(
        suite=snapshot.name,
        claims=tuple(map(_claim, chosen)),
        results=snapshot.results[:_HEX],
        rows=_rows_digest(chosen)[:_HEX],
        rules=snapshot.rules[:_HEX],
        package=snapshot.package,
        release=release,
    )


def parse(line: str) -> Provenance:
    """Parse a provenance line, with or without a comment's ``%`` in front; ``str(parse(line))`` gives it again.

    Raises
    ------
    UsageError
        If it is not a provenance line; the message names the first invalid part.
    """
    # `cite` prints the line as a comment of LaTeX.
    mark, *parts = line.lstrip("% \t").split() or [""]
    if mark != _MARK:
        raise UsageError(f"a provenance line begins with {_MARK!r}, not", field="--check", value=mark)
    claims: list[Claim] = []
    found: dict[str, str] = {}
    for part in parts:
        score = _SCORE.fullmatch(part)
        if score is not None:
            measure, defense, version, value, low, high = score.groups()
            claims.append(Claim(defense, int(version), value, None if low is None else (low, high), measure))
            continue
        name, _, value = part.partition("=")
        if name not in _FIELDS and not name.startswith(("A(", "P(")):
            raise UsageError("unknown part", field="--check", value=name, choices=_FIELDS)
        if name in found or name not in _FIELDS or not _FIELDS[name].fullmatch(value):
            raise UsageError("damaged or repeated part", field="--check", value=part)
        found[name] = value
    missing = [name for name in _FIELDS if name not in found and name not in _OPTIONAL]
    if missing or not claims:
        raise UsageError(f"the line lacks {', '.join(missing or ['A(defense@version)'])}", field="--check")
    if len({claim.defense for claim in claims}) != len(claims):
        raise UsageError("the line holds two scores of one defense", field="--check")
    return Provenance(claims=tuple(claims), release=found.pop("release", None), **found)


def check(cited: Provenance, now: Snapshot) -> Verdict:
    """Check cited scores against a board of the same suite.

    Returns
    -------
    Verdict
        Scores are valid if score, interval, the records of their rows and the rules are unchanged. Changes of other
        records of the suite give a note only.
    """
    differences: list[str] = []
    notes: list[str] = []
    if cited.suite != now.name:
        differences.append(f"suite changed: cited {cited.suite}, now {now.name}")
    rows = {row.defense: row for row in now.rows}
    for claim in cited.claims:
        row = rows.get(claim.defense)
        if row is None:
            differences.append(f"row missing: {claim.name} is not on the board")
            continue
        if row.version != claim.version:
            differences.append(f"defense changed: cited {claim.name}, now {row.name}")
        current = _claim(row)
        if current.measure != claim.measure:
            differences.append(
                f"rules changed: {claim.measure}({claim.name}) is cited, now rows have {current.measure}"
            )
        elif str(current) != str(claim):
            differences.append(f"number differs: {claim.measure}({claim.name}) cited {claim}, now {current}")
    shown = [rows[claim.defense] for claim in cited.claims if claim.defense in rows]
    if len(shown) == len(cited.claims) and not _rows_digest(shown).startswith(cited.rows):
        differences.append(f"record changed: records of the rows cited {cited.rows}, now {_rows_digest(shown)[:_HEX]}")
    if not now.rules.startswith(cited.rules):
        differences.append(f"rules changed: cited {cited.rules}, now {now.rules[:_HEX]}")
    if not now.results.startswith(cited.results):
        notes.append(f"the suite's results changed since: cited {cited.results}, now {now.results[:_HEX]}")
    if now.package != cited.package:
        notes.append(f"package: cited {cited.package}, now {now.package}")
    differences += [f"board refused: {reason}" for reason in now.refusals]
    return Verdict(tuple(differences), tuple(notes))


def text_of(value: float | None) -> str:
    """Return a score with the digits of a citation; ``none`` for None; no minus sign before zero."""
    if value is None:
        return "none"
    text = f"{value:.{DIGITS}f}"
    return text.removeprefix("-") if float(text) == 0.0 else text


def _claim(row: Standing) -> Claim:
    interval: Interval | None = row.interval
    span = None if interval is None or row.headline is None else (text_of(interval[0]), text_of(interval[1]))
    return Claim(row.defense, row.version, text_of(row.headline), span, row.measure)


def _rows_digest(rows: Iterable[Standing]) -> str:
    return combined({row.name: row.records for row in rows})
