"""Rendered training pictures: chunks on disk, written by worker processes, and tensors on the device for training.

Rendering takes as long as training, so training starts with the first chunks and uses more as they are written.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPTokenizer

from immunebench.mini import traits, world
from immunebench.mini.training.log import Progress

#: Number of captions per picture, which differ in wording and in the attributes that they omit.
WORDINGS = 6
CHUNK = 500
#: Streams of pictures: the bases learn from the narrow world, readers from all that there is.
GROUPS = {"mini": False, "mini-b": False, "reader": True, "second": True}


def _chunk(job: tuple[str, str, int, str]) -> int:
    folder, group, start, tokenizer = job
    file = Path(folder) / group / f"{start:07d}.npz"
    if file.exists():
        return CHUNK
    words = CLIPTokenizer.from_pretrained(tokenizer)
    drawn = [world.draw("train", start + i, group=group, wordings=WORDINGS, wide=GROUPS[group]) for i in range(CHUNK)]
    ids = token_ids(words, [caption for picture in drawn for caption in picture.labels["captions"]])
    temporary = file.with_suffix(".partial")
    with temporary.open("wb") as handle:
        np.savez(
            handle, pixels=np.stack([p.pixels for p in drawn]),
            labels=np.stack([traits.encode(p.labels) for p in drawn]),
            boxes=np.asarray([p.labels["box"] for p in drawn], np.int16), ids=ids.reshape(CHUNK, WORDINGS, -1),
        )  # fmt: skip
    temporary.replace(file)
    return CHUNK


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> NDArray[np.int16]:
    """Token ids (n, length), padded to the tokenizer's length."""
    length = tokenizer.model_max_length
    found = tokenizer(captions, padding="max_length", truncation=True, max_length=length).input_ids
    return np.asarray(found, np.int16)


def render(folder: Path, counts: dict[str, int], tokenizer: Path, workers: int = 2) -> None:
    """Render ``counts`` pictures of each group into ``folder/<group>/``; existing ones are not rendered again.

    The groups' chunks alternate in proportion, so that training can start on all groups at the same time.
    """
    jobs = [(start / count, (str(folder), group, start, str(tokenizer)))
            for group, count in counts.items() for start in range(0, count, CHUNK)]  # fmt: skip
    for group in counts:
        (folder / group).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool, Progress("render", len(jobs) * CHUNK, "pictures") as progress:
        for count in pool.map(_chunk, [job for _, job in sorted(jobs)]):
            progress.advance(count)


class Rendered:
    """The pictures of a group on a device, as far as they have been rendered.

    Attributes
    ----------
    pixels, labels, boxes, ids
        uint8 (n, 64, 64, 3), int16 (n, traits), int16 (n, 4), int16 (n, wordings, length): room for all, the first
        ``ready`` are filled.
    """

    def __init__(self, folder: Path, group: str, count: int, device: torch.device, *, least: int = CHUNK) -> None:
        self.folder, self.count, self.device = folder / group, count, device
        self.ready = 0
        self._left = [f"{start:07d}.npz" for start in range(0, count, CHUNK)]
        while not self._next():
            time.sleep(0.5)
        while self.ready < min(least, count):
            self.refresh()
            time.sleep(0.2)

    def _next(self) -> bool:
        file = self.folder / self._left[0] if self._left else None
        if file is None or not file.exists():
            return False
        with np.load(file) as found:
            parts = {name: torch.from_numpy(found[name]) for name in ("pixels", "labels", "boxes", "ids")}
        if self.ready == 0:
            for name, part in parts.items():
                room = torch.empty(self.count, *part.shape[1:], dtype=part.dtype, device=self.device)
                setattr(self, name, room)
        for name, part in parts.items():
            getattr(self, name)[self.ready : self.ready + CHUNK] = part.to(self.device)
        self.ready += CHUNK
        self._left.pop(0)
        return True

    def refresh(self, most: int = 40) -> bool:
        """Load chunks that were rendered since the last call; return whether there were any."""
        before = self.ready
        for _ in range(most):
            if not self._next():
                break
        return self.ready > before

    pixels: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor
    ids: torch.Tensor


def to_input(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (n, H, W, 3) to float32 (n, 3, H, W) in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(x: torch.Tensor) -> torch.Tensor:
    """float (n, 3, H, W) in [-1, 1] to uint8 (n, H, W, 3)."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
