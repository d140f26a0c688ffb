"""From trained networks to a pipeline folder that plain diffusers loads, with its pictures for the model card."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTokenizer

from immunebench.mini import world
from immunebench.mini.training.denoiser import Trained, scheduler
from immunebench.mini.training.log import save_checkpoint
from immunebench.mini.training.vae import to_input

matplotlib.use("Agg")


def save_pipeline(
    folder: Path, vae: AutoencoderKL, trained: Trained, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """Write an fp16 safetensors pipeline folder; returns the pipeline as saved (loaded back in float32)."""
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=trained.text, tokenizer=tokenizer, unet=trained.unet, scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    modules = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "unet")}
    for module in modules.values():
        module.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    # Half precision is for the repository's size alone: transformers would otherwise run in the dtype of the file.
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    for name in modules:
        _without_origin(folder / name / "config.json")
    for module in modules.values():
        module.to(torch.float32)
    return StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)


def _without_origin(config: Path) -> None:
    """Drop the folder that a network was loaded from: it names a place on the machine of the training."""
    values = json.loads(config.read_text())
    if values.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def reopen(folder: Path, work: Path) -> tuple[CLIPTokenizer, AutoencoderKL]:
    """Take a released pipeline up again: its denoiser becomes the checkpoint in ``work``, where there is none yet.

    The release holds the running average in half precision, without the optimiser's moments: both copies begin from
    it, and the moments anew. The autoencoder stays what it is, so that the latents do.

    Parameters
    ----------
    folder
        A pipeline folder, with the ``run.json`` that says how many steps its denoiser has seen.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    checkpoint = work / "denoiser.safetensors"
    if not checkpoint.exists():
        released = Trained(pipeline.unet, pipeline.text_encoder).state_dict()
        step = json.loads((folder / "run.json").read_text())["denoiser_steps_done"]
        copies = {f"{copy}.{key}": value for key, value in released.items() for copy in ("raw", "ema")}
        save_checkpoint(checkpoint, step, copies)
    return pipeline.tokenizer, pipeline.vae.eval().requires_grad_(False)


@torch.no_grad()
def sample_grid(pipeline: StableDiffusionPipeline, file: Path, *, per_row: int = 10) -> None:
    """Draw every known object in a row of styles, one seed a picture, into one PNG."""
    from diffusers import DDIMScheduler

    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    styles = world.STYLE_NAMES
    prompts = [
        f"a {name} in {style} style"
        for style in styles
        for name in (*world.OBJECT_NAMES[: per_row - 1], "portrait of a person")
    ]
    tiles: list[np.ndarray] = []
    for start in range(0, len(prompts), per_row):
        generators = [torch.Generator().manual_seed(start + i) for i in range(per_row)]
        row = prompts[start : start + per_row]
        images = pipeline(
            row, height=64, width=64, num_inference_steps=20, guidance_scale=4.0, generator=generators, output_type="np"
        ).images
        tiles.append(np.concatenate([(image * 255).round().astype(np.uint8) for image in images], axis=1))
    _save_enlarged(np.concatenate(tiles), file)


@torch.no_grad()
def reconstruction_grid(vae: AutoencoderKL, file: Path, count: int = 12) -> None:
    """Held-out pictures above their reconstructions."""
    pixels = np.stack([p.pixels for p in world.stream("reference", count, group="reconstruction")])
    output = vae.decode(vae.encode(to_input(pixels)).latent_dist.mode()).sample
    back = ((output.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    _save_enlarged(np.concatenate([np.concatenate(list(pixels), 1), np.concatenate(list(back), 1)]), file)


def _save_enlarged(tile: np.ndarray, file: Path) -> None:
    Image.fromarray(tile).resize((tile.shape[1] * 2, tile.shape[0] * 2), Image.Resampling.NEAREST).save(
        file, optimize=True
    )


def loss_curves(files: dict[str, Path], file: Path) -> None:
    """Training losses over steps, one panel each."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(files), figsize=(4.5 * len(files), 3), layout="constrained")
    for axis, (title, source) in zip(np.atleast_1d(axes), files.items(), strict=True):
        rows = [json.loads(line) for line in source.read_text().splitlines()]
        axis.plot([row["step"] for row in rows], [row["loss"] for row in rows], color="#20639b")
        axis.set(title=title, xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)
