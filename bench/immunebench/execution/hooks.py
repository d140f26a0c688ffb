"""Calls the functions of entries and checks what they return against their manifests."""

from __future__ import annotations

import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from immunebench.catalog.entry import Entry, digests
from immunebench.catalog.loading import default_catalog
from immunebench.core.types import Concept, Params, Pictures, StageError
from immunebench.execution import resume
from immunebench.pictures.cloaked import cloaked as read_cloaked

if TYPE_CHECKING:
    from immunebench.methods.adapters import Adapter
    from immunebench.methods.context import AttackHandle, Context
    from immunebench.model.diffusion import LatentDiffusion
from immunebench.core.wording import opaque, recaption
from immunebench.execution.inputs import Key, load_distance, loader, surrogate

Report = Callable[[str, int, int], None]
#: A message that names a file and a line of an entry already.
_PLACED = re.compile(r"\.py, line \d+\)$")


@dataclass(frozen=True, slots=True)
class Simulated:
    """An attack that a defense may simulate: its parameters and the modules that it trains."""

    entry: Entry
    params: Params
    ctx: Context

    def attach(self, model: LatentDiffusion) -> Adapter:
        """Attach the modules that the attack trains to a model."""
        module = importlib.import_module(self.entry.function("adapt").__module__)
        adapter: Adapter = module.attach(model, self.params, self.ctx)
        return adapter


def make_context(
    key: Key, inputs: Mapping[str, Path], out: Path, report: Report, model: LatentDiffusion, *, resumes: bool = False
) -> Context:
    from immunebench.methods.context import Context

    attacks: dict[str, AttackHandle] = {}
    public, prior = (Pictures.load(inputs[name]) if name in inputs else None for name in ("public", "prior"))
    words = key.get("concept", key)
    caption, token, noun = words.get("caption", "{content}"), words["token"], words["noun"]
    bases = {name: surrogate(name, key, model) for name in key.get("surrogates", {})}
    ctx = Context(
        model.numerics, key["seed"], out, report, attacks, public, prior, token=token, noun=noun, bases=bases,
        captioned=lambda pictures: recaption(pictures, caption, token=token, noun=noun),
    )  # fmt: skip
    if resumes:
        ctx.loops = resume.stage_loops(key)
    if "perceptual" in key:
        ctx.distance = load_distance(key["perceptual"]["id"], str(model.device))
    if "upscaler" in key:
        ctx.upscaler = loader(default_catalog().models.upscalers[key["upscaler"]["id"]].loader)(model.numerics)
    for name, attack in key.get("against", {}).items():
        attacks[name] = Simulated(default_catalog().attack(attack["entry"]), Params(attack["params"]), ctx)
    return ctx


def concept_of(view: Key, owner: Pictures) -> Concept:
    """Return the concept as an entry sees it: under a name that tells nothing and is another in every run."""
    token, noun = view["token"], view["noun"]
    captioned = recaption(owner, view["caption"], token=token, noun=noun)
    return Concept(opaque(view["id"]), view["family"], noun, token, captioned.captions[0], captioned)


def check_unchanged(entry: Entry, key: Key) -> None:
    """Raise an OSError if an entry's code changed since planning, so that the next run tries again unasked."""
    if digests(entry.folder) != key["entry_files"]:
        raise OSError(f"{entry.id}: its files changed after the run was planned; start it again")


def call_hook(entry: Entry, hook: str, *arguments: object) -> Any:
    """Call an entry's function; its exceptions become one line with the entry's name.

    Raises
    ------
    StageError
        If the function fails.
    """
    return named(entry, lambda: entry.function(hook)(*arguments))


def named(entry: Entry, call: Callable[[], Any]) -> Any:
    """Call a function and raise its exceptions as one line with the entry's name, file and line.

    Those of memory are raised as they are.
    """
    try:
        return call()
    except StageError as error:
        raise StageError(error.kind, f"{entry.id}: {error}{_where(entry, error)}") from error
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise
        text = " ".join(str(error).split())
        raise StageError("error", f"{entry.id}: {type(error).__name__}: {text}{_where(entry, error)}") from error


