"""The UNet and the text encoder of a base, trained together on latents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from immunebench.mini.training import vae
from immunebench.mini.training.data import Rendered, token_ids
from immunebench.mini.training.recipe import Recipe
from immunebench.mini.training.schedule import Budget, Descent, autocast, descend, min_snr

#: SD 1.x's noise schedule, epsilon prediction.
SCHEDULE = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "clip_sample": False, "steps_offset": 1,
}  # fmt: skip


def scheduler() -> DDPMScheduler:
    """SD 1.x's noise schedule, epsilon prediction."""
    made: DDPMScheduler = DDPMScheduler.from_config(SCHEDULE)
    return made


def build(recipe: Recipe, tokenizer: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Untrained networks of the recipe's widths."""
    torch.manual_seed(recipe.seed + 1)
    blocks = len(recipe.unet_channels)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=recipe.latents, out_channels=recipe.latents, layers_per_block=1,
        block_out_channels=recipe.unet_channels, down_block_types=("CrossAttnDownBlock2D",) * blocks,
        up_block_types=("CrossAttnUpBlock2D",) * blocks, cross_attention_dim=recipe.text_width,
        attention_head_dim=2, norm_num_groups=16,
    )  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=recipe.text_width, intermediate_size=4 * recipe.text_width,
        num_hidden_layers=recipe.text_layers, num_attention_heads=4, max_position_embeddings=tokenizer.model_max_length,
        projection_dim=recipe.text_width, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip
    return unet, text


class Trained(nn.Module):
    """Both networks as one module, for checkpoints and weight averaging."""

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, z: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Predicted noise, same shape as ``z``."""
        return self.unet(z, t, self.text(ids)[0], return_dict=False)[0]  # type: ignore[no-any-return]


def train(
    recipe: Recipe, autoencoder: AutoencoderKL, pictures: Rendered, tokenizer: CLIPTokenizer, folder: Path,
    device: torch.device, budget: Budget,
) -> Iterator[tuple[Trained, int]]:  # fmt: skip
    """Train or resume; yield the average of the weights and the step, regularly and at the end.

    Latents are encoded as pictures are rendered; a caption is one of a picture's, or empty with probability 0.1.
    """
    network = Trained(*build(recipe, tokenizer)).to(device)
    network.unet.to(memory_format=torch.channels_last)
    average = Trained(*build(recipe, tokenizer)).to(device).requires_grad_(False).eval()
    latents = torch.empty(pictures.count, recipe.latents, 16, 16, device=device, dtype=torch.float16)
    ready = torch.zeros((), device=device)

    def refresh() -> None:
        pictures.refresh()
        have = int(ready)
        if have < pictures.ready:
            with autocast(device):
                latents[have : pictures.ready] = vae.encode(autoencoder, pictures.pixels[have : pictures.ready]).half()
            ready.fill_(float(pictures.ready))

    for _ in range(10):
        refresh()
    empty = torch.from_numpy(token_ids(tokenizer, [""])).to(device)
    alphas = scheduler().alphas_cumprod.to(device)
    weights, batch = min_snr(alphas), recipe.unet_batch

    def loss_of() -> torch.Tensor:
        rows = (torch.rand(batch, device=device) * ready).long()
        ids = pictures.ids[rows, torch.randint(pictures.ids.shape[1], (batch,), device=device)]
        dropped = torch.rand(batch, 1, device=device) < recipe.caption_dropout
        ids = torch.where(dropped, empty, ids).long()
        t = torch.randint(len(alphas), (batch,), device=device)
        z0, a = latents[rows].float(), alphas[t].view(-1, 1, 1, 1)
        eps = torch.randn_like(z0)
        with autocast(device):
            z_t = (a.sqrt() * z0 + (1 - a).sqrt() * eps).contiguous(memory_format=torch.channels_last)
            predicted = network(z_t, t, ids).float()
        error: torch.Tensor = (predicted - eps).square().mean((1, 2, 3))
        return (error * weights[t]).mean()

    descent = Descent(loss_of, list(network.parameters()), device, rate=recipe.learning_rate)
    for step in descend("denoiser", descent, network, folder, device, budget, seed=recipe.seed, batch=batch,
                        averaged=average, ema=recipe.ema, refresh=refresh):  # fmt: skip
        yield average, step
