"""Loading and validation of TOML files, and field types that several kinds of files share."""

from __future__ import annotations

import json
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from immunebench.core.errors import UsageError

Family = Literal["style", "object", "identity", "relearn"]
Id = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
#: A defense, or several joined by ``+``.
DefenseName = Annotated[str, Field(pattern=r"^[a-z0-9]+([-+][a-z0-9]+)*$", max_length=256)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=10_000)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: A file name without a path, so that it cannot point outside its folder.
PictureFile = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*\.png$", max_length=128)]
#: ``owner/name`` on GitHub or the Hugging Face hub. A part must not consist of dots or end in one, as dots have a
#: meaning in paths and URLs.
Repository = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([\w.-]*[\w-])?/[A-Za-z0-9]([\w.-]*[\w-])?$")]
#: A full commit hash; branches and tags may move.
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Values = dict[str, JsonValue]
#: Of a manifest or of an entry's code.
MAX_BYTES = 10_000_000


class Model(BaseModel):
    """Base class of all schemas: frozen, strict, and without unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


M = TypeVar("M", bound=Model)


def load(path: Path, model: type[M]) -> M:
    """Read a TOML file and validate it as ``model``.

    Raises
    ------
    UsageError
        The file cannot be read or is not valid: one line with the file, the field, the value and what was expected.
    """
    try:
        text = json.dumps(tomllib.loads(read_text(path)), allow_nan=True, default=str)
    except RecursionError as error:
        raise UsageError("cannot be read: it is nested too deeply", file=path) from error
    except ValueError as error:  # No TOML, or an integer of thousands of digits.
        raise UsageError(f"cannot be read: {error}", file=path) from error
    try:
        # In strict mode, only JSON input accepts an array for a tuple.
        return model.model_validate_json(text)
    except ValidationError as error:
        raise usage_error(path, error, model) from error


def read_text(path: Path) -> str:
    """Return the text of a small regular file, without a mark of the byte order.

    Raises
    ------
    UsageError
        It cannot be read, is no regular file (a pipe would be waited for) or no UTF-8 text, or is very large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UsageError("is no regular file", file=path)
        if status.st_size > MAX_BYTES:
            raise UsageError(f"has more than {MAX_BYTES // 10**6} MB", file=path)
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", file=path) from error
    except UnicodeDecodeError as error:
        raise UsageError("cannot be read: it is no UTF-8 text", file=path) from error


def usage_error(path: Path, error: ValidationError, model: type[BaseModel]) -> UsageError:
    """Turn the first of pydantic's validation errors into one line."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        return UsageError("unknown field", file=path, value=str(first["loc"][-1]), choices=known)
    if first["type"] == "missing":
        return UsageError("is required and missing", file=path, field=field)
    if first["type"] == "json_invalid":  # the error's input would be the whole file
        return UsageError(first["msg"][0].lower() + first["msg"][1:], file=path)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return UsageError(message, file=path, field=field)
    choices = _literals(first)
    return UsageError(
        "is not valid:" if choices else f"{message[0].lower()}{message[1:]}, not",
        file=path,
        field=field,
        value=first["input"],
        choices=choices,
    )


def _literals(details: ErrorDetails) -> tuple[str, ...]:
    if details["type"] != "literal_error":
        return ()
    expected = str(details.get("ctx", {}).get("expected", ""))
    return tuple(part.strip("' ") for part in expected.replace(" or ", ", ").split(", "))


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the field names of the model nested at ``loc``."""
    for part in loc:
        field = model.model_fields.get(str(part))
        candidates = [] if field is None else _models_in(field.annotation)
        if field is not None and not candidates:
            return ()
        model = candidates[0] if candidates else model
    return tuple(model.model_fields)


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]
