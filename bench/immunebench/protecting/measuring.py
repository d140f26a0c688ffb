"""Measures a protected copy: on its saved file, by the suite's own metrics."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from immunebench.catalog.catalog import Catalog
from immunebench.core.errors import UsageError
from immunebench.core.types import Pictures
from immunebench.metrics.pixels import linf, psnr, ssim
from immunebench.pictures.decoding import Photo
from immunebench.protecting.copies import Copy, Pixels, Saved
from immunebench.protecting.planning import Planned

if TYPE_CHECKING:
    from torch import Tensor

#: Of a measured distance to the declared one, as the stages allow.
_SPARE = 1e-6


def measured(plan: Planned, catalog: Catalog, photo: Photo, protected: Pixels, saved: Saved, seconds: float) -> Copy:
    """Measure a copy.

    Parameters
    ----------
    plan, catalog
        Say which budget is declared and which perceptual distance the base has.
    photo
        The picture and its square before.
    protected
        The square that the defense made.
    saved
        The copy.
    seconds
        What it took.
    """
    height, width = saved.pixels.shape[:2]
    # Pillow's arrays are read-only, which PyTorch warns of.
    clean, square = photo.pixels.copy(), saved.square.copy()
    largest = int(linf(saved.pixels[None], saved.clean[None])[0])
    distance = _distance(catalog, plan.request.base)
    apart = None if distance is None else _apart(clean, square, distance)
    made = np.abs(protected.astype(np.int16) - clean).mean()
    stayed = np.abs(square.astype(np.int16) - clean).mean()
    budget, p = plan.entry.budget, plan.entry.perceptual_budget
    kept = (budget is None or largest <= budget) and (p is None or (apart is not None and apart <= p + _SPARE))
    return Copy(
        file=photo.name,
        output=plan.names[photo.name],
        sha256=saved.sha256,
        width=width,
        height=height,
        linf=largest,
        psnr=round(float(psnr(saved.pixels[None], saved.clean[None])[0]), 2),
        ssim=round(float(ssim(square[None], clean[None])[0]), 4),
        perceptual=None if apart is None else round(apart, 4),
        seconds=round(seconds, 2),
        covered=round(min(width, height) / max(width, height), 4),
        survives=round(float(stayed / made), 3) if made else None,
        within_budget=kept,
    )  # fmt: skip


def missing_distance(catalog: Catalog, base: str) -> str | None:
    """Return why there is no perceptual distance for a base, with the command that gets it; None where there is one."""
    try:
        catalog.perceptual(base, asked_by=catalog.models_path)
    except UsageError as error:
        return error.message
    return None


def _apart(a: Pixels, b: Pixels, distance: Callable[[Tensor, Tensor], Tensor]) -> float:
    from immunebench.methods.bound import paired_distances

    return float(paired_distances(Pictures(a[None], ("",)), Pictures(b[None], ("",)), distance)[0])


def _distance(catalog: Catalog, base: str) -> Callable[[Tensor, Tensor], Tensor] | None:
    name = catalog.models.bases[base].perceptual
    if name is None or missing_distance(catalog, base) is not None:
        return None
    return _loaded(catalog.models.perceptual[name].loader)


@functools.cache
def _loaded(loader: str) -> Callable[[Tensor, Tensor], Tensor]:
    from immunebench.execution import inputs

    found: Callable[[Tensor, Tensor], Tensor] = inputs.loader(loader)("cpu")
    return found
