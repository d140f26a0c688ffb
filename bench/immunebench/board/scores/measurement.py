"""What the board reads from a record, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from immunebench.board.scores.beside import Beside, beside
from immunebench.board.scores.data_side import DataSide, data_side
from immunebench.declared import scoring
from immunebench.declared.suite import USUAL, Setting

if TYPE_CHECKING:
    from immunebench.records.record import Baseline, Record, Score


@dataclass(frozen=True)
class Further:
    """Raw values of one more metric: defended, undefended and before the attack, one a picture."""

    m_def: tuple[float, ...] = ()
    m_none: tuple[float, ...] = ()
    m_floor: tuple[float, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One cell as the board sees it.

    Parameters
    ----------
    task, family, defense, chain, profile, seed
        Names of the cell; `chain` is written ``jpeg50+lora``.
    kind
        Kind of the defense: ``control``, ``model``, ``data``, ``layered``, ``api`` or ``erasure``.
    version
        Version of the defense.
    key
        Comparability key: versions of suite, task, attacks, target metric and profile.
    status
        ``ok`` or the way in which the cell failed.
    failed_part
        What the failed stage was for: ``defense``, ``attack``, ``baseline``, ``utility`` or ``fidelity``;
        empty where none failed.
    m_def, m_none, m_floor
        Raw target metric of each picture: defended, undefended (same chain) and before the attack.
        Empty where it could not be measured.
    curve
        Mean raw target metric per saved step of the attack.
    base
        Id of the base that was attacked.
    anchored
        Whether the task's anchors were measured.
    m_same, m_other
        Raw anchors of the task.
    g, g_base, g0
        Caption accuracy on unrelated prompts, in [0, 1], of the released model, of the base, of a guess.
    benign, benign_floor, benign_ceiling
        Raw target metric of a benign concept personalised from the released model; before
        personalisation; personalised from the base.
    fidelity
        Agreement of protected with published pictures, in [0, 1]; None where no picture is changed.
    changes_images, changes_model
        What the defense releases.
    linf, budget
        Largest measured change of a pixel and the declared one, both of 255.
    perceptual_budget
        Declared perceptual distance of an entry that has one in the place of ``budget``.
    data
        What was measured of protected and cleaned pictures, and of faces and mimicry.
    changes
        Mean of every measure of protected against published pictures, by metric; of ``linf`` the largest.
    seconds
        Wall-clock cost per stage, in seconds.
    beside
        Measures beside the score.
    metric
        Target metric with its version, such as ``ism0@1``.
    further
        Values of the other metrics in the record.
    against
        Attacks that the defense simulates.
    suite
        Suite and version, such as ``mini-lite@1.0``.
    setting
        What is unusual; cells of different settings share no number.
    """

    task: str
    family: str
    defense: str
    chain: str
    seed: int = 0
    profile: str = "cpu"
    kind: str = "model"
    version: int = 1
    key: str = ""
    status: str = "ok"
    failed_part: str = ""
    m_def: tuple[float, ...] = ()
    m_none: tuple[float, ...] = ()
    m_floor: tuple[float, ...] = ()
    curve: Mapping[int, float] = field(default_factory=dict)
    base: str = ""
    anchored: bool = True
    m_same: float = 1.0
    m_other: float = 0.0
    g: float | None = None
    g_base: float | None = None
    g0: float = scoring.CHANCE_ACCURACY
    benign: float | None = None
    benign_floor: float | None = None
    benign_ceiling: float | None = None
    fidelity: float | None = None
    changes_images: bool = False
    changes_model: bool = True
    linf: float | None = None
    budget: float | None = None
    perceptual_budget: float | None = None
    data: DataSide = field(default_factory=DataSide)
    changes: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    beside: Beside = field(default_factory=Beside)
    metric: str = ""
    further: Mapping[str, Further] = field(default_factory=dict)
    against: tuple[str, ...] = ()
    suite: str = ""
    setting: Setting = USUAL

    @property
    def where(self) -> tuple[str, str]:
        """The (task, chain) that a score belongs to."""
        return self.task, self.chain

    @property
    def measured(self) -> bool:
        """Whether the defended attack has a score; what failed beside it does not matter here."""
        return bool(self.m_def) and self.failed_part not in ("defense", "attack", "baseline")


def measurement(record: Record) -> Measurement:
    """Read what the board needs of a record."""
    cell, baseline, utility = record.cell, record.baseline, record.utility
    score = record.scores.get(record.metric)
    anchors, benign, fidelity = record.anchors, utility.benign, record.fidelity or {}
    by_name = {name.partition("@")[0]: measured for name, measured in fidelity.items()}
    agreement, change = by_name.get(scoring.FIDELITY_METRIC), by_name.get("linf")
    return Measurement(
        task=cell.task,
        family=cell.family,
        defense=cell.defense,
        chain=cell.chain,
        seed=cell.seed,
        profile=cell.profile,
        kind=cell.defense_kind,
        version=cell.defense_version,
        key=record.comparability,
        status=record.status,
        failed_part=record.failure.part if record.failure is not None else "",
        m_def=score.values if score is not None else (),
        m_none=_values(_score(baseline.ceiling, record.metric)),
        m_floor=_values(_score(baseline.floor, record.metric)),
        curve=score.per_step if score is not None else {},
        base=cell.base,
        anchored=anchors is not None,
        m_same=anchors.m_same if anchors is not None else 0.0,
        m_other=anchors.m_other if anchors is not None else 0.0,
        g=utility.g,
        g_base=utility.g_base,
        g0=utility.g0,
        benign=benign.s if benign is not None else None,
        benign_floor=benign.floor if benign is not None else None,
        benign_ceiling=benign.ceiling if benign is not None else None,
        fidelity=None if agreement is None else min(1.0, max(0.0, agreement.mean)),
        changes_images="protect_images" in cell.hooks,
        changes_model="protect_images" not in cell.hooks or "protect_model" in cell.hooks,
        linf=None if change is None else max(change.values),
        budget=cell.budget,
        perceptual_budget=cell.perceptual_budget,
        data=data_side(record),
        changes={name: max(m.values) if name == "linf" else m.mean for name, m in sorted(by_name.items())},
        seconds={stage: cost.seconds for stage, cost in record.cost.items()},
        beside=beside(record),
        metric=record.metric,
        further=_further(record),
        against=_against(record),
        suite=f"{record.suite}@{record.suite_version}",
        setting=cell.setting,
    )


def _further(record: Record) -> dict[str, Further]:
    floor, ceiling = record.baseline.floor, record.baseline.ceiling
    names = set(record.scores) | set(ceiling.scores if ceiling is not None else ())
    return {
        name: Further(_values(record.scores.get(name)), _values(_score(ceiling, name)), _values(_score(floor, name)))
        for name in sorted(names - {record.metric})
    }


def _against(record: Record) -> tuple[str, ...]:
    # the parameters of layers stand under the id of each layer
    tables = [record.params, *(part for part in record.params.values() if isinstance(part, dict))]
    named = [table["against"] for table in tables if "against" in table]
    lists = [value if isinstance(value, list | tuple) else [value] for value in named]
    return tuple(dict.fromkeys(str(name) for names in lists for name in names))


def _score(baseline: Baseline | None, metric: str) -> Score | None:
    return None if baseline is None else baseline.scores.get(metric)


def _values(score: Score | None) -> tuple[float, ...]:
    return () if score is None else score.values
