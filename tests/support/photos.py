"""A folder of photos as people have them: mixed sizes, formats and colour modes, each showing something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def photo(number: int, width: int = 96, height: int = 80) -> Image.Image:
    """Seeded coarse blocks of colour, which no two numbers share."""
    blocks = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def album(folder: Path, count: int = 12) -> Path:
    """Write `count` pictures: upright and turned, RGB, grey, with alpha, CMYK and 16-bit, in six formats."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, name = photo(number, 64 + 7 * number, 90), folder / f"photo {number}"
        match number % 6:
            case 0:
                image.save(f"{name}.png")
            case 1:
                exif = Image.Exif()
                exif[0x0112] = 6
                image.save(f"{name}.JPG", exif=exif, quality=95)
            case 2:
                image.putalpha(128)
                image.save(f"{name}.webp", lossless=True)
            case 3:
                grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
                Image.fromarray(grey).save(f"{name}.png")
            case 4:
                image.convert("CMYK").save(f"{name}.tif")
            case 5:
                image.convert("P").save(f"{name}.gif")
    return folder
