"""What an entry's folder holds: manifest, code, citation; nothing that is not hashed, linked or compiled."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from immunebench.catalog.entry import Entry
from immunebench.catalog.placeholders import leftovers
from immunebench.core.errors import UsageError
from immunebench.declared.schema import MAX_BYTES, read_text
from immunebench.submission.findings import Finding, finding

#: Files beside the code that change no result; all others are part of the digest or not allowed.
_BESIDE = frozenset({"defense.toml", "attack.toml", "cite.bib", "README.md"})
_CODE = frozenset({".py"})
_MOST_FILES = 200
_LICENCES = frozenset(
    [
        "Apache-2.0",
        "MIT",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "MPL-2.0",
        "GPL-2.0-only",
        "GPL-2.0-or-later",
        "GPL-3.0-only",
        "GPL-3.0-or-later",
        "LGPL-2.1-only",
        "LGPL-2.1-or-later",
        "LGPL-3.0-only",
        "LGPL-3.0-or-later",
        "AGPL-3.0-only",
        "AGPL-3.0-or-later",
        "GPL-3.0",
        "AGPL-3.0",
        "CC0-1.0",
        "CC-BY-4.0",
        "CC-BY-SA-4.0",
        "CC-BY-NC-4.0",
        "CC-BY-NC-SA-4.0",
        "OpenRAIL",
        "CreativeML-OpenRAIL-M",
        "Unlicense",
        "0BSD",
        "LicenseRef-proprietary",
    ]
)


def check_files(folder: Path, *, pictures: bool = False) -> Iterator[Finding]:
    """Yield a finding for each file that an entry's folder must not hold.

    Parameters
    ----------
    folder
        Of an entry.
    pictures
        Whether it is an artefact, whose listed pictures the catalogue checks.
    """
    count = 0
    for path in _walk(folder):
        count += 1
        if count > _MOST_FILES and not pictures:
            yield finding("file", folder, f"holds more than {_MOST_FILES} files")
            return
        name = path.relative_to(folder)
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield finding("link", path, "is a symbolic link")
        elif stat.S_ISDIR(mode):
            continue
        elif not stat.S_ISREG(mode):
            yield finding("file", path, "is no regular file")
        elif path.stat().st_nlink > 1:
            yield finding("link", path, "is a hard link to a file that has another name too")
        elif "__pycache__" in name.parts:
            continue  # Python writes it, no stage reads it, and it is never handed in.
        elif pictures and path.suffix == ".png":
            continue
        elif str(name) not in _BESIDE and path.suffix not in _CODE:
            yield finding("file", path, "is no part of the entry's digest" if _unhashed(name) else "is no code")
        elif path.stat().st_size > MAX_BYTES:
            yield finding("file", path, f"has more than {MAX_BYTES // 10**6} MB")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder, sorted, without following links."""
    for place, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted([*folders, *files]):
            yield Path(place) / name


def _unhashed(name: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return hidden or name.suffix in (".toml", ".bib", ".md", ".pyc")


def check_words(entry: Entry) -> Iterator[Finding]:
    """Yield findings on licence, citation, and text that `immunebench new` wrote and nobody replaced."""
    licence = entry.manifest.licence
    if licence not in _LICENCES:
        yield finding("licence", entry.path, f"licence: {licence!r} is no known licence", severity="warning")
    yield from check_citation(entry.folder / "cite.bib")
    for line in leftovers(entry):
        file, _, rest = line.partition(": ")
        yield finding("unfinished", file, rest, severity="warning")


def check_citation(file: Path) -> Iterator[Finding]:
    """Yield what a BibTeX file lacks."""
    if not file.exists():
        yield finding("citation", file, "is missing")
        return
    try:
        text = read_text(file)
    except UsageError as error:
        yield finding("citation", file, error.message)
        return
    if not re.search(r"^\s*@\w+\s*\{\s*[^\s,{}]+\s*,", text, flags=re.MULTILINE):
        yield finding("citation", file, "holds no entry such as @article{key, ...}")
        return
    if text.count("{") != text.count("}"):
        yield finding("citation", file, "has an unequal number of opening and closing braces")
    for name in ("title", "author", "year"):
        if not re.search(rf"\b{name}\s*=", text, flags=re.IGNORECASE):
            yield finding("citation", file, f"lacks the field {name}", severity="warning")
