"""`Builder`: expands a cell to a graph of stages, all of which are known before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.catalog.layers import Defense
from immunebench.core.errors import UsageError
from immunebench.core.wording import concept_content, fill
from immunebench.declared.manifest import save_steps
from immunebench.declared.schema import Values
from immunebench.declared.suite import Suite
from immunebench.declared.task import Prompt, Task, Wording
from immunebench.pictures.dataset_source import pictures_digest
from immunebench.plan.grading import Grading
from immunebench.plan.specs import PUBLIC, Mask, Model, Specs, on_base, stream
from immunebench.store.graph import Cell, CellGraph, Facts, UtilityGraph

Built = TypeVar("Built")

#: Number of pictures unrelated to the concept that a defense may use.
PUBLIC_PICTURES = 64


class Builder:
    """Adds the stages of cells to one graph."""

    def __init__(self, suite: Suite, catalog: Catalog, file: Path | None, profile: str | None = None) -> None:
        self.specs = Specs(suite, catalog, file, profile)
        self.grading = Grading(self.specs)
        self.suite, self.catalog, self.file = suite, catalog, file
        # Benign personalisation is the same for all chains, since U depends on defense and task and not on the attack.
        _, self.honest = self.attacks(suite.benign_attack, field="benign_attack")
        # What cells share, such as the undefended attack of all defenses of a task: found again, not built again.
        self._shared: dict[tuple[object, ...], Any] = {}

    def cell(self, cell: Cell) -> CellGraph:
        """Add all stages that a cell's record needs and return the cell's graph."""
        task = self.catalog.task(cell.task, file=self.file, field="tasks")
        # The task on the attacker's base and on the owner's; they differ only in transfer settings.
        theirs, ours = on_base(task, cell.setting.attacker_base), on_base(task, cell.setting.surrogate)
        entry = self.catalog.defense(cell.defense)
        purifiers, attack = self.attacks(cell.chain)
        cleaning = self.specs.cleaning(purifiers, theirs.base)
        prompts = self.prompts(task.evaluation.prompts, task.attacker.token, task)
        steps = self.saves(attack, theirs)
        final = self.final(attack, theirs)

        start = self.start(task, cell.seed)
        published = self.published(task, self.attackers_pictures(attack, cell, task))
        reference = self.specs.pictures(task, task.concept.name, "reference", task.pictures.reference)
        protect, released, images = self.protect(entry, ours, cell.seed, start, published)
        mask: Mask = {"mask": protect["freeze"]} if "freeze" in protect else {}
        # An erasure replaces the task's own, so what it is made of is its own work even where both are one stage.
        begun = () if entry.erases else self.closure(start.values())
        compared = {"reference": reference}

        def adapting(again: bool) -> int:
            return stream(cell.seed, "adapt", task.id, *(["replicate"] if again else []))

        def cleaned(images: str, *, again: bool) -> tuple[str, ...]:
            stages = [self.specs.mix(task, images, cell.setting.clean)]
            for purifier in purifiers:
                stages.append(self.specs.purify(purifier, theirs, stages[-1], adapting(again)))
            return tuple(stages)

        def attacked(images: str, model: Model, mask: Mask, *, again: bool) -> tuple[dict[int, str], dict[int, str]]:
            images, seed = cleaned(images, again=again)[-1], adapting(again)
            trained, model = self.begins(attack, model)
            # Who has the base trains where nothing is enforced.
            mask = {} if attack.public_base else mask
            adapter = self.specs.adapt(
                attack, theirs, self.words(task), task.concept.noun, images, trained, seed, steps, mask
            )
            noise: list[str | int] = [task.id, cell.seed]
            drawn = {
                step: self.specs.generate(
                    theirs, prompts, model, noise, adapter, step, early=step != final, cleaning=cleaning
                )
                for step in steps
            }
            last = {**compared, "training": images}
            return drawn, {
                s: self.grading.score(task, made, last if s == final else compared) for s, made in drawn.items()
            }

        drawn, curve = attacked(images, released, mask, again=entry.replicate)
        undefended, ceiling = self._once(
            ("undefended", cell.task, cell.chain, cell.seed, cell.setting, published, *start.values()),
            lambda: attacked(published, start, {}, again=False),
        )
        floor_pictures = self.specs.generate(theirs, prompts, start, [task.id, cell.seed])
        given = cleaned(images, again=entry.replicate)
        last = {"attacked": drawn[final], "undefended": undefended[final]}
        # Additional metrics of the family are computed where pictures are protected or purified; for faces, always.
        asked = task.family == "identity" or given != (published,)
        graph = CellGraph(
            cell=cell,
            facts=self.facts(theirs, entry, [*purifiers, attack], self.catalog.params(entry, ours.base)),
            curve=curve,
            ceiling=ceiling,
            pictures=drawn,
            ceiling_pictures=undefended,
            floor=self.grading.score(task, floor_pictures, compared),
            floor_pictures=floor_pictures,
            final=final,
            defended_floor=self.grading.score(
                task, self.specs.generate(theirs, prompts, released, [task.id, cell.seed]), compared
            ),
            anchor=self._once(("anchor", task.id, reference), lambda: self.grading.anchor(task, reference)),
            reference=reference,
            unseen=self.grading.unseen(task, published),
            protect=protect,
            start=frozenset(begun),
            # An erasure is held against the untouched base: its start model is its own product.
            utility=self._once(
                ("utility", task.id, cell.seed, entry.erases, *released.values(), "mask", *mask.values()),
                lambda: self.utility(task, self.honest, {} if entry.erases else start, released, mask, cell.seed),
            ),
            fidelity=None if images == published else self.grading.fidelity(task, images, published),
            parts={},
            stages=(),
            erasure=self.erasure(task, released, mask, cell.seed, prompts, compared),
            published=published,
            given=given,
            # Compared picture by picture: where a clean picture was mixed in, the reference is that picture.
            purified=self.grading.purified(task, given, self.specs.mix(task, published, cell.setting.clean)),
            beside=self.grading.beside(task, last, reference) if asked else {},
        )
        parts = {part: frozenset(self.closure(roots)) for part, roots in _roots(graph).items()}
        return replace(graph, parts=parts, stages=self.closure(itertools.chain.from_iterable(_roots(graph).values())))

    def attacks(self, chain: str, field: str = "chains") -> tuple[list[Entry], Entry]:
        """Return the purifiers and the attack of a chain ``purifier+...+attack``.

        Raises
        ------
        UsageError
            If a purifier follows the attack, or there is not exactly one attack; the message suggests the right order
            if there is one.
        """
        entries = [self.catalog.attack(name, file=self.file, field=field) for name in chain.split("+")]
        cleaning = [entry for entry in entries if entry.hooks[0] == "purify"]
        training = [entry for entry in entries if entry.hooks[0] == "adapt"]
        if len(training) != 1:
            raise UsageError("is no chain of purifiers and one attack:", file=self.file, field=field, value=chain)
        if entries[-1] is not training[0]:
            right = "+".join(entry.id for entry in [*cleaning, *training])
            raise UsageError(
                f"cleans pictures after {training[0].id!r} has trained on them:",
                file=self.file, field=field, value=chain, choices=[right],
            )  # fmt: skip
        return cleaning, training[0]

    def saves(self, attack: Entry, task: Task) -> tuple[int, ...]:
        """Return the steps that are scored: all saved ones, or the final one if the suite has no curve pictures."""
        params = self.catalog.params(attack, task.base)
        if not {"steps", "lr", "batch", "saves"} <= params.keys():
            raise UsageError(
                f"lacks steps, lr, batch or saves for base {task.base!r}", file=attack.path, field="presets"
            )
        try:
            saves = save_steps(params)
        except ValueError as error:
            raise UsageError(str(error), file=attack.path, field="params") from error
        return saves if self.suite.curve_pictures else (self.final(attack, task),)

    def final(self, attack: Entry, task: Task) -> int:
        """Return the step that is scored on all prompts: the number of steps in the attack's preset."""
        return int(self.catalog.params(attack, task.base)["steps"])  # type: ignore[arg-type]

    def prompts(self, prompts: Sequence[Prompt], token: str, task: Task) -> list[str]:
        """Return as many prompts as the suite asks for, with ``{token}`` filled in."""
        if len(prompts) < self.suite.prompts:
            path = self.catalog.paths["task", task.id]
            raise UsageError(f"holds {len(prompts)} prompts, the suite needs {self.suite.prompts}", file=path)
        return [prompt.replace("{token}", token) for prompt in prompts[: self.suite.prompts]]

    def words(self, task: Task) -> Wording:
        """Return the caption template of the attacker's pictures; generated pictures have their prompt as caption."""
        drawn = self.suite.published == "generated"
        return Wording(caption="{content}", token=task.attacker.token) if drawn else task.attacker

    def begins(self, attack: Entry, model: Model) -> tuple[Model, Model]:
        """Return the model on which an attack trains and the one that then draws, given the released one."""
        if attack.public_base == "merge-back":
            return {}, model
        if attack.public_base == "restore":
            model = self.specs.restored(model, "attention")
        return model, model

    def attackers_pictures(self, attack: Entry, cell: Cell, task: Task) -> int:
        """Return the number of the attacker's pictures: that of the attack, else the task's.

        Raises
        ------
        UsageError
            If an attack with a number of its own meets a share of clean pictures, or a data set that holds fewer.
        """
        own, count = attack.pictures, task.pictures.published
        if own is None:
            return count
        if cell.setting.clean:
            why = f"says how many of {count} pictures are clean, and {attack.id!r} has {own}:"
            raise UsageError(why, file=self.file, field="clean", value=cell.setting.clean)
        if task.dataset is not None and own > count:
            path = self.catalog.paths["task", task.id]
            why = f"are fewer than the {own} that {attack.id!r} trains on:"
            raise UsageError(why, file=path, field="pictures.published", value=count)
        return own

    def published(self, task: Task, count: int) -> str:
        """Add `count` pictures of the attacker: the task's, or such as the base generates of a concept it knows."""
        if self.suite.published == "real":
            return self.specs.pictures(task, task.concept.name, "published", count)
        if task.family != "relearn":
            path = self.catalog.paths["task", task.id]
            raise UsageError("cannot be drawn by a base that never saw it", file=path, value=task.concept.name)
        # IMMA's protocol: one prompt, generated by the base before the concept was erased.
        words, noun = task.attacker, task.concept.noun
        prompt = fill(words.caption, token=words.token, noun=noun, content=concept_content(words.token, noun))
        return self.specs.generate(task, [prompt], {}, ["published", task.id], per_prompt=count)

    def start(self, task: Task, seed: int) -> Model:
        """Add the start model of attacks: the base, or the base changed by the defense in ``start_from``."""
        if task.start_from is None:
            return {}
        path = self.catalog.paths["task", task.id]
        entry = self.catalog.defense(task.start_from, file=path, field="start_from")
        return self.released(entry, task, seed, {})

    def owner(self, task: Task) -> dict[str, str]:
        """Add the pictures that a defense may use: the owner's of the concept, and unrelated public ones."""
        public = self.catalog.models.bases[task.base].public
        return {
            "owner": self.specs.pictures(task, task.concept.name, "owner", task.pictures.owner),
            "public": self.specs.pictures(task, PUBLIC, "owner", PUBLIC_PICTURES, public),
        }

    def protect(
        self, entry: Defense, task: Task, seed: int, start: Model, published: str
    ) -> tuple[dict[str, str], Model, str]:
        """Add a defense's hooks; return them, the released model and the released pictures."""
        # An erasure replaces the task's own erasure in ``start_from``, so it begins from the base.
        model = self.released(entry, task, seed, {} if entry.erases else start)
        protect = {"protect_model": model["weights"]} if "protect_model" in entry.hooks else {}
        for layer in entry.layers:
            if layer.artefact is not None:
                protect["protect_images"] = self.specs.cloaked(layer, task, published)
            elif "protect_images" in layer.hooks:
                # Simulated attacks train as the real ones do, with class pictures if the attack uses them.
                attacks = [self.catalog.attack(name, file=layer.path, field="against") for name in layer.against]
                prior = {
                    name: made for attack in attacks for name, made in self.specs.prior(attack, task, start).items()
                }
                if layer.needs_prior:
                    prior |= self.specs.class_pictures(layer, task, start)
                inputs = {**self.owner(task), "published": published, **start, **prior}
                protect["protect_images"] = self.specs.hook(layer, "protect_images", task, seed, inputs)
            elif layer.freezes:
                protect["freeze"] = self.specs.hook(layer, "freeze", task, seed, {**self.owner(task), **model})
        return protect, model, protect.get("protect_images", published)

    def released(self, entry: Defense, task: Task, seed: int, model: Model) -> Model:
        """Add the hooks that change the model, one layer after another; return the released model."""
        for layer in entry.layers:
            if "protect_model" in layer.hooks:
                prior = self.specs.class_pictures(layer, task, model) if layer.needs_prior else {}
                inputs = {**self.owner(task), **model, **prior}
                model = {"weights": self.specs.hook(layer, "protect_model", task, seed, inputs)}
        return model

    def utility(self, task: Task, attack: Entry, start: Model, released: Model, mask: Mask, seed: int) -> UtilityGraph:
        """Add the stages that measure benign use of the released model and of `start`, which it is held against.

        A mask binds honest users as well as attackers.
        """
        unrelated = self.catalog.models.bases[task.base].unrelated_prompts
        benign = task.benign
        prompts = self.prompts(benign.prompts, benign.token, task)
        last = self.final(attack, task)
        reference = self.specs.pictures(task, benign.concept, "reference", task.pictures.reference, benign.source)
        compared = {"reference": reference}
        noise: list[str | int] = [f"benign/{benign.concept}", seed]
        answers = self.grading.judged(task, ["caption_accuracy", *self.grading.further([])], unrelated)
        likeness = self.grading.judged(
            task, [self.grading.target(task, benign.family, benign.source)], concept=benign.concept
        )

        def drawn(model: Model, *again: str, numerics: Values | None = None) -> str:
            noise: list[str | int] = ["unrelated", seed, *again]
            return self.specs.generate(
                task, unrelated, model, noise, per_prompt=self.suite.unrelated_pictures, numerics=numerics
            )

        def personalised(model: Model, mask: Mask) -> str:
            adapter = self.honestly(task, attack, model, mask, seed)
            return self.specs.generate(task, prompts, model, noise, adapter, last)

        def alike(made: str) -> str:
            return self.specs.add("score", likeness, {"generated": made, **compared})

        before, after = (drawn(released), drawn(start)), (personalised(released, mask), personalised(start, {}))
        pairs = {"before": before, "after_benign": after}
        if self.suite.integrity and before[0] != before[1]:
            # What numbers of another kernel change, and what another noise does: the start model against itself.
            other: Values = {"attention": "eager" if self.specs.profile.attention == "sdpa" else "sdpa"}
            pairs |= {
                "floor": (drawn(start, numerics=other), before[1]),
                "ceiling": (drawn(start, "again"), before[1]),
            }
        return UtilityGraph(
            g=self.specs.add("score", answers, {"generated": before[0]}),
            g_base=self.specs.add("score", answers, {"generated": before[1]}),
            s=alike(after[0]),
            floor=alike(self.specs.generate(task, prompts, start, noise)),
            ceiling=alike(after[1]),
            metric=self.grading.named_metric(task, benign.family, benign.source),
            integrity={
                when: self.specs.add(
                    "score", self.grading.judged(task, self.suite.integrity), {"generated": own, "reference": of}
                )
                for when, (own, of) in pairs.items()
                if self.suite.integrity and own != of
            },
        )

    def honestly(self, task: Task, attack: Entry, model: Model, mask: Mask, seed: int) -> str:
        """Add the fine-tuning of an honest user, on the task's benign concept; return its stage."""
        benign = task.benign
        images = self.specs.pictures(task, benign.concept, "published", task.pictures.published, benign.source)
        words = Wording(caption=benign.caption, token=benign.token)
        own_seed = stream(seed, "adapt", "benign", benign.concept)
        return self.specs.adapt(
            attack, task, words, benign.noun, images, model, own_seed, (self.final(attack, task),), mask
        )

    def erasure(
        self, task: Task, released: Model, mask: Mask, seed: int, prompts: Sequence[str], compared: Mapping[str, str]
    ) -> dict[str, str]:
        """Add what is drawn of a concept to relearn before any attack; nothing in the other families.

        By the base, by the released model, and by the released model that an honest user has fine-tuned on something
        else: a safety that benign use undoes was not there (SPQR, 2511.19558; ResAlign, 2507.16302). Real pictures of
        that something stand beside them, for where they look like the concept themselves nothing came back.
        """
        if task.family != "relearn":
            return {}
        noise: list[str | int] = [task.id, seed]
        models: dict[str, Model] = {"base": {}, "released": released}
        drawn = {whose: self.specs.generate(task, prompts, model, noise) for whose, model in models.items()}
        adapter, last = self.honestly(task, self.honest, released, mask, seed), self.final(self.honest, task)
        drawn["after_benign"] = self.specs.generate(task, prompts, released, noise, adapter, last)
        count, source = task.pictures.reference, task.benign.source
        taught = self.specs.pictures(task, task.benign.concept, "reference", count, source)
        scored = {whose: self.grading.score(task, made, compared) for whose, made in drawn.items()}
        return {**scored, "benign": self.grading.likeness(task, taught, compared)}

    def facts(self, task: Task, entry: Defense, chain: Sequence[Entry], params: Values) -> Facts:
        """Return the facts about the cell that its record states; ``task`` is on the base that is attacked."""
        return Facts(
            suite=self.suite.id,
            suite_version=self.suite.version,
            track=self.suite.track,
            task_version=task.version,
            family=task.family,
            concept=task.concept.name,
            concept_kind=task.concept.kind,
            base=task.base,
            base_revision=self.catalog.base_revision(task.base),
            defense_title=entry.title,
            defense_kind=entry.kind_of,
            defense_version=entry.version,
            hooks=entry.hooks,
            budget=entry.budget,
            perceptual_budget=entry.perceptual_budget,
            chain=tuple((attack.id, attack.version) for attack in chain),
            profile_version=self.specs.profile.version,
            memory_gib=self.specs.profile.memory_gib,
            captions=len(self.catalog.models.bases[task.base].unrelated_prompts),
            contents=len(set(self.grading.contents(task).values())) if "prompt_accuracy" in self.suite.metrics else 0,
            params=params,
            entry_files=entry.files,
            metric=self.grading.named_metric(task),
            purifiers={purifier.id: self.catalog.params(purifier, task.base) for purifier in chain[:-1]},
            pictures=None if self.catalog.outlined else pictures_digest(task),
        )

    def _once(self, key: tuple[object, ...], build: Callable[[], Built]) -> Built:
        """Build what cells share at the first of them; the key says all that it depends on within a suite."""
        if key not in self._shared:
            self._shared[key] = build()
        found: Built = self._shared[key]
        return found

    def closure(self, roots: Iterable[str]) -> tuple[str, ...]:
        """Return ``roots`` and all stages that they depend on, inputs first."""
        seen: dict[str, None] = {}

        def visit(digest: str) -> None:
            if digest not in seen:
                for needed in self.specs.stages[digest].inputs.values():
                    visit(needed)
                seen[digest] = None

        for root in roots:
            visit(root)
        return tuple(seen)


def _roots(graph: CellGraph) -> dict[str, list[str]]:
    use = graph.utility
    # A mask is made even where the attack trains nothing that it freezes.
    mask = [graph.protect["freeze"]] if "freeze" in graph.protect else []
    return {
        # No defense is involved: a failure here makes the rows of all defenses incomplete.
        "baseline": [*graph.ceiling.values(), graph.floor, graph.anchor, use.g_base, use.floor, use.ceiling],
        "attack": [*graph.curve.values(), graph.defended_floor, *mask],
        "fidelity": [] if graph.fidelity is None else [graph.fidelity],
        "utility": [use.g, use.g_base, use.s, use.floor, use.ceiling],
        # Side measures enter no score: a failure here affects nothing else.
        "beside": [
            *([] if graph.unseen is None else [graph.unseen]),
            *use.integrity.values(),
            *graph.erasure.values(),
            *graph.purified.values(),
            *graph.beside.values(),
        ],
    }
