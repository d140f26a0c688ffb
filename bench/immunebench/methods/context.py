"""`Context`: what the engine lends to an entry, so that the entry holds its algorithm and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from immunebench.core.types import Numerics, Params, Pictures, StageError
from immunebench.core.wording import fill
from immunebench.methods.adapters import DESCRIPTION, Adapter, saved_file
from immunebench.methods.loops import Loops
from immunebench.model.batch import Batch, Latents
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.optim import AdamW, adamw
from immunebench.model.runtime import derive_seed

Report = Callable[[str, int, int], None]
#: Pictures uint8 (n, h, w, 3), captions, seeds and options to larger pictures, each from its own seed.
Upscaler = Callable[..., NDArray[np.uint8]]
Distance = Callable[[Tensor, Tensor], Tensor]
CHECK_EVERY = 25
State = TypeVar("State", bound=Tensor | Mapping[str, Tensor])


class AttackHandle(Protocol):
    """An attack as a defense may use it: what it trains, not how."""

    @property
    def params(self) -> Params:
        """The attack's own parameters on this base."""
        ...

    def attach(self, model: LatentDiffusion) -> Adapter:
        """Put what the attacker would train on the model."""
        ...


class Orders:
    """Endless index batches: permutations of all pictures, one after another.

    Parameters
    ----------
    rng : numpy.random.Generator
    pictures : int
    batch : int
        Indices at a time, at least 1.
    """

    def __init__(self, rng: np.random.Generator, pictures: int, batch: int) -> None:
        self._rng, self._pictures, self._batch = rng, pictures, batch
        self._left = np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return self

    def __next__(self) -> NDArray[np.int64]:
        if len(self._left) < self._batch:
            self._left = np.concatenate([self._left, self._rng.permutation(self._pictures)])
        drawn, self._left = self._left[: self._batch], self._left[self._batch :]
        return drawn

    def live(self) -> dict[str, Tensor]:
        """Return nothing: what is left of a permutation differs in length; see `loops.Stateful`."""
        return {}

    def rest(self) -> tuple[dict[str, Tensor], Any]:
        """Return what is left of the permutation; the random stream is the context's."""
        return {}, self._left.tolist()

    def take(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Go on from what `rest` gave."""
        self._left = np.array(value, dtype=np.int64)


@dataclass(slots=True)
class Context:
    """Seeded randomness, batches, attacks, public pictures, log and checkpoints of one stage.

    Parameters
    ----------
    numerics : Numerics
    seed : int
        The stage's stream; everything random in an entry comes from `rng`, `generator` or `seed_of`.
    out : Path
        Folder of the artifact; entries do not write to it themselves.
    report : callable
        Progress: what, done, of how many.
    attacks : mapping of str to AttackHandle
        The attacks that the entry's manifest names.
    public : Pictures, optional
        Innocent pictures, none of the concept's, with captions.
    prior : Pictures, optional
        Class pictures that the base drew, captioned with their prompts.
    token, noun : str
        The placeholder in the captions and the common noun of the thing.
    distance : callable, optional
        The base's perceptual distance, where the entry's manifest asks for it.
    upscaler : callable, optional
        What enlarges pictures, where the manifest asks for it.
    bases : mapping of str to callable
        What loads the bases that the entry's manifest names as its surrogates.
    captioned : callable
        Gives published pictures the captions that their owner would write: the concept's, each around its own content.
    loops : Loops, optional
        Keeps what loops change, so that a stopped stage goes on; keeps nothing by default.
    """

    numerics: Numerics
    seed: int
    out: Path
    report: Report
    attacks: Mapping[str, AttackHandle] = field(default_factory=dict)
    public: Pictures | None = None
    prior: Pictures | None = None
    token: str = ""
    noun: str = ""
    distance: Distance | None = None
    upscaler: Upscaler | None = None
    bases: Mapping[str, Callable[[], LatentDiffusion]] = field(default_factory=dict)
    captioned: Callable[[Pictures], Pictures] = field(default=lambda pictures: pictures)
    loops: Loops = field(default_factory=Loops)
    rng: np.random.Generator = field(init=False)
    generator: torch.Generator = field(init=False)
    rows: list[dict[str, Any]] = field(init=False, default_factory=list)
    saved: list[int] = field(init=False, default_factory=list)
    noted: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed_of("rng"))
        self.generator = torch.Generator().manual_seed(self.seed_of("noise"))

    def seed_of(self, *names: object) -> int:
        """Return a seed of this stage for a named purpose."""
        return derive_seed(self.seed, *names)

    def seeds(self, count: int, *names: object) -> list[int]:
        """Return a seed for each picture, which its number and the named purpose decide and no other picture."""
        return [self.seed_of(*names, i) for i in range(count)]

    def attack(self, name: str) -> AttackHandle:
        """Return an attack that the defense simulates.

        Raises
        ------
        StageError
            If the defense's manifest does not name it.
        """
        if name not in self.attacks:
            known = ", ".join(self.attacks) or "none"
            raise StageError("error", f"attack {name!r} is not in the manifest's `against` ({known})")
        return self.attacks[name]

    def surrogates(self, model: LatentDiffusion) -> list[LatentDiffusion]:
        """Return the bases that the manifest names under `surrogates`, loaded, else the model that was given."""
        return [load() for load in self.bases.values()] or [model]

    def adamw(self, parameters: Mapping[str, nn.Parameter], lr: float, weight_decay: float = 1e-2) -> AdamW:
        """Return an optimiser under the profile's precision policy."""
        made = adamw(parameters, lr, weight_decay, self.numerics, self.noted.update)
        self.loops.register("adamw", made)
        return made

    def keep(self, name: str, state: State) -> State:
        """Name tensors that a loop with `resumes` overwrites, beside those of `adamw`.

        Parameters
        ----------
        name : str
        state : Tensor, or mapping of str to Tensor
            Live, named before the loop, and changed in place from then on (``copy_``, ``add_``).

        Returns
        -------
        What was given.
        """
        self.loops.keep(name, {"": state} if isinstance(state, Tensor) else state)
        return state

    def steps(
        self,
        count: int,
        model: LatentDiffusion,
        data: Latents,
        *,
        batch: int | None = None,
        what: str = "training",
        resumes: bool = False,
    ) -> Iterator[tuple[int, Batch]]:
        """Yield `count` numbered batches, epoch after epoch, each epoch in a new order.

        Parameters
        ----------
        count : int
        model : LatentDiffusion
        data : Latents
            From `LatentDiffusion.prepare`.
        batch : int, optional
            Pictures a step, at most all of them; the profile's by default. Epochs run into each other
            where it does not divide them.
        what : str
            Name in the progress report.
        resumes : bool
            Whether a stage that was stopped may go on in the middle, see `counted`.

        Yields
        ------
        step : int
            From 0.
        batch : Batch
        """
        order = self.orders(len(data), min(batch or self.numerics.batch, len(data)))
        for step in self.counted(count, what, resumes=resumes):
            yield step, model.draw(data, next(order), self.generator)

    def counted(self, count: int, what: str = "training", *, resumes: bool = False) -> Iterator[int]:
        """Yield 0 to `count` - 1, with progress and a look at the logged figures now and then.

        Parameters
        ----------
        count : int
        what : str
            Name in the progress report.
        resumes : bool
            Whether a stage that was stopped may go on in the middle. Say so only of a loop that changes nothing from
            one step to the next but what this context made before it (optimisers, endless batches, its random streams,
            log and saves), a `Perturbation`, `Draws` or `Surrogate`, and tensors named by `keep`; no list that it
            fills, no average in a variable. What comes before the loop runs again and has to give the same.
        """
        with self.loops.loop(self, what, count, resumes=resumes) as loop:
            for step in range(loop.first(), count):
                yield step
                self.report(what, step + 1, count)
                if (step + 1) % CHECK_EVERY == 0:
                    self.check()
                loop.done(step + 1)
            self.check()

    def micro_batches(self, count: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        """Return the rows of micro-batches of the profile's size at most: memory does not grow with the pictures."""
        return np.array_split(np.arange(count), -(-count // self.numerics.batch))

    def public_batches(self, model: LatentDiffusion, batch: int) -> Iterator[Batch]:
        """Return endless batches of the public pictures.

        Raises
        ------
        StageError
            If the stage was given none.
        """
        if self.public is None:
            raise StageError("error", "the stage has no public pictures, which a retain term needs")
        return self._endless(model, self.public, batch)

    def prior_batches(self, model: LatentDiffusion, batch: int) -> Iterator[Batch]:
        """Return endless batches of the class pictures.

        Raises
        ------
        StageError
            If the stage was given none.
        """
        if self.prior is None:
            raise StageError("error", "the stage has no class pictures, which a prior-preservation loss needs")
        return self._endless(model, self.prior, batch)

    def _endless(self, model: LatentDiffusion, pictures: Pictures, batch: int) -> Iterator[Batch]:
        data = model.prepare(pictures)
        orders = self.orders(len(data), min(batch, len(data)))
        return (model.draw(data, indices, self.generator) for indices in orders)

    def orders(self, pictures: int, batch: int) -> Orders:
        """Return endless index batches: permutations of all pictures, one after another."""
        made = Orders(self.rng, pictures, batch)
        self.loops.register("orders", made)
        return made

    def perceptual(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the perceptual distance of pictures of equal index, by a network that grades nothing.

        Parameters
        ----------
        x, y : Tensor, shape (n, 3, height, width)
            From -1 to 1.

        Returns
        -------
        Tensor, shape (n,)
            At least 0, with gradient. LPIPS (Zhang et al. 2018) on full-size bases.

        Raises
        ------
        StageError
            If the entry's manifest does not ask for it.
        """
        if self.distance is None:
            raise StageError("error", 'the manifest does not ask for a perceptual distance: needs = ["perceptual"]')
        return self.distance(x, y)

    def upscale(self, pixels: NDArray[np.uint8], captions: Sequence[str], **options: float) -> NDArray[np.uint8]:
        """Enlarge pictures by a network that grades nothing, each from its own seed.

        Parameters
        ----------
        pixels : ndarray of uint8, shape (n, height, width, 3)
        captions : sequence of str
            What the pictures show; the placeholder is left out, for the network never saw it.
        **options
            What the upscaler offers beside: `noise_level` and `steps` of the Stable Diffusion one.

        Returns
        -------
        ndarray of uint8, shape (n, f height, f width, 3)
            f = 4 on full-size bases, 2 on the embedded ones.

        Raises
        ------
        StageError
            If the entry's manifest does not ask for it.
        """
        if self.upscaler is None:
            raise StageError("error", 'the manifest does not ask for an upscaler: needs = ["upscaler"]')
        plain = [fill("{content}", token=self.noun, noun=self.noun, content=caption) for caption in captions]
        return self.upscaler(pixels, plain, self.seeds(len(pixels), "upscale"), **options)

    def log(self, step: int, **scalars: float | Tensor) -> None:
        """Keep figures of a step; tensors are read later, so that a GPU is not made to wait.

        Where a network runs in fp16 or bf16, or gradients are released, how many tensors of the last update overflowed
        and vanished is kept beside them.
        """
        kept = {name: v.detach() if isinstance(v, Tensor) else v for name, v in scalars.items()}
        self.rows.append({"step": step, **self.noted, **kept})

    def read(self) -> None:
        """Turn the logged tensors into numbers."""
        for row in reversed(self.rows):
            if not any(isinstance(value, Tensor) for value in row.values()):
                break
            for name, value in row.items():
                row[name] = value.item() if isinstance(value, Tensor) else value

    def check(self) -> None:
        """Read the figures of the last steps.

        Raises
        ------
        StageError
            If one is not finite.
        """
        self.read()
        for row in self.rows[-CHECK_EVERY:]:
            for name, value in row.items():
                if not math.isfinite(value):
                    raise StageError("error", f"{name} is {value} at step {row['step']}")

    def checkpoint(self, step: int, adapter: Adapter) -> None:
        """Save the adapter as it is after `step` updates."""
        self.check()
        adapter.save(self.out / saved_file(step))
        (self.out / DESCRIPTION).write_text(
            json.dumps({**adapter.describe(), "steps": [*self.saved, step]}, indent=1) + "\n"
        )
        self.saved.append(step)

    def write_log(self) -> None:
        """Write `log.json`: one object a step."""
        self.check()
        (self.out / "log.json").write_text(json.dumps(self.rows, allow_nan=False) + "\n")


@torch.no_grad()
def distance(tensors: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Euclidean distance of two lists of tensors, taken as one vector each."""
    differences = torch._foreach_sub(list(tensors), list(reference))
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(differences)))
    return norm
