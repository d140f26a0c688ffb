"""Loading of saved adapters into a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from immunebench.core.types import StageError
from immunebench.methods.adapters import dense, low_rank, words
from immunebench.methods.adapters.base import DESCRIPTION, saved_file
from immunebench.model.diffusion import LatentDiffusion

#: The loader of each file format.
FORMATS: Mapping[str, Callable[[LatentDiffusion, Path], None]] = {
    low_rank.LowRank.format: low_rank.merge,
    dense.Dense.format: dense.load,
    words.Words.format: words.load,
}


def install(model: LatentDiffusion, folder: Path, step: int) -> None:
    """Load the adapter that an attack saved at `step` into a model; `LatentDiffusion.restore` undoes it.

    Parameters
    ----------
    model : LatentDiffusion
        The model from which the attack started.
    folder : Path
        The attack's artifact.
    step : int

    Raises
    ------
    StageError
        If the format is unknown or the file does not fit the model.
    """
    name = json.loads((folder / DESCRIPTION).read_text())["format"]
    if name not in FORMATS:
        raise StageError("error", f"{DESCRIPTION}: unknown format {name!r}; one of {', '.join(FORMATS)}")
    FORMATS[name](model, folder / saved_file(step))
