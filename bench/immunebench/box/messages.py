"""What a process in a box may say: lines of JSON of a bounded length, each of one of five forms.

The other end is hostile. Nothing is unpickled, a line that is too long or of another form ends the process, and no text
is passed on longer than the schema allows.
"""

from __future__ import annotations

import json
import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

#: Most bytes of a line, and of all lines of one process.
LONGEST_LINE, MOST_BYTES = 1 << 18, 1 << 28
_Count = Annotated[int, Field(ge=0, le=10**12)]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Progress(_Message):
    """`done` of `total` steps of a loop."""

    type: Literal["progress"] = "progress"
    what: Annotated[str, Field(max_length=200)]
    done: _Count
    total: _Count


class Note(_Message):
    """A line for the user; `resumes` where the stage goes on from the bookmark that it was given."""

    type: Literal["note"] = "note"
    line: Annotated[str, Field(max_length=500)]
    resumes: bool = False


class Marked(_Message):
    """A bookmark was written into the folder of that number; the process waits for a line before it goes on."""

    type: Literal["marked"] = "marked"
    page: Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class Done(_Message):
    """The work is done; what it found, which trusted code alone may be believed."""

    type: Literal["done"] = "done"
    found: dict[Annotated[str, Field(max_length=100)], Any]


class Failed(_Message):
    """The work failed."""

    type: Literal["failed"] = "failed"
    kind: Literal["error", "oom", "over_memory", "timeout", "skipped"]
    message: Annotated[str, Field(max_length=2_100)]
    trace: Annotated[str, Field(max_length=21_000)]
    transient: bool


Message = Progress | Note | Marked | Done | Failed
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


class BadMessage(Exception):
    """A process said what no honest one says."""


def line(message: Message) -> bytes:
    """Return the line of a message."""
    return json.dumps(message.model_dump(), allow_nan=False).encode() + b"\n"


def parsed(text: bytes) -> Message:
    """Return the message of a line.

    Raises
    ------
    BadMessage
        It is no JSON, or of none of the forms.
    """
    try:
        return _MESSAGE.validate_python(json.loads(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise BadMessage(f"a message of another form ({first['type']})") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadMessage("a message that is no JSON") from error


class Lines:
    """Cuts what comes from a pipe into messages."""

    def __init__(self) -> None:
        self._rest, self._bytes = b"", 0

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes as they come; return the messages that are whole now.

        Raises
        ------
        BadMessage
            A line is too long or of another form, or there are too many.
        """
        self._bytes += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._bytes > MOST_BYTES or max(map(len, [*lines, self._rest])) > LONGEST_LINE:
            raise BadMessage("more than a process may say")
        return [parsed(text) for text in lines]


class Excerpt:
    """The begin and the end of what a process printed, of bounded length."""

    def __init__(self, begin: int = 4_000, end: int = 8_000) -> None:
        self._most, self._keep = begin, end
        self._begin, self._end, self._left_out = b"", b"", 0

    def feed(self, data: bytes) -> None:
        """Take bytes as they come."""
        room = self._most - len(self._begin)
        self._begin, data = self._begin + data[:room], data[room:]
        self._end += data
        self._left_out += max(0, len(self._end) - self._keep)
        self._end = self._end[-self._keep :]

    def text(self) -> str:
        """Return it as text; bytes that are no UTF-8 are replaced."""
        middle = f"\n... ({self._left_out:,} bytes left out) ...\n".encode() if self._left_out else b""
        return (self._begin + middle + self._end).decode(errors="replace")


class Channel:
    """The end of the pipes inside the box.

    Parameters
    ----------
    out : int
        File descriptor that messages are written to.
    back : int
        File descriptor that answers are read from.
    """

    def __init__(self, out: int, back: int) -> None:
        self._out, self._back = out, back

    def say(self, message: Message) -> None:
        """Write a message."""
        data = line(message)
        while data:
            data = data[os.write(self._out, data) :]

    def wait(self) -> None:
        """Wait for a line of the other end."""
        while os.read(self._back, 1) not in (b"\n", b""):
            pass


def read_line(descriptor: int, most: int) -> bytes:
    """Read one line of at most `most` bytes from a pipe, and nothing after it."""
    parts = bytearray()
    while len(parts) < most:
        data = os.read(descriptor, 1)
        if data in (b"\n", b""):
            break
        parts += data
    return bytes(parts)
