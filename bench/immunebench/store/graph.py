"""Data of a plan: cells, stages with their digests, and the stages that a cell's record reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from immunebench.declared.schema import Values
from immunebench.declared.suite import USUAL, Setting, Suite

if TYPE_CHECKING:
    from immunebench.store.artifacts import Spec

STAGE_VERSIONS: Mapping[str, int] = {
    "pictures": 1,
    "protect": 1,
    "mix": 1,
    "restore": 1,
    "purify": 1,
    "adapt": 1,
    "generate": 1,
    "score": 1,
    "anchor": 1,
}


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def canonical_json(value: object) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, no NaN, plain ASCII."""
    return _CANONICAL.encode(value)


@dataclass(frozen=True)
class Cell:
    """One planned measurement: task x defense x chain x profile x seed, in a setting."""

    task: str
    defense: str
    chain: str
    profile: str
    seed: int
    setting: Setting = USUAL

    @property
    def key(self) -> str:
        """Return ``task/defense/chain/profile/seed``, and ``/setting`` where that is not the usual one."""
        name = f"/{self.setting.name}" if self.setting.name else ""
        return f"{self.task}/{self.defense}/{self.chain}/{self.profile}/{self.seed}{name}"


@dataclass(frozen=True)
class StageSpec:
    """The complete input of a stage: its name, its key and the digests of the stages that it reads.

    ``seconds`` is the time that its entry states, for estimates; it is no part of the digest.
    """

    stage: str
    key: Values
    inputs: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def version(self) -> int:
        """Return the version of the stage's code."""
        return STAGE_VERSIONS[self.stage]

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON of stage, version, key and inputs."""
        body = {"stage": self.stage, "version": self.version, **self.key, "inputs": self.inputs}
        return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def runs_entries(spec: Spec) -> bool:
    """Return whether a stage runs an entry's code; no judge and no sampler shares a process with such a stage."""
    return spec.stage in ("protect", "purify", "adapt") or "cleaning" in spec.key


@dataclass(frozen=True)
class UtilityGraph:
    """Stages that measure the utility left; ``s``, ``floor``, ``ceiling`` and ``metric`` belong to the benign concept.

    ``integrity`` holds score stages of the released model's pictures against those of the start model at equal
    prompts and noise: ``before`` any adaptation and ``after_benign`` adaptation; empty where it draws the same ones.
    ``floor`` and ``ceiling`` hold the start model's against its own: by another attention kernel, and from other noise.
    """

    g: str
    g_base: str
    s: str
    floor: str
    ceiling: str
    metric: str
    integrity: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """Properties of a cell that its record contains in addition to the names in its key."""

    suite: str
    suite_version: str
    track: str | None
    task_version: int
    family: str
    concept: str
    concept_kind: str
    base: str
    base_revision: str
    defense_title: str
    defense_kind: str
    defense_version: int
    hooks: tuple[str, ...]
    budget: int | None
    perceptual_budget: float | None
    chain: tuple[tuple[str, int], ...]
    profile_version: int
    memory_gib: float
    captions: int
    contents: int
    params: Values
    entry_files: dict[str, str]
    metric: str
    purifiers: dict[str, Values] = field(default_factory=dict)
    #: Digest of the pictures where the task does not determine them; see `dataset_source.pictures_digest`.
    pictures: str | None = None

    def comparability(self, cell: Cell) -> str:
        """Return all versions that a number depends on, as one text: only equal ones are compared."""
        suite, task = f"{self.suite}@{self.suite_version}", task_name(cell.task, self.task_version, self.pictures)
        profile = f"{cell.profile}@{self.profile_version}"
        return comparability_key(suite, task, self.chain, self.metric, profile, cell.setting)


def task_name(task: str, version: int, pictures: str | None) -> str:
    """Return a task with its version, and with a digest of its pictures where the task does not determine them."""
    return f"{task}@{version}" if pictures is None else f"{task}@{version}:{pictures}"


def comparability_key(
    suite: str,
    task: str,
    chain: Iterable[tuple[str, int]],
    metric: str,
    profile: str,
    setting: Setting = USUAL,
) -> str:
    """Return the one text of a comparability key; names of suite, task, metric and profile hold their version."""
    links = "+".join(f"{attack}@{version}" for attack, version in chain)
    return "/".join([suite, task, links, metric, profile, *([] if setting.usual else [setting.name])])


@dataclass(frozen=True)
class CellGraph:
    """Digests of the stages that a cell's record reads.

    Attributes
    ----------
    curve, ceiling
        Score stage at each saved step of the attack: of this cell, and of `none` on the same chain.
    final
        The step that is scored on all prompts: the preset's own length; earlier and later ones are the curve.
    pictures, ceiling_pictures
        Generate stage at each saved step.
    floor, floor_pictures
        Score and generate stage of the start model without adaptation.
    defended_floor
        Score stage of the released model without adaptation; `floor` where no weights are released.
    anchor, reference
        Anchor stage and the concept's reference pictures.
    unseen
        Score stage of real pictures of the concept that the attacker never saw, on the suite's further metrics;
        None where it has none.
    protect
        Protect stage by hook; empty for controls that change nothing.
    start
        Stages of the model that the attack starts from undefended, where a task erases its concept first; empty where
        that is the base, or the defense is the erasure.
    utility
        Utility stages; those of the base where the defense releases no weights.
    fidelity
        Score stage of protected against published pictures; None without ``protect_images``.
    erasure
        Score stages of what the ``base`` and the ``released`` model draw of a concept to relearn, before any attack;
        empty in the other families.
    published
        Stage of the pictures before any protection.
    given
        Stages of the pictures that the attacker has: as released, then after each purifier.
    purified
        Score stages of cleaned pictures against the ``clean`` and the ``protected`` ones; empty without a purifier,
        ``protected`` only where a defense changes pictures.
    beside
        Score stages of the family's measures beside its target metric: of what the ``attacked`` and the
        ``undefended`` model draw at the last step, and of ``unseen`` real pictures.
    parts
        The stages that each part of the record depends on: ``attack`` (with the defense), ``baseline``,
        ``utility``, ``fidelity``, ``beside`` the scores.
    stages
        Every stage the record depends on, inputs before their users.
    """

    cell: Cell
    facts: Facts
    curve: dict[int, str]
    ceiling: dict[int, str]
    pictures: dict[int, str]
    ceiling_pictures: dict[int, str]
    floor: str
    floor_pictures: str
    final: int
    defended_floor: str
    anchor: str
    reference: str
    unseen: str | None
    protect: dict[str, str]
    utility: UtilityGraph
    fidelity: str | None
    parts: dict[str, frozenset[str]]
    stages: tuple[str, ...]
    erasure: dict[str, str] = field(default_factory=dict)
    published: str = ""
    given: tuple[str, ...] = ()
    start: frozenset[str] = frozenset()
    purified: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Cells, all their stages by digest (inputs before users), and each cell's roots by cell key."""

    suite: Suite
    cells: tuple[Cell, ...]
    stages: dict[str, StageSpec]
    roots: dict[str, CellGraph]
