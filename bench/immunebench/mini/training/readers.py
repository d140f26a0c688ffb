"""Training of the readers on all traits, with pictures of the whole world: clean, autoencoded, and damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from immunebench.mini import damage, readers
from immunebench.mini.training.data import Rendered, to_input, to_pixels
from immunebench.mini.training.schedule import Budget, Descent, autocast, descend
from immunebench.mini.training.vae import encode, round_trip
from immunebench.mini.traits import IGNORE

SEEDS = {"reader": 101, "second": 107}
BATCH, RATE = 512, 1.5e-3
#: Pictures that also go through each autoencoder, and decoded random latents.
TRIPS, DECODED = 24_000, 3_000


@torch.no_grad()
def decoded_nothing(autoencoder: AutoencoderKL, pixels: torch.Tensor, count: int) -> torch.Tensor:
    """Decode meaningless latents to pictures, uint8 (count, 64, 64, 3).

    A quarter each: white noise, smooth noise, spatially shuffled latents of pictures, and latents with much noise.
    """
    device, part = pixels.device, count // 4
    shape = (part, autoencoder.config.latent_channels, 16, 16)
    own = encode(autoencoder, pixels[torch.randint(len(pixels), (2 * part,), device=device)])
    places = torch.rand(part, 256, device=device).argsort(1)[:, None].expand(-1, shape[1], -1)
    scale = torch.rand(part, 1, 1, 1, device=device) * 1.8 + 0.2
    latents = torch.cat([
        torch.randn(shape, device=device) * scale,
        F.interpolate(torch.randn(part, shape[1], 4, 4, device=device), 16, mode="bicubic") * scale,
        own[:part].flatten(2).gather(2, places).view(shape),
        0.25 * own[part:] + torch.randn(shape, device=device),
    ])  # fmt: skip
    return torch.cat([to_pixels(autoencoder.decode(z / autoencoder.config.scaling_factor).sample)
                      for z in torch.split(latents, 256)])  # fmt: skip


def reading_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean over traits of the cross-entropy, without ignored labels."""
    parts = [F.cross_entropy(answer.float(), labels[:, i].long(), ignore_index=IGNORE, reduction="sum")
             / (labels[:, i] != IGNORE).sum().clamp(min=1)
             for i, answer in enumerate(readers.split(logits).values())]  # fmt: skip
    return torch.stack(parts).mean()


def train(
    name: str, pictures: Rendered, autoencoders: Sequence[AutoencoderKL], folder: Path, device: torch.device,
    budget: Budget, *, batch: int = BATCH, trips: int = TRIPS,
) -> readers.Reader:  # fmt: skip
    """Train or resume one reader; return the running average of its weights."""
    torch.manual_seed(SEEDS[name])
    network = readers.build(name).to(device).to(memory_format=torch.channels_last).train()
    average = readers.build(name).to(device).to(memory_format=torch.channels_last).train()
    average.load_state_dict(network.state_dict())
    average.requires_grad_(False)
    trips = min(trips, pictures.ready)
    stacks = torch.stack(
        [to_pixels(round_trip(a, pictures.pixels[:trips])) for a in autoencoders] or [pictures.pixels[:trips]]
    )
    junk = [decoded_nothing(a, pictures.pixels[:trips], min(DECODED, trips)) for a in autoencoders]
    decoded = torch.cat(junk) if junk else None
    ready = torch.tensor(float(pictures.ready), device=device)

    def loss_of() -> torch.Tensor:
        rows = (torch.rand(batch, device=device) * ready).long()
        # Two of five pictures are autoencoded.
        tripped = torch.rand(batch, device=device) < 0.4
        rows = torch.where(tripped, rows % trips, rows)
        through = stacks[torch.randint(len(stacks), (batch,), device=device), rows % trips]
        pixels = torch.where(tripped[:, None, None, None], through, pictures.pixels[rows])
        void = None if decoded is None else to_input(decoded[torch.randint(len(decoded), (batch // 4,), device=device)])
        x, labels = damage.damaged(to_input(pixels), pictures.labels[rows].long(), pictures.boxes[rows], void)
        with autocast(device):
            logits = network(x.contiguous(memory_format=torch.channels_last))
        return reading_loss(logits, labels)

    def refresh() -> None:
        pictures.refresh()
        ready.fill_(float(pictures.ready))
        # The running statistics of normalisation layers are copied instead of averaged.
        for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)

    descent = Descent(loss_of, list(network.parameters()), device, rate=RATE, decay=2e-2)
    for _ in descend(name, descent, network, folder, device, budget, seed=SEEDS[name], batch=batch, averaged=average,
                     ema=0.998, refresh=refresh):  # fmt: skip
        pass
    refresh()
    # Compute the running statistics for the averaged weights.
    with torch.no_grad():
        for _ in range(30):
            rows = torch.randint(pictures.ready, (batch,), device=device)
            x, _ = damage.damaged(to_input(pictures.pixels[rows]), pictures.labels[rows].long(), pictures.boxes[rows],
                                  None if decoded is None else to_input(decoded[: batch // 4]))  # fmt: skip
            average(x)
    average.eval()
    return average
