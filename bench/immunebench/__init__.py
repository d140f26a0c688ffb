"""ImmuneBench: how well does a protection stop the fine-tuning of a text-to-image model on a concept?

What entry authors import lives here. Names load on first use, so that importing
the package stays free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from immunebench.core.errors import UsageError
from immunebench.core.version import __version__

if TYPE_CHECKING:
    from immunebench.api import run
    from immunebench.core.types import Concept, Params, Pictures, StageError, Weights
    from immunebench.methods.context import Context
    from immunebench.model.diffusion import LatentDiffusion

__all__ = [
    "Concept",
    "Context",
    "LatentDiffusion",
    "Params",
    "Pictures",
    "StageError",
    "UsageError",
    "Weights",
    "__version__",
    "run",
]

_HOMES = {
    "Concept": "core.types",
    "Context": "methods.context",
    "LatentDiffusion": "model.diffusion",
    "Params": "core.types",
    "Pictures": "core.types",
    "StageError": "core.types",
    "Weights": "core.types",
    "run": "api",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
