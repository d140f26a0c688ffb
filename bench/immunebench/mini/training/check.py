"""Prompt fidelity of a base: whether its pictures have the traits in their captions, according to a reader."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

from immunebench.mini import readers, traits, world
from immunebench.mini.training import export
from immunebench.mini.training.data import to_input

#: Traits that captions name.
CAPTIONED = (
    "kind", "colour", "accent", "pattern", "marking", "shape", "setting", "procedure",
    *traits.FAMILIES["identity"], "clothing", "background",
)  # fmt: skip


@torch.inference_mode()
def answers(reader: readers.Reader, pixels: NDArray[np.uint8], device: torch.device | str) -> NDArray[np.int64]:
    """The likeliest answer (n, traits) of each trait."""
    network = reader.to(device)
    logits = torch.cat([network(to_input(part.to(device))) for part in torch.split(torch.from_numpy(pixels), 250)])
    return torch.stack([part.argmax(1) for part in readers.split(logits).values()], 1).cpu().numpy()


def balanced(labels: NDArray[np.int64], found: NDArray[np.int64]) -> dict[str, float]:
    """Balanced accuracy of each captioned trait over the pictures that have it: the mean over its values."""
    scores = {}
    for at, (trait, values) in enumerate(traits.TRAITS.items()):
        if trait not in CAPTIONED:
            continue
        rates = [(found[labels[:, at] == v, at] == v).mean() for v in range(len(values)) if (labels[:, at] == v).any()]
        if rates:
            scores[trait] = float(np.mean(rates))
    return scores


def drawn(
    pipeline: StableDiffusionPipeline, reader: readers.Reader, count: int, device: torch.device | str
) -> tuple[dict[str, float], dict[str, float]]:
    """Return balanced accuracies on the base's pictures for ``count`` full captions, and on the rendered pictures."""
    pictures = [world.draw("reference", i, group="check", wordings=0) for i in range(count)]
    labels = np.stack([traits.encode(p.labels) for p in pictures]).astype(np.int64)
    pixels = export.sample(pipeline, [p.labels["captions"][0] for p in pictures])
    real = np.stack([p.pixels for p in pictures])
    return balanced(labels, answers(reader, pixels, device)), balanced(labels, answers(reader, real, device))


def table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Format scores as a text table with traits as rows; the last line is the mean."""
    names = list(next(iter(columns.values())))
    lines = [f"{'':14s}" + "".join(f"{column:>14s}" for column in columns)]
    for name in names:
        lines.append(f"{name:14s}" + "".join(f"{scores.get(name, float('nan')):14.3f}" for scores in columns.values()))
    means = [float(np.mean([scores[n] for n in names if n in scores])) for scores in columns.values()]
    return "\n".join([*lines, f"{'mean':14s}" + "".join(f"{mean:14.3f}" for mean in means)])


def main() -> None:
    """Compare pipeline folders at equal captions: ``python -m immunebench.mini.training.check FOLDER [FOLDER ...]``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--judges", type=Path, required=True, help="folder of the readers' weights")
    parser.add_argument("--reader", default="reader")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheets", action="store_true", help="draw captions.webp beside each pipeline")
    options = parser.parse_args()
    reader = readers.load(options.reader, options.judges)
    columns: dict[str, dict[str, float]] = {}
    for folder in options.folders:
        pipeline = export.open_pipeline(folder, options.device)
        name = f"{folder.parent.name}/{folder.name}"[-13:]
        columns[name], columns["rendered"] = drawn(pipeline, reader, options.count, options.device)
        if options.sheets:
            export.caption_grid(pipeline, folder.parent / "captions.webp")
    columns["rendered"] = columns.pop("rendered")
    print(table(columns), flush=True)
    if options.json:
        options.json.write_text(json.dumps(columns, indent=1) + "\n")


if __name__ == "__main__":
    main()
