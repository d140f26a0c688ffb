"""Export of a cell's attacked model as plain diffusers and peft files, for use without this package."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from immunebench.authoring.kohya import kohya_tensors
from immunebench.bases import base_folder
from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from immunebench.catalog.catalog import Catalog
    from immunebench.store.artifacts import Store
    from immunebench.store.graph import CellGraph, Plan, StageSpec

    Tensors = Mapping[str, NDArray[Any]]

Format = Literal["diffusers", "kohya"]
LORA = "pytorch_lora_weights.safetensors"
#: Name of the adapter under kohya's key names; tools list adapters by file name.
KOHYA = "kohya_lora.safetensors"
FORMATS: tuple[Format, ...] = ("diffusers", "kohya")
WORDS = "learned_embeds.safetensors"
#: The stem of each component's weights file in diffusers' folder format.
_NETWORKS = {**base_folder.WEIGHTS, **base_folder.SECOND_WEIGHTS}
_HOW = """# {key}

A model measured by ImmuneBench, as plain diffusers and peft files: base `{base}` (revision {revision}), defense
`{defense}`, after the attack `{chain}` on the task `{task}`, seed {seed}.

- {model}
{files}
```python
import torch
from diffusers import DDIMScheduler, {pipeline}

pipe = {pipeline}.from_pretrained("model", {option})
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
{load}pictures = pipe(
    {prompt},
    num_inference_steps={steps}, guidance_scale={guidance}, height={resolution}, width={resolution},
    generator=torch.Generator().manual_seed(0),
).images
```
{note}"""


@dataclass(frozen=True)
class _Written:
    """The parts of the README that depend on the adapter's format."""

    model: str
    files: str = ""
    load: str = ""
    note: str = ""
    token: str | None = None


#: The diffusers pipeline of a model, and the option that disables its post-processing of pictures.
_ONE = ("StableDiffusionPipeline", "safety_checker=None")
_TWO = ("StableDiffusionXLPipeline", "add_watermarker=False")


def export(key: str, plan: Plan, catalog: Catalog, store: Store, folder: Path, format: Format = "diffusers") -> Path:
    """Export the model of a measured cell.

    Parameters
    ----------
    key
        ``task/defense/chain/profile/seed``, a cell of the plan.
    plan, catalog, store
        They provide the cell, its base and its artifacts.
    folder
        New or empty folder.
    format
        Key names of a low-rank adapter: those of ``diffusers``, or of ``kohya`` (sd-scripts), which ComfyUI,
        AUTOMATIC1111 and most other tools read, and diffusers, too.

    Returns
    -------
    The folder: ``model/`` (diffusers pipeline), ``provenance.json`` and ``README.md``. Low-rank adapters and learned
    token embeddings are files next to the model; fully fine-tuned networks are part of it.

    Raises
    ------
    UsageError
        The cell is not measured, its attack leaves no adapter or none of that format, or the folder is not empty or not
        writable.
    """
    graph = plan.roots[key]
    step = graph.final
    drawn = plan.stages[graph.pictures[step]]
    if "adapter" not in drawn.inputs:
        raise UsageError("its attack leaves no adapter:", field="CELL", value=key)
    adapter = _artifact(store, drawn.inputs["adapter"], key)
    weights = _artifact(store, drawn.inputs["weights"], key) if "weights" in drawn.inputs else None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("must be a new or empty folder:", field="DIR", value=str(folder))
    described = _description(adapter)
    saved = adapter / f"adapter-{step:05d}.safetensors"
    if described.get("format") not in _WRITERS or not saved.is_file():
        raise UsageError("its adapter is not in a diffusers format:", field="CELL", value=key)
    if format == "kohya" and described["format"] != "diffusers-lora":
        why = "is a format of low-rank adapters, which this cell's attack does not train:"
        raise UsageError(why, field="--format", value=format)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _copy_model(catalog.base_folder(graph.facts.base), folder / "model")
        _without_variants(folder / "model")
        if weights is not None:
            _overlay(folder / "model", "unet", _load(weights / "weights.safetensors"))
        released = "the base with the UNet tensors that the defense changed" if weights else "the base itself"
        writer = _kohya if format == "kohya" else _WRITERS[str(described["format"])]
        written = writer(folder, saved, step, released, described)
        reads = _TWO if _two(folder) else _ONE
        (folder / "README.md").write_text(_readme(graph, drawn, written, reads), encoding="utf-8")
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


