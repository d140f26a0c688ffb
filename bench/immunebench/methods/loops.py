"""The loops of an entry, and what of their state is kept so that a stopped stage can continue.

An entry numbers its steps through `Context.counted`. Whatever carries state from one step to the next registers itself
here; the engine that runs the stage provides a `Loops` that saves and restores it. This one keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from immunebench.core.types import Numerics


class Stateful(Protocol):
    """What a loop changes and a bookmark keeps."""

    def live(self) -> Mapping[str, Tensor]:
        """Return the tensors that a bookmark's values are copied into; their shapes and dtypes never change."""
        ...

    def rest(self) -> tuple[Mapping[str, Tensor], Any]:
        """Return what else there is: further tensors, and a value for JSON."""
        ...

    def take(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Go on from what `rest` gave."""
        ...


class State(Protocol):
    """What `Context` itself carries from step to step."""

    numerics: Numerics
    out: Path
    rng: np.random.Generator
    generator: torch.Generator
    rows: list[dict[str, Any]]
    saved: list[int]

    def read(self) -> None:
        """Read back the logged figures that still lie on the device."""
        ...


class Steps(Protocol):
    """One loop, between its steps."""

    def first(self) -> int:
        """Return the step to begin with: 0, or where an earlier attempt stopped, with the state it had then."""
        ...

    def done(self, step: int) -> None:
        """Note that `step` steps are complete."""
        ...


class Uninterrupted:
    """A loop that begins at its first step and keeps nothing."""

    def first(self) -> int:
        """Return 0."""
        return 0

    def done(self, step: int) -> None:
        """Do nothing."""


class Loops:
    """The loops of one stage; base class of what saves and restores their state."""

    def register(self, name: str, thing: Stateful) -> None:
        """Keep the state of `thing` for as long as something else refers to it."""

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a name of the entry's choice."""

    def loop(self, ctx: State, what: str, count: int, *, resumes: bool) -> AbstractContextManager[Steps]:
        """Run a loop of `count` steps; a loop inside another is part of the outer one's step."""
        return nullcontext(Uninterrupted())


_current: ContextVar[Loops | None] = ContextVar("loops", default=None)


def current() -> Loops:
    """Return the loops of the stage that runs here, for what is made without a context."""
    return _current.get() or Loops()


@contextmanager
def running(loops: Loops) -> Iterator[None]:
    """Let `current` return `loops` inside the block."""
    token = _current.set(loops)
    try:
        yield
    finally:
        _current.reset(token)
