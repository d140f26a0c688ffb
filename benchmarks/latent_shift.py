"""What a perturbation does inside the base, and what LoRA then learns from it: the reasons behind P, without a judge.

    python benchmarks/latent_shift.py mini-budget --defense mist-16 --defense noise-16 --store STORE --json out.json

Reads the pictures and the adapters of a run from its store. For each task and defense, means over the pictures:

- shift: how far the perturbed picture's latent lies from the clean one's, as a part of the distance between the latents
  of two different pictures of the concept;
- kept: what the autoencoder gives back of the perturbation, root mean square of D(E(x')) - D(E(x)) over x' - x;
- loss: the base's denoising loss on perturbed latents over that on clean ones, same noise and time steps;
- learned: the part of the fall in the denoising loss on unseen clean pictures of the concept that LoRA still brings
  when it was trained on the perturbed ones: 1 as without a defense, 0 none, below 0 worse than the base;
- drawn: denoising loss, without a caption, of the pictures that the attacked model draws over that of those drawn
  without a defense, by a base that no method here was computed on (`--judge`): how far they lie from what a base takes
  for a picture, whatever they show. Its interval of 95 % draws the prompts and noises again, pair by pair; another
  seed of the adaptation is not in it, which is what the control `none-replicate` shows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from immunebench import api
from immunebench.catalog.loading import default_catalog
from immunebench.core.machine import environment
from immunebench.core.types import Numerics, Pictures
from immunebench.core.wording import recaption
from immunebench.methods.adapters import install
from immunebench.model.batch import Batch
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.runtime import prepare_process
from immunebench.store.artifacts import Store
from immunebench.store.graph import CellGraph, Plan

DRAWS, RESAMPLES, SEED = 8, 10_000, 0


def losses(model: LatentDiffusion, z: Tensor, captions: tuple[str, ...]) -> Tensor:
    """Denoising loss of each picture, mean over `DRAWS` noises and time steps, the same ones at each call."""
    generator = torch.Generator().manual_seed(SEED)
    steps, condition, found = model.noise_scheduler.config.num_train_timesteps, model.condition(captions), []
    for draw in range(DRAWS):
        # One time step of each eighth of the schedule: the loss differs by a hundred between its ends.
        t = torch.randint(steps // DRAWS, (len(z),), generator=generator) + draw * (steps // DRAWS)
        noise = torch.randn(z.shape, generator=generator)
        with torch.no_grad():
            found.append(model.losses(Batch(z, condition, noise, t, captions)))
    return torch.stack(found).mean(0)


def loss(model: LatentDiffusion, z: Tensor, captions: tuple[str, ...]) -> float:
    """Mean of `losses` over the pictures."""
    return float(losses(model, z, captions).mean())


def odd(judge: LatentDiffusion, drawn: Pictures) -> Tensor:
    """Denoising loss of each picture as it is, without a caption."""
    return losses(judge, judge.encode(drawn.pixels), ("",) * len(drawn.pixels))


def ratio(one: Tensor, other: Tensor) -> tuple[float, list[float]]:
    """Ratio of two means over the same pictures, with its 95 % interval."""
    chosen = torch.randint(len(one), (RESAMPLES, len(one)), generator=torch.Generator().manual_seed(SEED))
    low, high = np.quantile((one[chosen].mean(1) / other[chosen].mean(1)).numpy(), (0.025, 0.975))
    return float(one.mean() / other.mean()), [round(float(low), 3), round(float(high), 3)]


def rms(x: Tensor) -> float:
    """Root mean square of all values."""
    return float(x.square().mean().sqrt())


def pictures(store: Store, digest: str) -> Pictures:
    """Read a stage's pictures."""
    folder = store.path(digest)
    if folder is None:
        raise SystemExit(f"no pictures of stage {digest[:12]} in the store: run the suite first")
    return Pictures.load(folder)


def loss_after(
    model: LatentDiffusion, plan: Plan, graph: CellGraph, store: Store, z: Tensor, captions: tuple[str, ...]
) -> float:
    """Denoising loss on unseen pictures after the attack's last step."""
    spec = plan.stages[graph.pictures[graph.final]]
    adapter = store.path(spec.inputs["adapter"])
    if adapter is None:
        raise SystemExit(f"no adapter of {graph.cell.key} in the store: run the suite first")
    model.restore()
    install(model, adapter, graph.final)
    value = loss(model, z, captions)
    model.restore()
    return value


def main() -> None:
    """Measure, print one row each and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite")
    parser.add_argument("--defense", action="append", required=True)
    parser.add_argument("--task", action="append")
    parser.add_argument("--attack", default="lora")
    parser.add_argument("--judge", default="mini-b", help="base that judges what was drawn (default: mini-b)")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    catalog, store = default_catalog(), api.open_store(options.store)
    plan = api.plan_suite(
        options.suite, task=options.task, defense=["none", *options.defense], attack=options.attack, seed=0
    )
    names, profiles = {catalog.task(cell.task).base for cell in plan.cells}, {cell.profile for cell in plan.cells}
    if len(names) > 1 or len(profiles) > 1:
        parser.error(f"{options.suite}: more than one base or profile; choose tasks of one")
    numerics = Numerics.of(catalog.profile(profiles.pop()).numerics(sampling=True))
    prepare_process(numerics)
    model = LatentDiffusion.load(catalog.base_folder(names.pop()), numerics)
    judge = LatentDiffusion.load(catalog.base_folder(options.judge), numerics)
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(cell.task for cell in plan.cells):
        task = catalog.task(name)
        graphs = {cell.defense: plan.roots[cell.key] for cell in plan.cells if cell.task == name and cell.setting.usual}
        undefended = graphs.pop("none")
        as_said = {"token": task.attacker.token, "noun": task.concept.noun}
        clean = recaption(pictures(store, undefended.given[-1]), task.attacker.caption, **as_said)
        z = model.encode(clean.pixels)
        apart = float(torch.pdist(z.flatten(1)).mean())
        # What nobody trained on: the reference pictures of the concept, under the attacker's caption.
        unseen = recaption(pictures(store, undefended.reference), task.attacker.caption, **as_said)
        z_unseen, words = model.encode(unseen.pixels), unseen.captions
        base = loss(model, z_unseen, words)
        best = loss_after(model, plan, undefended, store, z_unseen, words)
        seen, clean_back = loss(model, z, clean.captions), model.decode(z).astype(np.float32)
        drawn = odd(judge, pictures(store, undefended.pictures[max(undefended.pictures)]))
        for defense, graph in graphs.items():
            given = pictures(store, graph.given[-1])
            z_given = model.encode(given.pixels)
            back = model.decode(z_given).astype(np.float32) - clean_back
            change = given.pixels.astype(np.float32) - clean.pixels
            # A control may leave the pictures as they are: there is nothing to keep then.
            kept = rms(torch.from_numpy(back)) / rms(torch.from_numpy(change)) if change.any() else None
            drawn_ratio, interval = ratio(odd(judge, pictures(store, graph.pictures[graph.final])), drawn)
            row = {
                "task": name, "defense": defense,
                "shift": float((z_given - z).flatten(1).norm(dim=1).mean()) / apart,
                "kept": kept,
                "loss": loss(model, z_given, clean.captions) / seen,
                "learned": (base - loss_after(model, plan, graph, store, z_unseen, words)) / (base - best),
                "drawn": drawn_ratio, "drawn interval": interval,
            }  # fmt: skip
            rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        made = {
            "suite": options.suite,
            "attack": options.attack,
            "judge": options.judge,
            "rows": rows,
            "environment": environment(),
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
