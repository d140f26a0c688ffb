"""Pictures of sound files are seen as a viewer shows them, whatever their profile, depth, texts and size."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from immunebench.core.errors import UsageError
from immunebench.pictures.decoding import Square, read_folder, read_picture
from photos import photo

SIDE = 64


def profile(space: bytes, gamma: float) -> bytes:
    """A colour profile by hand, of grey or of the primaries of sRGB, with one exponent as its curve."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    white = xyz(0.9642, 1.0, 0.8249)
    tags = {b"wtpt": white}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        primaries = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139))
        for name, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
            tags |= {name + b"XYZ": xyz(*primary), name + b"TRC": curve}
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", 0, b"none", 0x02400000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    whole = head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


GREY_LINEAR, RGB_LINEAR = profile(b"GRAY", 1.0), profile(b"RGB ", 1.0)
#: What linear light of 64 of 255 is in sRGB, by its formula.
LINEAR_64 = round(255 * (1.055 * (64 / 255) ** (1 / 2.4) - 0.055))


def palette() -> Image.Image:
    image = Image.new("P", (70, 70), 1)
    image.putpalette([0, 0, 0, 64, 64, 64])
    return image


def saved(tmp_path: Path, image: Image.Image, name: str = "a.png", **options: object) -> Square:
    image.save(tmp_path / name, **options)
    return read_picture(tmp_path / name, SIDE)


@pytest.mark.parametrize(
    ("image", "name", "icc"),
    [
        (Image.new("L", (70, 70), 64), "a.png", GREY_LINEAR),
        (Image.new("LA", (70, 70), (64, 255)), "a.png", GREY_LINEAR),
        (palette(), "a.png", RGB_LINEAR),
        (Image.new("RGB", (70, 70), (64, 64, 64)), "a.jpg", RGB_LINEAR),
        (Image.new("RGBA", (70, 70), (64, 64, 64, 255)), "a.png", RGB_LINEAR),
        (Image.fromarray(np.full((70, 70), 64 * 257, np.uint16)), "a.tif", GREY_LINEAR),
    ],
)
def test_a_profile_counts_in_every_colour_mode(tmp_path: Path, image: Image.Image, name: str, icc: bytes) -> None:
    pixels = saved(tmp_path, image, name, icc_profile=icc).astype(int)
    assert abs(pixels - LINEAR_64).max() <= 1
    assert abs(saved(tmp_path, image, name).astype(int) - 64).max() <= 1


def test_transparency_is_laid_over_white_after_the_profile(tmp_path: Path) -> None:
    half = Image.new("LA", (70, 70), (64, 51))
    pixels = saved(tmp_path, half, icc_profile=GREY_LINEAR).astype(int)
    assert abs(pixels - round(0.2 * LINEAR_64 + 0.8 * 255)).max() <= 1


def test_twelve_bits_whose_range_is_named_are_bright_and_others_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((70, 70), 4095, np.uint16))
    assert saved(tmp_path, image, "a.tif", tiffinfo={281: 4095}).min() == 255
    with pytest.raises(UsageError, match=r"a\.tif: has 16 bits and no value above 4095: nearly black"):
        saved(tmp_path, image, "a.tif")


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 90, "progressive": True}])
def test_a_jpeg_without_the_mark_of_its_end_is_whole_and_one_without_pixels_is_not(
    tmp_path: Path, options: dict[str, int]
) -> None:
    buffer = io.BytesIO()
    photo(3, 200, 200).save(buffer, "JPEG", **options)
    file, data = tmp_path / "a.jpg", buffer.getvalue()
    file.write_bytes(data)
    whole = read_picture(file)
    file.write_bytes(data[:-2])
    assert np.array_equal(read_picture(file), whole)
    for cut in (40, 400):
        file.write_bytes(data[:-cut])
        with pytest.raises(UsageError, match="is damaged or cut short"):
            read_picture(file)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(image: Image.Image, *chunks: bytes) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + b"".join(chunks) + data[33:]


LONG = zlib.compress(bytes(2**26))


def test_a_png_with_long_texts_is_read_and_a_short_text_still_turns_it(tmp_path: Path) -> None:
    image, file = photo(1, 90, 70), tmp_path / "a.png"
    texts = (
        chunk(b"tEXt", b"k\0" + b"x" * 2**21),
        chunk(b"zTXt", b"k\0\0" + LONG),
        chunk(b"iTXt", b"k\0\1\0\0\0" + LONG),
        chunk(b"iCCP", b"k\0\0" + LONG),
    )
    file.write_bytes(with_chunks(image, *texts))
    assert np.array_equal(read_picture(file), np.asarray(image))
    turned = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="3"/></x:xmpmeta>'
    file.write_bytes(with_chunks(image, *texts, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + turned)))
    assert np.array_equal(read_picture(file), np.asarray(image)[::-1, ::-1])


def test_a_profile_of_megabytes_is_applied(tmp_path: Path) -> None:
    large = RGB_LINEAR + bytes(3 * 2**20)
    file = tmp_path / "a.png"
    image = Image.new("RGB", (70, 70), (64, 64, 64))
    file.write_bytes(with_chunks(image, chunk(b"iCCP", b"k\0\0" + zlib.compress(large))))
    assert abs(read_picture(file).astype(int) - LINEAR_64).max() <= 1


def test_a_picture_s_size_is_compared_before_it_is_decoded(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("1", (9_000, 9_000)).save(file)
    began = time.process_time()
    with pytest.raises(UsageError, match=r"a\.png: is 9000 x 9000, its clean picture 64 x 64"):
        read_picture(file, clean=(64, 64))
    assert time.process_time() - began < 0.2


def drawing(number: int, ink: int, side: int = 512) -> Image.Image:
    """Some strokes of pale ink on white paper."""
    draw = np.random.default_rng(number)
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        points = [tuple(map(float, point)) for point in draw.uniform(0.1 * side, 0.9 * side, (4, 2))]
        pen.line(points, fill=(255 - ink,) * 3, width=2)
    return image


@pytest.mark.parametrize("ink", [8, 20, 60])
def test_faint_drawings_are_told_apart_and_their_copies_are_not(tmp_path: Path, ink: int) -> None:
    for number in range(6):
        drawing(number, ink).save(tmp_path / f"{number}.png")
    found = read_folder(tmp_path, 512)
    assert len(found.photos) == 6 and not found.notes
    drawing(0, ink).save(tmp_path / "copy.webp", lossless=True)
    drawing(1, ink).save(tmp_path / "copy.jpg", quality=90)
    drawing(2, ink).resize((700, 700), Image.Resampling.LANCZOS).save(tmp_path / "copy.png")
    found = read_folder(tmp_path, 512)
    assert len(found.photos) == 6 and len(found.notes) == 3


def test_captions_in_the_folder_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    photo(1).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a mug")
    (tmp_path / "other.txt").write_text("words")
    (tmp_path / "metadata.jsonl").write_text("{}")
    assert read_folder(tmp_path, SIDE).notes == (
        "a.txt: a caption, which --captions with this folder reads",
        "metadata.jsonl: captions, which --captions with this file reads",
        "other.txt: no picture",
    )


def test_a_profile_of_another_colour_space_is_ignored(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert set(saved(tmp_path, Image.new("L", (70, 70), 64), icc_profile=lab).ravel()) == {64}
