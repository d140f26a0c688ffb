"""Total variation minimisation: drop pixels, reconstruct the smoothest fit to the rest (Guo et al. 2018, sec. 4)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.optimize import minimize
from torch import Tensor
from torch.linalg import vector_norm

from immunebench import Context, LatentDiffusion, Params, Pictures


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Reconstruct every picture from a random subset of its pixel values."""
    cleaned = []
    for i, (x, seed) in enumerate(zip(pictures.pixels, ctx.seeds(len(pictures), "tvm"), strict=True)):
        kept = np.random.default_rng(seed).random(x.shape) < params.keep
        z = reconstructed(x / 255, kept, params)
        cleaned.append((z * 255).round().clip(0, 255).astype(np.uint8))
        ctx.report("cleaning", i + 1, len(pictures))
    return Pictures(np.stack(cleaned), pictures.captions)


def reconstructed(x: NDArray[np.float64], kept: NDArray[np.bool_], params: Params) -> NDArray[np.float64]:
    """Minimise the objective by L-BFGS, starting from the picture with dropped values filled in; see `filled`."""

    def value_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = torch.from_numpy(flat.reshape(x.shape)).requires_grad_()
        value = objective(z, torch.from_numpy(x), torch.from_numpy(kept), params)
        (gradient,) = torch.autograd.grad(value, z)
        return value.item(), gradient.numpy().ravel()

    found = minimize(
        value_and_gradient, filled(x, kept).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": params.steps}
    )
    return np.asarray(found.x.reshape(x.shape))


def objective(z: Tensor, x: Tensor, kept: Tensor, params: Params) -> Tensor:
    """Return |X (z - x)|_2 + lambda TV_p(z), eq. 2; `square` takes half the square of the first term.

    TV_p, eq. 3, is the sum over channels of the p-norms of the differences of neighbouring rows, and of columns.
    """
    error = vector_norm((z - x) * kept)
    rows = vector_norm(z[1:] - z[:-1], params.norm, dim=1).sum()
    columns = vector_norm(z[:, 1:] - z[:, :-1], params.norm, dim=0).sum()
    return (error.square() / 2 if params.square else error) + params.weight * (rows + columns)


def filled(x: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Replace every dropped value by the nearest kept one of its channel, so that it has no effect on the result."""
    channels = []
    for c in range(x.shape[2]):
        if kept[..., c].any():
            nearest = distance_transform_edt(~kept[..., c], return_distances=False, return_indices=True)
            channels.append(x[..., c][tuple(nearest)])
        else:
            channels.append(np.full(x.shape[:2], x[..., c].mean()))
    return np.stack(channels, axis=-1)
