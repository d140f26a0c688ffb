"""Distances between sets of pictures, FID and KID, for the utility of full-size bases."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.bases.weights import require
from immunebench.core.errors import UsageError
from immunebench.metrics.networks import batches

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torchmetrics import Metric

    from immunebench.metrics.table import Pixels

#: Smallest number of pictures in a set. FID's bias decreases with the number and is not negligible here, so values are
#: comparable only for sets of equal size (Chong and Forsyth 2020).
LEAST = 1000
#: Size and number of KID's subsets (Binkowski et al. 2018).
_SUBSET, _SUBSETS = 1000, 100


def fid(pixels: Pixels, reference: Pixels, feature: Module | None = None) -> float:
    """Return the Frechet inception distance (Heusel et al. 2017) by torchmetrics, at least 0.

    Parameters
    ----------
    pixels, reference
        Generated and real pictures, uint8 (n, H, W, 3), at least 1,000 each.
    feature
        Maps uint8 (n, 3, H, W) to features (n, d); default Inception's 2,048 of 2015-12-05.

    Raises
    ------
    UsageError
        There are fewer pictures, or torch-fidelity or the weights are missing.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    require_enough("fid", len(pixels), len(reference))
    metric = FrechetInceptionDistance(feature=feature or inception(), input_img_size=_shape(pixels))
    return float(_updated(metric, pixels, reference).compute())


def kid(pixels: Pixels, reference: Pixels, feature: Module | None = None, *, seed: int = 0) -> tuple[float, float]:
    """Return the kernel inception distance (Binkowski et al. 2018): mean and deviation over 100 subsets of 1,000.

    It is unbiased, so unlike FID it is comparable between sets of different sizes, and may be negative. The deviation
    is 0 for sets of exactly 1,000, whose subsets are all the same. Parameters and errors are those of :func:`fid`;
    ``seed`` selects the subsets.
    """
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    require_enough("kid", len(pixels), len(reference))
    metric = KernelInceptionDistance(feature=feature or inception(), subsets=_SUBSETS, subset_size=_SUBSET)
    _updated(metric, pixels, reference)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


@cache
def inception() -> Module:
    """Return FID's original Inception as converted by torch-fidelity: features (n, 2048) of uint8 (n, 3, H, W).

    Raises
    ------
    UsageError
        torch-fidelity or the weights are missing.
    """
    import torch
    from safetensors.torch import load_file
    from torchmetrics.image.fid import NoTrainInceptionV3

    file = require("inception-fid", asked_by="fid")
    with tempfile.TemporaryDirectory() as folder:
        # The library loads a pickle from a path or downloads one; this one holds only these tensors.
        pickled = Path(folder) / "inception.pth"
        torch.save(load_file(file), pickled)
        try:
            network: Module = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(pickled))
        except ModuleNotFoundError as error:
            how = "torch-fidelity is not installed; get it with: pip install 'immunebench[fid]'"
            raise UsageError(how, field="fid") from error
    return network


def require_enough(field: str, *counts: int) -> None:
    """Refuse sets that are too small.

    Raises
    ------
    UsageError
        A set has fewer than `LEAST` pictures.
    """
    for count in counts:
        if count < LEAST:
            raise UsageError(f"needs at least {LEAST:,} pictures in each set, not", field=field, value=count)


def _updated(metric: Metric, pixels: Pixels, reference: Pixels) -> Metric:
    import torch

    with torch.inference_mode():
        for part, real in ((pixels, False), (reference, True)):
            for batch in batches(part):
                metric.update(_tensor(batch), real=real)
    return metric


def _tensor(pixels: Pixels) -> Tensor:
    import torch

    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def _shape(pixels: Pixels) -> tuple[int, int, int]:
    return 3, pixels.shape[1], pixels.shape[2]
