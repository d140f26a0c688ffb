"""One suite's results, read and scored for the site; its contact sheets checked."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from immunebench.board.assembly.scored import NothingToShow, newest, score_loaded
from immunebench.board.loading.load import Problem, load_results
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.model import Board, BoardError
from immunebench.board.scores.reading import measurement
from immunebench.board.text import slug
from immunebench.records.contact_sheet import MAX_BYTES
from immunebench.records.record import Record

_MOST_PIXELS = 4096


@dataclass(frozen=True)
class CheckedSheet:
    """A contact sheet: its bytes, or why it is not shown."""

    data: bytes = b""
    problem: str = ""

    @property
    def name(self) -> str:
        """Its file name on the site, which comes from its bytes alone."""
        return f"{hashlib.sha256(self.data).hexdigest()[:24]}.{self.kind}"

    @property
    def kind(self) -> str:
        """``webp`` or ``png`` by its header, empty for anything else."""
        return self._header[0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the header says."""
        return self._header[1]

    @cached_property
    def _header(self) -> tuple[str, tuple[int, int]]:
        from PIL import Image

        try:
            with warnings.catch_warnings():
                # What is too large to be shown is refused by its size below.
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
        What the board reads of them, in the same order.
    board
        None where the records do not make one.
    refusals
        Why there is no board, or why it must not be shown.
    sheets
        Contact sheets by cell key, of records that name one.
    problems
        What of the folder could not be used, with file and line.
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
        """Its folder's name on the site."""
        return slug(self.name)

    @cached_property
    def usual(self) -> list[Measurement]:
        """The measurements of which headlines and curves are made: those of no unusual setting."""
        return [cell for cell in self.measurements if cell.setting.usual]

    @cached_property
    def profiles(self) -> list[str]:
        """Profiles of its records."""
        return sorted({record.cell.profile for record in self.records})

    @cached_property
    def bases(self) -> list[str]:
        """Bases of its records."""
        return sorted({record.cell.base for record in self.records})

    def of(self, **names: str) -> list[Record]:
        """The records whose cell has these names, such as ``task="style-weave"``."""
        return [r for r in self.records if all(getattr(r.cell, name) == value for name, value in names.items())]


def suite_folders(results: Path) -> list[Path]:
    """The folders below `results` that hold records, by name."""
    if not results.is_dir():
        return []
    return [folder for folder in sorted(results.iterdir()) if folder.is_dir() and any(folder.glob("*.jsonl"))]


def load_suite(folder: Path) -> Suite:
    """Read and score the records of a folder and check their contact sheets; what cannot be used is a problem."""
    loaded, found = load_results(folder)
    records = tuple(sorted(newest(loaded), key=lambda record: record.cell.key))
    board, refusals = _score(loaded, found)
    problems = tuple(str(problem) for problem in found)
    sheets = {r.cell.key: check_sheet(folder, r.sheet.file, r.sheet.sha256) for r in records if r.sheet is not None}
    return Suite(folder.name, records, tuple(map(measurement, records)), board, refusals, sheets, problems)


def check_sheet(folder: Path, name: str, sha256: str) -> CheckedSheet:
    """Read a contact sheet if it lies in the suite's own ``sheets/`` and is the picture that the record names."""
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
    # A few bytes can claim a picture that no browser has the memory for.
    return sheet if 0 < max(sheet.size) <= _MOST_PIXELS else CheckedSheet(problem="is larger than it may be on a side")


def _score(records: Sequence[Record], problems: Sequence[Problem]) -> tuple[Board | None, tuple[str, ...]]:
    try:
        board = score_loaded(records, problems).board
    except (BoardError, NothingToShow) as error:
        return None, (str(error),)
    return board, board.refusals
