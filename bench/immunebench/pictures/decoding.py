"""Reads a folder of somebody's photos as RGB squares, or says in one line which file cannot be used.

No link is followed, no file is written, and sizes are checked before anything is decoded.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from immunebench.core.errors import UsageError, printable
from immunebench.pictures.colour import Unusable, named_white, to_rgb
from immunebench.pictures.likeness import distinct
from immunebench.pictures.png_chunks import without_texts

Square = NDArray[np.uint8]

#: Pillow's plug-ins that start no other program, as the one of EPS does.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif"})
#: Kinds of pictures that are not read; they are refused, since skipping them would lose somebody's photos.
UNREAD = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".nef", ".arw", ".psd", ".svg", ".eps"})
#: Names of files with captions of a folder's pictures.
METADATA = ("metadata.jsonl", "metadata.csv")
MAX_FILES = 1000
MAX_PIXELS = 100_000_000
#: Of a file, which is read whole.
MAX_BYTES = 500_000_000
#: Greatest ratio of the sides; a longer picture loses most of its content when it is cut to a square.
MAX_ASPECT = 4
#: Of the squares of a task.
MAX_SIDE = 4096
_END_OF_JPEG = b"\xff\xd9"
#: Bytes that a JPEG without its end is decoded with, to see whether a pixel depends on them.
_FILLERS = (b"", b"\x55\xaa" * 64)


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
    """The contents of a folder.

    Attributes
    ----------
    photos
        Distinct pictures in the order of their digests, which depends on no file name and no file system.
    names
        Names of all pictures, also of those that show the same as another.
    notes
        One line for every file that was skipped.
    """

    photos: tuple[Photo, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]


def read_folder(folder: Path, side: int) -> Intake:
    """Read the pictures that lie directly in a folder.

    Hidden files are ignored. Other files that are no pictures, folders and pictures that show the same as another
    one are skipped with a note.

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
    places = distinct([photo.pixels for photo in photos])
    kept = tuple(photo for photo, place in zip(photos, places, strict=True) if place is None)
    doubles = sorted(
        f"{printable(photo.name)}: the same picture as {printable(photos[place].name)}"
        for photo, place in zip(photos, places, strict=True)
        if place is not None
    )
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
            notes.append(f"{printable(path.name)}: {_what(path)}")
    if not files:
        raise UsageError(f"holds no picture ({', '.join(sorted(SUFFIXES))})", file=folder)
    if len(files) > most:
        raise UsageError(f"holds {len(files)} pictures; at most {most} are read", file=folder)
    return files, notes


def _what(path: Path) -> str:
    """Return a few words on a file that is no picture."""
    if path.is_dir():
        return "a folder"
    if path.suffix.lower() == ".txt" and any(path.with_suffix(suffix).is_file() for suffix in SUFFIXES):
        return "a caption, which --captions with this folder reads"
    if path.name in METADATA:
        return "captions, which --captions with this file reads"
    return "no picture"


def read_picture(file: Path, side: int | None = None, *, clean: tuple[int, int] | None = None) -> Square:
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
    clean
        Width and height of the picture that it was made from, which it must have.

    Returns
    -------
    ndarray of uint8, shape (side, side, 3), or (height, width, 3)

    Raises
    ------
    UsageError
        It is no picture, damaged, too small, too large, too long, or of another size than `clean`; sizes are compared
        before anything is decoded.
    """
    if file.is_symlink() or not file.is_file():
        raise UsageError("is a link or no regular file; put the picture itself there", file=file)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UsageError(f"has more than {MAX_BYTES // 10**6} MB; make it smaller", file=file)
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", file=file) from error
    return decode(data, file, side, clean=clean)


def picture_size(data: bytes, file: Path | str, formats: tuple[str, ...] = FORMATS) -> tuple[int, int]:
    """Return the width and height that the header of a picture file names, without decoding it.

    Raises
    ------
    UsageError
        It is no picture of these kinds.
    """
    with _named(file, formats), _opened(without_texts(data)[0], formats) as image:
        return image.size


def decode(
    data: bytes,
    file: Path | str,
    side: int | None = None,
    formats: tuple[str, ...] = FORMATS,
    *,
    clean: tuple[int, int] | None = None,
    most: int | None = None,
) -> Square:
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
    clean
        As for `read_picture`.
    most
        Greatest width and height.

    Raises
    ------
    UsageError
        As by `read_picture`.
    """
    data, profile = without_texts(data)
    with _named(file, formats), _opened(data, formats) as image:
        _check_size(*image.size, side, clean, most)
        return _decode(image, data, side, profile)


@contextmanager
def _named(file: Path | str, formats: tuple[str, ...]) -> Iterator[None]:
    """Turn what fails in the block into one line that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Unusable as error:
        raise UsageError(str(error), file=file) from error
    except UnidentifiedImageError as error:
        raise UsageError("is no picture of a kind that is read:", file=file, value=", ".join(formats)) from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"has more than {MAX_PIXELS // 10**6} million pixels; make it smaller", file=file) from error
    except Exception as error:
        # A decoder may raise any exception on a damaged file.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"is damaged or cut short: {reason}", file=file) from error


@contextmanager
def _opened(data: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    if not data:
        raise Unusable("is empty")
    with Image.open(io.BytesIO(data), formats=formats) as image:
        yield image


def _check_size(width: int, height: int, side: int | None, clean: tuple[int, int] | None, most: int | None) -> None:
    """Compare what the header of a picture says with what it may be."""
    if clean not in (None, (width, height), (height, width)):
        raise Unusable(f"is {width} x {height}, its clean picture {' x '.join(map(str, clean or ()))}")
    if most is not None and max(width, height) > most:
        raise Unusable(f"is {width} x {height}, larger than {most} pixels")
    if width * height > MAX_PIXELS:
        raise Unusable(f"is {width} x {height}: more than {MAX_PIXELS // 10**6} million pixels; make it smaller")
    if side is not None:
        _require_square(width, height, side)


def _decode(image: Image.Image, data: bytes, side: int | None, profile: bytes | None) -> Square:
    white = named_white(image)
    image = ImageOps.exif_transpose(_loaded(image, data))
    if side is None:
        return np.asarray(to_rgb(image, profile, white), dtype=np.uint8)
    square = to_rgb(_middle(image), profile, white)
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS), dtype=np.uint8)


def _loaded(image: Image.Image, data: bytes) -> Image.Image:
    """Decode a picture; of a JPEG no more than the mark of its end may be missing."""
    try:
        image.load()
        return image
    except OSError:
        if image.format != "JPEG":
            raise
        # Bytes after the last pixel have no effect: if the two results differ, pixels are missing.
        one, other = (Image.open(io.BytesIO(data + filler + _END_OF_JPEG), formats=("JPEG",)) for filler in _FILLERS)
        if not np.array_equal(np.asarray(one), np.asarray(other)):
            raise
        return one


def _require_square(width: int, height: int, side: int) -> None:
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Unusable(
            f"is {width} x {height}: longer than {MAX_ASPECT} times its other side; cut out what should be seen"
        )
    if 2 * min(width, height) < side:
        raise Unusable(f"is {width} x {height}: too small, its sides must have at least {-(-side // 2)} pixels")


def _middle(image: Image.Image) -> Image.Image:
    # Cut before it is scaled, so that the filter does not see what lies outside.
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
