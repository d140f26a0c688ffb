"""Measures the upscaler of the embedded world: ``python benchmarks/mini_upscaler.py``.

Held-out pictures of the known world are given noise, and what each way makes of them is held against the clean ones:
PSNR in dB, mean over pictures, at 64 pixels and, against the drawing, at 128.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from tabulate import tabulate

from immunebench.core.types import Numerics
from immunebench.methods.restoration import denoised, noised
from immunebench.mini import upscaler, world

Bytes = NDArray[np.uint8]
BLURS = (0.5, 0.7, 1.0)


def psnr(made: Bytes, clean: Bytes) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB."""
    error = ((made.astype(float) - clean) ** 2).mean((1, 2, 3)) / 255**2
    return float(np.mean(-10 * np.log10(error)))


def resized(pixels: Bytes, side: int, how: Image.Resampling) -> Bytes:
    """Pictures of another size."""
    return np.stack([np.asarray(Image.fromarray(x).resize((side, side), how)) for x in pixels])


def main() -> None:
    """Print one table for each deviation of the noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.05, 0.1, 0.15])
    options = parser.parse_args()
    drawn = [world.draw("unseen", i, group="upscaler", reduce=1).pixels for i in range(options.pictures)]
    drawings = np.stack(drawn)
    clean = resized(drawings, 64, Image.Resampling.BOX)
    network = upscaler.load(Numerics())
    for sigma in options.sigma:
        noisy = noised(clean, sigma, range(options.pictures))
        large = network(noisy)
        ways: dict[str, Callable[[], Bytes]] = {
            "noisy": lambda noisy=noisy: noisy,  # type: ignore[misc]
            "non-local means": lambda noisy=noisy, sigma=sigma: denoised(noisy, sigma),  # type: ignore[misc]
            "upscaler and back": lambda large=large: resized(large, 64, Image.Resampling.BOX),  # type: ignore[misc]
        }
        rows = [[name, psnr(way(), clean), ""] for name, way in ways.items()]
        for width in BLURS:
            blurred = gaussian_filter(noisy, (0, width, width, 0))
            at_128 = psnr(resized(blurred, 128, Image.Resampling.BICUBIC), drawings)
            rows.append([f"Gaussian blur of {width}, bicubic", psnr(blurred, clean), at_128])
        rows[0][2] = psnr(resized(noisy, 128, Image.Resampling.BICUBIC), drawings)
        rows[2][2] = psnr(large, drawings)
        print(tabulate(rows, [f"sigma {sigma:g}", "64 px", "128 px"], floatfmt=".2f"), end="\n\n")


if __name__ == "__main__":
    main()
