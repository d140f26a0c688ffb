"""Distances between sets of pictures: FID and KID, for the utility of a full-size base."""

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

    from immunebench.metrics import Pixels

#: Fewest pictures of a set. FID's bias falls with their number and is not small here either, so that values compare
#: only where both sets have as many (Chong and Forsyth 2020).
LEAST = 1000
#: Sizes of KID's subsets and their number (Binkowski et al. 2018).
_SUBSET, _SUBSETS = 1000, 100


def fid(pixels: Pixels, reference: Pixels, feature: Module | None = None) -> float:
    """Frechet inception distance (Heusel et al. 2017), at least 0, by torchmetrics.

    Parameters
    ----------
    pixels, reference
        Generated and real pictures, uint8 (n, H, W, 3), at least 1,000 each.
    feature
        Maps uint8 (n, 3, H, W) to features (n, d); default Inception's 2,048 of 2015-12-05.

    Raises
    ------
    UsageError
        Fewer pictures, or Inception or its weights are not there.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    require_enough("fid", len(pixels), len(reference))
    metric = FrechetInceptionDistance(feature=feature or inception(), input_img_size=_shape(pixels))
    return float(_updated(metric, pixels, reference).compute())


def kid(pixels: Pixels, reference: Pixels, feature: Module | None = None, *, seed: int = 0) -> tuple[float, float]:
    """Kernel inception distance (Binkowski et al. 2018) by torchmetrics: mean and deviation over 100 subsets of 1,000.

    Unbiased, so unlike FID it compares between sets of other sizes, and may lie below 0. The deviation is 0 for sets
    of exactly 1,000, whose subsets are all the same. Parameters and errors are those of :func:`fid`; ``seed`` draws
    the subsets.
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
    """Inception of FID's first authors as torch-fidelity converted it, features (n, 2048) of uint8 (n, 3, H, W).

    Raises
    ------
    UsageError
        torch-fidelity or the weights are not there.
    """
    import torch
    from safetensors.torch import load_file
    from torchmetrics.image.fid import NoTrainInceptionV3

    file = require("inception-fid", asked_by="fid")
    with tempfile.TemporaryDirectory() as folder:
        # The library reads a pickle of a path or downloads one; it is given one that holds these tensors alone.
        pickled = Path(folder) / "inception.pth"
        torch.save(load_file(file), pickled)
        try:
            network: Module = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(pickled))
        except ModuleNotFoundError as error:
            how = "torch-fidelity is not there; get it with: pip install 'immunebench[fid]'"
            raise UsageError(how, field="fid") from error
    return network


def require_enough(field: str, *counts: int) -> None:
    """Refuse sets that are too small for the bias of FID to be alike.

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