def _description(adapter: Path) -> dict[str, Any]:
    file = adapter / "adapter.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found


def _low_rank(folder: Path, saved: Path, step: int, released: str, described: Mapping[str, Any]) -> _Written:
    shutil.copyfile(saved, folder / LORA)
    return _Written(
        model=f"`model/`: the released model, {released}",
        files=f"- `{LORA}`: what the attacker trained, saved at step {step}\n",
        load=f'pipe.load_lora_weights(".", weight_name="{LORA}")\n',
        note="\nWithout `load_lora_weights` the pictures are those of the released model before the attack.\n",
    )


def _kohya(folder: Path, saved: Path, step: int, released: str, described: Mapping[str, Any]) -> _Written:
    from safetensors.numpy import save_file

    layers = base_folder.settings(folder / "model" / "unet" / "config.json")["layers_per_block"]
    rank, alpha = described["rank"], float(described["alpha"])
    tensors = kohya_tensors(_load(saved), alpha, layers if _two(folder) else None)
    about = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    save_file(tensors, folder / KOHYA, metadata={"format": "pt", **about})
    return _Written(
        model=f"`model/`: the released model, {released}",
        files=f"- `{KOHYA}`: what the attacker trained, saved at step {step}, under the key names of kohya's "
        "sd-scripts, for a tool's folder of LoRA files; its strength there is 1\n",
        load=f'pipe.load_lora_weights(".", weight_name="{KOHYA}")\n',
        note="\nWithout the adapter the pictures are those of the released model before the attack.\n",
    )


def _dense(folder: Path, saved: Path, step: int, released: str, described: Mapping[str, Any]) -> _Written:
    tensors = _load(saved)
    for network in described["networks"]:
        own = {n.removeprefix(f"{network}."): t for n, t in tensors.items() if n.startswith(f"{network}.")}
        _overlay(folder / "model", network, own)
    trained = " and ".join(f"`{network}`" for network in described["networks"])
    return _Written(
        model=f"`model/`: {released}, after the attacker trained the whole of its {trained} for {step} steps",
    )


def _words(folder: Path, saved: Path, step: int, released: str, described: Mapping[str, Any]) -> _Written:
    load = f'pipe.load_textual_inversion("{WORDS}", token="<{described["token"]}>")\n'
    if _two(folder):
        load = _paired_words(folder, saved, described["token"])
    else:
        shutil.copyfile(saved, folder / WORDS)
    token, count = described["token"], described["num_vectors"]
    vectors = "1 vector" if count == 1 else f"{count} vectors"
    return _Written(
        model=f"`model/`: the released model, {released}",
        files=f"- `{WORDS}`: the word that the attacker learned, {vectors} for `<{token}>`, saved at step {step}\n",
        load=load,
        note=f"\nWithout `load_textual_inversion` the released model does not know what `<{token}>` means.\n",
        token=token,
    )


