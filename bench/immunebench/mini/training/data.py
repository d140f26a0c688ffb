"""Rendered training pictures on disk: pixels as one array, captions in several wordings."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from immunebench.mini import world
from immunebench.mini.training.log import Progress

#: Each picture is captioned this many times, with different attributes left out.
WORDINGS = 4
_CHUNK = 500


def _chunk(job: tuple[str, int]) -> tuple[NDArray[np.uint8], list[list[str]]]:
    group, start = job
    pixels, captions = [], []
    for index in range(start, start + _CHUNK):
        picture = world.draw("train", index, group=group, wordings=WORDINGS)
        pixels.append(picture.pixels)
        captions.append(picture.labels["captions"])
    return np.stack(pixels), captions


def render(folder: Path, group: str, count: int, workers: int = 2) -> tuple[NDArray[np.uint8], list[list[str]]]:
    """Training pictures uint8 (count, 64, 64, 3) and their wordings; rendered on the first call, then read back.

    Parameters
    ----------
    folder
        Where ``pictures.npy`` and ``captions.json`` are kept.
    group
        The stream of pictures: another group, other pictures.
    """
    pixels_file, captions_file = folder / "pictures.npy", folder / "captions.json"
    if not captions_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(group, start) for start in range(0, count, _CHUNK)]
        parts: list[NDArray[np.uint8]] = []
        captions: list[list[str]] = []
        with (
            ProcessPoolExecutor(workers) as pool,
            Progress("render", len(jobs) * _CHUNK, "pictures") as progress,
        ):
            for pixels, wordings in pool.map(_chunk, jobs):
                parts.append(pixels)
                captions.extend(wordings)
                progress.advance(len(pixels))
        np.save(pixels_file, np.concatenate(parts))
        captions_file.write_text(json.dumps(captions))
    return np.load(pixels_file), json.loads(captions_file.read_text())
