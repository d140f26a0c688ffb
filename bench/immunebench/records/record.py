"""Records: the outcome of a cell as one JSON line, with where every number comes from."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, JsonValue, ValidationError

from immunebench.core.errors import UsageError
from immunebench.core.version import __version__
from immunebench.declared.schema import DefenseName, Id, Model, Values, usage_error
from immunebench.declared.suite import USUAL, Setting
from immunebench.store.graph import Cell, CellGraph, canonical_json

#: `invalidated` is set by hand, on a record that turned out wrong: it then counts as missing.
Status = Literal["ok", "oom", "over_memory", "timeout", "error", "skipped", "invalidated"]
Part = Literal["defense", "attack", "baseline", "utility", "fidelity", "beside"]
SCHEMA = 1


class Artifacts(Protocol):
    """What a record reads from a store."""

    def path(self, digest: str) -> Path | None:
        """Return an artifact's folder, None where there is none."""

    def manifest(self, digest: str) -> dict[str, Any] | None:
        """Return an artifact's manifest, None where there is none."""

    def failure(self, digest: str) -> dict[str, Any] | None:
        """Return the note of a stage's failure, None where there is none."""


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
    """A metric at the attack's last step, and its mean at each scored step."""

    per_step: dict[int, float]


class Baseline(Model):
    """Scores of the start model or of the undefended attack, and the artifact that holds them."""

    digest: str
    scores: dict[str, Score]


class Baselines(Model):
    """Start model without adaptation, and the same chain without a defense."""

    floor: Baseline | None
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

    file: str = Field(pattern=r"^sheets/[A-Za-z0-9@+._-]+\.png$")
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


class Reader:
    """Reads the artifacts of one cell's graph; what is missing reads as None."""

    def __init__(self, graph: CellGraph, store: Artifacts) -> None:
        self.graph = graph
        self.store = store

    def json(self, digest: str | None, name: str) -> Any:
        """Return a JSON file of an artifact."""
        folder = None if digest is None else self.store.path(digest)
        return None if folder is None else json.loads((folder / name).read_text("utf-8"))

    def metrics(self, digest: str | None) -> dict[str, Measured]:
        """Return the scores of one artifact, by metric; one without a value, as ISM without a face, is left out."""
        found = (self.json(digest, "scores.json") or {}).get("metrics", {})
        return {
            name: Measured(values=tuple(s["values"]), n=len(s["values"]), mean=s["mean"])
            for name, s in found.items()
            if s["values"]
        }

    def curve(self, curve: dict[int, str]) -> dict[str, Score]:
        """Return the scores of the last step with the means of all steps; empty if the last is missing."""
        steps = {step: self.metrics(digest) for step, digest in sorted(curve.items())}
        last = steps[max(steps)]
        return {
            name: Score(
                **dict(score),
                per_step={step: found[name].mean for step, found in steps.items() if name in found},
            )
            for name, score in last.items()
        }

    def mean(self, digest: str, metric: str) -> float | None:
        """Return the mean of a metric in one artifact."""
        score = self.metrics(digest).get(metric)
        return None if score is None else score.mean

    def by_id(self, digest: str, metric: str) -> float | None:
        """Return the mean of a metric, named without its version, in one artifact."""
        return next((s.mean for name, s in self.metrics(digest).items() if name.partition("@")[0] == metric), None)


def build_record(cell: Cell, graph: CellGraph, store: Artifacts, *, sheet: Sheet | None = None) -> Record:
    """Read a cell's outcome from the store.

    A cell whose stages are all there is ``ok``. One with a failed stage has the failure's kind as its status
    and keeps every score that there is; one whose stages neither exist nor failed is ``skipped``, and so is one for
    which its defense has nothing to measure.
    """
    facts, reader = graph.facts, Reader(graph, store)
    failure, status = find_failure(graph, store)
    anchor = reader.json(graph.anchor, "scores.json")
    floor = {name: Score(**dict(score), per_step={}) for name, score in reader.metrics(graph.floor).items()}
    ceiling = reader.curve(graph.ceiling)
    last = graph.curve[max(graph.curve)]
    made = store.manifest(last) or {}
    return Record(
        suite=facts.suite,
        suite_version=facts.suite_version,
        track=facts.track,
        comparability=facts.comparability(cell),
        cell=_names(cell, graph),
        metric=facts.metric,
        status=status,
        reason="" if status == "ok" else failure.message if failure else "not run",
        # Nothing was done where there was nothing to measure, so nothing failed: the row is incomplete.
        failure=None if status == "skipped" else failure,
        scores=reader.curve(graph.curve),
        baseline=Baselines(
            floor=Baseline(digest=graph.floor, scores=floor) if floor else None,
            ceiling=Baseline(digest=graph.ceiling[max(graph.ceiling)], scores=ceiling) if ceiling else None,
        ),
        anchors=None
        if anchor is None
        else AnchorValues(m_same=anchor["m_same"], m_other=anchor["m_other"], digest=graph.anchor),
        utility=_utility(graph, reader),
        unseen=reader.metrics(graph.unseen) or None,
        prompt_chance=1 / facts.contents if facts.contents else None,
        integrity=_integrity(graph, reader),
        erasure=_erasure(graph, reader),
        fidelity=reader.metrics(graph.fidelity) or None,
        purified=_purified(graph, reader),
        beside={whose: found for whose, digest in graph.beside.items() if (found := reader.metrics(digest))},
        cost=_cost(graph, store),
        artefacts=_artefacts(graph, store),
        env=_environment(graph, store),
        code=Code(version=__version__, **source_state(), entry_files=facts.entry_files),
        params=facts.params,
        created=str(made.get("created", "")),
        sheet=sheet,
    )


