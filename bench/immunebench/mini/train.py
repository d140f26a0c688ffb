"""Trains the networks of the embedded world from scratch, one after another.

    python -m immunebench.mini.train words                          # tokenizer
    python -m immunebench.mini.train render --workers 2             # pictures, while the rest trains
    python -m immunebench.mini.train vae --base mini                # then: denoiser, export
    python -m immunebench.mini.train reader                         # then: second, public, upscaler

Each part resumes from its last checkpoint in ``--work``, and ends after its recipe's steps or ``--seconds``, whichever
comes first; the learning rate schedule is adapted to that. Parts may run in parallel, and start with the pictures that
have been rendered so far.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from immunebench.mini import world
from immunebench.mini.training import export
from immunebench.mini.training.data import GROUPS, Rendered, render
from immunebench.mini.training.recipe import RECIPES, Recipe
from immunebench.mini.training.schedule import Budget

WEIGHTS = Path(__file__).parent / "weights"
READER_PICTURES, READER_STEPS = 80_000, 6_000
PARTS = ("words", "render", "vae", "denoiser", "export", "reader", "second", "public", "upscaler")


def main() -> None:
    """Parse the command line and carry out one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--base", choices=sorted(RECIPES), default="mini")
    parser.add_argument("--work", type=Path, default=Path(".training"), help="checkpoints and rendered pictures")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where finished weights go")
    parser.add_argument("--seconds", type=float, help="end after this long")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--pictures", type=int, help="of a group, instead of the recipe's")
    parser.add_argument("--least", type=int, default=20_000, help="pictures to wait for before training begins")
    parser.add_argument("--batch", type=int, help="instead of the recipe's")
    parser.add_argument("--latents", type=int, help="channels, instead of the recipe's: candidates lie side by side")
    parser.add_argument("--vae", type=Path, action="append", default=[], help="autoencoders that readers see through")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.set_num_threads(1)
    begin = time.monotonic()
    parts = {"words": words, "render": draw, "vae": autoencoder, "denoiser": denoise, "export": finish,
             "upscaler": enlarge}  # fmt: skip
    parts.get(options.part, judge)(options)
    print(f"{options.part}: done in {time.monotonic() - begin:.0f} s", flush=True)


def recipe_of(options: argparse.Namespace) -> tuple[Recipe, Path]:
    """Return the recipe, modified by the options, and the folder of its checkpoints."""
    recipe = RECIPES[options.base]
    changes = {"latents": options.latents, "pictures": options.pictures}
    recipe = replace(recipe, **{name: value for name, value in changes.items() if value})
    return recipe, options.work / f"{options.base}-{recipe.latents}"


def tokenizer_of(options: argparse.Namespace) -> Path:
    """Return the folder of the tokenizer."""
    return Path(options.out / "mini" / "tokenizer")


def words(options: argparse.Namespace) -> None:
    """Learn the tokenizer from captions of the narrow world."""
    from immunebench.mini.training.tokens import train_tokenizer

    drawn = (world.draw("train", i, group="words", wordings=4) for i in range(options.pictures or 4000))
    train_tokenizer((caption for p in drawn for caption in p.labels["captions"]), tokenizer_of(options))


def draw(options: argparse.Namespace) -> None:
    """Draw the pictures of all groups."""
    counts = {group: RECIPES[group].pictures if group in RECIPES else READER_PICTURES for group in GROUPS}
    if options.pictures:
        counts = dict.fromkeys(counts, options.pictures)
    render(options.work / "pictures", counts, tokenizer_of(options), options.workers)


def _pictures(options: argparse.Namespace, group: str, count: int, device: torch.device) -> Rendered:
    return Rendered(options.work / "pictures", group, options.pictures or count, device, least=options.least)


