"""`Resume`: continues an interrupted stage inside its loop, with the same bytes as without the interruption.

The context knows the state that a loop of an entry changes from step to step, if the entry gets it from the context:
random streams, log and saves; optimisers, orders of batches, perturbations, draws and surrogates, each when it is
made; and the tensors that `Context.keep` names. On the next attempt the entry runs its set-up again, which its seed
makes the same, and the first step of the loop finds that state as it was when the bookmark was written. An entry that
changes anything else between two steps would come to another result, so only loops that are listed in `KNOWN`, or that
ask for it, are continued.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from immunebench.methods.loops import Loops, State, Stateful, Steps, Uninterrupted, current
from immunebench.store.bookmark import Bookmark, Page, Spent

if TYPE_CHECKING:
    from torch import Tensor

#: Loops that were reviewed and change only state that `Resume` saves, by the SHA-256 of their entry's code. A changed
#: entry starts from its beginning until its loops are reviewed again. Not listed: glaze-open, whose loops (one a
#: micro-batch) have an Adam and a change of their own, and the loops `time steps` of simac and `pool` of metacloak,
#: which fill a list; both run again before the last loop is continued. FSMG is a single round, which saves nothing.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "65df47ad26877992572cfbc15aea671460235fb2791a3222a7aec0512e139d71": ("training",),  # lora
    "59c74a4cecb7556b37587fc46d7dff020ff0effce6499710aaa5ca993048e41b": ("training",),  # dreambooth
    "e06cebe9418c5b7b45042e1ee6bbdc206102e9d273f3b869ccf36f99bf34e802": ("training",),  # textual-inversion
    "d793ebc315564b47258b350b6825176ac7703586957d3823152f0f53627bd0e1": ("training",),  # imma-lora
    "24698f95897bf01e0d5a86ff5621b3240e8e2a4c85c979a6e02c887ae5aa960e": ("erasing",),  # esd
    "c1b97527d31ec964eab905c70297ef6b45f7bc152d9fb1c5c31523d7124ff6d8": ("perturbing",),  # mist
    "f87ef995b7b2ec58b26a2837a2d5e496d8b7fe2ea85f54bc85678730e05b6cb4": ("rounds",),  # anti-dreambooth
    "5d20c2b032ca852623890483ddf4d7d38514dd12e454668fd1311d079893822a": ("rounds",),  # simac
    "ae1de7ab26bcc12fe30320caf7e668718b65b86c11cc8121814f7983ecb9e98d": ("trials",),  # metacloak
}


def known(key: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the loops of a stage that are continued without asking: all code that it runs is listed in `KNOWN`."""
    simulated = [attack["entry_files"] for attack in key.get("against", {}).values()]
    loops = [KNOWN.get(digest, ()) for files in [key["entry_files"], *simulated] for digest in files.values()]
    return loops[0] if loops and all(loops) else ()


