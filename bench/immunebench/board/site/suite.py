"""Results of one suite, loaded and scored for the site, with its contact sheets checked."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from immunebench.board.assembly.scored import Loaded, NothingToShow, load_suite_results, newest, score_loaded
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import Board, BoardError
from immunebench.board.scores.reading import measurement
from immunebench.board.text import slug
from immunebench.records.contact_sheet import MAX_BYTES
from immunebench.records.record import Record

_MOST_PIXELS = 4096


@dataclass(frozen=True)
class CheckedSheet:
    """A contact sheet: its bytes, or the reason why it is not shown."""

    data: bytes = b""
    problem: str = ""

    @property
    def name(self) -> str:
        """File name on the site, derived from the bytes only."""
        return f"{hashlib.sha256(self.data).hexdigest()[:24]}.{self.kind}"

    @property
    def kind(self) -> str:
        """Format by header, ``webp`` or ``png``; empty for any other."""
        return self._header[0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels according to the header."""
        return self._header[1]

    @cached_property
    def _header(self) -> tuple[str, tuple[int, int]]:
        from PIL import Image

        try:
            with warnings.catch_warnings():
                # Pictures that are too large are rejected by their size below.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(self.data), formats=("PNG", "WEBP")) as image:
                    return str(image.format).lower(), image.size
        except Image.DecompressionBombError:
            return "png", (_MOST_PIXELS + 1, _MOST_PIXELS + 1)
        except Exception:
            return "", (0, 0)


@dataclass(frozen=True)
class Suite:
    """Results of one folder.

    Parameters
    ----------
    name
        The folder's name.
    records
        In the order of their cells' keys.
    measurements
        The measurements of the records, in the same order.
    board
        None if no board can be made of the records.
    refusals
        Reasons why there is no board, or why it must not be shown.
    sheets
        Contact sheets by cell key, for records that have one.
    problems
        Faults in the folder, with file and line.
    """

    name: str
    records: tuple[Record, ...]
    measurements: tuple[Measurement, ...]
    board: Board | None
    refusals: tuple[str, ...] = ()
    sheets: dict[str, CheckedSheet] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """Name of the suite's folder on the site."""
        return slug(self.name)

    @cached_property
    def usual(self) -> list[Measurement]:
        """The measurements in the usual setting, from which headlines and curves are computed."""
        return [cell for cell in self.measurements if cell.setting.usual]

    @cached_property
    def profiles(self) -> list[str]:
        """Profiles of the records."""
        return sorted({record.cell.profile for record in self.records})

    @cached_property
    def bases(self) -> list[str]:
        """Base models of the records."""
        return sorted({record.cell.base for record in self.records})

    def of(self, **names: str) -> list[Record]:
        """Return the records whose cell has these names, such as ``task="style-weave"``."""
        return [r for r in self.records if all(getattr(r.cell, name) == value for name, value in names.items())]


def suite_folders(results: Path) -> list[Path]:
    """Return the folders in `results` that have records, sorted by name."""
    if not results.is_dir():
        return []
    return [folder for folder in sorted(results.iterdir()) if folder.is_dir() and any(folder.glob("*.jsonl"))]


def load_suite(folder: Path) -> Suite:
    """Load and score the records of a folder and check their contact sheets; faults are listed as problems."""
    loaded = load_suite_results(folder)
    records = tuple(sorted(newest(loaded.records), key=lambda record: record.cell.key))
    board, refusals = _score(loaded)
    problems = tuple(str(problem) for problem in loaded.problems)
    sheets = {r.cell.key: check_sheet(folder, r.sheet.file, r.sheet.sha256) for r in records if r.sheet is not None}
    return Suite(folder.name, records, tuple(map(measurement, records)), board, refusals, sheets, problems)


def check_sheet(folder: Path, name: str, sha256: str) -> CheckedSheet:
    """Read a contact sheet, checking that it is in the suite's own ``sheets/`` and has the SHA-256 of the record."""
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to((folder / "sheets").resolve()):
            return CheckedSheet(problem="lies outside the suite's sheets")
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    except OSError:
        return CheckedSheet(problem="is missing")
    if not data:
        return CheckedSheet(problem=f"is empty or larger than {MAX_BYTES} bytes")
    if hashlib.sha256(data).hexdigest() != sha256:
        return CheckedSheet(problem="is not the picture that the record names: its SHA-256 differs")
    sheet = CheckedSheet(data)
    if sheet.kind == "":
        return CheckedSheet(problem="is no WebP and no PNG")
    # A small file can declare a picture that is too large for a browser's memory.
    return sheet if 0 < max(sheet.size) <= _MOST_PIXELS else CheckedSheet(problem="is larger than it may be on a side")


def _score(loaded: Loaded) -> tuple[Board | None, tuple[str, ...]]:
    try:
        board = score_loaded(loaded.records, loaded.problems, vouched=loaded.vouched, external=loaded.external).board
    except (BoardError, NothingToShow) as error:
        return None, (str(error),)
    return board, board.refusals
