"""`Specs`: the stages of a plan, one method each: what enters its key, and which stages it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from immunebench.board.rules import BESIDE_FAMILY, TARGET_METRIC
from immunebench.entry import Catalog, Entry, digests
from immunebench.errors import UsageError
from immunebench.folder_source import split_files
from immunebench.graph import StageSpec
from immunebench.metrics import METRICS, Metric
from immunebench.runtime import derive_seed
from immunebench.schema import Suite, Task, Values, Wording
from immunebench.weights import require
from immunebench.wording import content

#: The model that a stage begins from, as inputs of that stage: empty for the base, else its `weights`.
Model = dict[str, str]


def stream(seed: int, name: str, *of: object) -> int:
    """Return the seed of one of the streams that a cell's seed gives: ``protect`` or ``adapt``."""
    return derive_seed(seed, name, *of)


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

    def add(self, stage: str, key: Values, inputs: Mapping[str, str]) -> str:
        """Add a stage and return its digest."""
        spec = StageSpec(stage, key, dict(inputs))
        return self.stages.setdefault(spec.digest, spec).digest

    def pictures(self, task: Task, concept: str, split: str, count: int, source: str | None = None) -> str:
        """Add a split of a concept's pictures, of the task's source or another."""
        source = source or task.concept.source
        spec = self.catalog.models.sources[source]
        key: Values = {
            "source": source,
            "source_version": spec.version,
            "concept": concept,
            "split": split,
            "count": count,
        }
        if spec.files:
            key["files"] = dict(split_files(self.catalog, task, concept, split, count))
        return self.add("pictures", key, {})

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
        against: Values = {attack.id: _code(attack, task.base) for attack in attacks}
        key: Values = {
            **_code(entry, task.base),
            "hook": hook,
            "budget": entry.budget,
            "against": against,
            **self.base(task.base),
            "numerics": self.profile.numerics(sampling=False),
            "concept": concept,
            "seed": stream(seed, "protect", task.id),
        }
        return self.add("protect", key, inputs)

    def purify(self, entry: Entry, task: Task, images: str, seed: int) -> str:
        """Add the attacker's cleaning of the pictures."""
        key: Values = {
            **_code(entry, task.base),
            **self.base(task.base),
            "numerics": self.profile.numerics(sampling=False),
            "token": task.attacker.token,
            "noun": task.concept.noun,
            "seed": seed,
        }
        return self.add("purify", key, {"images": images})

    def adapt(self, entry: Entry, task: Task, words: Wording, noun: str, images: str, model: Model, seed: int) -> str:
        """Add an adaptation."""
        key: Values = {
            **_code(entry, task.base),
            **self.base(task.base),
            "numerics": self.profile.numerics(sampling=False),
            "caption": words.caption,
            "token": words.token,
            "noun": noun,
            "seed": seed,
        }
        return self.add("adapt", key, {"images": images, **model, **self.prior(entry, task)})

    def prior(self, entry: Entry, task: Task) -> dict[str, str]:
        """Add the class pictures of an attack with a prior-preservation loss: drawn by the base, once for all."""
        if not entry.params(task.base).get("prior_weight"):
            return {}
        if task.prior is None:
            path = self.catalog.paths["task", task.id]
            raise UsageError(
                f"is missing: the attack {entry.id!r} needs class pictures", file=path, field="prior.prompts"
            )
        prompts = list(task.prior.prompts)
        return {"prior": self.generate(task, prompts, {}, ["prior"], per_prompt=task.prior.per_prompt)}

    def generate(
        self,
        task: Task,
        prompts: Sequence[str],
        model: Model,
        noise: list[str | int],
        adapter: str | None = None,
        step: int | None = None,
        steps: Sequence[int] = (),
        per_prompt: int | None = None,
    ) -> str:
        """Add pictures: all of them of the last step, one for each of the first prompts of an earlier one."""
        early = step is not None and step != steps[-1]
        key: Values = {
            **self.base(task.base),
            "numerics": self.profile.numerics(sampling=True),
            "prompts": list(prompts[: self.suite.curve_pictures] if early else prompts),
            "per_prompt": 1 if early else per_prompt or self.suite.pictures,
            "noise_key": list(noise),
            "step": step,
        }
        return self.add("generate", key, {**model, **({} if adapter is None else {"adapter": adapter})})

    def contents(self, task: Task) -> dict[str, str]:
        """Return what each of the suite's prompts asks for without the placeholder, by filled-in prompt.

        Empty where all ask for the same or the judge cannot tell them apart, for then nobody knows whether a
        picture follows its own.
        """
        if task.family not in self.catalog.models.judges[self.catalog.models.bases[task.base].judge].reads_prompts:
            return {}
        prompts = task.evaluation.prompts[: self.suite.prompts]
        found = {
            prompt.replace("{token}", task.attacker.token): content(prompt, task.concept.noun) for prompt in prompts
        }
        return found if len(set(found.values())) > 1 else {}

    def further(self, has: Iterable[str]) -> list[str]:
        """Return the suite's further metrics that need nothing but the judge and what ``has`` names."""
        needs = {metric: set(_metric(metric, self.file).needs) for metric in self.suite.metrics}
        return [metric for metric, need in needs.items() if need <= {"judge", "pixels", "own", *has}]

    def judged(
        self,
        task: Task,
        metrics: Iterable[str],
        captions: Sequence[str] = (),
        concept: str = "",
        contents: Mapping[str, str] | None = None,
    ) -> Values:
        """Return the key that every scoring stage has: metrics, judge and what it is asked."""
        judge = self.catalog.models.bases[task.base].judge
        spec = self.catalog.models.judges[judge]
        metrics = list(metrics)
        for metric in metrics:
            for weights in _metric(metric, self.file).weights:
                require(weights, asked_by=f"metric {metric}")
        return {
            "metrics": [{"id": metric, "version": _metric(metric, self.file).version} for metric in metrics],
            "judge": judge,
            "judge_version": spec.version,
            "judge_files": dict(self.catalog.judge_files(judge)),
            "captions": list(captions),
            # Named where it is asked for only, so that tasks share every other score.
            **({"concept": concept} if concept and "concept_probability" in metrics else {}),
            **({"contents": dict(contents)} if contents and "prompt_accuracy" in metrics else {}),
            **({"genres": list(spec.genres)} if "genre_shift" in metrics else {}),
        }

    def score(self, task: Task, generated: str, compared: Mapping[str, str]) -> str:
        """Add the family's target metric and those of the suite's further ones that have what they need."""
        contents = self.contents(task)
        has = ["concept", *compared, *(["contents"] if contents else [])]
        metrics = dict.fromkeys([TARGET_METRIC[task.family], *self.further(has)])
        key = self.judged(task, metrics, concept=task.concept.name, contents=contents)
        # What no metric reads must not part stages that give the same numbers.
        read = {name: of for name, of in compared.items() if any(name in METRICS[metric].needs for metric in metrics)}
        return self.add("score", key, {"generated": generated, **read})

    def unseen(self, task: Task, published: str) -> str | None:
        """Add the further metrics of real pictures that the attacker never saw: what its own are held against."""
        metrics = self.further(["concept", "training"])
        if not metrics:
            return None
        real = self.pictures(task, task.concept.name, "extra", task.pictures.extra)
        key = self.judged(task, metrics, concept=task.concept.name)
        return self.add("score", key, {"generated": real, "training": published})

    def fidelity(self, task: Task, protected: str, published: str) -> str:
        """Add the comparison of protected with published pictures."""
        return self.add(
            "score", self.judged(task, self.suite.fidelity), {"protected": protected, "published": published}
        )

    def purified(self, task: Task, given: Sequence[str], published: str) -> dict[str, str]:
        """Add what the attacker's cleaning left of pictures, pair by pair: of the clean and of the protected ones.

        Parameters
        ----------
        given
            The pictures as released, then after each purifier.
        """
        compared = {"clean": published} | ({} if given[0] == published else {"protected": given[0]})
        if len(given) == 1 or not self.suite.purified:
            return {}
        key = self.judged(task, self.suite.purified)
        return {
            what: self.add("score", key, {"generated": given[-1], "reference": of}) for what, of in compared.items()
        }

    def beside(self, task: Task, pictures: Mapping[str, str], reference: str) -> dict[str, str]:
        """Add the suite's measures beside the target metric: of the pictures named, and of unseen real ones.

        They are stages of their own, so that the target metric's keep their digests.
        """
        judge = self.catalog.models.judges[self.catalog.models.bases[task.base].judge]
        has = {"judge", "pixels", "own", "reference", "others", *(["genres"] if judge.genres else [])}
        own = [m for m in self.suite.beside if BESIDE_FAMILY.get(m, task.family) == task.family]
        metrics = [metric for metric in own if has >= set(_metric(metric, self.file).needs)]
        if not metrics:
            return {}
        needs = {need for metric in metrics for need in METRICS[metric].needs}
        compared = {"reference": reference} | (self.others(task) if "others" in needs else {})
        unseen = self.pictures(task, task.concept.name, "extra", task.pictures.extra)
        key = self.judged(task, metrics)
        return {
            whose: self.add("score", key, {"generated": made, **compared})
            for whose, made in {**pictures, "unseen": unseen}.items()
        }

    def others(self, task: Task) -> dict[str, str]:
        """Add reference pictures of the family's other concepts, as inputs of a stage."""
        count, source = task.pictures.reference, task.anchors.source
        return {
            f"other_{i}": self.pictures(task, name, "reference", count, source)
            for i, name in enumerate(task.anchors.others)
        }

    def anchor(self, task: Task, reference: str) -> str:
        """Add what real pictures score: unseen ones of the concept, and those of other concepts."""
        same = self.pictures(task, task.concept.name, "extra", task.pictures.extra)
        inputs = {"reference": reference, "same": same, **self.others(task)}
        key = self.judged(task, [TARGET_METRIC[task.family]], concept=task.concept.name)
        return self.add("anchor", key, inputs)

    def named_metric(self, family: str) -> str:
        """Return a family's target metric with its version, as records name it."""
        metric = TARGET_METRIC[family]
        return f"{metric}@{_metric(metric, self.file).version}"

    def base(self, base: str) -> Values:
        """Return what identifies a base: name, revision and the SHA-256 of its files."""
        folder = self.catalog.base_folder(base)
        files = digests(folder)
        if not files:
            raise UsageError("holds no model", file=folder)
        return {
            "base": base,
            "base_revision": self.catalog.models.bases[base].revision,
            "base_files": dict(files),
        }


def _code(entry: Entry, base: str) -> Values:
    return {"entry": entry.code, "entry_files": dict(entry.files), "params": entry.params(base)}


def _metric(metric: str, file: Path | None) -> Metric:
    if metric not in METRICS:
        raise UsageError("unknown metric", file=file, field="metrics", value=metric, choices=METRICS)
    return METRICS[metric]