@dataclass(frozen=True, slots=True)
class Kept:
    """Tensors that an entry asked to have saved."""

    tensors: Mapping[str, Tensor]

    def state_tensors(self) -> Mapping[str, Tensor]:
        """Return them."""
        return self.tensors

    def extra_state(self) -> tuple[Mapping[str, Tensor], Any]:
        """Return nothing: they are all there is."""
        return {}, None

    def load_extra_state(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Resume(Loops):
    """The state of one stage's loops.

    Parameters
    ----------
    bookmark : Bookmark, optional
        Where the state is saved; without one nothing is.
    loops : sequence of str
        Names of the loops that are continued without asking, see `known`.
    """

    bookmark: Bookmark | None = None
    loops: Sequence[str] = ()
    _things: list[tuple[str, Callable[[], Stateful | None]]] = field(init=False, default_factory=list)
    _begun: int = field(init=False, default=0)
    _depth: int = field(init=False, default=0)
    _page: Page | None = field(init=False, default=None)
    _looked: bool = field(init=False, default=False)

    @property
    def earlier(self) -> Spent:
        """Return time and memory of the attempts before this one."""
        return Spent() if self.bookmark is None else self.bookmark.earlier

    def register(self, name: str, thing: Stateful) -> None:
        """Save the state of an object as long as something else refers to it."""
        if self.bookmark is not None:
            self._things = [*self._alive(), (name, weakref.ref(thing))]

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Save tensors under a name that the entry chooses."""
        if self.bookmark is not None:
            kept = Kept(dict(tensors))
            self._things.append((name, lambda: kept))

    @contextmanager
    def loop(self, ctx: State, what: str, count: int, *, resumes: bool) -> Iterator[Steps]:
        """Run a loop of `count` steps; a loop inside another belongs to the step of the outer one."""
        number, outermost = self._begun, self._depth == 0
        self._begun, self._depth = number + 1, self._depth + 1
        try:
            if self.bookmark is not None and outermost and (resumes or what in self.loops):
                yield Loop(self, self.bookmark, ctx, (number, what, count), self._alive())
            else:
                yield Uninterrupted()
        finally:
            self._depth -= 1

    def page(self, device: str) -> Page | None:
        """Return the bookmark that is still to be restored; it is verified once a stage."""
        if not self._looked and self.bookmark is not None:
            self._looked, self._page = True, self.bookmark.read(device)
        return self._page

    def turn(self) -> None:
        """Drop the bookmark that was found: it was restored, or it does not fit."""
        self._page = None

    def _alive(self) -> list[tuple[str, Callable[[], Stateful | None]]]:
        return [(name, of) for name, of in self._things if of() is not None]


def earlier() -> Spent:
    """Return time and memory of earlier attempts at the running stage."""
    loops = current()
    return loops.earlier if isinstance(loops, Resume) else Spent()


def stage_loops(key: Mapping[str, Any]) -> Loops:
    """Return the loops of the running stage, after setting which are continued without asking."""
    loops = current()
    if isinstance(loops, Resume):
        loops.loops = known(key)
    return loops


class Loop:
    """One loop of a stage: restores its state before the first step and saves it between steps."""

    def __init__(
        self,
        resume: Resume,
        bookmark: Bookmark,
        ctx: State,
        name: tuple[int, str, int],
        things: Sequence[tuple[str, Callable[[], Stateful | None]]],
    ) -> None:
        self._resume, self._bookmark, self._ctx, self._name = resume, bookmark, ctx, list(name)
        # Referred to from here on: objects made before the loop are its state, whatever the loop does with them.
        self._things = [(label, thing) for label, of in things if (thing := of()) is not None]

    def first(self) -> int:
        """Return the step to start with: 0, or that of the bookmark, whose state is restored."""
        page = self._resume.page(self._ctx.numerics.device)
        if page is None or page.state["loop"][0] > self._name[0]:
            return 0
        self._resume.turn()
        if page.state["loop"] != self._name or page.state["things"] != self._outline():
            self._bookmark.tell("the bookmark is not used: it does not fit what the stage sets up", 0.0)
            return 0
        self._restore(page)
        self._bookmark.take_up(page)
        step, spent = int(page.state["step"]), self._bookmark.earlier.seconds
        self._bookmark.tell(f"continues after step {step} of {self._name[2]}", spent)
        return step

    def done(self, step: int) -> None:
        """Write a bookmark after `step` steps, if one is due and no update is pending."""
        resume, ctx = self._resume, self._ctx
        if step == self._name[2]:
            return
        # A bookmark of a later loop that is still to be restored is worth more than one of this loop.
        if not self._bookmark.due() or resume.page(ctx.numerics.device) is not None or not self._rests():
            return
        ctx.read()
        if not all(math.isfinite(value) for row in ctx.rows for value in row.values()):
            return  # `check` will report it.
        tensors, values = {"generator": ctx.generator.get_state()}, []
        for i, (_, thing) in enumerate(self._things):
            rest, value = thing.extra_state()
            tensors |= {f"{i}.rest.{name}": tensor for name, tensor in rest.items()}
            values.append(value)
        tensors |= self._live()
        state = {
            "loop": self._name,
            "step": step,
            "things": self._outline(),
            "values": values,
            "rng": ctx.rng.bit_generator.state,
            "rows": ctx.rows,
            "saved": ctx.saved,
        }
        self._bookmark.write(state, tensors, ctx.out, ctx.numerics.device)

    def _rests(self) -> bool:
        """Return whether no gradient is pending and no object made within the loop outlives its step."""
        held = {id(thing) for _, thing in self._things}
        late = any(id(of()) not in held for _, of in self._resume._alive())
        return not late and all(tensor.grad is None for tensor in self._live().values() if tensor.is_leaf)

    def _live(self) -> dict[str, Tensor]:
        """Return every tensor that is overwritten on restoring, once each: two optimisers may share one."""
        named = {f"{i}.{n}": t for i, (_, thing) in enumerate(self._things) for n, t in thing.state_tensors().items()}
        return {name: tensor for name, tensor in {id(t): (n, t) for n, t in named.items()}.values()}

    def _outline(self) -> list[Any]:
        shapes = {name: [list(t.shape), str(t.dtype)] for name, t in self._live().items()}
        return [[name for name, _ in self._things], shapes]

    def _restore(self, page: Page) -> None:
        import torch

        ctx, state, tensors = self._ctx, page.state, page.tensors()
        ctx.rng.bit_generator.state = state["rng"]
        ctx.generator.set_state(tensors["generator"].clone())
        ctx.rows[:], ctx.saved[:] = state["rows"], state["saved"]
        with torch.no_grad():
            for name, tensor in self._live().items():
                tensor.copy_(tensors[name])
        for i, ((_, thing), value) in enumerate(zip(self._things, state["values"], strict=True)):
            start = f"{i}.rest."
            rest = {name.removeprefix(start): t.clone() for name, t in tensors.items() if name.startswith(start)}
            thing.load_extra_state(rest, value)
        page.restore(ctx.out)
