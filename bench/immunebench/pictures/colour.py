"""Turns decoded pictures of any colour mode into RGB as a viewer shows them: profiles, transparency, 16 bits."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
#: Greatest value of 12 bits, and TIFF's tag for the greatest value that a picture's pixels may have.
_TWELVE_BITS, _MAX_SAMPLE_VALUE = 4095, 281


class Unusable(Exception):
    """A picture that is not damaged and cannot be used; the message gives the reason."""


def named_white(image: Image.Image) -> int | None:
    """Return the greatest value of a pixel that a picture's file states, None where it states none."""
    named = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE_VALUE)
    return int(named[0]) if isinstance(named, tuple) else named


def to_rgb(image: Image.Image, profile: bytes | None = None, white: int | None = None) -> Image.Image:
    """Return a picture in RGB with 8 bits: sRGB where it has a colour profile, over white where it is transparent.

    Parameters
    ----------
    image
        Of any mode.
    profile
        ICC profile; default the one that Pillow found.
    white
        Greatest value of 16 bits, see `named_white`.

    Raises
    ------
    Unusable
        It is not known which value of its pixels is white.
    """
    profile = profile or image.info.get("icc_profile")
    if image.mode in _SIXTEEN_BITS:
        return _sixteen_bits(image, profile, white)
    if image.mode == "F":
        raise Unusable("has floating-point pixels, whose white is not known; save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return _srgb(_plain(image), profile)
    alpha = image.convert("RGBA").getchannel("A")
    colours = _srgb(_plain(image), profile)
    paper = Image.new("RGB", image.size, "white")
    return Image.composite(colours, paper, alpha)


def _plain(image: Image.Image) -> Image.Image:
    """Return the colours without transparency, in a mode that a profile can be applied to."""
    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
        return image.convert("RGB" if image.mode == "RGBA" else "L")
    return image if image.mode == "CMYK" else image.convert("RGB")


def _sixteen_bits(image: Image.Image, profile: bytes | None, named: int | None) -> Image.Image:
    """Scale 0..65535 to 0..255; Pillow's own conversion clips at 255, which turns such a picture white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise Unusable("has pixels of more than 16 bits; save it with 8 or 16 bits")
    white = _white(named, int(values.max()))
    full = np.minimum(np.rint(values * (65535 / white)), 65535).astype(np.uint16)
    rgb = _srgb(Image.fromarray(full), profile)
    if rgb.mode != "RGB":
        rgb = Image.fromarray(np.rint(full / 257).astype(np.uint8)).convert("RGB")
    # A grey picture of 16 bits may name one value that is transparent: white paper, as everywhere.
    pixels = np.array(rgb)
    pixels[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(pixels)


def _white(named: int | None, brightest: int) -> int:
    """Return the value of white: a camera of 12 bits stores its values in files of 16."""
    if named is not None and 0 < brightest <= named <= 65535:
        return named
    if 0 < brightest <= _TWELVE_BITS:
        raise Unusable(
            f"has 16 bits and no value above {brightest}: nearly black, as data of 12 bits or fewer are when their "
            "range is not named; save it with 8 bits or with the whole range of 16"
        )
    return 65535


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return a picture in sRGB by its profile; as viewers do, without one that is broken or of another colour space."""
    if profile:
        try:
            given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if given.profile.xcolor_space.strip() == "RGB" and image.mode != "CMYK":
                image = image.convert("RGB") if image.mode == "L" else image
            found = ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if found is not None:
                return found
        except (ImageCms.PyCMSError, OSError):
            pass
    return image if image.mode.startswith("I;16") else image.convert("RGB")