def find_failure(graph: CellGraph, store: Artifacts) -> tuple[Failure | None, Status]:
    """Return the first failed stage of a cell, its own attack's before all others, and the cell's status."""
    missing = [digest for digest in own_first(graph) if store.path(digest) is None]
    for digest in missing:
        note = store.failure(digest)
        if note is not None:
            named: tuple[Status, ...] = ("oom", "over_memory", "timeout", "skipped")
            kinds: dict[str, Status] = {kind: kind for kind in named}
            failure = Failure(
                stage=note["stage"], part=part_of(graph, digest), digest=digest, message=str(note["message"])
            )
            return failure, kinds.get(note["kind"], "error")
    return None, "skipped" if missing else "ok"


def own_first(graph: CellGraph) -> list[str]:
    """Return a cell's stages: those of its own attack, inputs before users, then the others."""
    own = graph.parts["attack"]
    return [d for d in graph.stages if d in own] + [d for d in graph.stages if d not in own]


def part_of(graph: CellGraph, digest: str) -> Part:
    """Return what a stage is for; a stage of several parts belongs to the first of them."""
    if digest in graph.protect.values():
        return "defense"
    # Where `none` needs the stage too it failed without a defense, which is the attack's own weakness.
    order: tuple[Part, ...] = ("baseline", "attack", "fidelity", "utility", "beside")
    return next(part for part in order if digest in graph.parts[part])


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines in the order of their cells' keys, atomically.

    Raises
    ------
    ValueError
        Two records of one cell, or a number that is not finite.
    """
    ordered = sorted(records, key=lambda record: record.cell.key)
    keys = [record.cell.key for record in ordered]
    if len(set(keys)) != len(keys):
        raise ValueError("two records of one cell")
    text = "".join(f"{canonical_json(json_value(record))}\n" for record in ordered)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, path)


def read_records(path: Path) -> list[Record]:
    """Read a file of records, or every ``*.jsonl`` file below a folder.

    Raises
    ------
    UsageError
        A line is no record; file, line and field are named.
    """
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    records = []
    for file in files:
        try:
            lines = file.read_text("utf-8").splitlines()
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror}", file=file) from error
        for number, line in enumerate(lines, 1):
            try:
                records.append(Record.model_validate_json(line))
            except ValidationError as error:
                raise usage_error(Path(f"{file}:{number}"), error, Record) from error
    return records


def json_value(record: Record) -> JsonValue:
    """Return a record as JSON types; a number that is not finite stays one, for the writer to refuse."""
    value: JsonValue = record.model_dump(mode="python")
    return value


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a record."""
    schema = Record.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


@functools.cache
def _source_state() -> tuple[str | None, bool | None]:
    def git(*arguments: str) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        # A package installed below somebody else's checkout must not take that checkout's commit for its own.
        if git("ls-files", "--error-unmatch", "__init__.py") is None:
            return None, None
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no", ".")
    except OSError:
        return None, None
    return commit, None if changes is None else bool(changes)


def source_state() -> dict[str, Any]:
    """Return commit and dirty flag of the package's checkout; None each where there is none."""
    commit, dirty = _source_state()
    return {"commit": commit, "dirty": dirty}


