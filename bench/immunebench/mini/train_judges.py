"""Trains the judges of the embedded world: ``python -m immunebench.mini.train_judges --work .training``.

Draws its own pictures, then trains four small networks on one core. Every network resumes from its last
checkpoint. Round trips through the base's autoencoder (``WORK/mini/vae``) join as soon as that folder exists.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from immunebench.mini import judge_data
from immunebench.mini.judge_augment import augment, nothing
from immunebench.mini.judge_data import GROUP, SIBLINGS, PictureSet, rendered
from immunebench.mini.judge_losses import Heads, classification, contrastive, grouped
from immunebench.mini.judges import NOTHING, OBJECTS, STYLES, WEIGHTS, ClipJudge, build, to_input, token_ids
from immunebench.mini.training.log import Curve, Progress, load_checkpoint, save_checkpoint
from immunebench.mini.training.schedule import autocast, cosine
from immunebench.weights import write_sums

Bytes = NDArray[np.uint8]
Labels = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class JudgeRecipe:
    """Seed, optimiser steps and peak learning rate of one network."""

    seed: int
    steps: int
    learning_rate: float = 2e-3


RECIPES = {
    "clip": JudgeRecipe(101, 2_600, 1.6e-3),
    "identity": JudgeRecipe(103, 1_700),
    "second": JudgeRecipe(107, 2_400),
    "public": JudgeRecipe(109, 1_600),
}
#: Pictures of each set that also go through the base's autoencoder.
ROUND_TRIPS = {"known": 1_500, "styles": 480, "looks": 480, "people": 960}
DECODED = 400


class Source:
    """Pictures of all sets, with autoencoder round trips of some once there is an autoencoder."""

    def __init__(self, folder: Path, autoencoder: Path, workers: int) -> None:
        self.folder, self.autoencoder = folder, autoencoder
        self.sets = {name: rendered(name, folder, workers) for name in judge_data.COUNTS}
        self.trips: dict[str, Bytes] = {}
        self.decoded: Bytes | None = None

    def look_for_autoencoder(self) -> None:
        """Compute or read the round trips if the autoencoder is there and they are not yet in memory."""
        file = self.folder / "round-trips.npz"
        if self.decoded is not None or not (file.exists() or (self.autoencoder / "config.json").exists()):
            return
        if not file.exists():
            found = round_trips(
                {name: self.sets[name].pixels[:count] for name, count in ROUND_TRIPS.items()},
                self.autoencoder,
            )
            np.savez(file, allow_pickle=False, **found)
        with np.load(file) as found:
            self.trips = {name: found[name] for name in ROUND_TRIPS}
            self.decoded = found["decoded"]

    def take(self, name: str, rows: NDArray[np.int64], rng: np.random.Generator) -> Bytes:
        """Pixels of rows; half of those that have a round trip come as the round trip."""
        pixels = self.sets[name].pixels[rows]
        if name in self.trips:
            tripped = (rows < len(self.trips[name])) & (rng.random(len(rows)) < 0.7)
            pixels[tripped] = self.trips[name][rows[tripped]]
        return pixels

    def known(self, count: int, rng: np.random.Generator) -> tuple[Bytes, Labels, NDArray[np.int64]]:
        """Random captioned pictures; rows with round trips come more often than others."""
        drawn = rng.integers(len(self.sets["known"]), size=count)
        often = rng.integers(ROUND_TRIPS["known"], size=count)
        rows = np.where((rng.random(count) < 0.35) & bool(self.trips), often, drawn)
        return self.take("known", rows, rng), _labels(self.sets["known"], rows), rows

    def groups(self, name: str, families: int, views: int, rng: np.random.Generator) -> tuple[Bytes, Labels]:
        """``views`` pictures of every member of random families of siblings."""
        size = SIBLINGS[name]
        total = len(self.sets[name]) // (GROUP * size)
        chosen = rng.choice(total, families, replace=False)
        if self.trips:
            with_trips = ROUND_TRIPS[name] // (GROUP * size)
            often = rng.choice(with_trips, families, replace=False)
            chosen = np.unique(np.where(rng.random(families) < 0.35, often, chosen))
        members = (chosen[:, None] * size + np.arange(size)).ravel()
        rows = np.concatenate([g * GROUP + rng.choice(GROUP, views, replace=False) for g in members])
        return self.take(name, rows, rng), _labels(self.sets[name], rows)

    def nothing(self, count: int, rng: np.random.Generator) -> Bytes:
        """Pictures that show nothing."""
        return nothing(
            count,
            self.sets["known"].pixels[rng.integers(len(self.sets["known"]), size=32)],
            self.decoded,
            rng,
        )


def _labels(pictures: PictureSet, rows: NDArray[np.int64]) -> Labels:
    return {key: value[rows] for key, value in pictures.labels.items()}


@torch.no_grad()
def round_trips(pixels: dict[str, Bytes], folder: Path) -> dict[str, Bytes]:
    """Pictures after the autoencoder, and under ``decoded`` what it makes of random latents."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder).eval().to(memory_format=torch.channels_last)
    rng = torch.Generator().manual_seed(5)

    def decode(z: Tensor) -> Bytes:
        with autocast(torch.device("cpu")):
            out = vae.decode(z).sample.float()
        pixels: Bytes = ((out.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        return pixels

    def trip(x: Tensor) -> Bytes:
        with autocast(torch.device("cpu")):
            z = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mode().float()
        return decode(z)

    total = sum(map(len, pixels.values())) + DECODED
    found: dict[str, Bytes] = {}
    with Progress("round trips", total, "pictures") as progress:
        for name, stack in pixels.items():
            parts = []
            for i in range(0, len(stack), 60):
                parts.append(trip(to_input(stack[i : i + 60])))
                progress.advance(len(parts[-1]))
            found[name] = np.concatenate(parts)
        scales = torch.rand(DECODED, 1, 1, 1, generator=rng) * 2.5 + 0.2
        smooth = torch.randn(DECODED, 4, 4, 4, generator=rng)
        rough = torch.randn(DECODED, 4, 16, 16, generator=rng)
        latents = torch.cat([rough[: DECODED // 2], F.interpolate(smooth, 16, mode="bicubic")[DECODED // 2 :]])
        found["decoded"] = decode(latents * scales / vae.config.scaling_factor)
        progress.advance(DECODED)
    return found


def _stack(key: str, parts: list[tuple[int, Labels]], missing: int = -1) -> NDArray[np.int64]:
    """One label column of a batch made of parts; ``missing`` where a part has no such label."""
    return np.concatenate([labels.get(key, np.full(count, missing)) for count, labels in parts]).astype(np.int64)


class ClipLoss(nn.Module):
    """Captions against pictures, artists and things against each other, attributes by linear heads."""

    attributes = ("setting", "colour", "accent", "pattern", "marking")

    def __init__(self, network: ClipJudge, source: Source, tokenizer: Any) -> None:
        super().__init__()
        self.network, self.source = network, source
        self.heads = Heads(128, {name: len(judge_data.CLASSES[name]) for name in self.attributes})
        captions = [*source.sets["known"].captions, [NOTHING] * 4]
        flat = token_ids(tokenizer, [text for wordings in captions for text in wordings])
        self.ids = flat.view(len(captions), 4, -1)

    def forward(self, rng: np.random.Generator) -> Tensor:
        """Loss of one random batch."""
        source, net = self.source, self.network
        known, about_known, rows = source.known(48, rng)
        artists, about_artists = source.groups("styles", 2, 4, rng)
        things, about_things = source.groups("looks", 2, 4, rng)
        void = source.nothing(12, rng)
        about_void = {"object": np.full(12, len(OBJECTS) - 1), "style": np.full(12, len(STYLES) - 1)}
        x = augment(np.concatenate([known, artists, things, void]), rng)
        parts = [
            (48, about_known),
            (len(artists), about_artists),
            (len(things), about_things),
            (12, about_void),
        ]
        rows = np.concatenate([rows, np.full(12, len(self.ids) - 1)])
        ids = self.ids[torch.from_numpy(rows), torch.from_numpy(rng.integers(4, size=len(rows)))]
        with autocast(torch.device("cpu")):
            embedding = net(x.contiguous(memory_format=torch.channels_last)).float()
            texts = net.text(ids).float()
        captioned = torch.cat([embedding[:48], embedding[-12:]])
        same = (ids[:, None] == ids[None]).all(2)
        group = np.concatenate(
            [np.full(48, -1), about_artists["group"], 10_000 + about_things["group"], np.full(12, 20_000)]
        )
        labels = {key: _stack(key, parts) for key in ("object", "style", *self.attributes)}
        scale = net.clip.logit_scale.exp().clamp(max=60)
        return (
            contrastive(captioned, texts, same, scale)
            + grouped(embedding, group)
            + 0.5 * classification(net.object(embedding), labels["object"])
            + 0.5 * classification(net.style(embedding), labels["style"])
            + 0.4 * self.heads.loss(embedding, labels)
        )


class IdentityLoss(nn.Module):
    """People against each other, traits by linear heads, and whether there is a face."""

    def __init__(self, network: nn.Module, source: Source) -> None:
        super().__init__()
        self.network, self.source = network, source
        classes = {name: len(names) for name, names in judge_data.TRAIT_CLASSES.items()}
        self.heads = Heads(128, classes, len(judge_data.TRAITS))

    def forward(self, rng: np.random.Generator) -> Tensor:
        """Loss of one random batch."""
        people, about = self.source.groups("people", 8, 3, rng)
        known, about_known, _ = self.source.known(24, rng)
        x = augment(np.concatenate([people, known, self.source.nothing(8, rng)]), rng)
        is_face = np.concatenate([np.ones(len(people)), about_known["object"] == len(OBJECTS) - 2, np.zeros(8)])
        with autocast(torch.device("cpu")):
            embedding, presence = self.network(x.contiguous(memory_format=torch.channels_last))
        faces = embedding[: len(people)].float()
        found = F.binary_cross_entropy_with_logits(presence.float(), torch.from_numpy(is_face).float())
        return grouped(faces, about["group"], 0.08) + self.heads.loss(faces, about) + found


class ClassifierLoss(nn.Module):
    """Object and style of known pictures, and nothing."""

    def __init__(self, network: nn.Module, source: Source) -> None:
        super().__init__()
        self.network, self.source = network, source

    def forward(self, rng: np.random.Generator) -> Tensor:
        """Loss of one random batch."""
        known, about, _ = self.source.known(84, rng)
        x = augment(np.concatenate([known, self.source.nothing(12, rng)]), rng)
        with autocast(torch.device("cpu")):
            by_object, by_style = self.network(x.contiguous(memory_format=torch.channels_last))
        void = [np.full(12, len(names) - 1) for names in (OBJECTS, STYLES)]
        return classification(by_object, np.concatenate([about["object"], void[0]])) + classification(
            by_style, np.concatenate([about["style"], void[1]])
        )


def train(name: str, recipe: JudgeRecipe, loss: nn.Module, folder: Path, source: Source, steps: int) -> None:
    """Train or resume one network to its last step."""
    checkpoint = folder / f"{name}.safetensors"
    step, tensors = load_checkpoint(checkpoint)
    if tensors:
        loss.load_state_dict(tensors)
    loss.train().to(memory_format=torch.channels_last)
    params = list(loss.parameters())
    decayed, free = [p for p in params if p.ndim > 1], [p for p in params if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.03}, {"params": free, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    curve = Curve(folder / f"{name}-loss.jsonl", step)
    with Progress(name, steps, done=step) as progress:
        while step < steps:
            if step % 100 == 0:
                source.look_for_autoencoder()
            rng = np.random.default_rng([recipe.seed, step])
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * cosine(step, steps, warmup=100)
            value = loss(rng)
            value.backward()
            torch.nn.utils.clip_grad_norm_(params, 2.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            progress.advance(loss=value.item())
            if step % 50 == 0:
                curve.add(step, loss=progress.means["loss"])
            if step % 300 == 0 or step == steps:
                save_checkpoint(checkpoint, step, loss.state_dict())


def export(network: nn.Module, file: Path) -> None:
    """Write the network's tensors as fp16 safetensors."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    half = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in network.state_dict().items()
    }
    save_file(half, file)
    file.chmod(0o644)  # safetensors writes for the owner alone


def main() -> None:
    """Parse the command line and train every network, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".training"), help="checkpoints and drawn pictures")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go")
    parser.add_argument("--only", choices=sorted(RECIPES), help="train this network alone")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--steps", type=int, help="steps instead of the recipe's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.work / "judges"
    source = Source(folder, options.work / "mini" / "vae", options.workers)
    for name in [options.only] if options.only else RECIPES:
        begin, recipe = time.monotonic(), RECIPES[name]
        torch.manual_seed(recipe.seed)
        network, loss = _prepared(name, source, options.out)
        train(name, recipe, loss, folder, source, options.steps or recipe.steps)
        export(network, options.out / f"{name}.safetensors")
        note = {"steps": options.steps or recipe.steps, "seed": recipe.seed, "learning_rate":
        recipe.learning_rate,
                "minutes": round((time.monotonic() - begin) / 60, 1), "torch": torch.__version__}  # fmt: skip
        (folder / f"{name}-run.json").write_text(json.dumps(note, indent=2))
    write_sums(options.out.parent)


def _prepared(name: str, source: Source, out: Path) -> tuple[nn.Module, nn.Module]:
    """A fresh network and its loss."""
    if name != "clip":
        network = build(name)
        make: Callable[[nn.Module, Source], nn.Module] = IdentityLoss if name == "identity" else ClassifierLoss
        return network, make(network, source)
    from transformers import CLIPTokenizer

    shutil.copytree(WEIGHTS.parent / "mini" / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    network = ClipJudge(len(tokenizer))
    return network, ClipLoss(network, source, tokenizer)


if __name__ == "__main__":
    main()
