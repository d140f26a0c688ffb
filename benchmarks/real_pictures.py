"""Protect real pictures at 256 x 256 with the embedded base's autoencoder, save, reload and measure them again.

    python benchmarks/real_pictures.py FOLDER --out DIR [--defense glaze-open] [--set steps=100]

Checks format, budget and files, not protection: the autoencoder takes any size, but it was trained on the small
painted world alone. Writes every protected picture as PNG, a sheet (clean, protected, difference x10) and the
measured distances as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from immunebench.catalog.entry import Entry
from immunebench.catalog.loading import default_catalog
from immunebench.core.types import Concept, Numerics, Params, Pictures
from immunebench.execution import hooks, inputs
from immunebench.methods.bound import distances
from immunebench.methods.context import Context
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.runtime import prepare_process
from immunebench.pictures import decoding
from immunebench.records.contact_sheet import INK, PAPER, font

Pixels = NDArray[np.uint8]
LABELS = 150


def protect(entry: Entry, given: Pictures, changed: dict[str, Any], ctx: Context, model: LatentDiffusion) -> Pictures:
    """Run a defense's hook on pictures of any size and hold the result to the declared budget, as its stage does."""
    bound = {} if entry.perceptual_budget is None else {"perceptual_budget": entry.perceptual_budget}
    params = Params({**entry.params("mini"), **changed, "budget": entry.budget, **bound})
    # The owner's pictures have the base's own size, for what the base draws is compared with them.
    side = (model.numerics.resolution,) * 2
    small = np.stack([np.asarray(Image.fromarray(p).resize(side, Image.Resampling.LANCZOS)) for p in given.pixels])
    concept = Concept("real", "style", "style", "oqx", "a painting in oqx style", Pictures(small, given.captions))
    protected: Pictures = entry.function("protect_images")(model, concept, given, params, ctx)
    hooks.check_pictures(entry.id, given, protected, entry.budget)
    if entry.perceptual_budget is not None:
        hooks.check_perceptual(entry.id, distances(given, protected, ctx), entry.perceptual_budget)
    return protected


def sheet(clean: Pixels, protected: dict[str, Pixels]) -> Image.Image:
    """Lay out clean pictures, and under them each defense's and their difference ten times enlarged about grey."""
    rows = [("clean", clean)]
    for name, pixels in protected.items():
        difference = 128 + 10 * (pixels.astype(np.int32) - clean)
        rows += [(name, pixels), ("difference x10", difference.clip(0, 255).astype(np.uint8))]
    side = clean.shape[1]
    page = Image.new("RGB", (LABELS + len(clean) * side, len(rows) * side), PAPER)
    pen = ImageDraw.Draw(page)
    for row, (label, pictures) in enumerate(rows):
        pen.text((8, row * side + side // 2), label, INK, font(15))
        for column, picture in enumerate(pictures):
            page.paste(Image.fromarray(picture), (LABELS + column * side, row * side))
    return page


def main() -> None:
    """Protect the pictures by each defense and print one row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--defense", action="append", help="glaze-open and mist-textural by default")
    parser.add_argument("--set", default="", help="name=value[,name=value]: parameters of every defense")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--side", type=int, default=256)
    options = parser.parse_args()
    photos = decoding.read_folder(options.folder, options.side).photos[: options.pictures]
    if not photos:
        parser.error(f"{options.folder} holds no picture that can be used")
    numerics = Numerics()
    prepare_process(numerics)
    catalog = default_catalog()
    model = LatentDiffusion.load(catalog.base_folder("mini"), numerics)
    clean = Pictures(np.stack([photo.pixels for photo in photos]), ("a painting",) * len(photos))
    found: dict[str, Pixels] = {}
    rows: list[dict[str, Any]] = []
    for name in options.defense or ["glaze-open", "mist-textural"]:
        entry = catalog.defense(name)
        assert isinstance(entry, Entry)
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        ctx = Context(numerics, 0, folder, lambda what, done, total: None)
        ctx.distance = inputs.load_distance("mini", "cpu")
        started = time.process_time()
        protect(entry, clean, tomllib.loads("\n".join(options.set.split(","))), ctx, model).save(folder)
        reloaded = Pictures.load(folder)
        change = np.abs(reloaded.pixels.astype(np.int16) - clean.pixels)
        row = {
            "defense": name, "budget": entry.budget, "perceptual_budget": entry.perceptual_budget,
            "linf": change.max((1, 2, 3)).tolist(), "perceptual": distances(clean, reloaded, ctx).round(4).tolist(),
            "cpu_seconds": round(time.process_time() - started, 1),
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        found[name], rows = reloaded.pixels, [*rows, row]
    sheet(clean.pixels, found).save(options.out / "sheet.png")
    (options.out / "measured.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