def _names(cell: Cell, graph: CellGraph) -> CellNames:
    facts = graph.facts
    return CellNames(
        task=cell.task,
        task_version=facts.task_version,
        pictures=facts.pictures,
        family=facts.family,
        concept=facts.concept,
        concept_kind=facts.concept_kind,
        base=facts.base,
        base_revision=facts.base_revision,
        defense=cell.defense,
        defense_version=facts.defense_version,
        defense_title=facts.defense_title,
        defense_kind=facts.defense_kind,
        hooks=facts.hooks,
        budget=facts.budget,
        perceptual_budget=facts.perceptual_budget,
        chain=cell.chain,
        links=tuple(ChainLink(attack=attack, version=version) for attack, version in facts.chain),
        profile=cell.profile,
        profile_version=facts.profile_version,
        seed=cell.seed,
        setting=cell.setting,
    )


def _utility(graph: CellGraph, reader: Reader) -> Utility:
    use, metric = graph.utility, graph.utility.metric
    s, floor, ceiling = (reader.mean(digest, metric) for digest in (use.s, use.floor, use.ceiling))
    whole = s is not None and floor is not None and ceiling is not None
    return Utility(
        g=reader.by_id(use.g, "caption_accuracy"),
        g_base=reader.by_id(use.g_base, "caption_accuracy"),
        g0=1 / graph.facts.captions,
        benign=BenignValues(s=s, floor=floor, ceiling=ceiling) if whole else None,  # type: ignore[arg-type]
        collapse=reader.by_id(use.g, "collapse"),
        collapse_base=reader.by_id(use.g_base, "collapse"),
    )


def _integrity(graph: CellGraph, reader: Reader) -> Integrity | None:
    found = {when: reader.metrics(digest) or None for when, digest in graph.utility.integrity.items()}
    return Integrity(**found) if any(found.values()) else None


def _erasure(graph: CellGraph, reader: Reader) -> Erasure | None:
    found = {whose: reader.metrics(digest).get(graph.facts.metric) for whose, digest in graph.erasure.items()}
    return Erasure(**found) if any(found.values()) else None


def _purified(graph: CellGraph, reader: Reader) -> Purified | None:
    made = [reader.store.manifest(digest) for digest in graph.given[1:]]
    if not made:
        return None
    figures = [{**m.get("cost", {}), **m.get("meta", {})} for m in made if m is not None]
    pictures = int(figures[-1].get("pictures", 0)) if figures else 0
    if len(figures) < len(made) or not pictures:
        return Purified(params=graph.facts.purifiers)
    found = {what: reader.metrics(digest) or None for what, digest in graph.purified.items()}
    return Purified(
        params=graph.facts.purifiers,
        to_clean=found.get("clean"),
        to_protected=found.get("protected"),
        seconds_per_picture=round(sum(float(f.get("seconds", 0)) for f in figures) / pictures, 4),
        peak_reserved_gib=max(float(f.get("peak_reserved_gib", 0)) for f in figures),
        peak_process_gib=max(float(f.get("peak_process_gib", 0)) for f in figures),
    )


def _cost(graph: CellGraph, store: Artifacts) -> dict[str, Cost]:
    costs: dict[str, Cost] = {}
    for digest in graph.stages:
        made = store.manifest(digest)
        if made is None or digest not in graph.parts["attack"]:
            continue
        figures = {**made.get("cost", {}), **made.get("meta", {})}
        before = costs.get(made["stage"], Cost(seconds=0, peak_reserved_gib=0, peak_process_gib=0))
        costs[made["stage"]] = Cost(
            seconds=round(before.seconds + float(figures.get("seconds", 0)), 3),
            peak_reserved_gib=max(before.peak_reserved_gib, float(figures.get("peak_reserved_gib", 0))),
            peak_process_gib=max(
                before.peak_process_gib,
                float(figures.get("peak_process_gib", 0)),
            ),
        )
    return costs


def _artefacts(graph: CellGraph, store: Artifacts) -> dict[str, str]:
    last = max(graph.curve)
    named = {
        **graph.protect,
        **({"purified": graph.given[-1]} if len(graph.given) > 1 else {}),
        "pictures": graph.pictures[last],
        "scores": graph.curve[last],
        "ceiling_pictures": graph.ceiling_pictures[last],
        "floor_pictures": graph.floor_pictures,
        "reference": graph.reference,
    }
    return {name: digest for name, digest in named.items() if store.path(digest) is not None}


def _environment(graph: CellGraph, store: Artifacts) -> dict[str, str]:
    made = store.manifest(graph.pictures[max(graph.pictures)]) or {}
    found = {**made.get("versions", {}), **made.get("meta", {}).get("environment", {})}
    flat = {name: str(value) for name, value in found.items() if isinstance(value, (str, int, float))}
    return {"os": platform.system(), **flat}
