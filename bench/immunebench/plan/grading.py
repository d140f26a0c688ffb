"""`Grading`: the stages that score pictures, one method each: which metrics, by which judge, beside what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from immunebench.bases.weights import require
from immunebench.catalog.entry import sha256
from immunebench.core.errors import UsageError
from immunebench.core.wording import content
from immunebench.declared.schema import Values
from immunebench.declared.scoring import BESIDE_FAMILY, TRAIT_METRIC, target_metric
from immunebench.declared.task import Task
from immunebench.metrics.table import METRICS, Metric
from immunebench.plan.specs import Specs


class Grading:
    """Scoring stages of one suite, added to the stages of `specs`."""

    def __init__(self, specs: Specs) -> None:
        self.specs = specs

    def contents(self, task: Task) -> dict[str, str]:
        """Return what each of the suite's prompts asks for without the placeholder, by filled-in prompt.

        Empty where all ask for the same or the judge cannot tell them apart, for then nobody knows whether a
        picture follows its own.
        """
        if (
            task.family
            not in self.specs.catalog.models.judges[self.specs.catalog.models.bases[task.base].judge].reads_prompts
        ):
            return {}
        prompts = task.evaluation.prompts[: self.specs.suite.prompts]
        found = {
            prompt.replace("{token}", task.attacker.token): content(prompt, task.concept.noun) for prompt in prompts
        }
        return found if len(set(found.values())) > 1 else {}

    def further(self, has: Iterable[str]) -> list[str]:
        """Return the suite's further metrics that need nothing but the judge and what ``has`` names."""
        needs = {metric: set(_metric(metric, self.specs.file).needs) for metric in self.specs.suite.metrics}
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
        judge = self.specs.catalog.models.bases[task.base].judge
        spec = self.specs.catalog.models.judges[judge]
        metrics = list(metrics)
        read = {w: f"metric {metric}" for metric in metrics for w in _metric(metric, self.specs.file).weights}
        weights = {name: sha256(require(name, asked_by=metric)) for name, metric in read.items()}
        return {
            "metrics": [{"id": metric, "version": _metric(metric, self.specs.file).version} for metric in metrics],
            "judge": judge,
            "judge_version": spec.version,
            "judge_files": dict(self.specs.catalog.judge_files(judge)),
            "captions": list(captions),
            # Named where it is asked for only, so that tasks share every other score.
            **({"concept": concept} if concept and _asks_concept(metrics) else {}),
            **({"contents": dict(contents)} if contents and "prompt_accuracy" in metrics else {}),
            **({"genres": list(spec.genres)} if "genre_shift" in metrics else {}),
            # What metrics without a judge read; most read nothing.
            **({"metric_weights": dict(weights)} if weights else {}),
        }

    def score(self, task: Task, generated: str, compared: Mapping[str, str]) -> str:
        """Add the family's target metric and those of the suite's further ones that have what they need."""
        contents = self.contents(task)
        has = ["concept", *self.traits(task), *compared, *(["contents"] if contents else [])]
        metrics = dict.fromkeys([self.target(task), *self.further(has)])
        key = self.judged(task, metrics, concept=task.concept.name, contents=contents)
        # What no metric reads must not part stages that give the same numbers.
        read = {name: of for name, of in compared.items() if any(name in METRICS[metric].needs for metric in metrics)}
        return self.specs.add("score", key, {"generated": generated, **read})

    def unseen(self, task: Task, published: str) -> str | None:
        """Add the further metrics of real pictures that the attacker never saw: what its own are held against."""
        metrics = self.further(["concept", *self.traits(task), "training"])
        if not metrics:
            return None
        real = self.specs.pictures(task, task.concept.name, "extra", task.pictures.extra)
        key = self.judged(task, metrics, concept=task.concept.name)
        return self.specs.add("score", key, {"generated": real, "training": published})

    def fidelity(self, task: Task, protected: str, published: str) -> str:
        """Add the comparison of protected with published pictures."""
        return self.specs.add(
            "score", self.judged(task, self.specs.suite.fidelity), {"protected": protected, "published": published}
        )

    def purified(self, task: Task, given: Sequence[str], published: str) -> dict[str, str]:
        """Add what the attacker's cleaning left of pictures, pair by pair: of the clean and of the protected ones.

        Parameters
        ----------
        given
            The pictures as released, then after each purifier.
        """
        compared = {"clean": published} | ({} if given[0] == published else {"protected": given[0]})
        if len(given) == 1 or not self.specs.suite.purified:
            return {}
        key = self.judged(task, self.specs.suite.purified)
        return {
            what: self.specs.add("score", key, {"generated": given[-1], "reference": of})
            for what, of in compared.items()
        }

    def beside(self, task: Task, pictures: Mapping[str, str], reference: str) -> dict[str, str]:
        """Add the suite's measures beside the target metric: of the pictures named, and of unseen real ones.

        They are stages of their own, so that the target metric's keep their digests.
        """
        judge = self.specs.catalog.models.judges[self.specs.catalog.models.bases[task.base].judge]
        has = {"judge", "pixels", "own", "reference", "others", *(["genres"] if judge.genres else [])}
        has |= set(self.traits(task))
        own = [m for m in self.specs.suite.beside if BESIDE_FAMILY.get(m, task.family) == task.family]
        metrics = [metric for metric in own if has >= set(_metric(metric, self.specs.file).needs)]
        if not metrics:
            return {}
        needs = {need for metric in metrics for need in METRICS[metric].needs}
        compared = {"reference": reference} | (self.others(task) if "others" in needs else {})
        unseen = self.specs.pictures(task, task.concept.name, "extra", task.pictures.extra)
        key = self.judged(task, metrics, concept=task.concept.name)
        return {
            whose: self.specs.add("score", key, {"generated": made, **compared})
            for whose, made in {**pictures, "unseen": unseen}.items()
        }

    def others(self, task: Task) -> dict[str, str]:
        """Add reference pictures of the family's other concepts, as inputs of a stage."""
        count, source = task.pictures.reference, task.anchors.source
        return {
            f"other_{i}": self.specs.pictures(task, name, "reference", count, source)
            for i, name in enumerate(task.anchors.others)
        }

    def anchor(self, task: Task, reference: str) -> str:
        """Add what real pictures score: unseen ones of the concept, and those of other concepts."""
        same = self.specs.pictures(task, task.concept.name, "extra", task.pictures.extra)
        inputs = {"reference": reference, "same": same, **self.others(task)}
        key = self.judged(task, [self.target(task)], concept=task.concept.name)
        return self.specs.add("anchor", key, inputs)

    def traits(self, task: Task) -> tuple[str, ...]:
        """Return what a metric that reads traits needs, where the judge knows those of the task's concept."""
        return ("concept_id",) if self.target(task) == TRAIT_METRIC else ()

    def target(self, task: Task, family: str | None = None, source: str | None = None) -> str:
        """Return the metric of a task's likeness, or of that of a concept of another family or source on its base."""
        judge = self.specs.catalog.models.judges[self.specs.catalog.models.bases[task.base].judge]
        known = (source or task.concept.source) == judge.traits_of
        return target_metric(family or task.family, judge.reads_traits if known else ())

    def named_metric(self, task: Task, family: str | None = None, source: str | None = None) -> str:
        """Return the same with its version, as records name it."""
        metric = self.target(task, family, source)
        return f"{metric}@{_metric(metric, self.specs.file).version}"


def _asks_concept(metrics: Iterable[str]) -> bool:
    return any(need in METRICS[metric].needs for metric in metrics for need in ("concept", "concept_id"))


def _metric(metric: str, file: Path | None) -> Metric:
    if metric not in METRICS:
        raise UsageError("unknown metric", file=file, field="metrics", value=metric, choices=METRICS)
    return METRICS[metric]
