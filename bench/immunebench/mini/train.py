"""Trains an embedded base from nothing: ``python -m immunebench.mini.train --base mini``.

Every part resumes from its last checkpoint in ``--work``: rendering, tokenizer, autoencoder, latents, denoiser, export.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from immunebench.mini.training import denoiser, export, vae
from immunebench.mini.training.data import render
from immunebench.mini.training.recipe import RECIPES
from immunebench.mini.training.tokens import train_tokenizer
from immunebench.weights import write_sums

WEIGHTS = Path(__file__).parent / "weights"


def main() -> None:
    """Parse the command line and train one base to the end, or until ``--minutes`` are over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=sorted(RECIPES), default="mini")
    parser.add_argument("--work", type=Path, default=Path(".training"), help="checkpoints and rendered pictures")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the pipeline folder goes")
    parser.add_argument("--until", choices=("vae", "end"), default="end", help="stop after the autoencoder")
    parser.add_argument("--minutes", type=float, help="save and stop after this long; call again to go on")
    parser.add_argument("--steps", type=int, help="denoiser steps instead of the recipe's")
    parser.add_argument("--extend", action="store_true",
                        help="go on from the released weights in --out: the denoiser alone, to --steps")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all")
    parser.add_argument("--compile", action="store_true", help="fuse the denoiser with torch.compile")
    options = parser.parse_args()
    begin = time.monotonic()
    recipe = RECIPES[options.base]
    if options.steps:
        recipe = replace(recipe, unet_steps=options.steps)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    folder = options.work / options.base
    target = options.out / options.base
    stop_at = begin + 60 * options.minutes if options.minutes else None

    pixels, captions = render(folder, options.base, recipe.pictures)
    if options.extend:
        tokenizer, autoencoder = export.reopen(target, folder)
    else:
        tokenizer = train_tokenizer((c for wordings in captions[:4000] for c in wordings), target / "tokenizer")
        autoencoder = vae.train(recipe, pixels, folder, device)
        export.reconstruction_grid(autoencoder.cpu(), folder / "reconstructions.png")
        autoencoder.save_pretrained(folder / "vae")
    if options.until == "vae":
        return
    autoencoder.to(device)
    latents = denoiser.latent_cache(folder / "latents.npy", lambda: vae.encode(autoencoder, pixels, device))

    words = {file: file.read_bytes() for file in (target / "tokenizer").iterdir()} if options.extend else {}

    def snapshot(network: denoiser.Trained, step: int) -> None:
        pipeline = export.save_pipeline(target, autoencoder.cpu(), network.cpu(), tokenizer)
        for file, content in words.items():
            file.write_bytes(content)  # A tokenizer that was loaded saves what its last call set, too.
        if step == recipe.unet_steps:
            export.sample_grid(pipeline, folder / "samples.png")
        network.to(device)

    network, step = denoiser.train(recipe, latents, captions, tokenizer, folder, device, compiled=options.compile,
                             snapshot=snapshot, stop_at=stop_at)  # fmt: skip
    if options.extend:
        export.reconstruction_grid(autoencoder.cpu(), folder / "reconstructions.png")
    elif step == recipe.unet_steps:
        autoencoder = vae.refine_decoder(recipe, autoencoder.to(device), latents, pixels, folder, device)
        snapshot(network, step)
        export.reconstruction_grid(autoencoder, folder / "reconstructions.png")
    names = {"autoencoder": "vae", "denoiser": "denoiser", "decoder": "decoder"}
    curves = {title: folder / f"{name}-loss.jsonl" for title, name in names.items()}
    export.loss_curves({title: file for title, file in curves.items() if file.exists()}, folder / "loss.png")
    note = {"base": options.base, "recipe": asdict(recipe), "denoiser_steps_done": step, "device": str(device),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "torch": torch.__version__,
            "minutes_this_call": round((time.monotonic() - begin) / 60, 1)}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(note, indent=2))
    for name in ("samples.png", "reconstructions.png", "loss.png", "run.json"):
        if (folder / name).exists():  # Samples are drawn at the last step alone.
            (target / name).write_bytes((folder / name).read_bytes())
    write_sums(options.out)


if __name__ == "__main__":
    main()
