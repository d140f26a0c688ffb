"""What a folder of photos becomes, and which line refuses what cannot become a picture."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from immunebench.errors import UsageError
from immunebench.intake import Square, read_folder, read_picture
from photos import album, photo

SIDE = 64


def saved(tmp_path: Path, image: Image.Image, name: str = "a.png", **options: object) -> Square:
    image.save(tmp_path / name, **options)
    return read_picture(tmp_path / name, SIDE)


def uniform(pixels: Square) -> tuple[int, ...]:
    """Return the only colour of a picture."""
    (colour,) = {tuple(map(int, row)) for row in pixels.reshape(-1, 3)}
    return colour


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (90, 70), (10, 200, 30)), (10, 200, 30)),
        (Image.new("L", (70, 90), 77), (77, 77, 77)),
        (Image.new("1", (70, 90), 1), (255, 255, 255)),
        (Image.new("RGBA", (70, 70), (0, 0, 0, 0)), (255, 255, 255)),
        # A fifth of black over white leaves four fifths of 255.
        (Image.new("RGBA", (70, 70), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("LA", (70, 70), (100, 255)), (100, 100, 100)),
        (Image.fromarray(np.full((70, 70), 65535, np.uint16)), (255, 255, 255)),
        # Half of the range is half of the range, not white.
        (Image.fromarray(np.full((70, 70), 128 * 257, np.uint16)), (128, 128, 128)),
    ],
)
def test_colour_modes_look_as_a_viewer_shows_them(
    tmp_path: Path, image: Image.Image, expected: tuple[int, ...]
) -> None:
    pixels = saved(tmp_path, image)
    assert pixels.dtype == np.uint8 and pixels.shape == (SIDE, SIDE, 3)
    assert uniform(pixels) == expected


def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (70, 70), 1)
    image.putpalette([0, 0, 0, 250, 0, 0])
    assert uniform(saved(tmp_path, image, "b.png", transparency=1)) == (255, 255, 255)
    assert uniform(saved(tmp_path, image, "c.png", transparency=0)) == (250, 0, 0)


@pytest.mark.parametrize("name", ["cyan.jpg", "cyan.tif"])
def test_cmyk_has_its_colours_not_their_negatives(tmp_path: Path, name: str) -> None:
    red, green, blue = saved(tmp_path, Image.new("CMYK", (70, 70), (255, 0, 0, 0)), name).mean(axis=(0, 1))
    assert red < 10 and green > 245 and blue > 245


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_stands_upright(tmp_path: Path, orientation: int) -> None:
    # What each value of the EXIF tag says of the stored rows and columns, by the standard's own table.
    upright = np.asarray(photo(1, SIDE, SIDE))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(saved(tmp_path, Image.fromarray(stored.copy()), exif=exif), upright)


def test_the_middle_is_cut_out_and_scaled_with_all_pixels(tmp_path: Path) -> None:
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = (0, 255, 0)
    assert uniform(saved(tmp_path, Image.fromarray(wide))) == (0, 255, 0)
    # Lines of one pixel average to grey; picking single pixels would leave black and white.
    lines = np.zeros((640, 640, 3), np.uint8)
    lines[:, ::2] = 255
    inner = saved(tmp_path, Image.fromarray(lines))[4:-4, 4:-4]
    assert inner.min() >= 120 and inner.max() <= 135


def test_a_colour_profile_is_brought_to_srgb_and_a_broken_one_is_ignored(tmp_path: Path) -> None:
    image = Image.new("RGB", (70, 70), (100, 100, 100))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.ptp([*uniform(saved(tmp_path, image, icc_profile=srgb)), 100]) <= 1
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for unusable in (b"no profile", lab):
        assert uniform(saved(tmp_path, image, icc_profile=unusable)) == (100, 100, 100)


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one row of nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def whole(name: str) -> bytes:
    import io

    buffer = io.BytesIO()
    photo(3, 200, 200).save(buffer, name)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.png", png(1, 1), "is 1 x 1: too small, its sides must have at least 32 pixels"),
        ("a.png", png(20_000, 64), "is 20000 x 64: longer than 4 times"),
        ("a.png", png(20_000, 5_001), "more than 100 million pixels"),
        ("a.png", png(60_000, 60_000), "more than 100 million pixels"),
        ("a.png", whole("PNG")[:300], "is damaged or cut short"),
        ("a.jpg", whole("JPEG")[:-400], "is damaged or cut short"),
        ("a.jpg", b"these are words", "is no picture of a kind that is read"),
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "is no picture of a kind that is read"),
        ("a.png", b"", "is empty"),
        ("a.heic", b"whatever", "pictures of kind .heic are not read; save it as PNG or JPEG"),
        ("b\x1b[31m.png", b"", r"b\x1b[31m.png: is empty"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_name(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    photo(1).save(tmp_path / "good.png")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read_folder(tmp_path, SIDE)
    message = str(caught.value)
    assert said in message and message.isprintable() and ascii(name)[1:-1] in message


@pytest.mark.parametrize(
    "image",
    [Image.new("F", (70, 70), 0.5), Image.new("I", (70, 70), 70_000), Image.new("I", (70, 70), -1)],
)
def test_pixels_without_a_known_white_are_refused(tmp_path: Path, image: Image.Image) -> None:
    with pytest.raises(UsageError, match=r"a\.tif: has .*save it with 8 or 16 bits"):
        saved(tmp_path, image, "a.tif")


def _link(folder: Path) -> None:
    photo(9).save(folder.parent / "secret.png")
    (folder / "x.png").symlink_to(folder.parent / "secret.png")


@pytest.mark.parametrize("make", [_link, lambda folder: os.mkfifo(folder / "x.png")])
def test_links_and_pipes_are_neither_followed_nor_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(album(tmp_path / "album", 2))
    with pytest.raises(UsageError, match=r"x\.png: is a link or no regular file"):
        read_folder(tmp_path / "album", SIDE)


def test_what_is_no_picture_is_passed_over_and_said(tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 2)
    (folder / "notes.txt").write_text("words")
    (folder / ".hidden.png").write_text("words")
    album(folder / "older", 1)
    found = read_folder(folder, SIDE)
    assert len(found.photos) == 2
    assert found.notes == ("notes.txt: no picture", "older: a folder")


def test_an_empty_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path}: holds no picture"):
        read_folder(tmp_path, SIDE)
    with pytest.raises(UsageError, match="--images: no such folder"):
        read_folder(tmp_path / "none", SIDE)


def test_one_picture_in_two_files_is_one_picture(tmp_path: Path) -> None:
    smooth = photo(5).resize((200, 200), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.png")
    smooth.save(tmp_path / "a.jpg", quality=80)
    smooth.save(tmp_path / "b.bmp")
    photo(6).save(tmp_path / "c.png")
    found = read_folder(tmp_path, SIDE)
    assert len(found.photos) == 2 and len(found.names) == 4
    assert all("the same picture as" in note for note in found.notes) and len(found.notes) == 2


def test_names_and_order_of_files_do_not_matter(tmp_path: Path) -> None:
    first = read_folder(album(tmp_path / "one"), SIDE)
    (tmp_path / "two").mkdir()
    for number, file in enumerate(sorted((tmp_path / "one").iterdir(), reverse=True)):
        (tmp_path / "two" / f"{number:02d}{file.suffix}").write_bytes(file.read_bytes())
    second = read_folder(tmp_path / "two", SIDE)
    assert len(first.photos) == 12
    assert [p.digest for p in first.photos] == [p.digest for p in second.photos]
