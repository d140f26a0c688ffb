"""Schemas of defense and attack manifests: identity, threat model, parameters and their limits."""

from __future__ import annotations

import difflib
import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, field_validator, model_validator

from immunebench.declared.schema import Id, Model, PictureFile, Sha256, Text, Values

Hook = Literal["protect_model", "protect_images", "freeze"]


def _non_empty_unique(what: str) -> AfterValidator:
    def check(value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(value, tuple) and not value:
            raise ValueError(f"names no {what}")
        if isinstance(value, tuple) and len(set(value)) != len(value):
            raise ValueError("holds a value twice")
        return value

    return AfterValidator(check)


#: The attacks that a defense simulates.
Against = Annotated[Id | tuple[Id, ...] | None, _non_empty_unique("attack")]
#: The surrogate bases that a defense computes on instead of the task's.
Surrogates = Annotated[tuple[Id, ...] | None, _non_empty_unique("base")]
#: Estimated CPU seconds per task on one core, by base; no part of any cache key.
Seconds = dict[Id, Annotated[float, Field(gt=0)]]
#: Largest perceptual distance between a picture and its protected version.
PerceptualBudget = Annotated[float, Field(gt=0, le=1)]


#: How an attacker uses a base that is public; see `AttackManifest`.
PublicBase = Literal["merge-back", "restore"]


class Variant(Model):
    """A further entry from the same code: the fields that it overrides; the others are inherited from its parent."""

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
    #: Of an attack; see `AttackManifest`.
    pictures: Annotated[int, Field(ge=1, le=256)] | None = None
    public_base: PublicBase | None = None


class Limit(Model):
    """Allowed values of a parameter: bounds of a number, or a list of choices for it or for each of its items."""

    least: float | None = None
    most: float | None = None
    choices: tuple[JsonValue, ...] | None = None

    def violation(self, value: JsonValue) -> str | None:
        """Describe why a value is not allowed; None if it is."""
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
    """The fields that manifests of defenses and attacks share."""

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
    needs: tuple[Literal["perceptual", "upscaler", "prior"], ...] = ()
    #: The prediction types of the bases that the entry supports.
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
                    raise ValueError(f"{table}.{name} is not a parameter of [params]{hint}")
        return self

    @model_validator(mode="after")
    def _values_are_within_limits(self) -> EntryManifest:
        for name, variant in self.variants.items():
            for scaled in variant.scale:
                if not _is_numeric(self.params.get(scaled)):
                    raise ValueError(f"variants.{name}.scale.{scaled} is not a numeric parameter of [params]")
        for name in self.limits:
            if name not in self.params:
                raise ValueError(f"limits.{name} is not a parameter of [params]")
        for table, values in ({"params": self.params} | self.overrides()).items():
            for name, value in values.items() if not table.endswith(".scale") else ():
                violation = self.limits[name].violation(value) if name in self.limits else None
                if violation:
                    raise ValueError(f"{table}.{name} {violation}, not {value!r}")
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
    """The protected version of one published picture, made by a closed-source tool.

    ``index`` is the picture's position among the task's published ones and ``clean`` the SHA-256 of its original pixels
    (RGB, 8 bits, row by row); ``file`` is the protected picture in the entry's folder named after the task, ``sha256``
    the digest of that file.
    """

    index: Annotated[int, Field(ge=0)]
    file: PictureFile
    sha256: Sha256
    clean: Sha256


class Artefact(Model):
    """The closed-source tool that made an entry's pictures, and the pictures by task."""

    tool: Text
    tool_version: Text
    tasks: dict[Id, tuple[CloakedPicture, ...]] = Field(min_length=1)

    @field_validator("tasks")
    @classmethod
    def _each_picture_once(cls, value: dict[str, tuple[CloakedPicture, ...]]) -> dict[str, tuple[CloakedPicture, ...]]:
        for task, pictures in value.items():
            if [picture.index for picture in pictures] != list(range(len(pictures))):
                raise ValueError(f"{task} must hold every published picture once, index 0, 1, ...")
            # Some file systems ignore case in file names.
            if len({picture.file.lower() for picture in pictures}) < len(pictures):
                raise ValueError(f"{task} names a file twice")
        return value


class DefenseManifest(EntryManifest):
    """``defenses/<id>/defense.toml``: identity, threat model, hooks and parameters.

    A defense of kind ``artefact`` is a folder of pictures without code. ``perceptual_budget`` bounds the perceptual
    distance from the clean picture, instead of ``budget``.
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
    def _variants_are_no_attacks(self) -> DefenseManifest:
        for name, variant in self.variants.items():
            for field in ("pictures", "public_base"):
                if getattr(variant, field) is not None:
                    raise ValueError(f"variants.{name}.{field} applies to attacks only")
        return self

    @model_validator(mode="after")
    def _pictures_have_a_budget(self) -> DefenseManifest:
        if "protect_images" in self.hooks and self.budget is None and self.perceptual_budget is None:
            raise ValueError(
                "budget is missing: a defense that changes pictures declares the largest change of a value (of 255), "
                "or perceptual_budget"
            )
        tables: tuple[DefenseManifest | Variant, ...] = (self, *self.variants.values())
        linf = any(table.budget is not None for table in tables)
        if linf and any(table.perceptual_budget is not None for table in tables):
            raise ValueError("perceptual_budget replaces budget; declare one of the two")
        return self

    @model_validator(mode="after")
    def _a_mask_needs_enforcement(self) -> DefenseManifest:
        if "freeze" in self.hooks and (self.kind not in ("api", "control") or self.hooks != ("freeze",)):
            raise ValueError("the hook freeze stands alone, in an entry of kind 'api' or 'control'")
        if self.kind == "api" and self.hooks != ("freeze",):
            raise ValueError("kind 'api' is what a fine-tuning interface enforces: hooks are ['freeze']")
        return self

    @model_validator(mode="after")
    def _an_artefact_has_no_code(self) -> DefenseManifest:
        if (self.kind == "artefact") != (self.artefact is not None):
            raise ValueError("kind 'artefact' and the table [artefact] require each other")
        if self.artefact is None:
            return self
        if self.hooks != ("protect_images",):
            raise ValueError("hooks of an artefact are ['protect_images']")
        for name in ("params", "presets", "variants", "limits", "against", "surrogates", "needs"):
            if getattr(self, name):
                raise ValueError(f"{name} does not apply to an artefact, which runs no code")
        return self


class AttackManifest(EntryManifest):
    """``attacks/<id>/attack.toml``: presets of an ``adapt`` attack must set steps, lr, batch and saves.

    Attributes
    ----------
    pictures
        Number of the attacker's pictures, if not the task's.
    public_base
        The attacker has the untouched base: ``merge-back`` trains an adapter on it and installs that in the released
        model, ``restore`` puts the released model's attentions back to the base's before training.
    """

    hooks: tuple[Literal["adapt", "purify", "clean_samples"], ...] = Field(min_length=1, max_length=2)
    status: Text = "reimplementation"
    pictures: Annotated[int, Field(ge=1, le=256)] | None = None
    public_base: PublicBase | None = None
    #: What an ``adapt`` attack trains: networks, or embeddings of words alone, which no mask of UNet tensors touches.
    trains: Literal["networks", "words"] = "networks"

    @model_validator(mode="after")
    def _only_what_trains_has_pictures_and_a_base(self) -> AttackManifest:
        tables: tuple[AttackManifest | Variant, ...] = (self, *self.variants.values())
        for field in ("pictures", "public_base"):
            if self.hooks != ("adapt",) and any(getattr(table, field) is not None for table in tables):
                raise ValueError(f"{field} applies to an attack with the hook adapt only")
        return self

    @model_validator(mode="after")
    def _hooks_fit_together(self) -> AttackManifest:
        if self.hooks not in (("adapt",), ("purify",), ("purify", "clean_samples")):
            raise ValueError('hooks must be ["adapt"], ["purify"] or ["purify", "clean_samples"]')
        tables = {"params": self.params} | self.overrides()
        for table, values in tables.items():
            prompt = values.get("negative_prompt")
            if prompt is not None and not isinstance(prompt, str):
                raise ValueError(f"{table}.negative_prompt must be a string, not {prompt!r}")
            if prompt and self.hooks[0] != "purify":
                raise ValueError(f"{table}.negative_prompt applies to a purifier only")
        return self

    @model_validator(mode="after")
    def _presets_are_complete(self) -> AttackManifest:
        if self.hooks != ("adapt",):
            return self
        for base, values in self.presets.items():
            values = self.params | values
            missing = [name for name in ("steps", "lr", "batch", "saves") if name not in values]
            if missing:
                raise ValueError(f"presets.{base} lacks {missing[0]!r}")
            save_steps(values)
        return self


def save_steps(params: Values) -> tuple[int, ...]:
    """Return the training steps at which an attack saves its adapter, ascending; it trains until the last of them.

    Raises
    ------
    ValueError
        If ``saves`` is not an ascending list of positive integers that contains ``steps``.
    """
    saves, steps = params["saves"], params["steps"]
    numbers = [n for n in saves if type(n) is int] if isinstance(saves, list) else []
    whole = isinstance(saves, list) and len(numbers) == len(saves) > 0
    if not whole or numbers != sorted(set(numbers)) or numbers[0] < 1 or steps not in numbers:
        raise ValueError(f"saves must be ascending steps, steps = {steps!r} among them, not {saves!r}")
    return tuple(numbers)


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
