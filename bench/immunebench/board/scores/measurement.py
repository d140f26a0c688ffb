"""One cell as the board sees it: data and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from immunebench.declared import scoring
from immunebench.declared.suite import USUAL, Setting

if TYPE_CHECKING:
    from immunebench.declared.schema import Values


Means: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class Beside:
    """What stands beside the score; None where it was not measured or does not apply.

    Parameters
    ----------
    prompt_accuracy, prompt_chance
        Part of the attacked pictures that follow their own prompt rather than another of the task, and what a
        guess gets.
    nearest, nearest_unseen
        Mean distance to the nearest training picture, of attacked pictures and of real ones that the attacker
        never saw; an attack far below the latter copies.
    collapse, collapse_unseen, collapse_unrelated
        Part of the pictures that show nothing: attacked ones, real ones of the concept (what the detector gets
        wrong), those that the released model draws of unrelated prompts.
    integrity_before, integrity_after
        Perceptual distance of the released from the start model's pictures at equal prompt and noise, before any
        adaptation and after a benign one.
    concept_base, concept_released
        Of a concept to relearn: its probability in what the base draws, and in what the released model draws before
        any attack.
    """

    prompt_accuracy: float | None = None
    prompt_chance: float | None = None
    nearest: float | None = None
    nearest_unseen: float | None = None
    collapse: float | None = None
    collapse_unseen: float | None = None
    collapse_unrelated: float | None = None
    integrity_before: float | None = None
    integrity_after: float | None = None
    concept_base: float | None = None
    concept_released: float | None = None


@dataclass(frozen=True)
class DataSide:
    """What one record holds of pictures; metrics by their id, without a version.

    Parameters
    ----------
    fidelity
        Protected against published pictures, a value a picture.
    params
        Parameters of each purifier of the chain.
    to_clean, to_protected
        Means of cleaned against clean and against protected pictures.
    seconds, memory
        Seconds a picture and peak memory in GiB of the purifiers: the allocator's where there is one, else the
        process's.
    beside
        Means of the family's measures beside its target metric, by whose pictures: ``attacked``, ``undefended``,
        ``unseen``.
    """

    fidelity: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    params: Mapping[str, Values] = field(default_factory=dict)
    to_clean: Means = field(default_factory=dict)
    to_protected: Means = field(default_factory=dict)
    seconds: float | None = None
    memory: float | None = None
    beside: Mapping[str, Means] = field(default_factory=dict)


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
    m_floor_defended
        The same of the released model before the attack; empty where no weights are released.
    final
        The step that `m_def` is of: the attack's preset length; 0 where the record has no curve.
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
    m_floor_defended: tuple[float, ...] = ()
    final: int = 0
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
