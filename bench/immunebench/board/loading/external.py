"""External evaluations: attacks on an entry that others ran with code of their own, beside the standard score."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from immunebench.core.errors import UsageError
from immunebench.declared import schema
from immunebench.declared.schema import DefenseName, Id, Model

EXTERNAL = "external"
_Line = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f]+$")]


class External(Model):
    """``results/external/<id>.toml``: one attack on one entry.

    Attributes
    ----------
    a
        A of the entry under this attack, on the scale of the suite's own column; at most 1.
    tasks
        Tasks that it was measured on.
    attack, threat_model
        What was done, and what the attacker knew, in a sentence each.
    source
        Where it is published, and where its code is.
    """

    id: Id
    suite: Id
    suite_version: Annotated[str, Field(pattern=r"^\d+\.\d+$")]
    defense: DefenseName
    defense_version: Annotated[int, Field(ge=1)]
    a: Annotated[float, Field(ge=-10, le=1)]
    tasks: Annotated[tuple[Id, ...], Field(min_length=1, max_length=200)]
    attack: _Line
    threat_model: _Line
    authors: Annotated[tuple[_Line, ...], Field(min_length=1, max_length=50)]
    source: Annotated[str, Field(pattern=r"^https://[^\s<>\"'\\]+$", max_length=300)]
    published: str

    @field_validator("published")
    @classmethod
    def _is_a_date(cls, value: str) -> str:
        date.fromisoformat(value)
        return value

    @field_validator("a", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def read_external(results: Path) -> tuple[list[External], list[UsageError]]:
    """Return the sound external evaluations below a folder of results, sorted, and the errors of the others."""
    sound, broken = [], []
    folder = results / EXTERNAL
    for file in sorted(folder.glob("*.toml")) if folder.is_dir() else ():
        try:
            if file.is_symlink():
                raise UsageError("is a symbolic link; put the file itself there", file=file)
            found = schema.load(file, External)
            if found.id != file.stem:
                raise UsageError("must equal the file's name, not", file=file, field="id", value=found.id)
            sound.append(found)
        except UsageError as error:
            broken.append(error)
    return sound, broken