def _paired_words(folder: Path, saved: Path, token: str) -> str:
    """Write a learned word's vectors for both encoders, and return the code that loads them."""
    from safetensors.numpy import save_file
    from transformers import CLIPTokenizer

    from immunebench.model.text import end_of_text

    (rows,) = _load(saved).values()
    width = base_folder.settings(folder / "model" / "text_encoder" / "config.json")["hidden_size"]
    save_file({"clip_l": rows[:, :width].copy(), "clip_g": rows[:, width:].copy()}, folder / WORDS)
    # So that the pooled embedding is read at the end of the text, as here, after the word's tokens are added.
    file = folder / "model" / "text_encoder_2" / "config.json"
    tokenizer = CLIPTokenizer.from_pretrained(folder / "model" / "tokenizer_2", local_files_only=True)
    settings = {**base_folder.settings(file), "eos_token_id": end_of_text(tokenizer)}
    file.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    sides = {"clip_l": "", "clip_g": "_2"}
    lines = (
        f'pipe.load_textual_inversion(words["{name}"], token="<{token}>", text_encoder=pipe.text_encoder{side}, '
        f"tokenizer=pipe.tokenizer{side})\n"
        for name, side in sides.items()
    )
    return f'from safetensors.torch import load_file\n\nwords = load_file("{WORDS}")\n{"".join(lines)}'


def _two(folder: Path) -> bool:
    return "text_encoder_2" in base_folder.parts(folder / "model")


_WRITERS: Mapping[str, Callable[[Path, Path, int, str, Mapping[str, Any]], _Written]] = {
    "diffusers-lora": _low_rank,
    "diffusers-dense": _dense,
    "diffusers-textual-inversion": _words,
}


def _load(file: Path) -> Tensors:
    from safetensors.numpy import load_file

    found: Tensors = load_file(file)
    return found


def _copy_model(base: Path, model: Path) -> None:
    """Copy a base's pipeline and its licence, without the pictures and records that lie beside them."""
    model.mkdir()
    for path in sorted(base.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            shutil.copytree(path, model / path.name)
        elif path.is_file() and (path.name == "model_index.json" or path.name.upper().startswith("LICEN")):
            shutil.copyfile(path, model / path.name)


def _without_variants(model: Path) -> None:
    """Rename half-precision weights to the names that diffusers loads by default."""
    for part, stem in base_folder.parts(model).items():
        base_folder.weights_file(model, part).replace(model / part / f"{stem}.safetensors")


def _overlay(model: Path, network: str, released: Tensors) -> None:
    from safetensors.numpy import save_file

    # Written in fp32 even if the base is in half precision, so that the released tensors are exactly those from which
    # the attacker started.
    stem, folder = _NETWORKS[network], model / network
    variants = sorted(folder.glob(f"{stem}*.safetensors"))
    tensors = _load(base_folder.weights_file(model, network))
    unknown = released.keys() - tensors.keys()
    if unknown:
        raise UsageError("the base has no tensor with the name", value=sorted(unknown)[0], choices=tensors)
    merged = {name: _single(released.get(name, tensor)) for name, tensor in tensors.items()}
    for variant in variants:
        variant.unlink()
    save_file(merged, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def _single(tensor: NDArray[Any]) -> NDArray[Any]:
    # Integers, such as the position ids of a text encoder, are not converted.
    return tensor.astype("float32") if tensor.dtype.kind == "f" else tensor


def _readme(graph: CellGraph, drawn: StageSpec, written: _Written, reads: tuple[str, str]) -> str:
    numerics, prompts = drawn.key["numerics"], drawn.key["prompts"]
    assert isinstance(numerics, dict) and isinstance(prompts, list)
    cell, prompt = graph.cell, str(prompts[0])
    if written.token is not None:
        # In diffusers the learned token has angle brackets.
        prompt = re.sub(rf"\b{re.escape(written.token)}\b", f"<{written.token}>", prompt)
    return _HOW.format(
        key=cell.key,
        base=graph.facts.base,
        revision=graph.facts.base_revision,
        defense=cell.defense,
        chain=cell.chain,
        task=cell.task,
        seed=cell.seed,
        model=written.model,
        files=written.files,
        pipeline=reads[0],
        option=reads[1],
        load=written.load,
        note=written.note,
        prompt=json.dumps(prompt),
        steps=numerics["sampling_steps"],
        guidance=numerics["guidance"],
        resolution=numerics["resolution"],
    )
