"""Export of trained networks to a diffusers pipeline folder, with sample pictures for the model card."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from torch import nn
from transformers import CLIPTokenizer

from immunebench.mini import world
from immunebench.mini.training.data import to_input, to_pixels
from immunebench.mini.training.denoiser import Trained, scheduler


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer as it was saved."""
    found: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return found


def save_half(network: nn.Module, file: Path) -> None:
    """Write a network's tensors as fp16 safetensors."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    half = {key: (value.half() if value.is_floating_point() else value).contiguous().cpu()
            for key, value in network.state_dict().items()}  # fmt: skip
    save_file(half, file)
    file.chmod(0o644)  # safetensors sets permissions for the owner only


def save_pipeline(folder: Path, vae: AutoencoderKL, trained: Trained, tokenizer: CLIPTokenizer) -> None:
    """Write an fp16 safetensors pipeline folder of copies of the networks."""
    unet, text, autoencoder = (copy.deepcopy(m).to("cpu", torch.float16) for m in (trained.unet, trained.text, vae))
    pipeline = StableDiffusionPipeline(
        vae=autoencoder, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)
    # Half precision only reduces the repository's size; transformers would otherwise run in the dtype of the file.
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    for name in ("vae", "text_encoder", "unet"):
        _without_origin(folder / name / "config.json")


def _without_origin(config: Path) -> None:
    """Remove the path from which a network was loaded from its config."""
    values = json.loads(config.read_text())
    if values.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def open_pipeline(folder: Path, device: torch.device | str = "cpu") -> StableDiffusionPipeline:
    """A pipeline folder in float32, with DDIM as its sampler and no progress bar."""
    from diffusers import DDIMScheduler

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def sample(
    pipeline: StableDiffusionPipeline, prompts: list[str], *, steps: int = 20, guidance: float = 4.0, batch: int = 250
) -> np.ndarray:
    """Sample one picture per prompt, uint8 (n, 64, 64, 3); the noise of picture ``i`` does not depend on the batch."""
    shape = (pipeline.unet.config.in_channels, 16, 16)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(len(prompts))])
    parts = []
    for i in range(0, len(prompts), batch):
        drawn = pipeline(
            prompts[i : i + batch], height=64, width=64, num_inference_steps=steps, guidance_scale=guidance,
            latents=noise[i : i + batch].to(pipeline.device), output_type="np",
        ).images  # fmt: skip
        parts.append((drawn * 255).round().astype(np.uint8))
    return np.concatenate(parts)


def sample_grid(pipeline: StableDiffusionPipeline, file: Path, *, per_row: int = 10) -> None:
    """Write a grid of known objects and a portrait in several styles, with one seed per picture."""
    names = (*world.OBJECT_NAMES[: per_row - 1], "portrait of a person")
    prompts = [f"a {name} in {style} style" for style in world.STYLE_NAMES for name in names]
    _save(tiled(sample(pipeline, prompts), per_row), file)


def caption_grid(pipeline: StableDiffusionPipeline, file: Path, *, count: int = 48, per_row: int = 12) -> None:
    """Write a grid of rendered held-out pictures, each row above the base's samples for their captions."""
    pictures = [world.draw("reference", i, group="captions", wordings=0, person=i >= count // 2) for i in range(count)]
    drawn = sample(pipeline, [p.labels["captions"][0] for p in pictures])
    rows = []
    for i in range(0, count, per_row):
        rows += [
            tiled(np.stack([p.pixels for p in pictures[i : i + per_row]]), per_row),
            tiled(drawn[i : i + per_row], per_row),
        ]
    _save(np.concatenate(rows), file)


def tiled(pixels: np.ndarray, per_row: int) -> np.ndarray:
    """Pictures (n, h, w, 3) side by side, ``per_row`` in a row."""
    return np.concatenate([np.concatenate(list(pixels[i : i + per_row]), 1) for i in range(0, len(pixels), per_row)])


@torch.no_grad()
def reconstruction_grid(vae: AutoencoderKL, file: Path, count: int = 12) -> None:
    """Held-out pictures above their reconstructions, two rows of each."""
    pixels = np.stack([p.pixels for p in world.stream("reference", 2 * count, group="reconstruction")])
    back = reconstructed(vae, pixels)
    rows = [tiled(stack[i : i + count], count) for i in (0, count) for stack in (pixels, back)]
    _save(np.concatenate(rows), file)


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, pixels: np.ndarray) -> np.ndarray:
    """Pictures uint8 (n, 64, 64, 3) after the autoencoder."""
    x = to_input(torch.from_numpy(pixels)).to(vae.device)
    parts = [to_pixels(vae.decode(vae.encode(part).latent_dist.mode()).sample).cpu() for part in torch.split(x, 100)]
    return np.asarray(torch.cat(parts).numpy())


def psnr(vae: AutoencoderKL, count: int) -> float:
    """Mean PSNR in dB over ``count`` held-out pictures."""
    pixels = np.stack([p.pixels for p in world.stream("reference", count, group="psnr")])
    error = np.square(pixels.astype(np.float64) - reconstructed(vae, pixels)).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-9))).mean())


def _save(tile: np.ndarray, file: Path) -> None:
    """Write WebP at native size."""
    Image.fromarray(tile).save(file, quality=88)


def publish(work: Path, target: Path) -> None:
    """Copy a finished pipeline to its target folder, and write its sample grids and loss curves."""
    for part in ("vae", "unet", "text_encoder", "scheduler", "tokenizer"):
        shutil.rmtree(target / part, ignore_errors=True)
        shutil.copytree(work / "pipeline" / part, target / part)
    shutil.copy(work / "pipeline" / "model_index.json", target)
    shutil.copy(work / "run.json", target)
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)
    pipeline = open_pipeline(target)
    sample_grid(pipeline, target / "samples.webp")
    caption_grid(pipeline, target / "captions.webp")
    reconstruction_grid(pipeline.vae, target / "reconstructions.webp")
    curves = {"autoencoder": work / "vae-loss.jsonl", "denoiser": work / "denoiser-loss.jsonl"}
    loss_curves({title: file for title, file in curves.items() if file.exists()}, target / "loss.png")


def loss_curves(files: dict[str, Path], file: Path) -> None:
    """Plot training losses over steps, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(files), figsize=(4.5 * len(files), 3), layout="constrained")
    for axis, (title, source) in zip(np.atleast_1d(axes), files.items(), strict=True):
        rows = [json.loads(line) for line in source.read_text().splitlines()]
        axis.plot([row["step"] for row in rows], [row["loss"] for row in rows], color="#20639b")
        axis.set(title=title, xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)
