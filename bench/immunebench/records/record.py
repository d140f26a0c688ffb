"""The record: the outcome of one cell, as pydantic models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from immunebench.declared.schema import DefenseName, Id, Model, Sha256, Values
from immunebench.declared.suite import USUAL, Setting
from immunebench.store.graph import Cell

#: `invalidated` is set by hand on a record that was found to be wrong; it then counts as missing.
Status = Literal["ok", "oom", "over_memory", "timeout", "error", "skipped", "invalidated"]
Box = Literal["bubblewrap", "landlock", "none"]
Part = Literal["defense", "attack", "baseline", "utility", "fidelity", "beside"]
SCHEMA = 1


class ChainLink(Model):
    """One attack of a chain."""

    attack: str
    version: int


class CellNames(Model):
    """Names and versions of what was measured: task, base, defense, chain, profile, seed and setting."""

    task: Id
    task_version: int
    # Digest of a task's pictures, for tasks that list pictures without their SHA-256; omitted for all other tasks.
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
    """One metric on a set of pictures: one value per picture, in the metric's own unit."""

    values: tuple[float, ...] = Field(min_length=1)
    n: int
    mean: float


class Score(Measured):
    """A metric at the last step of the attack's preset, and its values at each scored step, one per picture."""

    #: Older records have only the mean of each step.
    per_step: dict[int, tuple[float, ...] | float]

    @property
    def curve(self) -> dict[int, tuple[float, ...]]:
        """The values at each scored step; one value if only the mean was recorded."""
        return {step: v if isinstance(v, tuple) else (v,) for step, v in self.per_step.items()}

    @property
    def means(self) -> dict[int, float]:
        """The mean at each scored step."""
        return {step: sum(values) / len(values) for step, values in self.curve.items()}


class Baseline(Model):
    """Scores of a model before the attack or of the undefended attack, and the digest of the scored artifact."""

    digest: str
    scores: dict[str, Score]


class Baselines(Model):
    """Scores to compare with: start model and released model before the attack, and the same chain undefended."""

    floor: Baseline | None
    defended_floor: Baseline | None = Field(default=None, exclude_if=lambda value: value is None)
    ceiling: Baseline | None


class AnchorValues(Model):
    """Target metric of real pictures: unseen ones of the concept, and those of the family's other concepts."""

    m_same: float
    m_other: float
    digest: str


class BenignValues(Model):
    """Mean target metric of a benign concept.

    ``s``: personalised from the released model; ``floor``: start model before personalisation; ``ceiling``:
    personalised from the start model.
    """

    s: float
    floor: float
    ceiling: float


class Utility(Model):
    """Utility in benign use.

    ``g``, ``g_base`` and ``g0`` are the caption accuracy, in [0, 1], of the released model, the start model and a
    guess; ``benign`` are scores of personalisation of a benign concept. ``collapse`` and ``collapse_base`` are the
    fractions of collapsed pictures (one colour, noise, blur) that released model and start model generate from
    unrelated prompts.
    """

    g: float | None
    g_base: float | None
    g0: float
    benign: BenignValues | None
    collapse: float | None = None
    collapse_base: float | None = None


class Erasure(Model):
    """Target metric of a concept to relearn, before any attack, on pictures of the base and of the released model.

    ``after_benign``: of the released model once it was fine-tuned on the benign concept, as an honest user does.
    ``benign``: of real pictures of that benign concept, which may look like the erased one. Older records have neither.
    """

    base: Measured | None = None
    released: Measured | None = None
    after_benign: Measured | None = Field(default=None, exclude_if=lambda value: value is None)
    benign: Measured | None = Field(default=None, exclude_if=lambda value: value is None)


class Integrity(Model):
    """Distance between pictures of the released model and of the start model at the same prompt and noise.

    By metric: on unrelated prompts ``before`` any fine-tuning, and on a benign concept ``after_benign`` fine-tuning of
    both models; None where not measured. ``floor`` and ``ceiling`` are the start model against itself on the unrelated
    prompts: computed by another attention kernel, and from other noise; older records have neither.
    """

    before: dict[str, Measured] | None = None
    after_benign: dict[str, Measured] | None = None
    floor: dict[str, Measured] | None = Field(default=None, exclude_if=lambda value: value is None)
    ceiling: dict[str, Measured] | None = Field(default=None, exclude_if=lambda value: value is None)


