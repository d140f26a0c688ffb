"""ImmuneBench: a benchmark of protections against malicious fine-tuning of text-to-image models.

This module exports the API for authors of entries. Names are imported on first use, so that importing the package does
not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from immunebench.core.errors import UsageError
from immunebench.core.version import __version__

if TYPE_CHECKING:
    from immunebench.api import run, scores
    from immunebench.core.mask import Mask
    from immunebench.core.types import Concept, Params, Pictures, StageError, Weights
    from immunebench.core.wording import recaption
    from immunebench.methods.adapters import Adapter, Dense, LowRank, Words
    from immunebench.methods.bound import within
    from immunebench.methods.consistency import consistent
    from immunebench.methods.context import Context, distance
    from immunebench.methods.perturb import Draws, Perturbation
    from immunebench.methods.restoration import denoised, noised
    from immunebench.methods.surrogate import Surrogate, watched
    from immunebench.methods.unrolled import unrolled
    from immunebench.model.batch import Batch
    from immunebench.model.diffusion import LatentDiffusion
    from immunebench.model.runtime import training
    from immunebench.model.symmetry import balance

__all__ = [
    "Adapter",
    "Batch",
    "Concept",
    "Context",
    "Dense",
    "Draws",
    "LatentDiffusion",
    "LowRank",
    "Mask",
    "Params",
    "Perturbation",
    "Pictures",
    "StageError",
    "Surrogate",
    "UsageError",
    "Weights",
    "Words",
    "__version__",
    "balance",
    "consistent",
    "denoised",
    "distance",
    "noised",
    "recaption",
    "run",
    "scores",
    "training",
    "unrolled",
    "watched",
    "within",
]

_MODULES = {
    "Adapter": "methods.adapters",
    "Batch": "model.batch",
    "Concept": "core.types",
    "Context": "methods.context",
    "Dense": "methods.adapters",
    "Draws": "methods.perturb",
    "LatentDiffusion": "model.diffusion",
    "LowRank": "methods.adapters",
    "Mask": "core.mask",
    "Params": "core.types",
    "Perturbation": "methods.perturb",
    "Pictures": "core.types",
    "StageError": "core.types",
    "Surrogate": "methods.surrogate",
    "Weights": "core.types",
    "Words": "methods.adapters",
    "balance": "model.symmetry",
    "consistent": "methods.consistency",
    "denoised": "methods.restoration",
    "distance": "methods.context",
    "noised": "methods.restoration",
    "recaption": "core.wording",
    "run": "api",
    "scores": "api",
    "training": "model.runtime",
    "unrolled": "methods.unrolled",
    "watched": "methods.surrogate",
    "within": "methods.bound",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
