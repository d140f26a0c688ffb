"""Interfaces for resuming the loops of an entry: objects with state register, and a `Loops` saves and restores them.

An entry counts its steps with `Context.counted`. Objects that carry state from step to step register with the stage's
`Loops`. The base class here saves nothing; `immunebench.execution.resume` has the one that does.
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
    """An object whose state changes in a loop and is saved in a bookmark, so that a stopped stage can resume."""

    def state_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors that are restored in place; their shapes and dtypes never change."""
        ...

    def extra_state(self) -> tuple[Mapping[str, Tensor], Any]:
        """Return the other state: further tensors, and a JSON value."""
        ...

    def load_extra_state(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Restore what `extra_state` returned."""
        ...


class State(Protocol):
    """The state that a `Context` itself carries from step to step."""

    numerics: Numerics
    out: Path
    rng: np.random.Generator
    generator: torch.Generator
    rows: list[dict[str, Any]]
    saved: list[int]

    def read(self) -> None:
        """Convert logged tensors on the device to numbers."""
        ...


class Steps(Protocol):
    """Callbacks of one loop between its steps."""

    def first(self) -> int:
        """Return the first step: 0, or where an earlier attempt stopped, after restoring its state."""
        ...

    def done(self, step: int) -> None:
        """Handle that `step` steps are complete."""
        ...


class Uninterrupted:
    """Callbacks of a loop that always starts at step 0 and saves nothing."""

    def first(self) -> int:
        """Return 0."""
        return 0

    def done(self, step: int) -> None:
        """Do nothing."""


class Loops:
    """The loops of one stage; this base class saves no state."""

    def register(self, name: str, thing: Stateful) -> None:
        """Register an object whose state is to be saved; only a weak reference is held."""

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Register tensors that are to be saved, under a name that the entry chooses."""

    def loop(self, ctx: State, what: str, count: int, *, resumes: bool) -> AbstractContextManager[Steps]:
        """Enter a loop of `count` steps; a nested loop belongs to the current step of the outer one."""
        return nullcontext(Uninterrupted())


_current: ContextVar[Loops | None] = ContextVar("loops", default=None)


def current() -> Loops:
    """Return the loops of the running stage, for objects that are created without a context."""
    return _current.get() or Loops()


@contextmanager
def running(loops: Loops) -> Iterator[None]:
    """Make `current` return `loops` inside the block."""
    token = _current.set(loops)
    try:
        yield
    finally:
        _current.reset(token)
