"""The UNet and the text encoder of a base, trained together on cached latents."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from immunebench.mini.training.log import Curve, Progress, load_checkpoint, save_checkpoint
from immunebench.mini.training.recipe import Recipe
from immunebench.mini.training.schedule import autocast, cosine, min_snr
from immunebench.shapes import SCHEDULE


def scheduler() -> DDPMScheduler:
    """SD 1.x's noise schedule, epsilon prediction."""
    made: DDPMScheduler = DDPMScheduler.from_config(SCHEDULE)
    return made


def build(recipe: Recipe, tokenizer: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Untrained networks of the recipe's widths."""
    torch.manual_seed(recipe.seed + 1)
    blocks = len(recipe.unet_channels)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=recipe.unet_channels, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * blocks, up_block_types=("CrossAttnUpBlock2D",) * blocks,
        cross_attention_dim=recipe.text_width, attention_head_dim=2, norm_num_groups=16,
    )  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=recipe.text_width, intermediate_size=4 * recipe.text_width,
        num_hidden_layers=recipe.text_layers, num_attention_heads=4, max_position_embeddings=tokenizer.model_max_length,
        projection_dim=recipe.text_width, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip
    return unet, text


class Trained(nn.Module):
    """Both networks under one roof, so that a checkpoint and an average hold both."""

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, z: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Predicted noise, same shape as ``z``."""
        return self.unet(z, t, self.text(ids)[0], return_dict=False)[0]  # type: ignore[no-any-return]


def tokenise(tokenizer: CLIPTokenizer, captions: list[list[str]]) -> torch.Tensor:
    """Token ids (n, wordings, length)."""
    flat = [caption for wordings in captions for caption in wordings]
    ids = tokenizer(flat, padding="max_length", truncation=True, max_length=tokenizer.model_max_length).input_ids
    return torch.tensor(ids, dtype=torch.int64).view(len(captions), -1, tokenizer.model_max_length)


def train(
    recipe: Recipe, latents: torch.Tensor, captions: list[list[str]], tokenizer: CLIPTokenizer, folder: Path,
    device: torch.device, *, compiled: bool = False, snapshot: Callable[[Trained, int], None] | None = None,
    stop_at: float | None = None,
) -> tuple[Trained, int]:  # fmt: skip
    """Train or resume; the returned networks carry the running average of the weights.

    Parameters
    ----------
    latents
        float (n, 4, 16, 16), scaled.
    compiled
        Let ``torch.compile`` fuse the UNet: about a quarter faster, a minute later to start.
    snapshot
        Called with the averaged networks and the step at every checkpoint.
    stop_at
        ``time.monotonic()`` after which the run saves and returns early.
    """
    import time

    network = Trained(*build(recipe, tokenizer)).to(device)
    network.unet.set_attn_processor(AttnProcessor())
    average = Trained(*build(recipe, tokenizer)).to(device).requires_grad_(False).eval()
    average.unet.set_attn_processor(AttnProcessor())
    checkpoint = folder / "denoiser.safetensors"
    step, tensors = load_checkpoint(checkpoint)
    if tensors:
        network.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("raw.")})
        average.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    else:
        average.load_state_dict(network.state_dict())
    params = list(network.parameters())
    averaged: list[torch.Tensor] = list(average.parameters())
    optimiser = torch.optim.AdamW(params, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
    _restore_moments(optimiser, params, tensors, step)
    if compiled:
        network.unet.compile()

    ids = tokenise(tokenizer, captions)
    empty = tokenise(tokenizer, [[""]])[0, 0]
    noise = scheduler()
    weights = min_snr(noise.alphas_cumprod).to(device)
    curve = Curve(folder / "denoiser-loss.jsonl", step)
    with Progress("denoiser", recipe.unet_steps, done=step) as progress:
        while step < recipe.unet_steps:
            torch.manual_seed(hash((recipe.seed, step)) % 2**31)
            rng = random.Random(recipe.seed * 1_000_003 + step)
            rows = torch.randint(len(latents), (recipe.unet_batch,))
            z0 = latents[rows].to(device)
            chosen = ids[rows, torch.randint(ids.shape[1], (recipe.unet_batch,))]
            dropped = [i for i in range(recipe.unet_batch) if rng.random() < recipe.caption_dropout]
            chosen[dropped] = empty
            t = torch.randint(1000, (recipe.unet_batch,)).to(device)
            eps = torch.randn_like(z0)
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * cosine(step, recipe.unet_steps, warmup=200)
            with autocast(device):
                predicted = network(noise.add_noise(z0, eps, t), t, chosen.to(device)).float()
            error = (predicted - eps).square().mean((1, 2, 3))
            (error * weights[t]).mean().backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            decay = min(recipe.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(averaged, list[torch.Tensor](params), 1 - decay)
            progress.advance(loss=error.mean().item())
            if step % 50 == 0:
                curve.add(step, loss=progress.means["loss"])
            early = stop_at is not None and time.monotonic() > stop_at
            if step % 1000 == 0 or step == recipe.unet_steps or early:
                save_checkpoint(checkpoint, step, {
                    **{f"raw.{k}": v for k, v in network.state_dict().items()},
                    **{f"ema.{k}": v for k, v in average.state_dict().items()},
                    **_moments(optimiser, params),
                })  # fmt: skip
                if snapshot:
                    snapshot(average, step)
            if early:
                break
    return average, step


def _moments(optimiser: torch.optim.Optimizer, params: list[nn.Parameter]) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{i:04d}": optimiser.state[p][name]
        for i, p in enumerate(params)
        for name in ("exp_avg", "exp_avg_sq")
        if p in optimiser.state
    }


def _restore_moments(
    optimiser: torch.optim.Optimizer, params: list[nn.Parameter], tensors: dict[str, torch.Tensor], step: int
) -> None:
    for i, p in enumerate(params):
        if f"exp_avg.{i:04d}" in tensors:
            optimiser.state[p] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"exp_avg.{i:04d}"].to(p.device),
                "exp_avg_sq": tensors[f"exp_avg_sq.{i:04d}"].to(p.device),
            }


def latent_cache(file: Path, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Latents from a file, computed on the first call; float16 on disk, float32 in memory."""
    if not file.exists():
        np.save(file, compute().half().numpy())
    return torch.from_numpy(np.load(file)).float()
