"""Reads a safetensors file of hostile origin: the header first, then each tensor by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunebench.box.folders import Untidy, read_file

if TYPE_CHECKING:
    from torch import Tensor

#: Says what is wrong with a tensor of a name and a shape, None where nothing is.
Fits = Callable[[str, tuple[int, ...]], str | None]
LONGEST_HEADER = 8 << 20
_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
#: Most tensors of a file: the networks of a full-size base together have fewer than 5,000.
_MOST = 20_000


class Unfit(Exception):
    """The file is not what it may be; the message names it and the tensor."""


def read(file: Path, fits: Fits, most: int, *, formats: set[str]) -> dict[str, Tensor]:
    """Return the tensors of a file, after checking each by the header.

    Parameters
    ----------
    file : Path
    fits : callable
        What a tensor may be.
    most : int
        Greatest size of the file in bytes.
    formats : set of str
        Number formats as safetensors names them.

    Raises
    ------
    Unfit
        The header is damaged; a tensor may not be there, has another format, or overlaps another; there are bytes that
        belong to none; or a value is not finite after the cast to half precision.
    """
    import torch

    try:
        data = read_file(file, most)
    except Untidy as error:
        raise Unfit(str(error)) from error
    header, start = _header(data, file.name)
    place, found = 0, dict[str, "Tensor"]()
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        form, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        label = f"{file.name}: {ascii(name)[:200]}"
        if form not in formats:
            raise Unfit(f"{label} is of the format {ascii(form)[:40]}, not {' or '.join(sorted(formats))}")
        wrong = fits(name, shape)
        if wrong is not None:
            raise Unfit(f"{label} {wrong}")
        size = math.prod(shape) * _SIZES[form]
        if begin != place or end - begin != size or start + end > len(data):
            raise Unfit(f"{label} does not lie where its header says")
        place = end
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[form]
        part = bytearray(data[start + begin : start + end])
        tensor = torch.frombuffer(part, dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
        if not bool(torch.isfinite(tensor.half()).all()):
            raise Unfit(f"{label} holds a value that is not finite in half precision")
        found[name] = tensor
    if start + place != len(data):
        raise Unfit(f"{file.name} has {len(data) - start - place:,} bytes that belong to no tensor")
    if not found:
        raise Unfit(f"{file.name} holds no tensor")
    return found


def _header(data: bytes, name: str) -> tuple[Mapping[str, Any], int]:
    """Return the checked header of a file, and where its numbers begin."""
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else LONGEST_HEADER + 1
    if length > min(LONGEST_HEADER, len(data) - 8):
        raise Unfit(f"{name} has no safetensors header")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise Unfit(f"{name} has a header that is no JSON") from error
    if not isinstance(header, dict) or len(header) > _MOST:
        raise Unfit(f"{name} has a header that lists no tensors, or too many")
    header.pop("__metadata__", None)
    if not all(_is_entry(entry) for entry in header.values()):
        raise Unfit(f"{name} has a header with an entry of another form")
    return header, 8 + length


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return False
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (isinstance(shape, list) and isinstance(offsets, list) and isinstance(entry["dtype"], str)):
        return False
    numbers = [*shape, *offsets]
    return len(shape) <= 8 and len(offsets) == 2 and all(type(n) is int and 0 <= n < 1 << 48 for n in numbers)
