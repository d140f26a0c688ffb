"""A suite becomes cells, and every cell a graph of stages that is known before anything runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from immunebench import artefact
from immunebench.board.rules import TARGET_METRIC, TRACK
from immunebench.entry import Catalog, Defense, Entry, digests
from immunebench.errors import UsageError
from immunebench.folder_source import split_files
from immunebench.graph import (
    STAGE_VERSIONS,
    Cell,
    CellGraph,
    Facts,
    Plan,
    StageSpec,
    UtilityGraph,
    canonical_json,
)
from immunebench.metrics import METRICS, Metric
from immunebench.runtime import derive_seed
from immunebench.schema import Prompt, Suite, Task, Values, Wording, save_steps
from immunebench.weights import require
from immunebench.wording import content

__all__ = [
    "STAGE_VERSIONS",
    "Builder",
    "Cell",
    "CellGraph",
    "Facts",
    "Plan",
    "StageSpec",
    "UtilityGraph",
    "canonical_json",
    "make_plan",
    "stream",
]

#: The model that a stage begins from, as inputs of that stage: empty for the base, else its `weights`.
Model = dict[str, str]


def stream(seed: int, name: str, *of: object) -> int:
    """Return the seed of one of the streams that a cell's seed gives: ``protect`` or ``adapt``."""
    return derive_seed(seed, name, *of)


def make_plan(
    suite: Suite,
    catalog: Catalog,
    *,
    task: str | Sequence[str] | None = None,
    defense: str | Sequence[str] | None = None,
    attack: str | Sequence[str] | None = None,
    seed: int | Sequence[int] | None = None,
    profile: str | None = None,
) -> Plan:
    """Plan a suite, or a part of it.

    Parameters
    ----------
    suite
        The suite; its names are resolved in ``catalog``.
    task, attack
        Only these tasks and chains of the suite.
    defense
        These defenses instead of the suite's: any that the catalogue knows.
    seed, profile
        These instead of the suite's.

    Raises
    ------
    UsageError
        A name is unknown or broken, or a file that the plan must hash is not there.
    """
    file = catalog.paths.get(("suite", suite.id))
    tasks = _select("--task", task, suite.names("tasks"), file)
    chains = _select("--attack", attack, suite.names("chains"), file)
    seeds = list(suite.seeds) if seed is None else [seed] if isinstance(seed, int) else list(seed)
    if any(number < 0 for number in seeds):
        raise UsageError("must not be negative, not", field="--seed", value=min(seeds))
    builder = Builder(suite, catalog, file, profile)
    cells = [
        Cell(name, entry.id, chain, builder.profile.id, number)
        for name, entry, chain in _places(suite, catalog, _many(defense), file)
        if name in tasks and chain in chains
        for number in dict.fromkeys(seeds)
    ]
    for name in _many(defense):
        if catalog.defense(name).id not in {cell.defense for cell in cells}:
            raise UsageError("fits no task of the suite that was chosen:", field="--defense", value=name)
    if not cells:
        raise UsageError("has no cell of this selection", file=file)
    roots = {cell.key: builder.cell(cell) for cell in cells}
    return Plan(suite, tuple(cells), builder.stages, roots)


def _places(
    suite: Suite, catalog: Catalog, wanted: Sequence[str], file: Path | None
) -> Iterator[tuple[str, Defense, str]]:
    """Yield the suite's task, defense and chain of each cell, or those of the defenses wanted instead."""
    seen = set()
    known = {name: catalog.defense(name, file=file, field="defenses") for name in suite.names("defenses")}
    named = {entry.id: entry for entry in known.values()}
    for block in suite.blocks:
        own = [known[name] for name in block.defenses]
        chosen = [catalog.defense(name, field="--defense") for name in wanted] if wanted else own
        # A defense that the suite does not name takes the places of the others of its track, or all that suit it.
        tracks = {TRACK[entry.kind_of] for entry in own}
        for entry in chosen:
            here = entry in own or (
                entry.id not in named and (TRACK[entry.kind_of] in tracks or not _has_track(named.values(), entry))
            )
            for place in itertools.product(block.tasks, [entry.id], block.chains) if here else ():
                if place not in seen and _suits(entry, catalog.task(place[0], file=file, field="tasks"), named):
                    seen.add(place)
                    yield place[0], entry, place[2]


