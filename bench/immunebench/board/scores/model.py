"""Data classes of the board: returned by `aggregate`, read by tables, plots, site and releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from immunebench.board.scores.curves import TaskArea
from immunebench.board.scores.data_side import Table
from immunebench.board.scores.measurement import Beside
from immunebench.board.scores.work import Work
from immunebench.declared.suite import Setting


class BoardError(Exception):
    """Raised when records cannot be shown as one board; the message gives the reason in one line."""


@dataclass(frozen=True)
class Power:
    """Floor and ceiling of a (task, chain) as mean anchored similarity, and the result of the power gate.

    `curve` maps each saved step of the attack to the mean anchored similarity of `none`.
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
    """Scores of one defense on one (task, chain).

    `status` is ``ok``, ``defense failed``, ``attack failed`` (both count as undefended), ``incomplete``
    or ``uninformative``. Scores are None where the status allows none. `interval` is the confidence interval of P
    over seeds and pictures, with the task held fixed.
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
    """Headline P, mean SGR and the interval of P, computed on one similarity metric."""

    p: float | None
    sgr: float | None
    p_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class TaskUtility:
    """Utility of a defense on one task; U is the least of the parts that apply."""

    task: str
    u_gen: float | None
    u_ben: float | None
    fidelity: float | None
    u: float | None


@dataclass(frozen=True)
class AreaScore:
    """A: the fraction of the attacks' gain that a defense prevents, averaged over training steps.

    Parameters
    ----------
    a
        Headline A: mean over families of the mean over tasks; 1 if nothing is learned, 0 if as much as undefended,
        negative if the defense helps the attack.
    interval
        Confidence interval of `a`; None with too few tasks.
    family, chain
        A per family, and per chain.
    p
        P by multiple of the preset's number of steps, under the strongest attacks: 1 is what papers report, 2 is the
        end of training.
    work
        Steps that the strongest attack needs for half of the undefended gain, with the defense divided by without.
    tasks
        A of each task.
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
    """One defense: its headline scores, the other columns, and the scores that they are computed from.

    `p` is the mean over families of the mean over tasks of the least P over chains; `p_mean_case` has
    the mean over chains instead. `worst` gives, per task, the chain with that least P.

    `rank` is the number of the tie group within track and budget class, 1 the best, None where the row is not
    ranked; each perceptual budget is a class of its own. `matched` is P on the attacks that the defense lists in
    `against`, which is what papers report.
    `p_best_response` is the headline with the ladder's chains (adaptive and stronger attacks) in the minimum,
    `p_public_base` P where the attacker has the base model; None where the suite has no such chain. `by_metric` has
    all similarity metrics of the records, the target metric among them. `changes` compares protected with published
    pictures, by metric: the maximum for ``linf``, the mean over cells for the others. `badges` are short labels: the
    kind of the row, and reasons why it may be unranked.
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

    @property
    def control(self) -> bool:
        """Whether the row is a control, which validates the benchmark and is not ranked."""
        return self.kind == "control"

    @property
    def league(self) -> str:
        """The group that the row is ranked in: its track, and the budget class if it changes pictures."""
        own = f"Linf {self.budget_class}" if isinstance(self.budget_class, int) else self.budget_class
        return self.track if own is None else f"{self.track}, {own}"

    @property
    def passes(self) -> bool:
        """Whether the row is complete, passes the utility gate, is within a classed budget, and is not brittle."""
        bars = {"utility gate", "over budget", "no budget class", "brittle"}
        return not self.incomplete and not bars & {*self.flags, *self.badges}


@dataclass(frozen=True)
class LayerScore:
    """P of a layered defense and of each of its layers alone, on the tasks, chains and seeds common to all of them.

    Where they cannot be compared, scores are None and `reason` says why. `difference` is P of the layered defense
    minus P of the `better` layer, `interval` its paired interval. With too few tasks to estimate the variance between
    tasks the interval holds the tasks fixed (`tasks_fixed`).
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
    """P of a defense in one setting; `interval` holds the tasks fixed, `reason` says why P is missing."""

    defense: str
    setting: Setting
    p: float | None
    p_family: Mapping[str, float]
    interval: tuple[float, float] | None
    tasks: int
    reason: str = ""


@dataclass(frozen=True)
class Board:
    """All rows, best first, controls last, with notes and additional tables.

    `refusals` lists the controls that fail their checks; a board with any is not rendered. `interval_rule` explains
    in one sentence which intervals and ranks there are; `smallest_difference` is the smallest difference in P between
    two ranked rows that would be significant on this suite, the median over pairs. `keys` are the comparability keys
    of the records. `layers` compares layered defenses with their layers; `settings` has scores in unusual settings,
    which enter no row; `tables` have measures of pictures, which enter no score.
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
        """Every (task, chain) that the power gate excludes, for all entries."""
        return tuple(power for power in self.power if not power.informative)

    @property
    def leagues(self) -> dict[str, list[Row]]:
        """Ranked rows by the group that they are ranked in, best first."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.rank is not None:
                found.setdefault(row.league, []).append(row)
        return found

    def leads(self, row: Row) -> bool:
        """Return whether a row has rank 1 in a group of at least two ranked rows."""
        return row.rank == 1 and len(self.leagues[row.league]) > 1

    def row(self, defense: str) -> Row | None:
        """Return the row of a defense, None if it is not on the board."""
        return next((row for row in self.rows if row.defense == defense), None)

    def require_sound(self) -> None:
        """Raise an error if a control fails its check.

        Raises
        ------
        BoardError
            If there are refusals; the message lists them all.
        """
        if self.refusals:
            raise BoardError("the board is not rendered: " + "; ".join(self.refusals))
