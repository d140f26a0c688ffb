"""Perceptual distances between pictures of equal index: the judge's own, and LPIPS with AlexNet."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from immunebench.bases.weights import require
from immunebench.metrics.pixels import check_pair

if TYPE_CHECKING:
    from torch import Tensor

    from immunebench.metrics.table import Floats, Judge, Pixels

_BATCH = 32


def perceptual(judge: Judge, a: Pixels, b: Pixels) -> Floats:
    """Return the judge's perceptual distance, (n,), at least 0."""
    check_pair(a, b)
    return judge.perceptual(a, b)


def lpips_alex(a: Pixels, b: Pixels) -> Floats:
    """Return LPIPS 0.1 with AlexNet (Zhang et al. 2018) by the ``lpips`` package, (n,), at least 0.

    Raises
    ------
    UsageError
        The weights have not been downloaded.
    """
    import torch

    from immunebench.model.pixels import to_tensor

    check_pair(a, b)
    distance = alex()
    batches = [slice(i, i + _BATCH) for i in range(0, len(a), _BATCH)]
    with torch.inference_mode():
        parts = [distance(to_tensor(a[rows]), to_tensor(b[rows])) for rows in batches]
    return np.asarray(torch.cat(parts).numpy())


def load_lpips(device: str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """Return LPIPS 0.1 with AlexNet as a differentiable distance (n,) between pictures (n, 3, h, w) in [-1, 1]."""
    import lpips
    from safetensors.torch import load_file

    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    # The package names a layer slice1.0; the stored weights have torchvision's names, features.0.
    backbone = load_file(require("lpips-alex"))
    own = network.net.state_dict()
    network.net.load_state_dict({key: backbone["features" + key[len("slice1") :]] for key in own})
    network = network.eval().requires_grad_(False).to(device)
    return lambda x, y: network(x, y).flatten()


#: :func:`load_lpips`, cached per process.
alex = cache(load_lpips)
