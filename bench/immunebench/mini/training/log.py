"""Progress lines, loss curves and checkpoints of a training run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors.torch import load_file, save_file


class Progress:
    """Prints a line every few seconds: steps done, rate, remaining time, and running means of named values."""

    def __init__(self, name: str, total: int, unit: str = "steps", *, done: int = 0, every: float = 15.0) -> None:
        self.name, self.total, self.unit, self.every = name, total, unit, every
        self.done = self.first = done
        self.begin = self.last = time.monotonic()
        self.means: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._print()

    def advance(self, count: int = 1, **values: float) -> None:
        """Advance by ``count``; named values enter an exponential moving average."""
        self.done += count
        for key, value in values.items():
            self.means[key] = value if key not in self.means else 0.98 * self.means[key] + 0.02 * value
        if time.monotonic() - self.last > self.every:
            self._print()

    def _print(self) -> None:
        self.last = time.monotonic()
        rate = (self.done - self.first) / max(self.last - self.begin, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        shown = "  ".join(f"{key} {value:.4f}" for key, value in self.means.items())
        print(
            f"{self.name}: {self.done}/{self.total} {self.unit}  {rate:.2f}/s  {left / 60:.1f} min left  {shown}",
            flush=True,
        )


class Curve:
    """A loss curve in a file of JSON lines ``{"step", "loss", ...}``, continued on resuming."""

    def __init__(self, file: Path, first: int) -> None:
        kept = [row for row in _rows(file) if row["step"] <= first]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.file = file

    def add(self, step: int, **values: float) -> None:
        """Append one point."""
        with self.file.open("a") as handle:
            handle.write(json.dumps({"step": step, **values}) + "\n")


def _rows(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def save_checkpoint(file: Path, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors and the step atomically."""
    temporary = file.with_suffix(".partial")
    save_file(
        {key: value.detach().contiguous().clone() for key, value in tensors.items()},
        temporary,
        {"step": str(step)},
    )
    temporary.replace(file)


def load_checkpoint(file: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the step and tensors of a checkpoint; ``(0, {})`` if there is none."""
    from safetensors import safe_open

    if not file.exists():
        return 0, {}
    with safe_open(file, "pt") as handle:
        return int(handle.metadata()["step"]), load_file(file)
