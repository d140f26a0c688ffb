"""`Context`: what a stage provides to an entry, so that the entry consists of its algorithm only."""

from __future__ import annotations

import json
import math
import weakref
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
#: Maps pictures uint8 (n, h, w, 3), captions, seeds and options to upscaled pictures, each with its own seed.
Upscaler = Callable[..., NDArray[np.uint8]]
Distance = Callable[[Tensor, Tensor], Tensor]
CHECK_EVERY = 25
State = TypeVar("State", bound=Tensor | Mapping[str, Tensor])


class AttackHandle(Protocol):
    """An attack as a defense may simulate it: its parameters and its adapter, not its training loop."""

    @property
    def params(self) -> Params:
        """The attack's own parameters on this base."""
        ...

    def attach(self, model: LatentDiffusion) -> Adapter:
        """Attach the adapter that the attacker would train to the model."""
        ...


class Orders:
    """An endless iterator of index batches, drawn from consecutive random permutations of all pictures.

    Parameters
    ----------
    rng : numpy.random.Generator
    pictures : int
    batch : int
        Batch size, at least 1.
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

    def state_tensors(self) -> dict[str, Tensor]:
        """Return no tensors, as the remaining permutation varies in length; see `loops.Stateful`."""
        return {}

    def extra_state(self) -> tuple[dict[str, Tensor], Any]:
        """Return the remaining permutation; the random stream is the context's."""
        return {}, self._left.tolist()

    def load_extra_state(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Restore what `extra_state` returned."""
        self._left = np.array(value, dtype=np.int64)


@dataclass(slots=True)
class Context:
    """Seeded randomness, batches, simulated attacks, public pictures, log and checkpoints of one stage.

    Parameters
    ----------
    numerics : Numerics
    seed : int
        The stage's seed; everything random in an entry comes from `rng`, `generator` or `seed_of`.
    out : Path
        Folder of the artifact; entries do not write to it themselves.
    report : callable
        Progress: name of the loop, finished steps, all steps.
    attacks : mapping of str to AttackHandle
        The attacks in the manifest's `against`.
    public : Pictures, optional
        Captioned pictures of unrelated concepts, for regularisation.
    prior : Pictures, optional
        Class pictures that the base generated, captioned with their prompts.
    token, noun : str
        The placeholder in the captions and the class noun of the concept.
    distance : callable, optional
        The base's perceptual distance, if the entry's manifest needs it.
    upscaler : callable, optional
        The base's upscaler, if the entry's manifest needs it.
    bases : mapping of str to callable
        Loaders of the bases in the manifest's `surrogates`.
    captioned : callable
        Maps published pictures to the same pictures with the owner's captions, filled with their own content.
    loops : Loops, optional
        Saves the state of loops, so that a stopped stage can resume; saves nothing by default.
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
    optimiser_values: dict[str, Any] = field(init=False, default_factory=dict)
    optimiser_bytes: int = field(init=False, default=0)
    _optimisers: list[weakref.ref[AdamW]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed_of("rng"))
        self.generator = torch.Generator().manual_seed(self.seed_of("noise"))

    def seed_of(self, *names: object) -> int:
        """Derive a seed of this stage for a named purpose."""
        return derive_seed(self.seed, *names)

    def seeds(self, count: int, *names: object) -> list[int]:
        """Derive a seed for each picture from the named purpose and its index, independent of other pictures."""
        return [self.seed_of(*names, i) for i in range(count)]

    def attack(self, name: str) -> AttackHandle:
        """Return an attack that the defense simulates.

        Raises
        ------
        StageError
            If it is not in the manifest's `against`.
        """
        if name not in self.attacks:
            known = ", ".join(self.attacks) or "none"
            raise StageError("error", f"attack {name!r} is not in the manifest's `against` ({known})")
        return self.attacks[name]

    def surrogates(self, model: LatentDiffusion) -> list[LatentDiffusion]:
        """Load the bases in the manifest's `surrogates`; without any, return the given model."""
        return [load() for load in self.bases.values()] or [model]

    def adamw(self, parameters: Mapping[str, nn.Parameter], lr: float, weight_decay: float = 1e-2) -> AdamW:
        """Return an AdamW optimiser with the profile's precision policy."""
        made = adamw(parameters, lr, weight_decay, self.numerics, self.optimiser_values.update)
        self.loops.register("adamw", made)
        self._optimisers.append(weakref.ref(made))
        return made

    def keep(self, name: str, state: State) -> State:
        """Register tensors as state of a loop with `resumes`, in addition to the parameters given to `adamw`.

        Parameters
        ----------
        name : str
        state : Tensor, or mapping of str to Tensor
            Registered before the loop, and from then on changed in place only (``copy_``, ``add_``).

        Returns
        -------
        The argument `state`.
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
        """Yield `count` numbered batches, in epochs with a new random order each.

        Parameters
        ----------
        count : int
        model : LatentDiffusion
        data : Latents
            From `LatentDiffusion.prepare`.
        batch : int, optional
            Batch size, limited to the number of pictures; the profile's by default. A batch may span two epochs.
        what : str
            Name of the loop in the progress report.
        resumes : bool
            Whether a stopped stage may resume in the middle of the loop, see `counted`.

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
        """Yield 0 to `count` - 1, report progress, and check regularly that the logged values are finite.

        Parameters
        ----------
        count : int
        what : str
            Name of the loop in the progress report.
        resumes : bool
            Whether a stopped stage may resume in the middle of the loop. Set it only if all state that changes from
            step to step belongs to this context (its random streams, log and checkpoints, and the optimisers and batch
            iterators that it made before the loop), to a `Perturbation`, `Draws` or `Surrogate`, or to tensors
            registered with `keep`; not if the loop fills a list or updates an average in a variable. The code before
            the loop runs again on resuming, and must be deterministic.
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
        """Return row indices of micro-batches of at most the profile's batch size, to bound memory."""
        return np.array_split(np.arange(count), -(-count // self.numerics.batch))

    def public_batches(self, model: LatentDiffusion, batch: int) -> Iterator[Batch]:
        """Return an endless iterator of batches of the public pictures.

        Raises
        ------
        StageError
            If the stage has none.
        """
        if self.public is None:
            raise StageError("error", "the stage has no public pictures, which a retain term needs")
        return self._endless(model, self.public, batch)

    @property
    def class_pictures(self) -> Pictures:
        """The class pictures, captioned with the prompts that they were drawn from.

        Raises
        ------
        StageError
            If the stage has none.
        """
        if self.prior is None:
            raise StageError("error", 'the manifest lacks needs = ["prior"], for class pictures')
        return self.prior

    def prior_batches(self, model: LatentDiffusion, batch: int) -> Iterator[Batch]:
        """Return an endless iterator of batches of the class pictures.

        Raises
        ------
        StageError
            If the stage has none.
        """
        if self.prior is None:
            raise StageError("error", "the stage has no class pictures, which a prior-preservation loss needs")
        return self._endless(model, self.prior, batch)

    def _endless(self, model: LatentDiffusion, pictures: Pictures, batch: int) -> Iterator[Batch]:
        data = model.prepare(pictures)
        orders = self.orders(len(data), min(batch, len(data)))
        return (model.draw(data, indices, self.generator) for indices in orders)

    def orders(self, pictures: int, batch: int) -> Orders:
        """Return an endless iterator of index batches; see `Orders`."""
        made = Orders(self.rng, pictures, batch)
        self.loops.register("orders", made)
        return made

    def perceptual(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the perceptual distance between pictures of equal index, by a network that does not score protection.

        Parameters
        ----------
        x, y : Tensor, shape (n, 3, height, width)
            From -1 to 1.

        Returns
        -------
        Tensor, shape (n,)
            At least 0, differentiable. LPIPS (Zhang et al. 2018) on full-size bases.

        Raises
        ------
        StageError
            If the entry's manifest does not declare the need.
        """
        if self.distance is None:
            raise StageError("error", 'the manifest lacks needs = ["perceptual"], for the perceptual distance')
        return self.distance(x, y)

    def upscale(self, pixels: NDArray[np.uint8], captions: Sequence[str], **options: float) -> NDArray[np.uint8]:
        """Upscale pictures by a network that no metric uses, each with its own seed.

        Parameters
        ----------
        pixels : ndarray of uint8, shape (n, height, width, 3)
        captions : sequence of str
            Captions of the pictures; the placeholder is removed, as the upscaler does not know it.
        **options
            Further arguments of the upscaler: `noise_level` and `steps` for Stable Diffusion's.

        Returns
        -------
        ndarray of uint8, shape (n, f height, f width, 3)
            f = 4 on full-size bases, 2 on the embedded ones.

        Raises
        ------
        StageError
            If the entry's manifest does not declare the need.
        """
        if self.upscaler is None:
            raise StageError("error", 'the manifest lacks needs = ["upscaler"], for the upscaler')
        plain = [fill("{content}", token=self.noun, noun=self.noun, content=caption) for caption in captions]
        return self.upscaler(pixels, plain, self.seeds(len(pixels), "upscale"), **options)

    def log(self, step: int, **scalars: float | Tensor) -> None:
        """Log values of a step; tensors are read later, to avoid synchronising the GPU.

        For networks in fp16 or bf16, or with released gradients, the numbers of tensors whose gradient overflowed or
        was zero in the last update are added.
        """
        values = {name: v.detach() if isinstance(v, Tensor) else v for name, v in scalars.items()}
        self.rows.append({"step": step, **self.optimiser_values, **values})

    def read(self) -> None:
        """Convert the logged tensors to numbers."""
        for row in reversed(self.rows):
            if not any(isinstance(value, Tensor) for value in row.values()):
                break
            for name, value in row.items():
                row[name] = value.item() if isinstance(value, Tensor) else value

    def check(self) -> None:
        """Check that the values logged in the last steps are finite.

        Raises
        ------
        StageError
            If one is not.
        """
        self.read()
        for row in self.rows[-CHECK_EVERY:]:
            for name, value in row.items():
                if not math.isfinite(value):
                    raise StageError("error", f"{name} is {value} at step {row['step']}")

    def checkpoint(self, step: int, adapter: Adapter) -> None:
        """Save the adapter as it is after `step` updates, and note the memory of the optimisers in use."""
        self.check()
        held = [made.state_bytes() for of in self._optimisers if (made := of()) is not None]
        self.optimiser_bytes = max(self.optimiser_bytes, sum(held))
        adapter.save(self.out / saved_file(step))
        (self.out / DESCRIPTION).write_text(
            json.dumps({**adapter.describe(), "steps": [*self.saved, step]}, indent=1) + "\n"
        )
        self.saved.append(step)

    def write_log(self) -> None:
        """Write `log.json`, with one object per step."""
        self.check()
        (self.out / "log.json").write_text(json.dumps(self.rows, allow_nan=False) + "\n")


@torch.no_grad()
def distance(tensors: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean distance between two lists of tensors, each flattened to one vector."""
    differences = torch._foreach_sub(list(tensors), list(reference))
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(differences)))
    return norm