class Purified(Model):
    """Effect and cost of the chain's purifiers.

    ``params``: parameters of each purifier by its id, in the order of the chain. ``to_clean`` and ``to_protected``:
    metrics between purified and clean pictures and, if the defense changed pictures, between purified and protected
    ones, picture by picture. Memory peaks do not grow with the number of pictures if a purifier works in batches.
    """

    params: dict[str, Values]
    to_clean: dict[str, Measured] | None = None
    to_protected: dict[str, Measured] | None = None
    seconds_per_picture: float | None = None
    peak_reserved_gib: float | None = None
    peak_process_gib: float | None = None


class Cost(Model):
    """Cost of the stages of one kind for this cell, counting stages that it shares with other cells in full."""

    seconds: float
    peak_reserved_gib: float
    peak_process_gib: float


class Training(Model):
    """What one fine-tuning took: trained parameters, bytes of the optimiser's state, seconds and peak memory."""

    parameters: int
    optimiser_bytes: int
    seconds: float
    peak_reserved_gib: float
    peak_process_gib: float


class Enforcement(Model):
    """A mask that the publisher's fine-tuning interface enforces, and what it saves the fine-tuner.

    ``tensors`` and ``parameters`` of the UNet, and the ``frozen`` ones among them. ``binds`` is False where the attack
    trains no tensor of the UNet, or trains the public base elsewhere: the mask is then none of its inputs.
    ``enforced`` and ``free`` are the attack with and without the mask; None where the store's artifact does not say.
    ``ignored``: digest of the scores where the interface is passed by, which are those without a defense, as no weight
    is changed.
    """

    tensors: int
    frozen_tensors: int
    parameters: int
    frozen_parameters: int
    binds: bool
    enforced: Training | None
    free: Training | None
    ignored: str


class Code(Model):
    """Version of the code that made the record."""

    version: str
    commit: str | None
    dirty: bool | None
    entry_files: dict[str, str]


class Failure(Model):
    """The stage that failed, and the part of the evaluation that it belongs to."""

    stage: str
    part: Part
    digest: str
    message: str


class Attestation(Model):
    """What a record rests on.

    Attributes
    ----------
    files
        One SHA-256 for the pictures, weights or scores of each artifact, by name; see `records.attestation`.
    boxes
        Isolation of each stage that ran an entry's code (``bubblewrap``, ``landlock``, ``none``), by stage.
    prompts, pictures
        Numbers of prompts and of pictures that the final scores were measured on.
    """

    files: dict[str, Sha256]
    boxes: dict[str, Box]
    prompts: int = Field(ge=1)
    pictures: int = Field(ge=1)


class Sheet(Model):
    """The contact sheet of the cell: path relative to the records' folder, and SHA-256."""

    file: str = Field(pattern=r"^sheets/[A-Za-z0-9@+._-]+\.(png|webp)$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Record(Model):
    """The outcome of a cell.

    ``scores`` has the target metric and additional metrics of the pictures generated after the attack: prompt accuracy
    (``prompt_chance`` is the chance level), distance to the nearest training picture, collapse. ``unseen`` has the
    same additional metrics for real pictures that the attacker never saw. ``beside`` has other metrics of the family
    that papers report, on pictures of the ``attacked`` and the ``undefended`` model and on ``unseen`` real ones.
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
    #: Step at which ``scores`` were measured: the last of the attack's preset. 0 in older records without later steps.
    final_step: int = Field(default=0, exclude_if=lambda value: value == 0)
    baseline: Baselines
    anchors: AnchorValues | None = None
    utility: Utility
    unseen: dict[str, Measured] | None = None
    prompt_chance: float | None = None
    integrity: Integrity | None = None
    erasure: Erasure | None = None
    fidelity: dict[str, Measured] | None = None
    # Omitted if empty, so that the digests of records older than these fields do not change.
    purified: Purified | None = Field(default=None, exclude_if=lambda value: value is None)
    beside: dict[str, dict[str, Measured]] = Field(default_factory=dict, exclude_if=lambda value: not value)
    enforcement: Enforcement | None = Field(default=None, exclude_if=lambda value: value is None)
    cost: dict[str, Cost] = Field(default_factory=dict)
    artefacts: dict[str, str] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    code: Code
    params: Values = Field(default_factory=dict)
    created: str = ""
    sheet: Sheet | None = None
    #: Older records have none.
    attestation: Attestation | None = Field(default=None, exclude_if=lambda value: value is None)
