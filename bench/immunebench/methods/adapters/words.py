"""`Words`: new token embeddings, as in Textual Inversion (Gal et al. 2023, sec. 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from immunebench.core.types import StageError
from immunebench.methods.adapters.base import Adapter
from immunebench.model.diffusion import LatentDiffusion


@dataclass(frozen=True, slots=True, eq=False)
class Words(Adapter):
    """v*: one or several embedding vectors of the placeholder token in the captions.

    Parameters
    ----------
    model : LatentDiffusion
    token : str
        The placeholder in the captions, such as ``sks``.
    rows : Parameter, shape (num_vectors, width)
    """

    format: ClassVar[str] = "diffusers-textual-inversion"
    model: LatentDiffusion
    token: str
    rows: nn.Parameter

    @classmethod
    def attach(cls, model: LatentDiffusion, *, token: str, initializer: str, num_vectors: int = 1) -> Words:
        """Add embedding vectors for a placeholder, each a copy of the initializer's embedding.

        Parameters
        ----------
        model : LatentDiffusion
        token : str
        initializer : str
            A word that is a single token of the tokenizer.
        num_vectors : int
            At least 1.

        Raises
        ------
        StageError
            If the initializer is more than one token or `num_vectors` is below 1.
        """
        if num_vectors < 1:
            raise StageError("error", f"num_vectors must be at least 1, not {num_vectors}")
        start = model.text.vectors(initializer)
        if len(start) != 1:
            raise StageError("error", f"initializer {initializer!r} is {len(start)} tokens, not one")
        return cls(model, token, model.text.add_word(token, start.repeat(num_vectors, 1)))

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The vectors, by the placeholder."""
        return {self.token: self.rows}

    def enable(self, on: bool) -> None:
        """Embed the placeholder by the learned vectors, or as the base's tokenizer reads it."""
        self.model.text.use_learned(on)

    @contextmanager
    def replaced(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Embed the placeholder inside the block by other vectors, differentiably."""
        self.model.text.replace(self.token, values[self.token])
        try:
            yield
        finally:
            self.model.text.replace(self.token, self.rows)

    def save(self, path: Path) -> None:
        """Write the vectors, readable by `StableDiffusionPipeline.load_textual_inversion` with ``token=<sks>``."""
        from safetensors.torch import save_file

        save_file(self._finite({f"<{self.token}>": self.rows}), path, metadata={"format": "pt"})

    def describe(self) -> dict[str, Any]:
        """Return the format, the placeholder and the number of its vectors."""
        return {"format": self.format, "token": self.token, "num_vectors": len(self.rows)}


def load(model: LatentDiffusion, path: Path) -> None:
    """Load the learned words of a file into the model; `LatentDiffusion.restore` undoes it."""
    from safetensors.torch import load_file

    saved: dict[str, Tensor] = load_file(path)
    for name, rows in saved.items():
        if rows.ndim != 2 or not torch.isfinite(rows).all():
            raise StageError("error", f"{path.name}: {name} must hold finite embedding vectors")
        model.text.add_word(name.strip("<>"), rows)
