"""A record: the outcome of one cell, as plain data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from immunebench.declared.schema import DefenseName, Id, Model, Values
from immunebench.declared.suite import USUAL, Setting
from immunebench.store.graph import Cell

#: `invalidated` is set by hand, on a record that turned out wrong: it then counts as missing.
Status = Literal["ok", "oom", "over_memory", "timeout", "error", "skipped", "invalidated"]
Part = Literal["defense", "attack", "baseline", "utility", "fidelity", "beside"]
SCHEMA = 1


class ChainLink(Model):
    """One attack of a chain."""

    attack: str
    version: int


class CellNames(Model):
    """What was measured."""

    task: Id
    task_version: int
    # Of the pictures of a task that names them and does not state their SHA-256; left out of every other's.
    pictures: str | None = Field(default=None, pattern=r"^[0-9a-f]{12}$", exclude_if=lambda value: value is None)
    family: Id
    concept: str
    concept_kind: str
    base: Id
    base_revision: str
    defense: DefenseName
    defense_version: int
    defense_title: str
    defense_kind: str
    hooks: tuple[str, ...]
    budget: int | None
    perceptual_budget: float | None = Field(default=None, exclude_if=lambda value: value is None)
    chain: str = Field(pattern=r"^[a-z0-9@.+-]+$")
    links: tuple[ChainLink, ...]
    profile: Id
    profile_version: int
    seed: int
    setting: Setting = Field(default=USUAL, exclude_if=lambda setting: setting.usual)

    @property
    def key(self) -> str:
        """Return the key of the cell; see `Cell.key`."""
        return Cell(self.task, self.defense, self.chain, self.profile, self.seed, self.setting).key


class Measured(Model):
    """One metric on a set of pictures: a value a picture, in the metric's own unit."""

    values: tuple[float, ...] = Field(min_length=1)
    n: int
    mean: float


class Score(Measured):
    """A metric at the preset's length of the attack, and its values at each scored step, one a picture."""

    #: Of records from before the curve's pictures were kept, the mean alone.
    per_step: dict[int, tuple[float, ...] | float]

    @property
    def curve(self) -> dict[int, tuple[float, ...]]:
        """The values at each scored step; a mean stands as one value."""
        return {step: v if isinstance(v, tuple) else (v,) for step, v in self.per_step.items()}

    @property
    def means(self) -> dict[int, float]:
        """The mean at each scored step."""
        return {step: sum(values) / len(values) for step, values in self.curve.items()}


class Baseline(Model):
    """Scores of the start model or of the undefended attack, and the artifact that holds them."""

    digest: str
    scores: dict[str, Score]


class Baselines(Model):
    """Start model without adaptation, the released model without it, and the same chain without a defense."""

    floor: Baseline | None
    defended_floor: Baseline | None = Field(default=None, exclude_if=lambda value: value is None)
    ceiling: Baseline | None


class AnchorValues(Model):
    """What real pictures score: unseen ones of the concept, and those of the family's other concepts."""

    m_same: float
    m_other: float
    digest: str


class BenignValues(Model):
    """Mean target metric of a benign concept: from the released model, unadapted, from the start model."""

    s: float
    floor: float
    ceiling: float


class Utility(Model):
    """Caption accuracy of the released model, the start model and a guess; benign adaptation.

    ``collapse`` is the part of the unrelated pictures of the released model that show nothing, ``collapse_base``
    of the start model.
    """

    g: float | None
    g_base: float | None
    g0: float
    benign: BenignValues | None
    collapse: float | None = None
    collapse_base: float | None = None


class Erasure(Model):
    """Target metric of a concept to relearn before any attack: what the base and the released model draw."""

    base: Measured | None = None
    released: Measured | None = None


class Integrity(Model):
    """Distance of the released model's pictures from the start model's, pair by pair at equal prompt and noise.

    By metric, on unrelated prompts ``before`` any adaptation and on a benign concept ``after_benign`` adaptation
    of both models; None where that was not measured.
    """

    before: dict[str, Measured] | None
    after_benign: dict[str, Measured] | None


class Purified(Model):
    """What the purifiers of the chain made of the attacker's pictures, and at what price.

    Parameters of each purifier by its id, in the order of the chain; the cleaned pictures against the clean ones and,
    where a defense changed these, against the protected ones, pair by pair; seconds a picture; peaks of memory, which
    do not grow with the number of pictures where a purifier works through them in parts.
    """

    params: dict[str, Values]
    to_clean: dict[str, Measured] | None = None
    to_protected: dict[str, Measured] | None = None
    seconds_per_picture: float | None = None
    peak_reserved_gib: float | None = None
    peak_process_gib: float | None = None


class Cost(Model):
    """What the stages of one name took for this cell, were it alone."""

    seconds: float
    peak_reserved_gib: float
    peak_process_gib: float


class Code(Model):
    """The code that made the numbers."""

    version: str
    commit: str | None
    dirty: bool | None
    entry_files: dict[str, str]


class Failure(Model):
    """The stage that failed, and what it was for."""

    stage: str
    part: Part
    digest: str
    message: str


class Sheet(Model):
    """The contact sheet of the cell, beside the records."""

    file: str = Field(pattern=r"^sheets/[A-Za-z0-9@+._-]+\.(png|webp)$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Record(Model):
    """The outcome of a cell.

    Beside the target metric, ``scores`` hold what says whether the attack learnt: whether the pictures follow
    their prompts (``prompt_chance`` is a guess), how near they lie to the training pictures, whether they show
    anything at all. ``unseen`` holds the same of real pictures that the attacker never saw. ``beside`` holds the
    family's measures that papers report besides, of the ``attacked`` and the ``undefended`` model's pictures and of
    ``unseen`` real ones.
    """

    schema_version: int = SCHEMA
    suite: str
    suite_version: str
    track: str | None
    comparability: str
    cell: CellNames
    metric: str
    status: Status
    reason: str = ""
    failure: Failure | None = None
    scores: dict[str, Score] = Field(default_factory=dict)
    #: The step that the scores' values are of: the attack's preset length; 0 in records from before its curve went on.
    final_step: int = Field(default=0, exclude_if=lambda value: value == 0)
    baseline: Baselines
    anchors: AnchorValues | None = None
    utility: Utility
    unseen: dict[str, Measured] | None = None
    prompt_chance: float | None = None
    integrity: Integrity | None = None
    erasure: Erasure | None = None
    fidelity: dict[str, Measured] | None = None
    # Left out where there is nothing, so that records from before these fields keep their digests.
    purified: Purified | None = Field(default=None, exclude_if=lambda value: value is None)
    beside: dict[str, dict[str, Measured]] = Field(default_factory=dict, exclude_if=lambda value: not value)
    cost: dict[str, Cost] = Field(default_factory=dict)
    artefacts: dict[str, str] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    code: Code
    params: Values = Field(default_factory=dict)
    created: str = ""
    sheet: Sheet | None = None
