"""Data classes of the board: returned by `aggregate`, read by tables, plots, site and releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from immunebench.board.loading.external import External
from immunebench.board.scores.curves import TaskArea
from immunebench.board.scores.data_side import Table
from immunebench.board.scores.measurement import Beside
from immunebench.board.scores.work import Work
from immunebench.declared.suite import Setting

#: Badge of rows that nobody vouches for, on boards where somebody vouches for others.
SELF_REPORTED = "self-reported"


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
    or ``uninformative``. Scores are None where the status allows none. `a` is A of this chain; `p_raw` and `p` are
    P at the end of the preset, without and with clipping.
    """

    task: str
    family: str
    chain: str
    status: str
    p_raw: float | None = None
    p: float | None = None
    a: float | None = None
    sgr: float | None = None
    sgr_curve: float | None = None
    below_floor: bool = False
    reason: str = ""


@dataclass(frozen=True)
class MetricScore:
    """P of the worst chain and mean SGR, computed on one similarity metric."""

    p: float | None
    sgr: float | None


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
    family_interval, chain_interval
        Their confidence intervals, where there are tasks enough.
    mean_chains
        Mean over the headline's chains of A of the chain.
    matched
        A on the attacks that the defense simulates, which is what papers report.
    best_response
        A with the ladder's chains (adaptive and stronger attacks) among the attacks; None without such a chain.
    public_base
        A where the attacker has the base model; None where the suite has no such chain.
    p
        P by multiple of the preset's number of steps, under the strongest attacks: 1 is what papers report, 2 is the
        end of training.
    work, work_80
        Steps that the strongest attack needs for half, and for 80 %, of the undefended gain, with the defense divided
        by without.
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
    family_interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    chain_interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    mean_chains: float | None = None
    matched: float | None = None
    best_response: float | None = None
    public_base: float | None = None
    work_80: Work | None = None


@dataclass(frozen=True)
class Row:
    """One defense: its headline scores, the other columns, and the scores that they are computed from.

    `area` holds the headline A and all that belongs to it; for the track ``erasure`` it is E, on the scale on which the
    untouched base is 0. `p` is P of the worst chain, clipped, the headline of rules 1: it stays for continuity.
    `strongest` gives, per task, the strongest attack on the defended model.

    `rank` is the number of the tie group within track and budget class, 1 the best, None where the row is not
    ranked; each perceptual budget is a class of its own. `not_apart` names the rows of the class that this one is not
    told apart from. `by_metric` has
    all similarity metrics of the records, the target metric among them. `changes` compares protected with published
    pictures, by metric: the maximum for ``linf``, the mean over cells for the others. `badges` are short labels: the
    kind of the row, and reasons why it may be unranked or ranked apart.
    """

    defense: str
    version: int
    kind: str
    p: float | None
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
    u_interval: tuple[float, float] | None = None
    rank: int | None = None
    not_apart: tuple[str, ...] = ()
    badges: tuple[str, ...] = ()
    track: str = ""
    by_metric: Mapping[str, MetricScore] = field(default_factory=dict)
    budget_class: int | str | None = None
    changes: Mapping[str, float] = field(default_factory=dict)
    area: AreaScore | None = None
    sgr_curve: float | None = None

    @property
    def a(self) -> float | None:
        """Headline A; E in the track ``erasure``. None where the row is incomplete or no attack works."""
        return None if self.area is None else self.area.a

    @property
    def a_interval(self) -> tuple[float, float] | None:
        """Confidence interval of `a`; None with too few tasks."""
        return None if self.area is None else self.area.interval

    @property
    def strongest(self) -> Mapping[str, str]:
        """The strongest attack on the defended model, per task; without tasks on which something failed."""
        tasks = () if self.area is None else self.area.tasks
        return {task.task: task.strongest_defended for task in tasks if task.strongest_defended}

    @property
    def control(self) -> bool:
        """Whether the row is a control, which validates the benchmark and is not ranked."""
        return self.kind == "control"

    @property
    def league(self) -> str:
        """The group that the row is ranked in: track, budget class if it changes pictures, and whether it is apart."""
        own = f"Linf {self.budget_class}" if isinstance(self.budget_class, int) else self.budget_class
        return ", ".join(part for part in (self.track, own, SELF_REPORTED if self.apart else None) if part is not None)

    @property
    def apart(self) -> bool:
        """Whether the row stands apart from vouched ones: it is self-reported, and others of the board are not."""
        return SELF_REPORTED in self.badges

    @property
    def passes(self) -> bool:
        """Whether the row is complete, passes the utility gate, is within a classed budget, and is not brittle."""
        bars = {"utility gate", "over budget", "no budget class", "brittle"}
        return not self.incomplete and not bars & {*self.flags, *self.badges}


@dataclass(frozen=True)
class LayerScore:
    """A of a layered defense and of each of its layers alone, on the tasks and chains common to all of them.

    Where they cannot be compared, scores are None and `reason` says why. `difference` is A of the layered defense
    minus A of the `better` layer, `interval` its interval, paired by task; None with too few tasks.
    """

    defense: str
    layers: tuple[str, ...]
    a: float | None = None
    a_alone: Mapping[str, float] = field(default_factory=dict)
    better: str = ""
    difference: float | None = None
    interval: tuple[float, float] | None = None
    tasks: int = 0
    reason: str = ""


@dataclass(frozen=True)
class SettingScore:
    """A of a defense in one setting; `interval` is None with too few tasks, `reason` says why A is missing."""

    defense: str
    setting: Setting
    a: float | None
    a_family: Mapping[str, float]
    interval: tuple[float, float] | None
    tasks: int
    reason: str = ""


@dataclass(frozen=True)
class Board:
    """All rows, best first, controls last, with notes and additional tables.

    `refusals` lists the controls that fail their checks; a board with any is not rendered. `interval_rule` explains
    in one sentence which intervals and ranks there are; `smallest_difference` is the smallest true difference in A
    between two ranked rows that this suite finds significant in 80 %, the median over pairs. `keys` are the
    comparability keys of the records. `layers` compares layered defenses with their layers; `settings` has scores in
    unusual settings, which enter no row; `tables` have measures of pictures, which enter no score.
    `findings` are records that are in no row, as ``file:line`` and what is wrong with them; `external` are attacks on
    its entries that others ran.
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
    findings: tuple[tuple[str, str], ...] = ()
    external: tuple[External, ...] = ()

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
