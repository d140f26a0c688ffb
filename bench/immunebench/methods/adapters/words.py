"""`Words`: new rows of the token embedding, as Textual Inversion trains them (Gal et al. 2023, sec. 3)."""

from __future__ import annotations

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
    """v*: one or several vectors that a placeholder word of the captions stands for.

    Parameters
    ----------
    model : LatentDiffusion
    token : str
        The placeholder, a word of the captions such as ``sks``.
    rows : Parameter, shape (num_vectors, width)
    """

    format: ClassVar[str] = "diffusers-textual-inversion"
    model: LatentDiffusion
    token: str
    rows: nn.Parameter

    @classmethod
    def attach(cls, model: LatentDiffusion, *, token: str, initializer: str, num_vectors: int = 1) -> Words:
        """Give a word its own vectors, each a copy of the initializer's embedding.

        Parameters
        ----------
        model : LatentDiffusion
        token : str
        initializer : str
            A word that the tokenizer knows as a single token.
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
        return cls(model, token, model.text.teach(token, start.repeat(num_vectors, 1)))

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The rows, by the placeholder's name."""
        return {self.token: self.rows}

    def enable(self, on: bool) -> None:
        """Read the placeholder as the learned vectors, or as the tokenizer does."""
        self.model.text.listen(on)

    def save(self, path: Path) -> None:
        """Write the rows, readable by `StableDiffusionPipeline.load_textual_inversion` with ``token=<sks>``."""
        from safetensors.torch import save_file

        save_file(self._finite({f"<{self.token}>": self.rows}), path, metadata={"format": "pt"})

    def describe(self) -> dict[str, Any]:
        """Return the format, the placeholder and the number of its vectors."""
        return {"format": self.format, "token": self.token, "num_vectors": len(self.rows)}


def load(model: LatentDiffusion, path: Path) -> None:
    """Teach the model the words of a file; `LatentDiffusion.restore` takes them back."""
    from safetensors.torch import load_file

    saved: dict[str, Tensor] = load_file(path)
    for name, rows in saved.items():
        if rows.ndim != 2 or not torch.isfinite(rows).all():
            raise StageError("error", f"{path.name}: {name} holds no vectors of a word")
        model.text.teach(name.strip("<>"), rows)
