"""Writes a cell's adapted model as plain diffusers and peft files, for use without this package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.errors import UsageError

if TYPE_CHECKING:
    from immunebench.entry import Catalog
    from immunebench.plan import CellGraph, Plan, StageSpec
    from immunebench.store import Store

ADAPTER = "pytorch_lora_weights.safetensors"
_UNET = "diffusion_pytorch_model.safetensors"
_HOW = """# {key}

The model that a measurement of ImmuneBench ended with, as plain diffusers and peft files: base `{base}`
(revision {revision}), defense `{defense}`, after the attack `{chain}` on the task `{task}`, seed {seed}.

- `model/`: the released model, {released}
- `{adapter}`: what the attacker trained, saved at step {step}

```python
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("model", safety_checker=None)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
pipe.load_lora_weights(".", weight_name="{adapter}")
pictures = pipe(
    "{prompt}",
    num_inference_steps={steps}, guidance_scale={guidance}, height={resolution}, width={resolution},
    generator=torch.Generator().manual_seed(0),
).images
```

Without the second-last statement the pictures are those of the released model before the attack.
"""


def export(key: str, plan: Plan, catalog: Catalog, store: Store, folder: Path) -> Path:
    """Write the model of a measured cell.

    Parameters
    ----------
    key
        ``task/defense/chain/profile/seed``, a cell of the plan.
    plan, catalog, store
        Where the cell, its base and its artifacts are found.
    folder
        New or empty folder.

    Returns
    -------
    The folder: ``model/`` (diffusers pipeline), the adapter, ``provenance.json`` and ``README.md``.

    Raises
    ------
    UsageError
        The cell is not measured, its attack leaves no adapter, or the folder is not empty or not writable.
    """
    graph = plan.roots[key]
    drawn = plan.stages[graph.pictures[max(graph.pictures)]]
    if "adapter" not in drawn.inputs:
        raise UsageError("its attack leaves no adapter:", field="CELL", value=key)
    adapter = _artifact(store, drawn.inputs["adapter"], key)
    weights = _artifact(store, drawn.inputs["weights"], key) if "weights" in drawn.inputs else None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("must be a new or empty folder:", field="DIR", value=str(folder))
    saved = adapter / f"adapter-{max(graph.pictures):05d}.safetensors"
    if not saved.is_file():
        raise UsageError("its adapter is in no format of diffusers:", field="CELL", value=key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(catalog.base_folder(graph.facts.base), folder / "model")
        if weights is not None:
            _overlay(folder / "model" / "unet", weights / "weights.safetensors")
        shutil.copyfile(saved, folder / ADAPTER)
        (folder / "README.md").write_text(_readme(graph, drawn, weights is not None), encoding="utf-8")
        origin = {"cell": key, "defense": drawn.inputs.get("weights"), "adapter": drawn.inputs["adapter"]}
        (folder / "provenance.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot be written ({error.strerror}):", field="DIR", value=str(folder)) from error
    return folder


def _artifact(store: Store, digest: str, key: str) -> Path:
    found = store.get(digest)
    if found is None:
        raise UsageError("is not measured in this store; run its suite first:", field="CELL", value=key)
    return found


def _overlay(unet: Path, weights: Path) -> None:
    from safetensors.numpy import load_file, save_file

    # Rewritten in fp32 even where the base is in half precision, so that the released tensors keep every bit
    # that the attacker began from.
    variants = sorted(unet.glob("diffusion_pytorch_model*.safetensors"))
    tensors = load_file(variants[0])
    released = load_file(weights)
    unknown = released.keys() - tensors.keys()
    if unknown:
        raise UsageError("released tensor is none of the base's:", value=sorted(unknown)[0], choices=tensors)
    merged = {name: released.get(name, tensor).astype("float32") for name, tensor in tensors.items()}
    for variant in variants:
        variant.unlink()
    save_file(merged, unet / _UNET, metadata={"format": "pt"})


def _readme(graph: CellGraph, drawn: StageSpec, changed: bool) -> str:
    numerics, prompts = drawn.key["numerics"], drawn.key["prompts"]
    assert isinstance(numerics, dict) and isinstance(prompts, list)
    cell = graph.cell
    return _HOW.format(
        key=cell.key,
        base=graph.facts.base,
        revision=graph.facts.base_revision,
        defense=cell.defense,
        chain=cell.chain,
        task=cell.task,
        seed=cell.seed,
        released="the base with the UNet tensors that the defense changed" if changed else "the base itself",
        adapter=ADAPTER,
        step=max(graph.pictures),
        prompt=prompts[0],
        steps=numerics["sampling_steps"],
        guidance=numerics["guidance"],
        resolution=numerics["resolution"],
    )
