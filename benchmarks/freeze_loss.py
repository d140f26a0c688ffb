"""What a mask leaves of a short fine-tuning, by the loss on unseen pictures: minutes where pictures take an hour.

    python benchmarks/freeze_loss.py --task object-umbrella --rho 0.5 --json docs/freezing/loss.json

For each mask the attack trains on the target's published pictures, and as an honest user on those of the task's benign
concept. The denoising loss is measured on the reference pictures of each, at noise and time steps that are the same for
all, before and after; printed is the part of the fall without a mask that is left with it. A mask is good where the
target's part is small and the innocent concept's is large. Masks are those of the store, as a suite would make them.
It fits attacks whose loss falls from the first steps on, LoRA's does; DreamBooth's is above its start after 32 steps at
the preset's rate, so that nothing can be said of it by this measure.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibrate import vary  # type: ignore[import-not-found]
from freeze_ratio import CODE, MASKS  # type: ignore[import-not-found]

from immunebench import api, recaption, training
from immunebench.catalog.loading import default_catalog
from immunebench.core.types import Numerics, Params, Pictures, StageError
from immunebench.execution import masks, scheduler
from immunebench.execution.inputs import loader
from immunebench.methods.context import Context
from immunebench.model.batch import Batch
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.runtime import prepare_process
from immunebench.store.artifacts import Store
from immunebench.store.graph import StageSpec

DRAWS = 4


def mask_folder(store: Store, task: str, defense: str, rho: float, workers: int) -> tuple[Path, dict[str, Any]]:
    """Make the mask of a defense, or find it in the store; return its folder and its ratios."""
    plan = vary(
        api.plan_suite("mini-dev", task=[task], defense=[defense], attack=["lora"]),
        CODE.get(defense, defense), {"rho": rho},
    )  # fmt: skip
    (graph,) = (graph for key, graph in plan.roots.items() if f"/{defense}/" in key)
    wanted: dict[str, StageSpec] = {}
    todo = [graph.protect["freeze"]]
    while todo:
        digest = todo.pop()
        wanted[digest] = plan.stages[digest]
        todo.extend(plan.stages[digest].inputs.values())
    scheduler.execute(wanted, store, api.make_executor(store, workers, processes=True))
    folder, made = store.get(graph.protect["freeze"]), store.manifest(graph.protect["freeze"])
    if folder is None or made is None:
        raise SystemExit(f"{defense}: no mask was made: {store.failure(graph.protect['freeze'])}")
    meta = made["meta"]
    ratios = {f"frozen_{what}": meta[f"frozen_{what}"] / meta[what] for what in ("tensors", "parameters")}
    return folder, ratios | {"protect_seconds": made["cost"]["seconds"]}


def pictures_of(source: str, concept: str, split: str, count: int, words: Mapping[str, str]) -> Pictures:
    """A split of a concept, captioned in the words of its user."""
    name = default_catalog().models.sources[source].loader
    assert name is not None
    pixels, captions = loader(name)(concept, split, count)
    return recaption(Pictures(pixels, tuple(captions)), words["caption"], token=words["token"], noun=words["noun"])


def held_out(model: LatentDiffusion, pictures: Pictures) -> list[Batch]:
    """Unseen pictures with noise and time steps that every mask meets alike."""
    data, generator = model.prepare(pictures), torch.Generator().manual_seed(0)
    rows = np.array_split(np.arange(len(data)), -(-len(data) // 8))
    return [model.draw(data, part, generator) for _ in range(DRAWS) for part in rows]


@torch.no_grad()
def loss_of(model: LatentDiffusion, batches: list[Batch]) -> float:
    """Mean denoising loss of all pictures."""
    return float(torch.cat([model.losses(batch) for batch in batches]).mean())


def fine_tuned(
    model: LatentDiffusion, attack: str, pictures: Pictures, batches: list[Batch], steps: int, out: Path
) -> tuple[float, float]:
    """Train as the attack's preset does, without class pictures; return the loss before and after."""
    catalog = default_catalog()
    entry = catalog.attack(attack)
    params = Params(catalog.params(entry, "mini"))
    module = importlib.import_module(entry.function("adapt").__module__)
    ctx = Context(model.numerics, 3, out, lambda what, done, total: None)
    before = loss_of(model, batches)
    data, phi = model.prepare(pictures), module.attach(model, params, ctx)
    optimiser = ctx.adamw(phi.parameters, lr=params.lr, weight_decay=params.weight_decay)
    for _, batch in ctx.steps(steps, model, data, batch=params.batch):
        with training(phi.parameters):
            optimiser.step(model.loss(batch), clip=1.0)
    return before, loss_of(model, batches)


def main() -> None:
    """Print one row for each mask and attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="object-umbrella", help="dev task")
    parser.add_argument("--rho", type=float, default=0.5)
    parser.add_argument("--defense", action="append", choices=[*MASKS, "freeze-as-guard-code"])
    parser.add_argument("--attack", action="append", help="lora by default")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--pictures", type=int, default=12, help="unseen pictures of each concept")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    store, catalog = api.open_store(options.store), default_catalog()
    task = catalog.task(options.task)
    numerics = Numerics.of(catalog.profile("cpu").numerics(sampling=False))
    prepare_process(numerics)
    model = LatentDiffusion.load(catalog.base_folder(task.base), numerics)
    attacker = {"caption": task.attacker.caption, "token": task.attacker.token, "noun": task.concept.noun}
    benign = {"caption": task.benign.caption, "token": task.benign.token, "noun": task.benign.noun}
    concepts = {
        "target": (task.concept.source, task.concept.name, attacker),
        "innocent": (task.benign.source or task.concept.source, task.benign.concept, benign),
    }
    own = {
        who: (pictures_of(source, name, "published", task.pictures.published, words),
              held_out(model, pictures_of(source, name, "reference", options.pictures, words)))
        for who, (source, name, words) in concepts.items()
    }  # fmt: skip
    made: dict[str, tuple[Path | None, dict[str, Any]]] = {"none": (None, {})}
    made |= {
        name: mask_folder(store, options.task, name, options.rho, options.workers) for name in options.defense or MASKS
    }
    rows: list[dict[str, Any]] = []
    falls: dict[tuple[str, str], float] = {}
    for attack in options.attack or ["lora"]:
        for name, (folder, ratios) in made.items():
            row: dict[str, Any] = {"mask": name, "attack": attack, "rho": options.rho, **ratios}
            for who, (published, batches) in own.items():
                model.restore()
                if folder is not None:
                    masks.enforce(model, folder)
                try:
                    before, after = fine_tuned(model, attack, published, batches, options.steps, store.root)
                except StageError as error:  # The mask leaves the attack nothing to train.
                    before = after = loss_of(model, batches)
                    row["refused"] = error.message
                fall = before - after
                falls.setdefault((attack, who), fall)
                row[who] = {"before": before, "after": after, "left": fall / falls[attack, who]}
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
