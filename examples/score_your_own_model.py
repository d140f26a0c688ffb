"""Score a model that was made outside: how much of a task's concept is in what it draws.

    python examples/score_your_own_model.py object-mug my-model/
    python examples/score_your_own_model.py object-mug my-model/ --lora my-lora/ --undefended its-twin/

``my-model/`` is a diffusers folder of the shape of the task's base, ``my-lora/`` a folder or a file that diffusers'
``load_lora_weights`` reads. The pictures to train on come from ``immunebench export published TASK DIR``; caption them
as the task does (``[attacker]`` in its file), or say with ``--token`` which word your model learned.

Printed is s, the likeness that P is made of: 0 is what near misses of the concept score, 1 what real pictures of it
score that nobody trained on. P needs a third model beside the base and your own: the one that the same training gives
without your protection (``--undefended``).

The figures are no record and enter no board. There the benchmark runs the attack itself, measures what honest users
keep (U), and takes the worst of several attacks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging
from numpy.typing import NDArray

from immunebench import Pictures
from immunebench.board.scores.scale import anchored, protection
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import load_catalog
from immunebench.declared.profile import Profile
from immunebench.declared.scoring import target_metric
from immunebench.declared.task import Task
from immunebench.execution.grading import load_judge
from immunebench.execution.stages import read_split
from immunebench.metrics.table import find, score


def draw(folder: Path, prompts: Sequence[str], profile: Profile, lora: Path | None = None) -> Pictures:
    """Draw one picture for each prompt by plain diffusers, with the sampler that the profile names."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora)
    drawn = [
        pipe(
            prompt,
            num_inference_steps=profile.sampling_steps,
            guidance_scale=profile.guidance,
            height=profile.resolution,
            width=profile.resolution,
            # A seed of its own for each picture, the same for every model: what differs is the model.
            generator=torch.Generator().manual_seed(place),
        ).images[0]
        for place, prompt in enumerate(prompts)
    ]
    return Pictures(np.stack([np.asarray(picture) for picture in drawn]), tuple(prompts))


class Scale:
    """Turns pictures into s, by the metric, the judge and the anchors of a task."""

    def __init__(self, task: Task, catalog: Catalog) -> None:
        name = catalog.models.bases[task.base].judge
        spec = catalog.models.judges[name]
        # The embedded world's judge reads traits; in other worlds likeness is a cosine of embeddings.
        reads = spec.reads_traits if task.concept.source == spec.traits_of else ()
        self.metric, self.judge = target_metric(task.family, reads), load_judge(name)
        self.task, self.catalog = task, catalog
        needed = "reference" in find(self.metric).needs
        self.reference = self._real(task.concept.name, "reference", task.pictures.reference) if needed else None
        # The ends of the scale, measured on real pictures.
        self.same = self._raw(self._real(task.concept.name, "extra", task.pictures.extra)).mean()
        self.other = np.mean([self._raw(self._other(name)).mean() for name in task.anchors.others])

    def __call__(self, pictures: Pictures) -> NDArray[np.float64]:
        """Return s of each picture."""
        return np.array([anchored(value, float(self.same), float(self.other)) for value in self._raw(pictures)])

    def _raw(self, pictures: Pictures) -> NDArray[np.float64]:
        (values,) = score([self.metric], self.judge, pictures, self.reference, concept=self.task.concept.name).values()
        return np.array(values)

    def _real(self, concept: str, split: str, count: int, source: str | None = None) -> Pictures:
        key = {"source": source or self.task.concept.source, "concept": concept, "split": split, "count": count}
        return read_split(key, self.catalog)

    def _other(self, concept: str) -> Pictures:
        return self._real(concept, "reference", self.task.pictures.reference, self.task.anchors.source)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Score the base, the model and, where there is one, its undefended twin; return what is printed."""
    parser = argparse.ArgumentParser(description="How much of a task's concept is in what a model draws.")
    parser.add_argument("task", help="A task on the embedded base, such as object-mug.")
    parser.add_argument("model", type=Path, help="Diffusers folder.")
    parser.add_argument("--lora", type=Path, help="LoRA for the model.")
    parser.add_argument("--undefended", type=Path, help="What the same training gives without the protection.")
    parser.add_argument("--undefended-lora", type=Path, help="LoRA for that; without --undefended on the task's base.")
    parser.add_argument("--token", help="The word that the models learned; the task's by default.")
    parser.add_argument("--prompts", type=int, default=24, help="How many of the task's prompts are drawn.")
    asked = parser.parse_args(arguments)

    logging.disable_progress_bar()
    catalog = load_catalog()
    task, profile = catalog.task(asked.task), catalog.profile("cpu")
    if task.concept.source != "mini" or task.start_from is not None:
        parser.error(f"{task.id}: only styles, objects and people of the embedded world are scored here")
    scale, base = Scale(task, catalog), catalog.base_folder(task.base)
    token = asked.token or task.attacker.token
    prompts = [prompt.replace("{token}", token) for prompt in task.evaluation.prompts[: asked.prompts]]

    models = {"base": (base, None), "your model": (asked.model, asked.lora)}
    if asked.undefended or asked.undefended_lora:
        models["undefended"] = (asked.undefended or base, asked.undefended_lora)
    found = {}
    for name, (folder, lora) in models.items():
        s = scale(draw(folder, prompts, profile, lora))
        found[name] = float(s.mean())
        error = s.std(ddof=1) / len(s) ** 0.5 if len(s) > 1 else float("nan")
        print(f"{name:12} s = {s.mean():5.2f} (standard error {error:.2f}, {len(s)} pictures, {scale.metric})")
    if "undefended" in found:
        gain = found["undefended"] - found["base"]
        if gain < 0.25:
            print(f"P is not said: the undefended training gains {gain:.2f} only, so there was little to protect")
        else:
            found["P"] = protection(found["your model"], found["base"], found["undefended"])
            print(f"{'P':12}   = {found['P']:5.2f} (1: nothing was learned, 0: as much as without protection)")
    return found


if __name__ == "__main__":
    main()
