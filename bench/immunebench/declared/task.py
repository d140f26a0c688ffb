"""Schema of tasks: one concept to protect on one base, its captions and prompts, and the source of its pictures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from immunebench.declared.schema import Count, Family, Id, Model, Repository, Revision, Sha256, Text

ConceptName = Annotated[str, Field(pattern=r"^[a-z0-9_-]+(/[a-z0-9_-]+)+$")]
Caption = Annotated[str, Field(min_length=1, pattern=r"\{(token|content)\}")]
Prompt = Annotated[str, Field(min_length=1, pattern=r"\{token\}")]
Split = Literal["owner", "published", "extra", "reference"]
#: Name of the picture source that reads a task's table ``[dataset]``.
DATASET = "dataset"
#: A data set's pictures are assigned in this order, in consecutive ranges, so that none is in two splits.
SPLITS: tuple[Split, ...] = ("owner", "published", "extra", "reference")


class TaskConcept(Model):
    """The concept to protect: the source of its pictures and whether the base knows it."""

    source: Id
    name: ConceptName
    kind: Literal["near", "far", "known"]
    noun: Text


class TaskPictures(Model):
    """The number of pictures in each of the disjoint splits."""

    owner: Count = 16
    published: Count = 16
    extra: Count = 16
    reference: Count = 32

    @property
    def sizes(self) -> dict[str, int]:
        """Return the number of pictures of each split, in the order of `SPLITS`."""
        return {split: getattr(self, split) for split in SPLITS}


class Wording(Model):
    """A caption template and its placeholder ``{token}``; ``{content}`` becomes the description of each picture."""

    caption: Caption
    token: Text


class Evaluation(Model):
    """Prompts sampled after the attack; ``{token}`` becomes the attacker's placeholder."""

    prompts: tuple[Prompt, ...] = Field(min_length=1)


class Prior(Model):
    """Prompts from which the base generates class pictures for a prior-preservation loss."""

    prompts: tuple[Text, ...] = Field(min_length=1)
    per_prompt: Count = 4


class Benign(Model):
    """A benign concept that an honest user fine-tunes on; family and source default to the task's."""

    source: Id | None = None
    concept: ConceptName
    family: Literal["style", "object", "identity"] | None = None
    noun: Text
    caption: Caption
    token: Text
    prompts: tuple[Prompt, ...] = Field(min_length=1)


class Anchors(Model):
    """Other concepts of the family, from the task's source or another, as the reference for unrelated concepts."""

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
    """A public data set with the pictures of a task's concept; users download it, it is not redistributed.

    On the host ``github`` the pictures are the ``files`` of a repository; on ``huggingface`` the rows of a data set's
    ``config`` and ``split`` whose columns equal the values of ``where``, with the picture in the column ``image``. Both
    are pinned to a commit, and pictures are assigned to `SPLITS` in their order.

    ``licence`` and ``size_mb`` are shown before the download; a data set with ``terms`` is downloaded only after the
    user accepted them. ``sha256`` holds the digests of the picture files in order, where they are known.
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
    def _fields_fit_the_host(self) -> TaskDataset:
        needed = {"github": ("files",), "huggingface": ("split", "image")}[self.host]
        foreign = {"github": ("config", "split", "image", "where"), "huggingface": ("files",)}[self.host]
        for name in needed:
            if not getattr(self, name):
                raise ValueError(f"{name} is required on the host {self.host!r}")
        for name in foreign:
            if getattr(self, name):
                raise ValueError(f"{name} does not apply to the host {self.host!r}")
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
    #: Prompts for sampling a concept's pictures from the base, by concept, where their source is ``drawn``.
    drawn: dict[ConceptName, Annotated[tuple[Text, ...], Field(min_length=1)]] = {}
    dataset: TaskDataset | None = None

    @model_validator(mode="after")
    def _dataset_fits_the_concept(self) -> Task:
        if (self.concept.source == DATASET) != (self.dataset is not None):
            raise ValueError(f"concept.source {DATASET!r} and the table [dataset] require each other")
        for part, source in {"benign": self.benign.source, "anchors": self.anchors.source}.items():
            if (source or self.concept.source) == DATASET:
                raise ValueError(f"{part}.source is required: the data set holds only the task's own concept")
        if self.dataset is None:
            return self
        if self.concept.name != f"{self.family}/{self.id}":
            raise ValueError(f"concept.name of a task with [dataset] must be '{self.family}/{self.id}'")
        needed = sum(self.pictures.sizes.values())
        for name in ("files", "sha256"):
            listed = len(getattr(self.dataset, name))
            if listed not in (0, needed):
                raise ValueError(f"dataset.{name} lists {listed} pictures, the splits need {needed}")
        return self

    @model_validator(mode="after")
    def _sides_differ(self) -> Task:
        if self.owner.caption == self.attacker.caption:
            raise ValueError("owner and attacker must differ in caption")
        # In the family relearn both sides use the name by which the base knows the concept.
        if self.owner.token == self.attacker.token and self.family != "relearn":
            raise ValueError("owner and attacker must differ in token")
        if (self.family == "relearn") != (self.start_from is not None):
            raise ValueError("start_from is required in the family relearn, and applies to no other")
        if self.family == "relearn" and self.benign.family is None:
            raise ValueError("benign.family is required: the benign concept must be new to the base")
        if self.owner.caption in self.evaluation.prompts:
            raise ValueError("evaluation.prompts must not hold the owner's caption")
        if self.anchors.source in (None, self.concept.source) and self.concept.name in self.anchors.others:
            raise ValueError("anchors.others must not hold the task's own concept")
        if self.benign.source in (None, self.concept.source) and self.concept.name == self.benign.concept:
            raise ValueError("benign.concept must not be the task's own concept")
        return self
