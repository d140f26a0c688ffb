"""Leave out of a wheel of bitsandbytes the libraries for other machines: 43 MB become 4.

python benchmarks/repack_wheel.py bitsandbytes-VERSION-py3-none-PLATFORM.whl cpu cuda130
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path


def repack(wheel: Path, kept: Collection[str]) -> None:
    """Write a wheel anew, in its place, without libraries but those whose names end in `_` and a word of `kept`.

    Parameters
    ----------
    wheel : Path
    kept : collection of str
        As in ``libbitsandbytes_cuda130.so``.
    """
    made = wheel.with_suffix(".part")
    rows: list[tuple[str, str, int | str]] = []
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        for info in old.infolist():
            library = info.filename.endswith(".so")
            if info.filename == record or (library and Path(info.filename).stem.rpartition("_")[2] not in kept):
                continue
            data = old.read(info)
            new.writestr(info.filename, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append((info.filename, f"sha256={digest}", len(data)))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*rows, (record, "", "")])
        new.writestr(record, text.getvalue())
    made.replace(wheel)


if __name__ == "__main__":
    repack(Path(sys.argv[1]), sys.argv[2:])
