"""`Specs`: the stages of a plan, one method each: what enters its key, and which stages it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from immunebench.catalog import artefact
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.core.errors import UsageError
from immunebench.declared.schema import Values
from immunebench.declared.suite import Suite
from immunebench.declared.task import Task, Wording
from immunebench.model.runtime import derive_seed
from immunebench.store.graph import StageSpec

#: What a source calls its innocent pictures.
PUBLIC = "public"
#: The model that a stage begins from, as inputs of that stage: empty for the base, else its `weights`.
Model = dict[str, str]


def stream(seed: int, name: str, *of: object) -> int:
    """Return the seed of one of the streams that a cell's seed gives: ``protect`` or ``adapt``."""
    return derive_seed(seed, name, *of)


def on_base(task: Task, base: str | None) -> Task:
    """Return the task on another base than its own, where one is named."""
    return task if base is None else task.model_copy(update={"base": base})


class Specs:
    """Stages of one suite by digest; one that is there already is not added again."""

    def __init__(self, suite: Suite, catalog: Catalog, file: Path | None, profile: str | None = None) -> None:
        self.suite = suite
        self.catalog = catalog
        self.file = file
        chosen = suite.profile if profile is None else profile
        field_name = "profile" if profile is None else "--profile"
        self.profile = catalog.profile(chosen, file=file if profile is None else None, field=field_name)
        self.stages: dict[str, StageSpec] = {}
        self._bases: dict[str, Values] = {}

    def add(self, stage: str, key: Values, inputs: Mapping[str, str], seconds: float | None = None) -> str:
        """Add a stage and return its digest; ``seconds`` is what it is known to take."""
        spec = StageSpec(stage, key, dict(inputs), seconds)
        return self.stages.setdefault(spec.digest, spec).digest

    def pictures(self, task: Task, concept: str, split: str, count: int, source: str | None = None) -> str:
        """Add a split of a concept's pictures, of the task's source or another."""
        source = source or task.concept.source
        spec = self.catalog.models.sources[source]
        if spec.drawn:
            return self.drawn(task, concept, split, count)
        key: Values = {
            "source": source,
            "source_version": spec.version,
            "concept": concept,
            "split": split,
            "count": count,
        }
        files = self.catalog.split_files(source, task, concept, split, count)
        if files is not None:
            key["files"] = dict(files)
        return self.add("pictures", key, {})

    def drawn(self, task: Task, concept: str, split: str, count: int) -> str:
        """Add pictures that the task's base draws of a concept: as many from each of the most prompts that divide them.

        A split's noise is its own, so that no two of them share a picture.

        Raises
        ------
        UsageError
            The task or the base says no prompts for the concept.
        """
        path = self.catalog.paths["task", task.id]
        public = self.catalog.models.bases[task.base].public_prompts if concept == PUBLIC else ()
        prompts = task.drawn.get(concept, public)
        if not prompts:
            raise UsageError("has no prompts for the concept", file=path, field="drawn", value=concept,
                             choices=task.drawn)  # fmt: skip
        most = max(several for several in range(1, len(prompts) + 1) if count % several == 0)
        # By the task's own base, whatever base an owner computes on or an attacker adapts.
        own = on_base(task, self.catalog.tasks[task.id].base)
        return self.generate(own, prompts[:most], {}, ["drawn", concept, split], per_prompt=count // most)

    def hook(self, entry: Entry, hook: str, task: Task, seed: int, inputs: Mapping[str, str]) -> str:
        """Add one hook of a defense."""
        concept: Values = {
            "id": task.id,
            "family": task.family,
            "noun": task.concept.noun,
            "caption": task.owner.caption,
            "token": task.owner.token,
        }
        attacks = [self.catalog.attack(name, file=entry.path, field="against") for name in entry.against]
        against: Values = {attack.id: self.code(attack, task.base) for attack in attacks}
        key: Values = {
            **self.code(entry, task.base),
            "hook": hook,
            "budget": entry.budget,
            **({} if entry.perceptual_budget is None else {"perceptual_budget": entry.perceptual_budget}),
            **self.lent(entry, task.base),
            "against": against,
            **self.base(task.base),
            "numerics": self.profile.numerics(sampling=False),
            "concept": concept,
            "seed": stream(seed, "protect", task.id),
        }
        if entry.surrogates:
            key["surrogates"] = {name: self.base(name) for name in entry.surrogates}
        return self.add("protect", key, inputs, self.seconds(entry, task.base))

    def cloaked(self, entry: Entry, task: Task, published: str) -> str:
        """Add the reading of pictures that a closed tool made: no base, no seed."""
        p = entry.perceptual_budget
        measured = {} if p is None else {"perceptual_budget": p, **self.lent(entry, task.base)}
        return self.add("protect", {**artefact.stage_key(entry, task.id), **measured}, {"published": published})

    def mix(self, task: Task, images: str, clean: int) -> str:
        """Add the attacker's pictures of which ``clean`` percent were never protected: others of the concept.

        Which places these take is the same for every defense, and what a share holds is held by every larger one.

        Raises
        ------
        UsageError
            The share is less than one picture, or the task has too few clean ones.
        """
        if clean == 0:
            return images
        count, path = task.pictures.published, self.catalog.paths["task", task.id]
        share = (count * clean + 50) // 100
        if share == 0:
            raise UsageError(f"leaves none of {count} pictures clean:", file=self.file, field="clean", value=clean)
        if share > task.pictures.extra:
            raise UsageError(f"are fewer than the {share} clean pictures asked for:", file=path, field="pictures.extra",
                             value=task.pictures.extra)  # fmt: skip
        order = sorted(range(count), key=lambda place: derive_seed("mix", task.id, place))
        extra = self.pictures(task, task.concept.name, "extra", task.pictures.extra)
        # Where nothing else is left the pictures of every defense are the same ones.
        inputs = {"extra": extra} if share == count else {"extra": extra, "images": images}
        return self.add("mix", {"clean": [*order[:share]]}, inputs)

    def purify(self, entry: Entry, task: Task, images: str, seed: int) -> str:
        """Add the attacker's cleaning of the pictures."""
        key: Values = {
            **self.code(entry, task.base),
            **self.lent(entry, task.base),
            **self.base(task.base),
            "numerics": self.profile.numerics(sampling=False),
            "token": task.attacker.token,
            "noun": task.concept.noun,
            "seed": seed,
        }
        return self.add("purify", key, {"images": images}, self.seconds(entry, task.base))

    def adapt(
        self,
        entry: Entry,
        task: Task,
        words: Wording,
        noun: str,
        images: str,
        model: Model,
        seed: int,
        saves: Sequence[int],
    ) -> str:
        """Add an adaptation that trains until the last of `saves`."""
        code = self.code(entry, task.base)
        key: Values = {
            **code,
            "params": {**code["params"], "saves": list(saves)},  # type: ignore[dict-item]
            **self.base(task.base),
            "numerics": self.profile.numerics(sampling=False),
            "caption": words.caption,
            "token": words.token,
            "noun": noun,
            "seed": seed,
        }
        return self.add("adapt", key, {"images": images, **model, **self.prior(entry, task, model)})

    def prior(self, entry: Entry, task: Task, model: Model) -> dict[str, str]:
        """Add the class pictures of an attack with a prior-preservation loss, drawn by the model that it adapts.

        Whoever attacks released weights has no other model to draw them with.
        """
        if not self.catalog.params(entry, task.base).get("prior_weight"):
            return {}
        if task.prior is None:
            path = self.catalog.paths["task", task.id]
            raise UsageError(
                f"is missing: the attack {entry.id!r} needs class pictures", file=path, field="prior.prompts"
            )
        prompts = list(task.prior.prompts)
        return {"prior": self.generate(task, prompts, model, ["prior"], per_prompt=task.prior.per_prompt)}

    def generate(
        self,
        task: Task,
        prompts: Sequence[str],
        model: Model,
        noise: list[str | int],
        adapter: str | None = None,
        step: int | None = None,
        *,
        early: bool = False,
        per_prompt: int | None = None,
        cleaning: Values | None = None,
    ) -> str:
        """Add pictures: of an `early` step one for each of the first prompts, else all of them."""
        key: Values = {
            **self.base(task.base),
            "numerics": self.profile.numerics(sampling=True),
            "prompts": list(prompts[: self.suite.curve_pictures] if early else prompts),
            "per_prompt": 1 if early else per_prompt or self.suite.pictures,
            "noise_key": list(noise),
            "step": step,
            **({"cleaning": cleaning} if cleaning else {}),
        }
        return self.add("generate", key, {**model, **({} if adapter is None else {"adapter": adapter})})

    def cleaning(self, purifiers: Iterable[Entry], base: str) -> Values:
        """Return what purifiers do while and after pictures are drawn; empty where they do nothing then."""
        purifiers = list(purifiers)
        avoid = [str(self.catalog.params(entry, base).get("negative_prompt", "")) for entry in purifiers]
        after = [
            {**self.code(entry, base), **self.lent(entry, base)}
            for entry in purifiers
            if "clean_samples" in entry.hooks
        ]
        told: Values = {"negative_prompt": ", ".join(filter(None, avoid))} if any(avoid) else {}
        return {**told, **({"clean_samples": [dict(code) for code in after]} if after else {})}

    def code(self, entry: Entry, base: str) -> Values:
        """Return what identifies an entry's work on a base: code, files and parameters."""
        return {
            "entry": entry.code,
            "entry_files": dict(entry.files),
            "params": self.catalog.params(entry, base),
        }

    def seconds(self, entry: Entry, base: str) -> float | None:
        """Return what an entry says that one task takes on a base."""
        return entry.seconds(base, self.catalog.models.bases[base].like)

    def base(self, base: str) -> Values:
        """Return what identifies a base: name, revision and the SHA-256 of its files, looked at once a plan."""
        if base not in self._bases:
            files = self.catalog.base_files(base)
            if not files:
                raise UsageError("holds no model", file=self.catalog.base_folder(base))
            self._bases[base] = {
                "base": base,
                "base_revision": self.catalog.base_revision(base),
                "base_files": dict(files),
            }
        return self._bases[base]

    def lent(self, entry: Entry, base: str) -> Values:
        """Return what identifies the networks that an entry is lent beside the base; nothing where it asks for none."""
        lent: Values = {}
        if entry.needs_perceptual:
            lent["perceptual"] = self.catalog.perceptual(base, asked_by=entry.path)
        if entry.needs_upscaler:
            lent["upscaler"] = self.catalog.upscaler(base, asked_by=entry.path)
        return lent
