"""A folder of somebody's photos becomes RGB squares, or one line says which file stands in the way.

Nothing here follows a link or writes a file, and a picture's size is known before its pixels are decoded.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from immunebench.core.errors import UsageError, printable

Square = NDArray[np.uint8]

#: Pillow's plug-ins that decode by themselves: none that starts another program, as the one of EPS does.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif"})
#: Pictures of kinds that are not read. Passing over them in silence would lose somebody's photos.
UNREAD = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".nef", ".arw", ".psd", ".svg", ".eps"})
MAX_FILES = 1000
MAX_PIXELS = 100_000_000
#: Of a file, which is read whole before anything is known of it.
MAX_BYTES = 500_000_000
#: A longer picture loses most of itself when it is cut to a square.
MAX_ASPECT = 4
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
#: Two copies of one photo in two file formats differ by less, a channel of 0 to 255 on a thumbnail of `_THUMBNAIL`.
_SAME, _THUMBNAIL = 6, 16


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """One picture of the folder, ready for a model.

    Attributes
    ----------
    name
        Its file's name.
    pixels
        uint8, (side, side, 3), RGB.
    """

    name: str
    pixels: Square

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the pixels."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Intake:
    """What a folder held.

    Attributes
    ----------
    photos
        Distinct pictures in the order of their digests, which no file name and no file system decides.
    names
        Names of all pictures, also of those that show the same as another.
    notes
        One line for every file that was passed over.
    """

    photos: tuple[Photo, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]


def read_folder(folder: Path, side: int) -> Intake:
    """Read the pictures that lie directly in a folder.

    Hidden files are ignored. Other files that are no pictures, folders and pictures that show the same as another
    one are passed over with a note.

    Parameters
    ----------
    folder
        Any mixture of formats, sizes and colour modes.
    side
        Side of the squares, in pixels.

    Raises
    ------
    UsageError
        There is no such folder, it holds no picture or more than `MAX_FILES`, or one of them cannot be used; the
        message names the file.
    """
    files, notes = picture_files(folder)
    photos = sorted((Photo(file.name, read_picture(file, side)) for file in files), key=lambda p: (p.digest, p.name))
    kept, doubles = _distinct(photos)
    return Intake(kept, tuple(file.name for file in files), (*notes, *doubles))


def picture_files(folder: Path, *, most: int = MAX_FILES, field: str = "--images") -> tuple[list[Path], list[str]]:
    """List the pictures that lie directly in a folder, and what else lies there, a line each; see `read_folder`."""
    if not folder.is_dir():
        raise UsageError("no such folder", field=field, value=str(folder))
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", file=folder) from error
    files, notes = [], []
    for path in paths:
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            continue
        if suffix in UNREAD:
            raise UsageError(f"pictures of kind {suffix} are not read; save it as PNG or JPEG", file=path)
        if suffix in SUFFIXES and not path.is_dir():
            files.append(path)
        elif path.is_symlink():
            notes.append(f"{printable(path.name)}: a link, which is not followed")
        else:
            notes.append(f"{printable(path.name)}: {'a folder' if path.is_dir() else 'no picture'}")
    if not files:
        raise UsageError(f"holds no picture ({', '.join(sorted(SUFFIXES))})", file=folder)
    if len(files) > most:
        raise UsageError(f"holds {len(files)} pictures; at most {most} are read", file=folder)
    return files, notes


def read_picture(file: Path, side: int | None = None) -> Square:
    """Read one picture as a person sees it.

    EXIF rotation is applied, transparency is laid over white, colour profiles are brought to sRGB, 16 bits become 8,
    and of an animation the first frame is taken.

    Parameters
    ----------
    file
        A regular file; never a link.
    side
        Cut the square out of the middle and scale it to this side, in pixels. The shorter side of the picture must
        then be at least half of it. None leaves the picture's own size.

    Returns
    -------
    ndarray of uint8, shape (side, side, 3), or (height, width, 3)

    Raises
    ------
    UsageError
        It is no picture, damaged, too small, too large or too long.
    """
    if file.is_symlink() or not file.is_file():
        raise UsageError("is a link or no regular file; put the picture itself there", file=file)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UsageError(f"has more than {MAX_BYTES // 10**6} MB; make it smaller", file=file)
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", file=file) from error
    return decode(data, file, side)


def decode(data: bytes, file: Path | str, side: int | None = None, formats: tuple[str, ...] = FORMATS) -> Square:
    """Decode the bytes of a picture file; see `read_picture`.

    Parameters
    ----------
    data
        What the file holds.
    file
        Named in errors; not read.
    side
        As for `read_picture`.
    formats
        The kinds that are admitted, of `FORMATS`.

    Raises
    ------
    UsageError
        As by `read_picture`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, side, formats)
    except _Unusable as error:
        raise UsageError(str(error), file=file) from error
    except UnidentifiedImageError as error:
        raise UsageError("is no picture of a kind that is read:", file=file, value=", ".join(formats)) from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"has more than {MAX_PIXELS // 10**6} million pixels; make it smaller", file=file) from error
    except Exception as error:
        # A damaged file can make a decoder raise almost anything; what matters is which file it was.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"is damaged or cut short: {reason}", file=file) from error