def _has_track(entries: Iterable[Defense], entry: Defense) -> bool:
    return any(TRACK[other.kind_of] == TRACK[entry.kind_of] for other in entries)


def _suits(entry: Defense, task: Task, named: Mapping[str, Defense]) -> bool:
    """Say whether a defense that was asked for belongs on a task; one that the suite names always does."""
    return entry.id in named or not entry.erases or task.family == "relearn"


#: What a source calls its innocent pictures, and how many of them a defense is given.
PUBLIC, PUBLIC_PICTURES = "public", 64


class Builder:
    """Adds stages to one graph; a stage that is there already is not added again."""

    def __init__(self, suite: Suite, catalog: Catalog, file: Path | None, profile: str | None = None) -> None:
        self.suite = suite
        self.catalog = catalog
        self.file = file
        chosen = suite.profile if profile is None else profile
        field_name = "profile" if profile is None else "--profile"
        self.profile = catalog.profile(chosen, file=file if profile is None else None, field=field_name)
        self.stages: dict[str, StageSpec] = {}
        # One way of honest personalisation for all chains: U belongs to a defense on a task, not to an attack.
        _, self.honest = self.attacks(suite.benign_attack, field="benign_attack")
        self._vocabulary: dict[str, frozenset[str]] = {}

    def add(self, stage: str, key: Values, inputs: Mapping[str, str]) -> str:
        """Add a stage and return its digest."""
        spec = StageSpec(stage, key, dict(inputs))
        return self.stages.setdefault(spec.digest, spec).digest

    def cell(self, cell: Cell) -> CellGraph:
        """Add everything that a cell's record needs."""
        task = self.catalog.task(cell.task, file=self.file, field="tasks")
        entry = self.catalog.defense(cell.defense)
        self.check_words(task)
        purifiers, attack = self.attacks(cell.chain)
        prompts = self.prompts(task.evaluation.prompts, task.attacker.token, task)
        steps = self.saves(attack, task)

        start = self.start(task, cell.seed)
        published = self.published(task)
        reference = self.pictures(task, task.concept.name, "reference", task.pictures.reference)
        protect, released, images = self.protect(entry, task, cell.seed, start, published)
        compared = {"reference": reference}

        def attacked(images: str, model: Model, *, again: bool) -> tuple[dict[int, str], dict[int, str]]:
            seed = stream(cell.seed, "adapt", task.id, *(["replicate"] if again else []))
            for purifier in purifiers:
                images = self.purify(purifier, task, images, seed)
            adapter = self.adapt(attack, task, task.attacker, task.concept.noun, images, model, seed)
            drawn = {
                step: self.generate(task, prompts, model, [task.id, cell.seed], adapter, step, steps) for step in steps
            }
            last = {**compared, "training": images}
            return drawn, {s: self.score(task, made, last if s == steps[-1] else compared) for s, made in drawn.items()}

        drawn, curve = attacked(images, released, again=entry.replicate)
        undefended, ceiling = attacked(published, start, again=False)
        floor_pictures = self.generate(task, prompts, start, [task.id, cell.seed])
        graph = CellGraph(
            cell=cell,
            facts=self.facts(task, entry, [*purifiers, attack]),
            curve=curve,
            ceiling=ceiling,
            pictures=drawn,
            ceiling_pictures=undefended,
            floor=self.score(task, floor_pictures, compared),
            floor_pictures=floor_pictures,
            anchor=self.anchor(task, reference),
            reference=reference,
            unseen=self.unseen(task, published),
            protect=protect,
            utility=self.utility(task, self.honest, start, released, cell.seed),
            fidelity=None if images == published else self.fidelity(task, images, published),
            parts={},
            stages=(),
            erasure={
                whose: self.score(task, self.generate(task, prompts, model, [task.id, cell.seed]), compared)
                for whose, model in {"base": {}, "released": released}.items()
                if task.family == "relearn"
            },
        )
        parts = {part: frozenset(self.closure(roots)) for part, roots in _roots(graph).items()}
        return replace(graph, parts=parts, stages=self.closure(itertools.chain.from_iterable(_roots(graph).values())))

    def attacks(self, chain: str, field: str = "chains") -> tuple[list[Entry], Entry]:
        """Resolve ``purifier+...+attack``."""
        entries = [self.catalog.attack(name, file=self.file, field=field) for name in chain.split("+")]
        wanted = [("purify",)] * (len(entries) - 1) + [("adapt",)]
        if [entry.hooks for entry in entries] != wanted:
            raise UsageError("is no chain of purifiers and one attack:", file=self.file, field=field, value=chain)
        return entries[:-1], entries[-1]

    def saves(self, attack: Entry, task: Task) -> tuple[int, ...]:
        """Return the steps that are scored: all saved ones, or the last where the suite draws no curve."""
        params = attack.params(task.base)
        if not {"steps", "lr", "batch", "saves"} <= params.keys():
            raise UsageError(
                f"lacks steps, lr, batch or saves for base {task.base!r}", file=attack.path, field="presets"
            )
        try:
            saves = save_steps(params)
        except ValueError as error:
            raise UsageError(str(error), file=attack.path, field="params") from error
        return saves if self.suite.curve_pictures else saves[-1:]

    def prompts(self, prompts: Sequence[Prompt], token: str, task: Task) -> list[str]:
        """Return the suite's number of prompts with the placeholder filled in."""
        if len(prompts) < self.suite.prompts:
            path = self.catalog.paths["task", task.id]
            raise UsageError(f"holds {len(prompts)} prompts, the suite needs {self.suite.prompts}", file=path)
        return [prompt.replace("{token}", token) for prompt in prompts[: self.suite.prompts]]

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

    def published(self, task: Task) -> str:
        """Add the attacker's pictures: the task's, or the base's own of a concept that it knows."""
        if self.suite.published == "real":
            return self.pictures(task, task.concept.name, "published", task.pictures.published)
        if task.family != "relearn":
            path = self.catalog.paths["task", task.id]
            raise UsageError("cannot be drawn by a base that never saw it", file=path, value=task.concept.name)
        # IMMA's protocol: one prompt, drawn by the base before its concept was erased.
        prompt = task.attacker.caption.replace("{content}", "{token}")
        prompt = prompt.replace("{token}", task.attacker.token).replace("{noun}", task.concept.noun)
        return self.generate(task, [prompt], {}, ["published", task.id], per_prompt=task.pictures.published)

    def check_words(self, task: Task) -> None:
        """Refuse placeholders that mean something to the base: only what is relearned has a name there.

        Raises
        ------
        UsageError
            With the file, the field and the word.
        """
        words = self.vocabulary(task.base)
        sides = {"owner": task.owner.token, "attacker": task.attacker.token} if task.family != "relearn" else {}
        for side, token in {**sides, "benign": task.benign.token}.items():
            if token in words:
                path = self.catalog.paths["task", task.id]
                raise UsageError(
                    f"is a word that the base {task.base!r} knows, so no placeholder:",
                    file=path, field=f"{side}.token", value=token,
                    choices=self.catalog.models.bases[task.base].placeholders,
                )  # fmt: skip

    def vocabulary(self, base: str) -> frozenset[str]:
        """Return the words that a base's tokenizer holds whole, without those that mean nothing to it."""
        if base not in self._vocabulary:
            file = self.catalog.base_folder(base) / "tokenizer" / "vocab.json"
            entries = json.loads(file.read_text("utf-8")) if file.is_file() else {}
            words = {word.removesuffix("</w>") for word in entries if word.endswith("</w>")}
            self._vocabulary[base] = frozenset(words) - set(self.catalog.models.bases[base].placeholders)
        return self._vocabulary[base]

    def start(self, task: Task, seed: int) -> Model:
        """Add the start model: the base, or what ``start_from`` makes of it."""
        if task.start_from is None:
            return {}
        path = self.catalog.paths["task", task.id]
        entry = self.catalog.defense(task.start_from, file=path, field="start_from")
        if not entry.erases:
            # Any other defense begins from the start model itself: a circle.
            raise UsageError(
                "begins from the start model, so it cannot make it:", file=path, field="start_from",
                value=task.start_from,
                choices=[name for name, other in self.catalog.defenses.items() if other.erases],
            )  # fmt: skip
        return self.released(entry, task, seed, {})

    def owner(self, task: Task) -> dict[str, str]:
        """Add the pictures that a defense sees: its own of the concept, and innocent ones."""
        public = self.catalog.models.bases[task.base].public
        return {
            "owner": self.pictures(task, task.concept.name, "owner", task.pictures.owner),
            "public": self.pictures(task, PUBLIC, "owner", PUBLIC_PICTURES, public),
        }

    def protect(
        self, entry: Defense, task: Task, seed: int, start: Model, published: str
    ) -> tuple[dict[str, str], Model, str]:
        """Add a defense's hooks; return them, the released model and the released pictures."""
        if "freeze" in entry.hooks:
            raise UsageError("no stage runs the hook", file=entry.path, field="hooks", value="freeze")
        if entry.erases and task.family != "relearn":
            raise UsageError(
                f"erases what a base knows; task {task.id!r} is of the family {task.family!r}, not 'relearn':",
                file=self.file, field="defenses", value=entry.id,
            )  # fmt: skip
        # An erasure takes the place of the task's own, so it begins from the base.
        model = self.released(entry, task, seed, {} if entry.erases else start)
        protect = {"protect_model": model["weights"]} if "protect_model" in entry.hooks else {}
        for layer in entry.layers:
            if layer.artefact is not None:
                protect["protect_images"] = self.cloaked(layer, task, published)
            elif "protect_images" in layer.hooks:
                inputs = {**self.owner(task), "published": published, **start}
                protect["protect_images"] = self.hook(layer, "protect_images", task, seed, inputs)
        return protect, model, protect.get("protect_images", published)

    def released(self, entry: Defense, task: Task, seed: int, model: Model) -> Model:
        """Add the hooks that change the model, one layer after another; return what is released."""
        for layer in entry.layers:
            if "protect_model" in layer.hooks:
                inputs = {**self.owner(task), **model}
                model = {"weights": self.hook(layer, "protect_model", task, seed, inputs)}
        return model

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

    def cloaked(self, entry: Entry, task: Task, published: str) -> str:
        """Add the reading of pictures that a closed tool made: no base, no seed."""
        p = entry.perceptual_budget
        judged: Values = {} if p is None else {"perceptual_budget": p, **self.judged(task, ["perceptual"])}
        return self.add("protect", {**artefact.stage_key(entry, task.id), **judged}, {"published": published})

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
        metrics = list(metrics)
        for metric in metrics:
            for weights in _metric(metric, self.file).weights:
                require(weights, asked_by=f"metric {metric}")
        return {
            "metrics": [{"id": metric, "version": _metric(metric, self.file).version} for metric in metrics],
            "judge": judge,
            "judge_version": self.catalog.models.judges[judge].version,
            "judge_files": dict(self.catalog.judge_files(judge)),
            "captions": list(captions),
            # Named where it is asked for only, so that tasks share every other score.
            **({"concept": concept} if concept and "concept_probability" in metrics else {}),
            **({"contents": dict(contents)} if contents and "prompt_accuracy" in metrics else {}),
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

    def anchor(self, task: Task, reference: str) -> str:
        """Add what real pictures score: unseen ones of the concept, and those of other concepts."""
        same = self.pictures(task, task.concept.name, "extra", task.pictures.extra)
        count = task.pictures.reference
        others = [self.pictures(task, n, "reference", count, task.anchors.source) for n in task.anchors.others]
        inputs = {
            "reference": reference,
            "same": same,
            **{f"other_{i}": other for i, other in enumerate(others)},
        }
        key = self.judged(task, [TARGET_METRIC[task.family]], concept=task.concept.name)
        return self.add("anchor", key, inputs)

    def utility(self, task: Task, attack: Entry, start: Model, released: Model, seed: int) -> UtilityGraph:
        """Add what an honest user gets from the released model and from the start model."""
        unrelated = self.catalog.models.bases[task.base].unrelated_prompts
        benign = task.benign
        prompts = self.prompts(benign.prompts, benign.token, task)
        last = self.saves(attack, task)[-1]
        images = self.pictures(task, benign.concept, "published", task.pictures.published, benign.source)
        reference = self.pictures(task, benign.concept, "reference", task.pictures.reference, benign.source)
        compared = {"reference": reference}
        noise: list[str | int] = [f"benign/{benign.concept}", seed]
        answers = self.judged(task, ["caption_accuracy", *self.further([])], unrelated)
        likeness = self.judged(task, [TARGET_METRIC[benign.family or task.family]], concept=benign.concept)

        def drawn(model: Model) -> str:
            return self.generate(task, unrelated, model, ["unrelated", seed], per_prompt=self.suite.unrelated_pictures)

        def personalised(model: Model) -> str:
            words = Wording(caption=benign.caption, token=benign.token)
            own_seed = stream(seed, "adapt", "benign", benign.concept)
            adapter = self.adapt(attack, task, words, benign.noun, images, model, own_seed)
            return self.generate(task, prompts, model, noise, adapter, last, [last])

        def alike(made: str) -> str:
            return self.add("score", likeness, {"generated": made, **compared})

        before, after = (drawn(released), drawn(start)), (personalised(released), personalised(start))
        return UtilityGraph(
            g=self.add("score", answers, {"generated": before[0]}),
            g_base=self.add("score", answers, {"generated": before[1]}),
            s=alike(after[0]),
            floor=alike(self.generate(task, prompts, start, noise)),
            ceiling=alike(after[1]),
            metric=self.named_metric(benign.family or task.family),
            integrity={
                when: self.add("score", self.judged(task, self.suite.integrity), {"generated": own, "reference": of})
                for when, (own, of) in {"before": before, "after_benign": after}.items()
                if self.suite.integrity and own != of
            },
        )

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

    def facts(self, task: Task, entry: Defense, chain: Sequence[Entry]) -> Facts:
        """Collect what the record says of the cell."""
        return Facts(
            suite=self.suite.id,
            suite_version=self.suite.version,
            track=self.suite.track,
            task_version=task.version,
            family=task.family,
            concept=task.concept.name,
            concept_kind=task.concept.kind,
            base=task.base,
            base_revision=self.catalog.models.bases[task.base].revision,
            defense_title=entry.title,
            defense_kind=entry.kind_of,
            defense_version=entry.version,
            hooks=entry.hooks,
            budget=entry.budget,
            chain=tuple((attack.id, attack.version) for attack in chain),
            profile_version=self.profile.version,
            memory_gib=self.profile.memory_gib,
            captions=len(self.catalog.models.bases[task.base].unrelated_prompts),
            contents=len(set(self.contents(task).values())) if "prompt_accuracy" in self.suite.metrics else 0,
            params=entry.params(task.base),
            entry_files=entry.files,
            metric=self.named_metric(task.family),
        )

    def closure(self, roots: Iterable[str]) -> tuple[str, ...]:
        """Return all stages that ``roots`` depend on, inputs before their users."""
        seen: dict[str, None] = {}

        def visit(digest: str) -> None:
            if digest not in seen:
                for needed in self.stages[digest].inputs.values():
                    visit(needed)
                seen[digest] = None

        for root in roots:
            visit(root)
        return tuple(seen)


def _roots(graph: CellGraph) -> dict[str, list[str]]:
    use = graph.utility
    return {
        # What the undefended model does is nobody's fault: a failure there leaves every row incomplete alike.
        "baseline": [*graph.ceiling.values(), graph.floor, graph.anchor, use.g_base, use.floor, use.ceiling],
        "attack": list(graph.curve.values()),
        "fidelity": [] if graph.fidelity is None else [graph.fidelity],
        "utility": [use.g, use.g_base, use.s, use.floor, use.ceiling],
        # No score of the board hangs on these: a failure among them costs nothing but themselves.
        "beside": [*([] if graph.unseen is None else [graph.unseen]), *use.integrity.values(), *graph.erasure.values()],
    }


def _code(entry: Entry, base: str) -> Values:
    return {"entry": entry.code, "entry_files": dict(entry.files), "params": entry.params(base)}


def _metric(metric: str, file: Path | None) -> Metric:
    if metric not in METRICS:
        raise UsageError("unknown metric", file=file, field="metrics", value=metric, choices=METRICS)
    return METRICS[metric]


def _many(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _select(option: str, wanted: str | Sequence[str] | None, known: Sequence[str], file: Path | None) -> list[str]:
    chosen = _many(wanted)
    for name in chosen:
        if name not in known:
            raise UsageError("is not in the suite:", file=file, field=option, value=name, choices=known)
    return [name for name in known if not chosen or name in chosen]