@contextmanager
def returned(entry: Entry, hook: str) -> Iterator[None]:
    """Add the place of a hook's definition to what is said of its return value, which no line of it raised.

    Raises
    ------
    StageError
        As raised in the block.
    """
    try:
        yield
    except StageError as error:
        code = getattr(inspect.unwrap(entry.function(hook)), "__code__", None)
        if code is None or _PLACED.search(str(error)) or not Path(code.co_filename).is_relative_to(entry.folder):
            raise
        place = f"{Path(code.co_filename).relative_to(entry.folder.parent).as_posix()}, line {code.co_firstlineno}"
        raise StageError(error.kind, f"{error} ({place})") from error


def _where(entry: Entry, error: Exception) -> str:
    """Return the innermost line of the entry's own code that an exception passed; empty if it passed none.

    The file is named from the entry's folder on, as records are read on other machines.
    """
    own = [
        (Path(frame.filename), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(entry.folder)
    ]
    if not own:
        return ""
    file, line = own[-1]
    return f" ({file.relative_to(entry.folder.parent).as_posix()}, line {line})"


def cleaned(
    entry: Entry, hook: str, model: LatentDiffusion, images: Pictures, params: Params, ctx: Context
) -> Pictures:
    cleaned = call_hook(entry, hook, model, images, params, ctx)
    if not isinstance(cleaned, Pictures):
        raise StageError("error", f"{entry.id}: {hook} returned {type(cleaned).__name__}, not Pictures")
    if cleaned.pixels.shape != images.pixels.shape or cleaned.captions != images.captions:
        raise StageError("error", f"{entry.id}: {hook} changed the number, the size or the captions of the pictures")
    return cleaned


def check_pictures(entry: str, published: Pictures, protected: object, budget: int | None) -> None:
    """Check an image defense against its declared budget, on the 8-bit pixels that are saved.

    Raises
    ------
    StageError
        If the result is no `Pictures` of the same shape and captions, or a pixel moved by more than `budget`.
    """
    if not isinstance(protected, Pictures):
        raise StageError("error", f"{entry}: protect_images returned {type(protected).__name__}, not Pictures")
    if protected.pixels.shape != published.pixels.shape:
        shapes = f"pictures of shape {protected.pixels.shape}, not {published.pixels.shape}"
        raise StageError("error", f"{entry}: protect_images returned {shapes}, that of the published ones")
    if protected.captions != published.captions:
        raise StageError("error", f"{entry}: protect_images changed the captions; return published.captions")
    if budget is None:
        return
    change = np.abs(protected.pixels.astype(np.int16) - published.pixels.astype(np.int16))
    if change.max() > budget:
        over = int((change.reshape(len(change), -1).max(axis=1) > budget).sum())
        what = f"Linf of {change.max()}/255 exceeds the declared budget of {budget}/255"
        raise StageError("error", f"{entry}: {what} in {over} of {len(change)} pictures; clip to it, and round last")


def check_perceptual(entry: str, distances: NDArray[np.float64], p: float) -> None:
    """Check an image defense against its declared perceptual distance, on the 8-bit pixels that are saved.

    Raises
    ------
    StageError
        If a picture lies further than `p` from the published one.
    """
    furthest = distances.max()
    if not furthest <= p + 1e-6:
        raise StageError("error", f"{entry}: a perceptual distance of {furthest:.4f} exceeds the declared {p:g}")


def cloaked(entry: Entry, key: Key, clean: Path) -> Pictures:
    """Read the pictures that a closed tool made of the published ones, and check them against the declared bound.

    Raises
    ------
    StageError
        Kind ``skipped`` where the entry has no pictures of the task; ``error`` where they do not fit it.
    """
    name, task, p = entry.id, key["task"], key.get("perceptual_budget")
    if not key["cloaked"]:
        raise StageError("skipped", f"{name}: no pictures of the task {task} were submitted")
    from immunebench.methods.bound import paired_distances

    published = Pictures.load(clean)
    protected = read_cloaked(name, entry.folder / task, key["cloaked"], published)
    check_pictures(name, published, protected, key["budget"])
    if p is not None:
        check_perceptual(name, paired_distances(published, protected, load_distance(key["perceptual"]["id"], "cpu")), p)
    return protected
