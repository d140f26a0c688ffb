"""What is known of how long a protection of pictures lasts: boards, releases, and figures that others report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from immunebench.board.assembly.scored import score_folder
from immunebench.board.loading import reported
from immunebench.board.loading.load import plain
from immunebench.board.release.snapshot import Snapshot
from immunebench.board.scores.model import BoardError
from immunebench.board.tables.columns import work_text
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.core.errors import UsageError

#: Separates the methods of a published row that speaks of several.
_AND = ", "


@dataclass(frozen=True, slots=True)
class Standing:
    """A defense on one board.

    Attributes
    ----------
    board
        ``suite@version``, and of a release its id.
    embedded
        Whether all its bases are of the embedded world.
    measure
        ``A``, or ``P`` on boards of rules 1.
    value, interval
        The headline: the share of what attackers learn that is prevented, under the strongest attack.
    work
        W as text; empty where the board has none.
    alone, cleaned
        The measure by chain: attacks alone, and after the pictures were cleaned.
    clean
        The measure by percent of clean pictures among the attacker's.
    """

    defense: str
    board: str
    bases: tuple[str, ...]
    embedded: bool
    measure: Literal["A", "P"]
    value: float
    interval: tuple[float, float] | None
    work: str
    alone: Mapping[str, float] = field(default_factory=dict)
    cleaned: Mapping[str, float] = field(default_factory=dict)
    clean: Mapping[int, float] = field(default_factory=dict)

    @property
    def attack(self) -> str:
        """The attack alone under which least is prevented; empty where there is none."""
        return min(self.alone, key=lambda chain: (self.alone[chain], chain), default="")

    @property
    def cleaning(self) -> str:
        """The chain with a cleaning under which least is prevented; empty where there is none."""
        return min(self.cleaned, key=lambda chain: (self.cleaned[chain], chain), default="")


@dataclass(frozen=True, slots=True)
class Published:
    """A figure that others report of a method, or of several at once."""

    methods: tuple[str, ...]
    measured: str
    metric: str
    value: str
    unit: str
    setting: str
    base: str
    source: str
    url: str


@dataclass(frozen=True, slots=True)
class Known:
    """All that the records say of one defense.

    Attributes
    ----------
    of_it, of_its_kind
        Figures that others report of this method alone, and of several protections of pictures together.
    unread
        A line on each board that should have a row and cannot be read.
    """

    defense: str
    standings: tuple[Standing, ...]
    of_it: tuple[Published, ...]
    of_its_kind: tuple[Published, ...]
    unread: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


def known(entry: Entry, catalog: Catalog, results: Path, leaderboard: Path) -> Known:
    """Collect what is known of a defense.

    Parameters
    ----------
    entry
        A defense of pictures.
    catalog
        Says which bases are embedded and which chains clean pictures.
    results
        Folder with one folder of records a suite; need not exist.
    leaderboard
        Folder with ``releases`` and ``reported.toml``; need not exist.
    """
    standings: list[Standing] = []
    unread: list[str] = []
    for folder in sorted(results.iterdir()) if results.is_dir() else ():
        # Scoring a board takes seconds, so only those with a file of the defense are.
        if any(folder.glob(f"{entry.id}@*.jsonl")):
            try:
                standings += _on_board(entry, catalog, folder)
            except (BoardError, UsageError, OSError) as error:
                unread.append(f"{plain(folder.name)}: {plain(str(error))[:300]}")
    for file in sorted(leaderboard.glob("releases/*/*/snapshot.json"), reverse=True):
        try:
            standings += _in_release(entry, catalog, file)
        except (ValidationError, ValueError, OSError) as error:
            unread.append(f"{file.parent.parent.name}/{file.parent.name}: {plain(str(error))[:300]}")
    papers = leaderboard / "reported.toml"
    figures = list(_published(papers)) if papers.is_file() else []
    own = names(entry)
    return Known(
        entry.id, tuple(standings),
        tuple(figure for figure in figures if len(figure.methods) == 1 and own & set(figure.methods)),
        tuple(figure for figure in figures if len(figure.methods) > 1),
        tuple(unread),
    )  # fmt: skip


def names(entry: Entry) -> frozenset[str]:
    """Return the names, in lower case, under which others may report figures of a method.

    A variant with another objective has names of its own, one with another budget only has those of the entry.
    """
    manifest = entry.manifest
    variant = None if entry.variant is None else manifest.variants[entry.variant]
    own = [entry.id, *entry.aliases]
    if variant is None or not variant.params:
        own += [manifest.id, *manifest.aliases]
    return frozenset(name.lower() for name in own)


def _on_board(entry: Entry, catalog: Catalog, folder: Path) -> Iterator[Standing]:
    scored = score_folder(folder)
    scored.board.require_sound()
    row = scored.board.row(entry.id)
    if row is None or row.area is None:
        return
    shares = {
        score.setting.clean: score.a
        for score in scored.board.settings
        if score.defense == entry.id and score.a is not None
        and score.setting.surrogate is None and score.setting.attacker_base is None
    }  # fmt: skip
    yield _standing(
        entry, catalog, scored.suite, {record.cell.base for record in scored.records}, "A", row.area.a,
        row.area.interval, work_text(row), row.area.chain, shares,
    )  # fmt: skip


def _in_release(entry: Entry, catalog: Catalog, file: Path) -> Iterator[Standing]:
    """Yield the row of a frozen board; frozen ones stay as they are, so that their shares of clean pictures do too."""
    snapshot = Snapshot.model_validate_json(file.read_bytes())
    row = next((row for row in snapshot.rows if row.defense == entry.id), None)
    if row is None or row.headline is None:
        return
    board = file.with_name("board.json")
    settings = json.loads(board.read_bytes()).get("settings", []) if board.is_file() else []
    field = row.measure.lower()
    shares = {
        int(score["clean"]): float(score[field])
        for score in settings
        if score.get("defense") == entry.id and score.get(field) is not None
        and score.get("surrogate") is None and score.get("attacker_base") is None
    }  # fmt: skip
    yield _standing(
        entry, catalog, f"{snapshot.name} of release {file.parent.parent.name}",
        {base.partition("@")[0] for base in snapshot.bases}, "A" if row.measure == "A" else "P", row.headline,
        row.interval, "" if row.work in ("", "-") else row.work, row.a_chain or row.p_chain, shares,
    )  # fmt: skip


def _standing(
    entry: Entry,
    catalog: Catalog,
    board: str,
    bases: set[str],
    measure: Literal["A", "P"],
    value: float,
    interval: tuple[float, float] | None,
    work: str,
    chains: Mapping[str, float],
    shares: Mapping[int, float],
) -> Standing:
    known = catalog.models.bases
    return Standing(
        defense=entry.id,
        board=plain(board),
        bases=tuple(sorted(bases)),
        embedded=all(base in known and known[base].embedded for base in bases),
        measure=measure,
        value=value,
        interval=interval,
        work=work,
        alone={chain: a for chain, a in chains.items() if "+" not in chain},
        cleaned={chain: a for chain, a in chains.items() if "+" in chain},
        clean={share: a for share, a in sorted(shares.items()) if share},
    )


def _published(file: Path) -> Iterator[Published]:
    """Yield the figures on protections of pictures that were checked against their publication."""
    for figure in reported.figures(file):
        if figure.checked:
            yield Published(
                tuple(name.strip().lower() for name in figure.method.split(_AND)), plain(figure.measured),
                plain(figure.metric), plain(figure.text), plain(figure.unit), plain(figure.setting), plain(figure.base),
                plain(figure.source), plain(figure.url),
            )  # fmt: skip
