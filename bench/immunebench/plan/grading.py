"""`Grading`: adds the stages that score pictures, one method each: metrics, judge and pictures to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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
        # Read once a plan: a suite has thousands of scoring stages, and a judge hundreds of megabytes.
        self._judges: dict[str, dict[str, str]] = {}
        self._weights: dict[str, str] = {}

    def contents(self, task: Task) -> dict[str, str]:
        """Return the content of each of the suite's prompts without the placeholder, by filled-in prompt.

        Empty if all contents are equal or the judge does not read prompts of this family, since prompt accuracy is
        then undefined.
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
        """Return the suite's additional metrics whose inputs are all available: the judge and those in ``has``."""
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
        """Return the key of a scoring stage: metrics, judge, and the captions, concept and contents that they need."""
        judge = self.specs.catalog.models.bases[task.base].judge
        spec = self.specs.catalog.models.judges[judge]
        metrics = list(metrics)
        read = {w: f"metric {metric}" for metric in metrics for w in _metric(metric, self.specs.file).weights}
        weights = {name: self._fetched(name, metric) for name, metric in read.items()}
        return {
            "metrics": [{"id": metric, "version": _metric(metric, self.specs.file).version} for metric in metrics],
            "judge": judge,
            "judge_version": spec.version,
            "judge_files": dict(self._judge_files(judge)),
            "captions": list(captions),
            # Only where a metric needs it, so that tasks share the stages of all other metrics.
            **({"concept": concept} if concept and _asks_concept(metrics) else {}),
            **({"contents": dict(contents)} if contents and "prompt_accuracy" in metrics else {}),
            **({"genres": list(spec.genres)} if "genre_shift" in metrics else {}),
            # Weights of metrics that do not use the judge; most metrics have none.
            **({"metric_weights": dict(weights)} if weights else {}),
        }

    def _judge_files(self, judge: str) -> dict[str, str]:
        if judge not in self._judges:
            self._judges[judge] = self.specs.catalog.judge_files(judge)
        return self._judges[judge]

    def _fetched(self, name: str, metric: str) -> str:
        if name not in self._weights:
            self._weights[name] = self.specs.catalog.fetched(name, asked_by=metric)
        return self._weights[name]

    def score(self, task: Task, generated: str, compared: Mapping[str, str]) -> str:
        """Add the family's target metric and the suite's additional metrics that have all their inputs."""
        contents = self.contents(task)
        has = ["concept", *self.traits(task), *compared, *(["contents"] if contents else [])]
        metrics = dict.fromkeys([self.target(task), *self.further(has)])
        key = self.judged(task, metrics, concept=task.concept.name, contents=contents)
        # Inputs that no metric reads are left out, so that stages with equal results have equal digests.
        read = {name: of for name, of in compared.items() if any(name in METRICS[metric].needs for metric in metrics)}
        return self.specs.add("score", key, {"generated": generated, **read})

    def likeness(self, task: Task, pictures: str, compared: Mapping[str, str]) -> str:
        """Add the family's target metric of any pictures, as pictures of the task's concept."""
        target = self.target(task)
        read = {name: of for name, of in compared.items() if name in METRICS[target].needs}
        key = self.judged(task, [target], concept=task.concept.name)
        return self.specs.add("score", key, {"generated": pictures, **read})

    def unseen(self, task: Task, published: str) -> str | None:
        """Add the additional metrics of real pictures that the attacker never saw, for comparison."""
        metrics = self.further(["concept", *self.traits(task), "training"])
        if not metrics:
            return None
        real = self.specs.pictures(task, task.concept.name, "extra", task.pictures.extra)
        key = self.judged(task, metrics, concept=task.concept.name)
        return self.specs.add("score", key, {"generated": real, "training": published})

    def fidelity(self, task: Task, protected: str, published: str) -> str:
        """Add the comparison of protected with published pictures, picture by picture."""
        return self.specs.add(
            "score", self.judged(task, self.specs.suite.fidelity), {"protected": protected, "published": published}
        )

    def purified(self, task: Task, given: Sequence[str], published: str) -> dict[str, str]:
        """Add the comparison of purified pictures with the clean and with the protected ones, picture by picture.

        Parameters
        ----------
        given
            The pictures as the attacker obtains them, then after each purifier.
        published
            The clean pictures.
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
        """Add the suite's additional metrics of the family, on the given pictures and on unseen real ones.

        They are separate stages, so that the digests of the target metric's stages do not depend on them.
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
        """Add the anchors: the target metric of real pictures, unseen ones of the concept and those of others."""
        same = self.specs.pictures(task, task.concept.name, "extra", task.pictures.extra)
        inputs = {"reference": reference, "same": same, **self.others(task)}
        key = self.judged(task, [self.target(task)], concept=task.concept.name)
        return self.specs.add("anchor", key, inputs)

    def traits(self, task: Task) -> tuple[str, ...]:
        """Return the inputs of trait metrics if the judge reads the traits of the task's concept, else ()."""
        return ("concept_id",) if self.target(task) == TRAIT_METRIC else ()

    def target(self, task: Task, family: str | None = None, source: str | None = None) -> str:
        """Return the target metric of a task, or of a concept of another family or source on the task's base."""
        judge = self.specs.catalog.models.judges[self.specs.catalog.models.bases[task.base].judge]
        known = (source or task.concept.source) == judge.traits_of
        return target_metric(family or task.family, judge.reads_traits if known else ())

    def named_metric(self, task: Task, family: str | None = None, source: str | None = None) -> str:
        """Return the target metric with its version, such as ``ism0@1``, as in records."""
        metric = self.target(task, family, source)
        return f"{metric}@{_metric(metric, self.specs.file).version}"


def _asks_concept(metrics: Iterable[str]) -> bool:
    return any(need in METRICS[metric].needs for metric in metrics for need in ("concept", "concept_id"))


def _metric(metric: str, file: Path | None) -> Metric:
    if metric not in METRICS:
        raise UsageError("unknown metric", file=file, field="metrics", value=metric, choices=METRICS)
    return METRICS[metric]
