"""The board as data: what `aggregate` returns and the renderers read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from immunebench.board.scores.curves import TaskArea
from immunebench.board.scores.data_side import Table
from immunebench.board.scores.measurement import Beside
from immunebench.board.scores.work import Work
from immunebench.declared.suite import Setting


class BoardError(Exception):
    """The records cannot be shown as one board; the message says why in one line."""


@dataclass(frozen=True)
class Power:
    """Floor and ceiling of a (task, chain), mean anchored similarity, and the verdict of the power gate.

    `curve` is the mean anchored similarity of `none` per saved step of the attack.
    """

    task: str
    family: str
    chain: str
    floor: float
    ceiling: float
    standard_error: float
    informative: bool
    curve: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskScore:
    """One defense on one (task, chain).

    `status` is ``ok``, ``defense failed``, ``attack failed`` (both count as undefended), ``incomplete``
    or ``uninformative``. Scores are None where the status leaves nothing to compute. `interval` is that of P with
    the task held fixed: what other seeds and pictures would give.
    """

    task: str
    family: str
    chain: str
    status: str
    p_raw: float | None = None
    p: float | None = None
    p_best_step: float | None = None
    p_curve: float | None = None
    sgr: float | None = None
    below_floor: bool = False
    reason: str = ""
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class MetricScore:
    """Headline P, mean SGR and the interval of P on one metric of the pictures."""

    p: float | None
    sgr: float | None
    p_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class TaskUtility:
    """What a defense leaves of the model's use on one task; U is the least of the parts that apply."""

    task: str
    u_gen: float | None
    u_ben: float | None
    fidelity: float | None
    u: float | None


@dataclass(frozen=True)
class AreaScore:
    """What a defense keeps attacks from, over their whole curves.

    Parameters
    ----------
    a
        Headline A: mean over families of the mean over tasks; 1 nothing learned, 0 as undefended, below 0 helped.
    interval
        Of `a`; None with too few tasks.
    family, chain
        A by family, and of each chain by itself.
    p
        P at parts of the preset's length, under the strongest attacks: 1 is what papers report, 2 the end.
    work
        Steps to half of the undefended gain, with the defense over without, under the strongest attack.
    tasks
        What the mean is made of.
    """

    a: float
    interval: tuple[float, float] | None
    family: Mapping[str, float]
    chain: Mapping[str, float]
    p: Mapping[float, float]
    work: Work | None
    tasks: tuple[TaskArea, ...]


@dataclass(frozen=True)
class Row:
    """One defense: headline, side columns and everything they were made from.

    `p` is the mean over families of the mean over tasks of the least P over chains; `p_mean_case` has
    the mean over chains instead. `worst` names the chain of that least P per task.

    `rank` is the number of the tie group within track and budget class, 1 the best, None where the row is not
    ranked; a perceptual budget is a class of its own. `matched` is P on the attacks that the defense names in
    `against`, which is what papers report.
    `p_best_response` is the headline with the ladder's chains in the minimum, `p_public_base` P where the attacker
    has the base; None where the suite has no such chain. `by_metric` has every metric of the records, the target
    metric among them. `changes` is what protected pictures differ from published ones, by metric: the largest ``linf``,
    the mean over cells of the others. `badges` says in a word each what kind of row this is and why it may be unranked.
    """

    defense: str
    version: int
    kind: str
    p: float | None
    p_mean_case: float | None
    p_best_step: float | None
    p_curve: float | None
    p_family: Mapping[str, float]
    p_chain: Mapping[str, float]
    worst: Mapping[str, str]
    sgr: float | None
    u_gen: float | None
    u_ben: float | None
    fidelity: float | None
    u: float | None
    seconds: float | None
    scores: tuple[TaskScore, ...]
    utilities: tuple[TaskUtility, ...]
    incomplete: tuple[str, ...]
    flags: tuple[str, ...]
    beside: Beside = field(default_factory=Beside)
    p_interval: tuple[float, float] | None = None
    u_interval: tuple[float, float] | None = None
    rank: int | None = None
    p_family_interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    p_chain_interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    badges: tuple[str, ...] = ()
    track: str = ""
    matched: float | None = None
    by_metric: Mapping[str, MetricScore] = field(default_factory=dict)
    budget_class: int | str | None = None
    p_best_response: float | None = None
    p_public_base: float | None = None
    changes: Mapping[str, float] = field(default_factory=dict)
    area: AreaScore | None = None

    def with_area(self, area: AreaScore | None) -> Row:
        """The row with its `area`."""
        return replace(self, area=area)

    @property
    def control(self) -> bool:
        """Whether the row checks the benchmark rather than competes in it."""
        return self.kind == "control"

    @property
    def league(self) -> str:
        """What the row is ranked within: its track, and the budget class where it changes pictures."""
        own = f"Linf {self.budget_class}" if isinstance(self.budget_class, int) else self.budget_class
        return self.track if own is None else f"{self.track}, {own}"

    @property
    def passes(self) -> bool:
        """Whether the row is complete, clears the utility gate, keeps a budget that has a class, and is not brittle."""
        bars = {"utility gate", "over budget", "no budget class", "brittle"}
        return not self.incomplete and not bars & {*self.flags, *self.badges}


