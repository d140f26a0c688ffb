"""BRISQUE: no-reference quality from natural scene statistics (Mittal, Moorthy, Bovik 2012).

Implemented from the paper, with the support vectors that its authors trained. Implementations differ by several points
because of padding, rounding and downscaling, so values are comparable with this implementation only.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import correlate1d
from scipy.special import gamma

from immunebench.bases.weights import require

if TYPE_CHECKING:
    from immunebench.metrics.table import Floats, Pixels

Array: TypeAlias = NDArray[np.float64]

#: Candidate shape parameters of a fit, as in the authors' code.
_SHAPES = np.arange(0.2, 10.001, 0.001)
#: (E|x|)^2 / E x^2 of a generalised Gaussian of each shape.
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))


def brisque(pixels: Pixels) -> Floats:
    """Return the predicted opinion score, (n,): about 0 for a clean photo, 100 for a bad one, or slightly beyond.

    It was fitted to photos of about 500 pixels; for smaller or painted pictures only differences are meaningful.

    Raises
    ------
    UsageError
        The weights have not been downloaded.
    """
    model = _model()
    found = np.stack([features(picture) for picture in pixels])
    scaled = 2 * (found - model["low"]) / (model["high"] - model["low"]) - 1
    distance = ((scaled[:, None] - model["vectors"][None]) ** 2).sum(2)
    score = np.exp(-model["gamma"] * distance) @ model["coefficients"] - model["rho"]
    return np.asarray(score, np.float32)


def features(picture: NDArray[np.uint8]) -> Array:
    """Return the 36 features of one picture (H, W, 3): 18 at full size, 18 at half size (section III-A)."""
    grey = Image.fromarray(picture).convert("L")
    half = grey.convert("F").resize((max(1, grey.width // 2), max(1, grey.height // 2)), Image.Resampling.BICUBIC)
    return np.concatenate([_at_one_scale(np.asarray(image, np.float64)) for image in (grey, half)])


def _at_one_scale(image: Array) -> Array:
    x = normalised(image)
    right, below = x[:, :-1] * x[:, 1:], x[:-1] * x[1:]
    diagonals = x[:-1, :-1] * x[1:, 1:], x[:-1, 1:] * x[1:, :-1]
    return np.array([*symmetric_fit(x), *(v for pairs in (right, below, *diagonals) for v in skewed_fit(pairs))])


def normalised(image: Array) -> Array:
    """Return mean-subtracted contrast-normalised luminance, eq. 1 to 3: 7x7 Gaussian window of sigma 7/6, C = 1."""
    window = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    window /= window.sum()

    def blurred(values: Array) -> Array:
        across = correlate1d(values, window, axis=0, mode="nearest")
        return np.asarray(correlate1d(across, window, axis=1, mode="nearest"))

    mean = blurred(image)
    found: Array = (image - mean) / (np.sqrt(np.abs(blurred(image**2) - mean**2)) + 1)
    return found


def symmetric_fit(x: Array) -> tuple[float, float]:
    """Return shape and variance of the generalised Gaussian with the moments of `x`, equations 4 to 6."""
    variance = float((x**2).mean())
    return _shape(float(np.abs(x).mean()) ** 2 / max(variance, 1e-12)), variance


def skewed_fit(x: Array) -> tuple[float, float, float, float]:
    """Return shape, mean, left and right variance of the asymmetric generalised Gaussian, equations 8 to 12."""
    left, right = (float((part**2).mean()) if part.size else 0.0 for part in (x[x < 0], x[x > 0]))
    skew = np.sqrt(left / max(right, 1e-12))
    ratio = float(np.abs(x).mean()) ** 2 / max(float((x**2).mean()), 1e-12)
    nu = _shape(ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2)
    scale = np.sqrt(gamma(1 / nu) / gamma(3 / nu)) * gamma(2 / nu) / gamma(1 / nu)
    return nu, float((np.sqrt(right) - np.sqrt(left)) * scale), left, right


def _shape(ratio: float) -> float:
    return float(_SHAPES[np.abs(_RATIOS - ratio).argmin()])


@cache
def _model() -> dict[str, Array]:
    from safetensors.numpy import load_file

    return {name: array.astype(np.float64) for name, array in load_file(require("brisque")).items()}
