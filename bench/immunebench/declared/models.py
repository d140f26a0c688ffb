"""Schema of ``models.toml``: bases, judges, picture sources, perceptual distances and upscalers."""

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

    It is embedded at ``path``, or downloaded from the first repository of ``hub`` that answers: the publisher's, then
    mirrors. ``files`` maps its weight files to their SHA-256, ``checkpoints`` its published single-file checkpoints to
    theirs; ``shape`` names the architecture of those, a key of `immunebench.declared.architecture.SHAPES`.

    ``public`` is the source of unprotected regularisation pictures, generated from ``public_prompts`` if that source is
    ``drawn``; ``perceptual`` the perceptual distance and ``upscaler`` the upscaler that entries may use. An entry
    without a preset for this base uses its preset for the base ``like``; prompts and placeholders that are not set here
    are taken from that base too. ``own`` marks a base of a user, which `immunebench.declared.own_base` describes.
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
    own: bool = False

    @property
    def embedded(self) -> bool:
        """Whether the base comes with the package."""
        return self.path is not None

    @model_validator(mode="after")
    def _has_one_location(self) -> BaseModelSpec:
        if self.own:
            raise ValueError("own is for the files of bases/")
        if (self.path is None) == (not self.hub):
            raise ValueError("exactly one of path and hub is required")
        if self.hub and (not self.files or self.licence is None or self.size_gb is None):
            raise ValueError("files, licence and size_gb are required for a base from a hub")
        if self.checkpoints and self.shape is None:
            raise ValueError("shape is missing: a single-file checkpoint does not state its architecture")
        return self


class JudgeSpec(Model):
    """A judge (evaluation classifier): the ``module:function`` that loads it, its weights and what it can classify.

    It reads ``files`` next to ``models.toml``, downloaded ``weights``, or both. It can distinguish the prompts of the
    families in ``reads_prompts``, and the captions in ``genres``. In the families of ``reads_traits`` similarity is
    computed from classified traits of the concepts of the source ``traits_of``, elsewhere from an embedding.
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
            raise ValueError("files or weights are required: a judge lists what it loads")
        return self


class PerceptualSpec(Model):
    """A perceptual distance: the ``module:function`` that loads it, and its files or downloaded weights."""

    loader: Loader
    version: Annotated[int, Field(ge=1)] = 1
    files: tuple[Text, ...] = ()
    weights: tuple[Text, ...] = ()


class UpscalerSpec(Model):
    """An upscaler: the ``module:function`` that loads it, and its files or a folder among the downloaded weights."""

    loader: Loader
    version: Annotated[int, Field(ge=1)] = 1
    files: tuple[Text, ...] = ()
    folder: Text | None = None


class SourceSpec(Model):
    """A source of pictures: the ``module:function`` that loads them, and its version.

    ``files`` names the function that lists a split's files with their SHA-256, for sources that read files of the task;
    the digests are part of the stage's cache key. A ``drawn`` source has no function: its pictures are sampled from the
    task's base with the task's own prompts.
    """

    loader: Loader | None = None
    version: Annotated[int, Field(ge=1)]
    files: Loader | None = None
    drawn: bool = False

    @model_validator(mode="after")
    def _has_one_origin(self) -> SourceSpec:
        if self.drawn == (self.loader is not None) or (self.drawn and self.files is not None):
            raise ValueError("exactly one of loader and drawn is required, and files needs a loader")
        return self


class Models(Model):
    """``models.toml``: bases, judges, sources, perceptual distances and upscalers by id."""

    bases: dict[Id, BaseModelSpec]
    judges: dict[Id, JudgeSpec]
    sources: dict[Id, SourceSpec]
    perceptual: dict[Id, PerceptualSpec] = {}
    upscalers: dict[Id, UpscalerSpec] = {}

    @model_validator(mode="after")
    def _inherit_prompts(self) -> Models:
        for base, spec in self.bases.items():
            if spec.like is not None and spec.like not in self.bases.keys() - {base}:
                raise ValueError(f"bases.{base}.like must name another base, not {spec.like!r}")
            other = spec if spec.like is None else self.bases[spec.like]
            inherited = {
                name: getattr(spec, name) or getattr(other, name)
                for name in ("unrelated_prompts", "public_prompts", "placeholders")
            }
            if len(inherited["unrelated_prompts"]) < 2:
                raise ValueError(f"bases.{base}.unrelated_prompts needs at least two prompts")
            self.bases[base] = spec.model_copy(update=inherited)
        return self