class _Unusable(Exception):
    """A sound picture that cannot serve; the message says why."""


def _decode(data: bytes, side: int | None, formats: tuple[str, ...]) -> Square:
    if not data:
        raise _Unusable("is empty")
    with Image.open(io.BytesIO(data), formats=formats) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _Unusable(f"is {width} x {height}: more than {MAX_PIXELS // 10**6} million pixels; make it smaller")
        if side is not None:
            _require_square(width, height, side)
        image.load()
        upright = ImageOps.exif_transpose(image)
    if side is None:
        return np.asarray(_rgb(upright), dtype=np.uint8)
    return np.asarray(_rgb(_middle(upright)).resize((side, side), Image.Resampling.LANCZOS), dtype=np.uint8)


def _require_square(width: int, height: int, side: int) -> None:
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _Unusable(
            f"is {width} x {height}: longer than {MAX_ASPECT} times its other side; cut out what should be seen"
        )
    if 2 * min(width, height) < side:
        raise _Unusable(f"is {width} x {height}: too small, its sides must have at least {-(-side // 2)} pixels")


def _middle(image: Image.Image) -> Image.Image:
    # Cut before it is scaled, so that the filter does not see what lies outside.
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BITS:
        return _eight_bits(image).convert("RGB")
    if image.mode == "F":
        raise _Unusable("has floating-point pixels, whose white is not known; save it with 8 or 16 bits")
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK"):
        image = _srgb(image, profile)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255; Pillow's own conversion clips at 255, which turns such a picture white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise _Unusable("has pixels of more than 16 bits; save it with 8 or 16 bits")
    eight = np.rint(values / 257).astype(np.uint8)
    # A grey picture of 16 bits may name one value that is see-through: white paper, as everywhere.
    eight[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(eight)


def _srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        # A broken profile, or one of another colour space: viewers show the picture without it, too.
        return image
    return image if converted is None else converted


def _distinct(photos: list[Photo]) -> tuple[tuple[Photo, ...], list[str]]:
    """Keep one of pictures that look the same: a copy in another split would be training on what is scored."""
    kept: list[Photo] = []
    notes: list[str] = []
    looks = np.empty((len(photos), _THUMBNAIL, _THUMBNAIL, 3), dtype=np.int16)
    for photo in photos:
        small = Image.fromarray(photo.pixels).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        look = np.asarray(small, dtype=np.int16)
        same = np.flatnonzero(np.abs(looks[: len(kept)] - look).max(axis=(1, 2, 3)) <= _SAME)
        if len(same):
            notes.append(f"{printable(photo.name)}: the same picture as {printable(kept[same[0]].name)}")
            continue
        looks[len(kept)] = look
        kept.append(photo)
    return tuple(kept), sorted(notes)
