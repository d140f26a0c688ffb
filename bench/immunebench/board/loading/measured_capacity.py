"""Measured memory and time of methods on a GPU (``leaderboard/capacity.json``), for a page and a Markdown file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError

from immunebench.core.errors import UsageError
from immunebench.declared.schema import Id, Model, Text, usage_error

if TYPE_CHECKING:
    from immunebench.records.demand import Demand

Gib = Annotated[float, Field(ge=0)]
HEADS = ("entry", "profile", "cap GiB", "peak GiB", "process GiB", "s / step", "batch", "status", "fits")
#: Notes of the page, shown under the table.
NOTE = (
    "Peak: what the allocator reserved on a GPU, the resident memory of the process on a CPU; a process on a GPU needs "
    "the CUDA context beside it, which the caps of the profiles leave out. Fits: every profile of the same precision "
    "whose cap is above the peak."
)
SHAPES = "Shapes have random weights: memory and time do not depend on their values."


class Measured(Model):
    """Demand of one entry on one profile (`immunebench.records.demand.Demand`), and the profiles that it fits."""

    entry: Id
    kind: Literal["attack", "defense"]
    profile: Id
    model: Text
    cap_gib: Gib
    status: Literal["fits", "oom", "over_memory", "error", "killed"]
    allocator_gib: Gib = 0.0
    process_gib: Gib = 0.0
    seconds: Annotated[float, Field(ge=0)] | None = None
    batch: Annotated[int, Field(ge=0)] = 0
    device: str = ""
    emulated: bool = False
    reason: str = ""
    fits: tuple[Id, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the row under :data:`HEADS`, as text."""
        return (
            self.entry, f"{self.profile}{' (emulated)' if self.emulated else ''}", f"{self.cap_gib:g}",
            f"{self.allocator_gib or self.process_gib:.2f}", f"{self.process_gib:.2f}",
            "-" if self.seconds is None else f"{self.seconds:.3g}", str(self.batch), self.status,
            ", ".join(self.fits) or "-",
        )  # fmt: skip


class Capacity(Model):
    """Result of one call of `immunebench capacity`: measurements, date and hardware."""

    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    machine: Text
    libraries: dict[str, Text]
    rows: tuple[Measured, ...] = Field(min_length=1)

    @property
    def where(self) -> str:
        """Return one line on the models, the hardware, the software and the date of the measurement."""
        devices = ", ".join(sorted({row.device for row in self.rows if row.device})) or "-"
        models = ", ".join(sorted({row.model for row in self.rows}))
        libraries = ", ".join(f"{name} {version}" for name, version in self.libraries.items())
        return f"{models}; {devices}; {self.machine}, {libraries}; {self.date}."

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the notes that are shown with the table."""
        return (NOTE, *([SHAPES] if any(row.model.startswith("shape") for row in self.rows) else []))

    @property
    def complaints(self) -> tuple[str, ...]:
        """Return one line for each entry that failed, with the reason."""
        return tuple(f"{row.entry} on {row.profile}: {' '.join(row.reason.split())}" for row in self.rows if row.reason)

    def markdown(self) -> str:
        """Return the Markdown page."""
        from tabulate import tabulate

        table = tabulate([row.cells for row in self.rows], HEADS, tablefmt="github", disable_numparse=True)
        lines = ["# Capacity", "", self.where, "", table, ""]
        lines += [line for note in self.notes for line in (note, "")]
        lines += [f"- {complaint}" for complaint in self.complaints]
        return "\n".join(lines).rstrip("\n") + "\n"


def measured(
    found: Sequence[Demand], fits: Sequence[Sequence[str]], date: str, machine: str, libraries: dict[str, str]
) -> Capacity:
    """Return the measurements of a call, each with the profiles that it fits."""
    rows = [Measured(**asdict(demand), fits=tuple(held)) for demand, held in zip(found, fits, strict=True)]
    return Capacity(date=date, machine=machine, libraries=libraries, rows=tuple(rows))


def read(file: Path) -> Capacity | None:
    """Read the JSON file of `immunebench capacity --out`; None if there is no file.

    Raises
    ------
    UsageError
        If the file is not valid.
    """
    if not file.is_file():
        return None
    try:
        return Capacity.model_validate_json(file.read_text("utf-8"))
    except ValidationError as error:
        raise usage_error(file, error, Capacity) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot be read: {error}", file=file) from error


def write(capacity: Capacity, page: Path) -> None:
    """Write the Markdown page, and next to it a JSON file with the same content, which the site reads."""
    value = json.dumps(capacity.model_dump(mode="json"), indent=1, allow_nan=False)
    page.with_suffix(".json").write_text(value + "\n", "utf-8")
    page.write_text(capacity.markdown(), "utf-8")
