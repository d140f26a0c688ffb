"""What the TOML files may hold: entries, tasks, suites, profiles and models, checked at the boundary."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from immunebench.errors import UsageError

Family = Literal["style", "object", "identity", "relearn"]
Hook = Literal["protect_model", "protect_images", "freeze"]
DType = Literal["float32", "float16", "bfloat16"]
Track = Literal["model", "data", "erasure", "api-enforced", "layered"]
Id = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
#: A defense, or several joined by ``+``.
DefenseName = Annotated[str, Field(pattern=r"^[a-z0-9]+([-+][a-z0-9]+)*$", max_length=256)]
ConceptName = Annotated[str, Field(pattern=r"^[a-z0-9_-]+(/[a-z0-9_-]+)+$")]
Text = Annotated[str, Field(min_length=1)]
Caption = Annotated[str, Field(min_length=1, pattern=r"\{(token|content)\}")]
Prompt = Annotated[str, Field(min_length=1, pattern=r"\{token\}")]
Loader = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
Count = Annotated[int, Field(ge=1, le=10_000)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: A plain name, so that no path leads out of the folder that it stands in.
PictureFile = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*\.png$", max_length=128)]
#: A repository as GitHub and the Hugging Face hub name it, and a commit: a branch or a tag may move.
Repository = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Values = dict[str, JsonValue]
#: The source of pictures that a task's table ``[dataset]`` describes.
DATASET = "dataset"
#: A data set's pictures are dealt out in this order, in consecutive runs, so that none is in two splits.
SPLITS = ("owner", "published", "extra", "reference")


class Model(BaseModel):
    """Frozen, strict, and closed to fields that it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _names_some(what: str) -> AfterValidator:
    def check(value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(value, tuple) and not value:
            raise ValueError(f"names no {what}")
        if isinstance(value, tuple) and len(set(value)) != len(value):
            raise ValueError("holds a value twice")
        return value

    return AfterValidator(check)


#: The attacks that a defense simulates.
Against = Annotated[Id | tuple[Id, ...] | None, _names_some("attack")]
#: The bases that a defense computes on instead of the task's.
Surrogates = Annotated[tuple[Id, ...] | None, _names_some("base")]


#: Seconds of one core that one task takes, by base; no part of any key.
Seconds = dict[Id, Annotated[float, Field(gt=0)]]
#: The greatest perceptual distance that a defense may put between a picture and its protected copy.
PerceptualBudget = Annotated[float, Field(gt=0, le=1)]


class Variant(Model):
    """A further entry from the same code: what it changes, the rest is its parent's."""

    title: Text | None = None
    description: Text | None = None
    aliases: tuple[Id, ...] = ()
    budget: Annotated[int, Field(ge=1, le=255)] | None = None
    perceptual_budget: PerceptualBudget | None = None
    against: Against = None
    surrogates: Surrogates = None
    replicate: bool | None = None
    params: Values = {}
    presets: dict[Id, Values] = {}
    scale: dict[str, Annotated[float, Field(gt=0)]] = {}
    seconds: Seconds = {}


class Limit(Model):
    """What a parameter may be: bounds of a number, or a list of values that it, or each of its items, is one of."""

    least: float | None = None
    most: float | None = None
    choices: tuple[JsonValue, ...] | None = None

    def complaint(self, value: JsonValue) -> str | None:
        """Say what is wrong with a value, None if nothing is."""
        wrong = [] if self.choices is None else [v for v in _items(value) if v not in self.choices]
        if self.choices is not None and wrong:
            near = difflib.get_close_matches(str(wrong[0]), [str(c) for c in self.choices], n=1)
            hint = f" (nearest: {near[0]!r})" if near else ""
            return f"must be {_of(value)} {', '.join(map(str, self.choices))}{hint}"
        if self.least is None and self.most is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "must be a number"
        if self.least is not None and value < self.least:
            return f"must be at least {self.least:g}"
        return f"must be at most {self.most:g}" if self.most is not None and value > self.most else None


class EntryManifest(Model):
    """The part that a defense's and an attack's manifest share."""

    id: Id
    version: Annotated[int, Field(ge=1)]
    title: Text
    authors: tuple[Text, ...]
    licence: Text
    description: Text
    url: str | None = None
    aliases: tuple[Id, ...] = ()
    params: Values = {}
    presets: dict[Id, Values] = {}
    variants: dict[Id, Variant] = {}
    limits: dict[str, Limit] = {}
    seconds: Seconds = {}
    needs: tuple[Literal["perceptual", "upscaler"], ...] = ()
    #: What the denoisers of the bases that it is meant for may predict.
    predictions: tuple[Literal["epsilon", "v_prediction"], ...] = ("epsilon", "v_prediction")

    @field_validator("params", "presets")
    @classmethod
    def _finite(cls, value: Values) -> Values:
        if any(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in _leaves(value)):
            raise ValueError("numbers must be finite")
        return value

    @model_validator(mode="after")
    def _overrides_are_known(self) -> EntryManifest:
        for table, values in self.overrides().items():
            for name in values:
                if self.params and name not in self.params:
                    near = difflib.get_close_matches(name, list(self.params), n=1, cutoff=0.5)
                    hint = f" (nearest: {near[0]!r})" if near else ""
                    raise ValueError(f"{table}.{name} is no parameter of [params]{hint}")
        return self

    @model_validator(mode="after")
    def _values_keep_their_limits(self) -> EntryManifest:
        for name, variant in self.variants.items():
            for scaled in variant.scale:
                if not _is_numeric(self.params.get(scaled)):
                    raise ValueError(f"variants.{name}.scale.{scaled} is no number of [params]")
        for name in self.limits:
            if name not in self.params:
                raise ValueError(f"limits.{name} is no parameter of [params]")
        for table, values in ({"params": self.params} | self.overrides()).items():
            for name, value in values.items() if not table.endswith(".scale") else ():
                complaint = self.limits[name].complaint(value) if name in self.limits else None
                if complaint:
                    raise ValueError(f"{table}.{name} {complaint}, not {value!r}")
        return self

    def overrides(self) -> dict[str, Values]:
        """Return every table that overrides ``[params]``, by its dotted name."""
        tables = {f"presets.{base}": values for base, values in self.presets.items()}
        for name, variant in self.variants.items():
            tables[f"variants.{name}.params"] = variant.params
            tables[f"variants.{name}.scale"] = dict(variant.scale)
            tables |= {f"variants.{name}.presets.{base}": values for base, values in variant.presets.items()}
        return tables


class CloakedPicture(Model):
    """What a closed tool made of one published picture.

    ``index`` is the picture's place among the task's published ones and ``clean`` the SHA-256 of its pixels (RGB, 8
    bits, row by row); ``file`` lies in the entry's folder of the task's name, ``sha256`` is that of its bytes.
    """

    index: Annotated[int, Field(ge=0)]
    file: PictureFile
    sha256: Sha256
    clean: Sha256


class Artefact(Model):
    """The closed tool that made an entry's pictures, and the pictures by task."""

    tool: Text
    tool_version: Text
    tasks: dict[Id, tuple[CloakedPicture, ...]] = Field(min_length=1)

    @field_validator("tasks")
    @classmethod
    def _each_picture_once(cls, value: dict[str, tuple[CloakedPicture, ...]]) -> dict[str, tuple[CloakedPicture, ...]]:
        for task, pictures in value.items():
            if [picture.index for picture in pictures] != list(range(len(pictures))):
                raise ValueError(f"{task} must hold every published picture once, index 0, 1, ...")
            # Some file systems take two names for one that differ in case only.
            if len({picture.file.lower() for picture in pictures}) < len(pictures):
                raise ValueError(f"{task} names a file twice")
        return value


class DefenseManifest(EntryManifest):
    """``defenses/<id>/defense.toml``: who, what for, which hooks, which parameters.

    A defense of kind ``artefact`` is a folder of pictures without code. ``perceptual_budget`` bounds the perceptual
    distance from the clean picture, in the place of ``budget``.
    """

    kind: Literal["control", "model", "data", "layered", "api", "erasure", "artefact"]
    hooks: tuple[Hook, ...]
    threat_model: Text
    status: Text
    deterministic: bool = True
    replicate: bool = False
    budget: Annotated[int, Field(ge=1, le=255)] | None = None
    perceptual_budget: PerceptualBudget | None = None
    against: Against = None
    surrogates: Surrogates = None
    artefact: Artefact | None = None

    @model_validator(mode="after")
    def _pictures_have_a_budget(self) -> DefenseManifest:
        if "protect_images" in self.hooks and self.budget is None and self.perceptual_budget is None:
            raise ValueError(
                "budget is missing: a defense that changes pictures declares the largest change, of 255, "
                "or perceptual_budget"
            )
        tables: tuple[DefenseManifest | Variant, ...] = (self, *self.variants.values())
        linf = any(table.budget is not None for table in tables)
        if linf and any(table.perceptual_budget is not None for table in tables):
            raise ValueError("perceptual_budget stands in the place of budget, never beside it")
        return self

    @model_validator(mode="after")
    def _an_artefact_is_pictures_alone(self) -> DefenseManifest:
        if (self.kind == "artefact") != (self.artefact is not None):
            raise ValueError("kind 'artefact' and the table [artefact] belong together")
        if self.artefact is None:
            return self
        if self.hooks != ("protect_images",):
            raise ValueError("hooks of an artefact are ['protect_images']")
        for name in ("params", "presets", "variants", "limits", "against", "surrogates", "needs"):
            if getattr(self, name):
                raise ValueError(f"{name} means nothing to an artefact, which runs no code")
        return self


class AttackManifest(EntryManifest):
    """``attacks/<id>/attack.toml``: an ``adapt`` attack's presets hold steps, lr, batch and saves."""

    hooks: tuple[Literal["adapt", "purify", "clean_samples"], ...] = Field(min_length=1, max_length=2)
    status: Text = "reimplementation"

    @model_validator(mode="after")
    def _one_place_in_a_chain(self) -> AttackManifest:
        if self.hooks not in (("adapt",), ("purify",), ("purify", "clean_samples")):
            raise ValueError('hooks must be ["adapt"], ["purify"] or ["purify", "clean_samples"]')
        tables = {"params": self.params} | self.overrides()
        for table, values in tables.items():
            prompt = values.get("negative_prompt")
            if prompt is not None and not isinstance(prompt, str):
                raise ValueError(f"{table}.negative_prompt must be words, not {prompt!r}")
            if prompt and self.hooks[0] != "purify":
                raise ValueError(f"{table}.negative_prompt belongs to a purifier")
        return self

    @model_validator(mode="after")
    def _budget_is_whole(self) -> AttackManifest:
        if self.hooks != ("adapt",):
            return self
        for base, values in self.presets.items():
            values = self.params | values
            missing = [name for name in ("steps", "lr", "batch", "saves") if name not in values]
            if missing:
                raise ValueError(f"presets.{base} lacks {missing[0]!r}")
            save_steps(values)
        return self


class TaskConcept(Model):
    """The concept to protect: where its pictures come from and how the base sees it."""

    source: Id
    name: ConceptName
    kind: Literal["near", "far", "known"]
    noun: Text


class TaskPictures(Model):
    """How many pictures each disjoint split has."""

    owner: Count = 16
    published: Count = 16
    extra: Count = 16
    reference: Count = 32

    @property
    def sizes(self) -> dict[str, int]:
        """Return the number of pictures of each split, in the order of `SPLITS`."""
        return {split: getattr(self, split) for split in SPLITS}


class Wording(Model):
    """A caption and the placeholder that stands for ``{token}``; ``{content}`` is a picture's own words."""

    caption: Caption
    token: Text


class Evaluation(Model):
    """What is drawn after the attack; ``{token}`` becomes the attacker's placeholder."""

    prompts: tuple[Prompt, ...] = Field(min_length=1)


class Prior(Model):
    """What the base is asked to draw as class pictures for a prior-preservation loss."""

    prompts: tuple[Text, ...] = Field(min_length=1)
    per_prompt: Count = 4


class Benign(Model):
    """A harmless concept that an honest user personalises; family and source are the task's unless named."""

    source: Id | None = None
    concept: ConceptName
    family: Literal["style", "object", "identity"] | None = None
    noun: Text
    caption: Caption
    token: Text
    prompts: tuple[Prompt, ...] = Field(min_length=1)


class Anchors(Model):
    """The family's other concepts, of the task's source or another: how alike are unlike things."""

    source: Id | None = None
    others: tuple[ConceptName, ...] = Field(min_length=1)


def _inside_repository(path: str) -> str:
    if any(part in ("", ".", "..") for part in path.split("/")) or "\\" in path or not path.isprintable():
        raise ValueError(f"must be a path inside the repository, not {path!r}")
    return path


#: A picture's path in a repository.
RepositoryFile = Annotated[
    str,
    Field(pattern=r"(?i)\.(png|jpe?g|webp|tiff?|bmp|gif)$", max_length=512),
    AfterValidator(_inside_repository),
]


class TaskDataset(Model):
    """Where the pictures of a task's concept are published: they are fetched by whoever measures, never shipped.

    On the host ``github`` they are the ``files`` of a repository; on ``huggingface`` the rows of a data set's
    ``config`` and ``split`` whose columns have the values of ``where``, with the picture in the column ``image``. Both
    are pinned to a commit, and both have an order, in which pictures are dealt to `SPLITS`.

    ``licence`` and ``size_mb`` are said before anything is fetched; a data set with ``terms`` is fetched only after
    the user accepted them. ``sha256`` holds the digests of the picture files in order, where they are known.
    """

    host: Literal["github", "huggingface"]
    repo: Repository
    revision: Revision
    files: tuple[RepositoryFile, ...] = ()
    config: Text | None = None
    split: Text | None = None
    image: Text | None = None
    where: dict[Text, str | int | bool] = {}
    licence: Text
    size_mb: Annotated[float, Field(gt=0)]
    terms: Annotated[str, Field(pattern=r"^https://\S+$")] | None = None
    sha256: tuple[Sha256, ...] = ()

    @model_validator(mode="after")
    def _of_its_host(self) -> TaskDataset:
        needed = {"github": ("files",), "huggingface": ("split", "image")}[self.host]
        foreign = {"github": ("config", "split", "image", "where"), "huggingface": ("files",)}[self.host]
        for name in needed:
            if not getattr(self, name):
                raise ValueError(f"{name} is required on the host {self.host!r}")
        for name in foreign:
            if getattr(self, name):
                raise ValueError(f"{name} means nothing on the host {self.host!r}")
        twice = [file for file in self.files if self.files.count(file) > 1]
        if twice:
            raise ValueError(f"files holds {twice[0]!r} twice: each picture belongs to one split")
        return self


class Task(Model):
    """``tasks/<family>/<id>.toml``: one concept to protect on one base."""

    id: Id
    version: Annotated[int, Field(ge=1)]
    family: Family
    base: Id
    split: Literal["suite", "dev"]
    title: Text
    start_from: Id | None = None
    concept: TaskConcept
    pictures: TaskPictures = TaskPictures()
    owner: Wording
    attacker: Wording
    evaluation: Evaluation
    benign: Benign
    anchors: Anchors
    prior: Prior | None = None
    #: By concept, what the base is asked to draw its pictures from, where their source is drawn.
    drawn: dict[ConceptName, Annotated[tuple[Text, ...], Field(min_length=1)]] = {}
    dataset: TaskDataset | None = None

    @model_validator(mode="after")
    def _a_data_set_holds_the_task_s_own_concept(self) -> Task:
        if (self.concept.source == DATASET) != (self.dataset is not None):
            raise ValueError(f"concept.source {DATASET!r} and the table [dataset] belong together")
        for part, source in {"benign": self.benign.source, "anchors": self.anchors.source}.items():
            if (source or self.concept.source) == DATASET:
                raise ValueError(f"{part}.source is needed: the data set holds the task's own concept alone")
        if self.dataset is None:
            return self
        if self.concept.name != f"{self.family}/{self.id}":
            raise ValueError(f"concept.name of a data set's task must be '{self.family}/{self.id}'")
        needed = sum(self.pictures.sizes.values())
        for name in ("files", "sha256"):
            listed = len(getattr(self.dataset, name))
            if listed not in (0, needed):
                raise ValueError(f"dataset.{name} lists {listed} pictures, the splits take {needed}")
        return self

    @model_validator(mode="after")
    def _sides_differ(self) -> Task:
        if self.owner.caption == self.attacker.caption:
            raise ValueError("owner and attacker must differ in caption")
        # A concept to relearn has a name already, and both sides use it.
        if self.owner.token == self.attacker.token and self.family != "relearn":
            raise ValueError("owner and attacker must differ in token")
        if (self.family == "relearn") != (self.start_from is not None):
            raise ValueError("start_from belongs to the family relearn, where it is required")
        if self.family == "relearn" and self.benign.family is None:
            raise ValueError("benign.family is required: what a base knows already cannot be personalised")
        if self.owner.caption in self.evaluation.prompts:
            raise ValueError("evaluation.prompts must not hold the owner's caption")
        if self.anchors.source in (None, self.concept.source) and self.concept.name in self.anchors.others:
            raise ValueError("anchors.others must not hold the task's own concept")
        if self.benign.source in (None, self.concept.source) and self.concept.name == self.benign.concept:
            raise ValueError("benign.concept must not be the task's own concept")
        return self


def lacks_ampere(compute_capability: str) -> bool:
    """Whether a card is older than Ampere (8.0): no bfloat16, no flash attention. An empty string is no such card."""
    return bool(compute_capability) and float(compute_capability) < 8


class Profile(Model):
    """``profiles/<id>.toml``: the standard machine. ``numerics`` is the part that changes bytes.

    ``compute_capability`` is that of the card where something is left out for its sake, such as 7.5 of a T4.
    """

    id: Id
    version: Annotated[int, Field(ge=1)]
    title: Text
    device: Literal["cpu", "cuda"]
    memory_gib: Annotated[float, Field(gt=0)]
    precision: Literal["fp32", "fp16", "bf16"]
    frozen_dtype: DType
    trained_dtype: DType
    vae_dtype: DType
    threads: Annotated[int, Field(ge=1)]
    resolution: Annotated[int, Field(ge=8, multiple_of=8)]
    batch: Count
    attention: Literal["eager", "sdpa"]
    checkpointing: bool
    optimiser_state: Literal["float32", "8bit"]
    sampler: Literal["ddim"]
    sampling_steps: Count
    guidance: Annotated[float, Field(ge=0)]
    release_gradients: bool = False
    offload: bool = False
    micro_batch: Annotated[int, Field(ge=0, le=10_000)] = 0
    compute_capability: Annotated[str, Field(pattern=r"^(\d+\.\d)?$")] = ""

    @model_validator(mode="after")
    def _the_card_has_bfloat16(self) -> Profile:
        for name in ("frozen_dtype", "trained_dtype", "vae_dtype"):
            if getattr(self, name) == "bfloat16" and lacks_ampere(self.compute_capability):
                raise ValueError(f"{name}: a card of compute_capability {self.compute_capability} has no bfloat16")
        return self

    def numerics(self, *, sampling: bool) -> Values:
        """Return what may change the bytes of a stage, with or without the sampler's settings."""
        values: Values = self.model_dump(mode="json", exclude={"id", "version", "title"})
        # What a profile leaves out is no part of its keys: they stay those from before there was such a field.
        values = {k: v for k, v in values.items() if type(self).model_fields[k].is_required() or v}
        if not sampling:
            values = {k: v for k, v in values.items() if k not in ("sampler", "sampling_steps", "guidance")}
        return values


class Setting(Model):
    """What is unusual in a cell; usually all pictures are protected, on the base that is attacked, the task's own.

    Attributes
    ----------
    clean
        Percent of the attacker's pictures that are clean ones of the split ``extra``, never protected.
    surrogate
        Base on which pictures are protected, where it is not the task's.
    attacker_base
        Base that the attacker adapts, where it is not the task's.
    """

    clean: Annotated[int, Field(ge=0, le=100)] = 0
    surrogate: Id | None = None
    attacker_base: Id | None = None

    @property
    def usual(self) -> bool:
        """Whether nothing is unusual: only such cells enter a board's headline."""
        return self == USUAL

    @property
    def name(self) -> str:
        """Return a name for keys and tables, such as ``clean-25`` or ``on-mini-b``; empty for the usual setting."""
        parts = {"clean": self.clean, "by": self.surrogate, "on": self.attacker_base}
        return "+".join(f"{word}-{value}" for word, value in parts.items() if value)


USUAL = Setting()


class Block(Model):
    """A product of tasks, defenses, chains and shares of clean pictures, on one pair of bases."""

    tasks: tuple[Id, ...] = Field(min_length=1)
    defenses: tuple[Text, ...] = Field(min_length=1)
    chains: tuple[Text, ...] = Field(min_length=1)
    clean: tuple[Annotated[int, Field(ge=0, le=100)], ...] = Field(default=(0,), min_length=1)
    surrogate: Id | None = None
    attacker_base: Id | None = None

    @model_validator(mode="after")
    def _no_twins(self) -> Block:
        for name in ("tasks", "defenses", "chains", "clean"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} holds a value twice")
        return self

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Return one setting for each share of clean pictures."""
        return tuple(
            Setting(clean=share, surrogate=self.surrogate, attacker_base=self.attacker_base) for share in self.clean
        )


class Suite(Model):
    """``suites/<id>.toml``: a named, versioned set of cells: one product, or several under ``[[cells]]``."""

    id: Id
    version: Annotated[str, Field(pattern=r"^\d+\.\d+$")]
    title: Text
    profile: Id
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    track: Track | None = None
    tasks: tuple[Id, ...] = ()
    defenses: tuple[Text, ...] = ()
    chains: tuple[Text, ...] = ()
    cells: tuple[Block, ...] = ()
    prompts: Count
    pictures: Count
    curve_pictures: Annotated[int, Field(ge=0)]
    unrelated_pictures: Count = 1
    published: Literal["real", "generated"] = "real"
    benign_attack: Id = "lora"
    metrics: tuple[Text, ...] = ("collapse", "prompt_accuracy", "nearest_training")
    integrity: tuple[Text, ...] = ("perceptual",)
    fidelity: tuple[Text, ...] = ("perceptual", "linf", "psnr", "ssim")
    purified: tuple[Text, ...] = ("perceptual", "psnr")
    beside: tuple[Text, ...] = ("genre_shift", "poor_match", "fdfr", "ism")

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        if self.curve_pictures > self.prompts:
            raise ValueError("curve_pictures must not exceed prompts: early steps draw one picture a prompt")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds holds a value twice")
        own = (self.tasks, self.defenses, self.chains)
        if self.cells and any(own):
            raise ValueError("has tasks, defenses and chains of its own or [[cells]], not both")
        if not self.cells:
            for name, values in zip(("tasks", "defenses", "chains"), own, strict=True):
                if not values:
                    raise ValueError(f"{name} is missing: at least one, or [[cells]]")
            Block(tasks=self.tasks, defenses=self.defenses, chains=self.chains)
        return self

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the products whose cells make the suite."""
        return self.cells or (Block(tasks=self.tasks, defenses=self.defenses, chains=self.chains),)

    def names(self, of: Literal["tasks", "defenses", "chains"]) -> tuple[str, ...]:
        """Return every task, defense or chain of the suite once, in order."""
        return tuple(dict.fromkeys(name for block in self.blocks for name in getattr(block, of)))


class HubSource(Model):
    """A repository of a model hub at one commit."""

    repo: Repository
    revision: Revision


class BaseModelSpec(Model):
    """A pre-trained model in the diffusers folder format.

    It lies at ``path``, or comes from the first repository of ``hub`` that answers: the publisher's, then mirrors.
    ``files`` holds the SHA-256 of its files by name, ``checkpoints`` of the single files that were published of it,
    whose architecture is the one of `immunebench.shapes` that ``shape`` names. ``public`` is the source of innocent
    pictures for it, drawn from ``public_prompts`` if that source is drawn, ``perceptual`` the distance that entries
    measure with, ``upscaler`` what enlarges pictures for them. An entry without a preset for this base is given its
    preset for the base ``like``, whose prompts and placeholders are this one's too unless it has its own.
    """

    path: Text | None = None
    hub: tuple[HubSource, ...] = ()
    files: dict[str, Sha256] = {}
    checkpoints: dict[str, Sha256] = {}
    shape: Id | None = None
    licence: Text | None = None
    size_gb: Annotated[float, Field(gt=0)] | None = None
    format: Literal["diffusers"]
    revision: Text
    judge: Id
    public: Id | None = None
    perceptual: Id | None = None
    upscaler: Id | None = None
    unrelated_prompts: tuple[Text, ...] = ()
    public_prompts: tuple[Text, ...] = ()
    placeholders: tuple[Text, ...] = ()
    like: Id | None = None

    @model_validator(mode="after")
    def _lies_in_one_place(self) -> BaseModelSpec:
        if (self.path is None) == (not self.hub):
            raise ValueError("path or hub says where a base comes from: one of the two, and not both")
        if self.hub and (not self.files or self.licence is None or self.size_gb is None):
            raise ValueError("files, licence and size_gb are required of a base that comes from a hub")
        if self.checkpoints and self.shape is None:
            raise ValueError("shape is missing: a single file does not say its architecture")
        return self


class JudgeSpec(Model):
    """A judge: ``module:function`` that loads it, what it reads, and what it can be asked.

    It reads ``files`` beside ``models.toml``, fetched ``weights``, or both. It can tell apart the prompts of the
    families in ``reads_prompts``, and the captions of ``genres``.
    """

    loader: Loader
    files: tuple[Text, ...] = ()
    weights: tuple[Text, ...] = ()
    version: Annotated[int, Field(ge=1)] = 1
    reads_prompts: tuple[Family, ...] = ("style", "object", "identity", "relearn")
    genres: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _reads_something(self) -> JudgeSpec:
        if not self.files and not self.weights:
            raise ValueError("files and weights are missing: a judge names what it reads")
        return self


class PerceptualSpec(Model):
    """A perceptual distance: ``module:function`` that loads it, the files or the fetched weights that it reads."""

    loader: Loader
    version: Annotated[int, Field(ge=1)] = 1
    files: tuple[Text, ...] = ()
    weights: tuple[Text, ...] = ()


class UpscalerSpec(Model):
    """An upscaler: ``module:function`` that loads it, the files that it reads or a folder among the fetched weights."""

    loader: Loader
    version: Annotated[int, Field(ge=1)] = 1
    files: tuple[Text, ...] = ()
    folder: Text | None = None


class SourceSpec(Model):
    """A source of pictures: ``module:function`` and its version; ``files`` if it reads some that belong to the task.

    A source that is ``drawn`` has no function: the task's base draws its pictures, from the task's own prompts.
    """

    loader: Loader | None = None
    version: Annotated[int, Field(ge=1)]
    files: bool = False
    drawn: bool = False

    @model_validator(mode="after")
    def _has_one_origin(self) -> SourceSpec:
        if self.drawn == (self.loader is not None) or (self.drawn and self.files):
            raise ValueError("loader or drawn says where pictures come from: one of the two, and not both")
        return self


class Models(Model):
    """``models.toml``: bases, judges, sources, perceptual distances and upscalers by id."""

    bases: dict[Id, BaseModelSpec]
    judges: dict[Id, JudgeSpec]
    sources: dict[Id, SourceSpec]
    perceptual: dict[Id, PerceptualSpec] = {}
    upscalers: dict[Id, UpscalerSpec] = {}

    @model_validator(mode="after")
    def _a_base_is_like_another(self) -> Models:
        for base, spec in self.bases.items():
            if spec.like is not None and spec.like not in self.bases.keys() - {base}:
                raise ValueError(f"bases.{base}.like is no other base: {spec.like!r}")
            other = spec if spec.like is None else self.bases[spec.like]
            words = {
                name: getattr(spec, name) or getattr(other, name)
                for name in ("unrelated_prompts", "public_prompts", "placeholders")
            }
            if len(words["unrelated_prompts"]) < 2:
                raise ValueError(f"bases.{base}.unrelated_prompts is missing: at least two prompts")
            self.bases[base] = spec.model_copy(update=words)
        return self


M = TypeVar("M", bound=Model)


def load(path: Path, model: type[M]) -> M:
    """Read a TOML file as ``model``.

    Raises
    ------
    UsageError
        One line with the file, the field, the value and what was expected.
    """
    try:
        text = json.dumps(tomllib.loads(path.read_text("utf-8")), allow_nan=True, default=str)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot be read: {reason}", file=path) from error
    try:
        # JSON mode is the strict one that still takes an array for a tuple.
        return model.model_validate_json(text)
    except ValidationError as error:
        raise usage_error(path, error, model) from error


def save_steps(params: Values) -> tuple[int, ...]:
    """Return the steps at which an attack saves its adapter, ascending, the last one its last step.

    Raises
    ------
    ValueError
        If ``saves`` is no ascending list of positive whole numbers that ends with ``steps``.
    """
    saves, steps = params["saves"], params["steps"]
    numbers = [n for n in saves if type(n) is int] if isinstance(saves, list) else []
    whole = isinstance(saves, list) and len(numbers) == len(saves) > 0
    if not whole or numbers != sorted(set(numbers)) or numbers[0] < 1 or numbers[-1] != steps:
        raise ValueError(f"saves must be ascending steps that end with steps = {steps!r}, not {saves!r}")
    return tuple(numbers)


def usage_error(path: Path, error: ValidationError, model: type[BaseModel]) -> UsageError:
    """Turn the first of pydantic's complaints into one line."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        return UsageError("unknown field", file=path, value=str(first["loc"][-1]), choices=known)
    if first["type"] == "missing":
        return UsageError("is required and missing", file=path, field=field)
    if first["type"] == "json_invalid":  # its input is the whole file
        return UsageError(first["msg"][0].lower() + first["msg"][1:], file=path)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return UsageError(message, file=path, field=field)
    choices = _literals(first)
    return UsageError(
        "is not valid:" if choices else f"{message[0].lower()}{message[1:]}, not",
        file=path,
        field=field,
        value=first["input"],
        choices=choices,
    )


def _literals(details: ErrorDetails) -> tuple[str, ...]:
    if details["type"] != "literal_error":
        return ()
    expected = str(details.get("ctx", {}).get("expected", ""))
    return tuple(part.strip("' ") for part in expected.replace(" or ", ", ").split(", "))


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the fields that the model nested at ``loc`` knows."""
    for part in loc:
        field = model.model_fields.get(str(part))
        candidates = [] if field is None else _models_in(field.annotation)
        if field is not None and not candidates:
            return ()
        model = candidates[0] if candidates else model
    return tuple(model.model_fields)


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]


def _items(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [value]


def _of(value: JsonValue) -> str:
    return "a list of" if isinstance(value, list) else "one of"


def _is_numeric(value: JsonValue) -> bool:
    if isinstance(value, list):
        return all(_is_numeric(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]