def autoencoder(options: argparse.Namespace) -> None:
    """Train a base's autoencoder into ``work/<base>-<latents>/vae``."""
    from immunebench.mini.training import vae

    recipe, folder = recipe_of(options)
    recipe = replace(recipe, vae_steps=options.steps or recipe.vae_steps, vae_batch=options.batch or recipe.vae_batch)
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    pictures = _pictures(options, options.base, recipe.pictures, device)
    trained = vae.train(recipe, pictures, folder, device, Budget(recipe.vae_steps, options.seconds))
    trained = trained.to(memory_format=torch.contiguous_format)
    trained.save_pretrained(folder / "vae.partial")
    shutil.rmtree(folder / "vae", ignore_errors=True)  # from an earlier call with fewer steps
    (folder / "vae.partial").replace(folder / "vae")
    export.reconstruction_grid(trained, folder / "reconstructions.webp")
    print(f"vae {folder.name}: {export.psnr(trained, 400):.2f} dB on unseen pictures", flush=True)


def denoise(options: argparse.Namespace) -> None:
    """Train a base's denoiser; saves its pipeline folder ``work/<base>-<latents>/pipeline`` as it goes."""
    from diffusers import AutoencoderKL

    from immunebench.mini.training import denoiser

    recipe, folder = recipe_of(options)
    steps, batch = options.steps or recipe.unet_steps, options.batch or recipe.unet_batch
    recipe = replace(recipe, unet_steps=steps, unet_batch=batch)
    device = torch.device(options.device)
    frozen = AutoencoderKL.from_pretrained(folder / "vae").requires_grad_(False).eval().to(device)
    tokenizer = export.load_tokenizer(tokenizer_of(options))
    pictures = _pictures(options, options.base, recipe.pictures, device)
    budget = Budget(recipe.unet_steps, options.seconds)
    for average, step in denoiser.train(recipe, frozen, pictures, tokenizer, folder, device, budget):
        export.save_pipeline(folder / "pipeline", frozen, average, tokenizer)
        note = {"base": options.base, "recipe": asdict(recipe), "denoiser_steps_done": step,
                "pictures_seen": step * recipe.unet_batch, "pictures_drawn": pictures.ready,
                "seconds": round(budget.spent),
                "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
                "machine": platform.machine(), "torch": torch.__version__}  # fmt: skip
        (folder / "run.json").write_text(json.dumps(note, indent=2) + "\n")


def finish(options: argparse.Namespace) -> None:
    """Publish a base's pipeline folder with its sample pictures and loss curves."""
    _, folder = recipe_of(options)
    export.publish(folder, options.out / options.base)
    from immunebench.bases.weights import write_sums

    write_sums(options.out)


def enlarge(options: argparse.Namespace) -> None:
    """Train the upscaler."""
    from immunebench.mini.training import upscaler

    folder = options.work / "upscaler"
    budget = Budget(options.steps or upscaler.STEPS, options.seconds)
    batch, count = options.batch or upscaler.BATCH, options.pictures or upscaler.PICTURES
    device = torch.device(options.device)
    network = upscaler.train(folder, device, budget, workers=options.workers, batch=batch, count=count)
    export.save_half(network, options.out / "upscaler" / "upscaler.safetensors")


def judge(options: argparse.Namespace) -> None:
    """Train a reader or the public classifier, and write its weights."""
    from diffusers import AutoencoderKL

    from immunebench.mini.training import public, readers

    device, name = torch.device(options.device), options.part
    folder = options.work / "judges"
    folder.mkdir(parents=True, exist_ok=True)
    budget = Budget(options.steps or READER_STEPS, options.seconds)
    batch = options.batch or readers.BATCH
    network: nn.Module
    if name in readers.SEEDS:
        pictures = _pictures(options, name, READER_PICTURES, device)
        seen = [AutoencoderKL.from_pretrained(path).requires_grad_(False).eval().to(device) for path in options.vae]
        network = readers.train(name, pictures, seen, folder, device, budget, batch=batch)
    else:
        pictures = _pictures(options, "mini", RECIPES["mini"].pictures, device)
        network = public.train(pictures, folder, device, budget, batch=batch)
    export.save_half(network, options.out / "judges" / f"{name}.safetensors")


if __name__ == "__main__":
    main()
