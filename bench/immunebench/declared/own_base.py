"""Schema of ``bases/<id>.toml``: a base of one's own, described by the base that it is like."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from immunebench.declared.models import BaseModelSpec
from immunebench.declared.schema import Id, Model, Sha256, Text


class OwnBase(Model):
    """A fine-tuned or merged checkpoint that is measured under its own name.

    Attributes
    ----------
    like
        The base whose architecture, judge, prompts, placeholders and presets it takes.
    checkpoints
        SHA-256 of the file or folder that its weights are converted from, by its name.
    """

    id: Id
    title: Text
    like: Id
    checkpoints: Annotated[dict[Text, Sha256], Field(min_length=1, max_length=1)]
    licence: Text | None = None

    def spec(self, like: BaseModelSpec) -> BaseModelSpec:
        """Return the base as ``models.toml`` would describe it."""
        (digest,) = self.checkpoints.values()
        update = {
            "path": None,
            "hub": (),
            "own": True,
            "files": {},
            "checkpoints": dict(self.checkpoints),
            "licence": self.licence,
            "size_gb": None,
            "revision": f"checkpoint-{digest[:12]}",
            # Presets are written for bases that are like no other.
            "like": like.like or self.like,
        }
        return like.model_copy(update=update)
