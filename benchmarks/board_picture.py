"""Draw the README's picture from the contact sheets of a suite: a block a task, a row a defense.

    python benchmarks/board_picture.py --suite mini-core --out docs/board.webp

Every sheet has three rows of pictures of 64 x 64: real ones of the concept, what the attack draws undefended, and what
it draws against its defense. The latter two have the same prompts and noise in each column.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64
TASKS = ("style-solano", "object-mug", "identity-freya", "relearn-church")
DEFENSES = ("imma-lora", "freeze-as-guard", "destroy")


def rows(path: Path, count: int) -> list[NDArray[np.uint8]]:
    """Return the rows of a sheet, each cut to its first `count` pictures and filled with white, uint8 (64, 64 n, 3)."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    cut = pixels[:, : count * SIDE]
    full = np.full((cut.shape[0], count * SIDE, 3), 255, np.uint8)
    full[:, : cut.shape[1]] = cut
    return [full[top : top + SIDE] for top in range(0, full.shape[0], SIDE)]


def draw(sheets: Path, out: Path, chain: str = "lora", count: int = 5) -> None:
    """Draw the picture as WebP."""
    figure, axes = plt.subplots(1, len(TASKS), figsize=(10.4, 2.75), layout="constrained")
    for axis, task in zip(axes, TASKS, strict=True):
        parts = {name: rows(sheets / f"{task}--{name}--{chain}--cpu--0.webp", count) for name in DEFENSES}
        real, undefended = parts[DEFENSES[0]][:2]
        axis.imshow(np.concatenate([real, undefended, *(parts[name][2] for name in DEFENSES)]), interpolation="nearest")
        axis.set_title(task, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    axes[0].set_yticks([SIDE * (i + 0.5) for i in range(2 + len(DEFENSES))], ["the concept", "no defense", *DEFENSES])
    axes[0].tick_params(length=0, labelsize=9)
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=150)
    Image.open(made).convert("RGB").save(out, "WEBP", quality=88, method=6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the README's picture from the contact sheets of a suite.")
    parser.add_argument("--suite", default="mini-core")
    parser.add_argument("--out", type=Path, default=Path("docs/board.webp"))
    options = parser.parse_args()
    draw(Path("results") / options.suite / "sheets", options.out)
