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

from immunebench.core.errors import UsageError
from immunebench.pictures.decoding import Square, read_folder, read_picture
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


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"\0", more: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG by hand: what it claims need not be what it holds, one row of nothing unless said."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def plain(*values: int, depth: int = 16) -> bytes:
    """Rows of 70 x 70 equal pixels of the given channel values."""
    return (b"\0" + struct.pack(f">{len(values)}{'H' if depth == 16 else 'B'}", *values) * 70) * 70


#: 8 KiB that become 8 MiB of a comment or a colour profile.
BOMB = b"k\0\0" + zlib.compress(bytes(2**23))
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
FIFTH = 51 * 257


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # Pillow writes none of these: 16 bits of colour, and with alpha a fifth of black over white.
        (png(70, 70, plain(128 * 257, 0, 65535), depth=16, colour=RGB), (128, 0, 255)),
        (png(70, 70, plain(0, 0, 0, FIFTH), depth=16, colour=RGB_ALPHA), (204, 204, 204)),
        (png(70, 70, plain(0, FIFTH), depth=16, colour=GREY_ALPHA), (204, 204, 204)),
        # One value is see-through: 25700 is 100 of 255.
        (png(70, 70, plain(25700), chunk(b"tRNS", struct.pack(">H", 25700)), 16, GREY), (255, 255, 255)),
        (png(70, 70, plain(25700), chunk(b"tRNS", struct.pack(">H", 25701)), 16, GREY), (100, 100, 100)),
        (png(70, 70, plain(9, depth=8), chunk(b"tRNS", struct.pack(">H", 9)), 8, GREY), (255, 255, 255)),
        (png(70, 70, plain(1, 2, 3, depth=8), chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))), (255, 255, 255)),
        # 250 * 0.2 + 255 * 0.8 = 254.
        (
            png(
                70, 70, plain(1, depth=8), chunk(b"PLTE", bytes([0, 0, 0, 250, 0, 0])) + chunk(b"tRNS", b"\xff\x33"),
                8, PALETTE,
            ),
            (254, 204, 204),
        ),
    ],
)  # fmt: skip
def test_deep_and_see_through_pngs_look_as_a_viewer_shows_them(
    tmp_path: Path, data: bytes, expected: tuple[int, ...]
) -> None:
    (tmp_path / "a.png").write_bytes(data)
    assert uniform(read_picture(tmp_path / "a.png", SIDE)) == expected


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {}), ("a.tif", {})],
)
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, name: str, options: dict[str, bool]) -> None:
    frames = [Image.new("RGB", (70, 70), colour) for colour in ((200, 10, 20), (10, 20, 200), (0, 0, 0))]
    assert uniform(saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)) == (
        200, 10, 20,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"), [("a.tif", {}), ("a.webp", {"lossless": True}), ("a.jpg", {"quality": 100})]
)
def test_every_format_that_can_say_so_is_turned_once(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    # Stored with red above blue and the tag 6: a viewer turns it clockwise, so that red is at the right.
    stored = np.zeros((70, 70, 3), np.uint8)
    stored[:35], stored[35:] = (200, 0, 0), (0, 0, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = saved(tmp_path, Image.fromarray(stored), name, exif=exif, **options).astype(int)
    assert np.abs(seen[:, -20:] - (200, 0, 0)).max() <= 2 and np.abs(seen[:, :20] - (0, 0, 200)).max() <= 2


def test_a_picture_of_its_own_size_is_neither_cut_nor_scaled(tmp_path: Path) -> None:
    wide = np.asarray(photo(4, 90, 7))
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png"), wide)
    (tmp_path / "b.png").write_bytes(png(20_000, 20_000))
    with pytest.raises(UsageError, match="more than 100 million pixels"):
        read_picture(tmp_path / "b.png")


def test_a_file_too_large_to_read_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as stream:
        stream.truncate(10**12)
    with pytest.raises(UsageError, match=r"a\.png: has more than 500 MB"):
        read_picture(tmp_path / "a.png", SIDE)


def test_names_that_differ_in_case_or_format_alone_are_two_pictures(tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "A.PNG", "a.jpg", "a.JPEG")):
        photo(number, 80, 80).save(tmp_path / name)
    found = read_folder(tmp_path, SIDE)
    assert sorted(found.names) == ["A.PNG", "a.JPEG", "a.jpg", "a.png"]
    for number, name in enumerate(("a.png", "A.PNG")):
        (own,) = (p for p in found.photos if p.name == name)
        whole_blocks = np.asarray(photo(number, SIDE, SIDE))[8::16, 8::16].astype(int)
        assert np.abs(own.pixels[8::16, 8::16] - whole_blocks).max() <= 1


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
        (
            "a.png",
            png(70, 70, b"\0", chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**23)))),
            "is damaged or cut short",
        ),
        (
            "a.png",
            png(70, 70, b"\0", chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**23)))),
            "is damaged or cut short",
        ),
        ("a.gif", b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + b"\0\0\0;", "is no picture of a kind that is read"),
        ("b\x1b[31m.png", b"", r"b\x1b[31m.png: is empty"),
        ("b\u202egnp.png", b"", r"b\u202egnp.png: is empty"),
        ("b\n.png", b"", r"b\n.png: is empty"),
        ("b\udcff.png", b"", r"b\udcff.png: is empty"),
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
