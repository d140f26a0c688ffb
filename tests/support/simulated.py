"""A simulated DreamBooth on the tiny model, and the defenses that train it, as stages call them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Concept, Params, Pictures
from immunebench.methods.adapters import Adapter, Dense
from immunebench.methods.context import Context
from immunebench.model.diffusion import LatentDiffusion
from tiny import tiny_context, tiny_pictures

DREAMBOOTH = {"lr": 1e-3, "batch": 2, "weight_decay": 1e-2, "prior_weight": 0.5, "prior_batch": 1}
PARAMS: dict[str, dict[str, Any]] = {
    "anti-dreambooth": {
        "rounds": 2, "train_steps": 2, "pgd_steps": 2, "alpha": 3.0, "lr": 0.0, "weights": "float32",
        "targeted": False,
    },
    "simac": {
        "rounds": 2, "train_steps": 2, "pgd_steps": 2, "alpha": 3.0, "lr": 0.0, "feature_weight": 1.0,
        "deletions": 2, "candidates": 2, "width": 50, "keep": 100,
    },
    "metacloak": {
        "trials": 1, "states": 3, "apart": 2, "unroll": 2, "pgd_steps": 2, "advance": 1, "lr": 0.0, "kernel": 3,
        "sigma": 1.0, "zoom": 0.125,
    },
}  # fmt: skip


class DreamBooth:
    """The attack as the engine hands it to a defense."""

    def __init__(self, **params: Any) -> None:
        self.params = Params({**DREAMBOOTH, **params})

    def attach(self, model: LatentDiffusion) -> Adapter:
        return Dense.attach(model)


def owner() -> Pictures:
    return tiny_pictures(3, "a q", seed=1)


def published(count: int = 3) -> Pictures:
    pictures = tiny_pictures(3, "a q", seed=2)
    return Pictures(pictures.pixels[:count], pictures.captions[:count])


def context(model: LatentDiffusion, folder: Path, *, seed: int = 3) -> Context:
    """Return a context with the attack, class pictures and innocent ones."""
    ctx = tiny_context(model, folder, seed)
    ctx.attacks = {"dreambooth": DreamBooth()}  # type: ignore[dict-item]
    ctx.prior, ctx.public = tiny_pictures(3, "a p", seed=4), tiny_pictures(4, "a r", seed=5)
    return ctx


def protect(entry: str, model: LatentDiffusion, ctx: Context, pictures: Pictures, **params: Any) -> Pictures:
    """Run a defense on published pictures."""
    concept = Concept("object-mug", "object", "m", "q", "a q", owner())
    given = Params({**PARAMS[entry], "budget": 4, "against": ["dreambooth"], **params})
    protected: Pictures = (
        load_catalog().defense(entry).layers[0].function("protect_images")(model, concept, pictures, given, ctx)
    )
    return protected
