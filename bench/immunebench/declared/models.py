"""What ``models.toml`` may hold: bases, judges, sources, perceptual distances and upscalers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from immunebench.declared.schema import Family, Id, Model, Repository, Revision, Sha256, Text

Loader = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]


class HubSource(Model):
    """A repository of a model hub at one commit."""

    repo: Repository
    revision: Revision


class BaseModelSpec(Model):
    """A pre-trained model in the diffusers folder format.

    It lies at ``path``, or comes from the first repository of ``hub`` that answers: the publisher's, then mirrors.
    ``files`` holds the SHA-256 of its files by name, ``checkpoints`` of the single files that were published of it,
    whose architecture is the one of `immunebench.model.shapes` that ``shape`` names. ``public`` is the source of
    innocent pictures for it, drawn from ``public_prompts`` if that source is drawn, ``perceptual`` the distance that
    entries measure with, ``upscaler`` what enlarges pictures for them. An entry without a preset for this base is given
    its preset for the base ``like``, whose prompts and placeholders are this one's too unless it has its own.
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
    families in ``reads_prompts``, and the captions of ``genres``. In families of ``reads_traits`` likeness is read off
    the traits of concepts out of the source ``traits_of``, elsewhere it is measured in an embedding.
    """

    loader: Loader
    files: tuple[Text, ...] = ()
    weights: tuple[Text, ...] = ()
    version: Annotated[int, Field(ge=1)] = 1
    reads_prompts: tuple[Family, ...] = ("style", "object", "identity", "relearn")
    reads_traits: tuple[Family, ...] = ()
    traits_of: Id | None = None
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
    """A source of pictures: ``module:function`` and its version.

    ``files`` names the function that says which files a split consists of, by name with their SHA-256, where the source
    reads some that belong to the task: they enter the key of the stage. A source that is ``drawn`` has no function: the
    task's base draws its pictures, from the task's own prompts.
    """

    loader: Loader | None = None
    version: Annotated[int, Field(ge=1)]
    files: Loader | None = None
    drawn: bool = False

    @model_validator(mode="after")
    def _has_one_origin(self) -> SourceSpec:
        if self.drawn == (self.loader is not None) or (self.drawn and self.files is not None):
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
