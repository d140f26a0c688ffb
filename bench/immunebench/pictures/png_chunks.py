"""Takes long texts and the colour profile out of a PNG before it is decoded.

Pillow refuses a whole file for one chunk that unpacks to more than a megabyte. A long text is of no use here; a short
one may say how the picture is turned. A profile is unpacked up to a bound.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PROFILE = b"iCCP"
#: Of a profile. Those of printers, with tables of colours, have a few megabytes.
MAX_PROFILE = 16_000_000
#: Of one text, and of all texts of a file: below what Pillow refuses.
MAX_TEXT, MAX_TEXTS = 500_000, 16_000_000


def without_texts(data: bytes) -> tuple[bytes, bytes | None]:
    """Return a PNG without long texts and profile, and the profile where it has a sound one; other data unchanged."""
    if not data.startswith(_SIGNATURE):
        return data, None
    parts, profile, left = [_SIGNATURE], None, MAX_TEXTS
    for kind, start, end in _chunks(data):
        if kind == _PROFILE:
            profile = profile or _profile(data[start + 8 : end - 4])
            continue
        if kind in _TEXTS:
            length = _text_length(kind, data[start + 8 : end - 4])
            if length > min(MAX_TEXT, left):
                continue
            left -= length
        parts.append(data[start:end])
    return b"".join(parts), profile


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of every chunk; the last one reaches to the end of a file that is cut short."""
    start = len(_SIGNATURE)
    while start < len(data):
        length = int.from_bytes(data[start : start + 4])
        end = min(start + 12 + length, len(data))
        yield data[start + 4 : start + 8], start, end
        start = end


def _text_length(kind: bytes, chunk: bytes) -> int:
    """Return how long a text is when it is unpacked; of a longer one a little more than `MAX_TEXT`."""
    _, _, rest = chunk.partition(b"\0")
    packed = rest[1:] if kind == b"zTXt" else b""
    if kind == b"iTXt" and rest[:1] == b"\1":  # Packed, after its language and its translated name.
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    try:
        return len(chunk) + len(zlib.decompressobj().decompress(packed, MAX_TEXT + 1) if packed else b"")
    except zlib.error:
        return len(chunk)


def _profile(chunk: bytes) -> bytes | None:
    """Return the unpacked profile of a chunk: name, zero, method of compression, packed data."""
    packed = chunk.partition(b"\0")[2][1:]
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed, MAX_PROFILE)
    except zlib.error:
        return None
    return profile if unpacker.eof else None