@dataclass(frozen=True)
class LayerScore:
    """P of a layered defense against that of each layer alone, on what all of them met.

    Scores are None and `reason` says why where they cannot be compared. `difference` is P of the pair less P of the
    `better` layer, `interval` its paired interval, made with the tasks held fixed where these are too few to tell
    the spread over tasks.
    """

    defense: str
    layers: tuple[str, ...]
    p: float | None = None
    p_alone: Mapping[str, float] = field(default_factory=dict)
    better: str = ""
    difference: float | None = None
    interval: tuple[float, float] | None = None
    tasks: int = 0
    tasks_fixed: bool = True
    reason: str = ""


@dataclass(frozen=True)
class SettingScore:
    """P of a defense in one setting; `interval` holds the tasks fixed, `reason` says why there is no P."""

    defense: str
    setting: Setting
    p: float | None
    p_family: Mapping[str, float]
    interval: tuple[float, float] | None
    tasks: int
    reason: str = ""


@dataclass(frozen=True)
class Board:
    """All rows, best first, controls last, with what a reader must know beside them.

    `refusals` says which controls misbehave; a board with any is not rendered. `interval_rule` says in a sentence
    which intervals and ranks there are and why; `smallest_difference` is the least difference of P of two ranked
    rows that this suite would tell from 0, the median over pairs. `keys` are the comparability keys of its records.
    `layers` says whether layered defenses add up; `settings` has what was measured in unusual settings, which is in
     no row; `tables` have what was measured of pictures, for no score.
    """

    rows: tuple[Row, ...]
    power: tuple[Power, ...]
    row_noise: float | None
    refusals: tuple[str, ...]
    notes: tuple[str, ...]
    smallest_difference: float | None = None
    suite: str = ""
    keys: tuple[str, ...] = ()
    interval_rule: str = ""
    layers: tuple[LayerScore, ...] = ()
    settings: tuple[SettingScore, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def uninformative(self) -> tuple[Power, ...]:
        """Every (task, chain) that the power gate excludes, for all entries alike."""
        return tuple(power for power in self.power if not power.informative)

    @property
    def leagues(self) -> dict[str, list[Row]]:
        """Ranked rows by what they are ranked within, each best first."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.rank is not None:
                found.setdefault(row.league, []).append(row)
        return found

    def leads(self, row: Row) -> bool:
        """Whether a row is of the first tie group among several; one that is ranked alone leads nobody."""
        return row.rank == 1 and len(self.leagues[row.league]) > 1

    def row(self, defense: str) -> Row | None:
        """The row of a defense, None where it is not on the board."""
        return next((row for row in self.rows if row.defense == defense), None)

    def require_sound(self) -> None:
        """Refuse to go on where a control misbehaves.

        Raises
        ------
        BoardError
            With every reason.
        """
        if self.refusals:
            raise BoardError("the board is not rendered: " + "; ".join(self.refusals))
