"""Plans the stages that protect a folder: one set of pictures after another, each as a task's published pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from immunebench.authoring import captions
from immunebench.authoring.new import SOURCE
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.core.errors import UsageError
from immunebench.core.types import Pictures
from immunebench.declared.profile import Profile
from immunebench.declared.suite import Suite
from immunebench.declared.task import Prior, Task, TaskConcept, TaskPictures, Wording
from immunebench.pictures.decoding import Photo, picture_files, read_picture
from immunebench.plan.builder import Builder
from immunebench.protecting.request import (
    Request,
    check_full_size,
    check_options,
    checked_out,
    chosen_profile,
    outputs,
    picture_side,
)
from immunebench.store.graph import Cell, Plan

#: Names the plan of one's own pictures where a suite's id is expected; no record has it.
_SUITE = "own-pictures"


@dataclass(frozen=True, slots=True)
class Set:
    """Pictures that are protected together.

    Attributes
    ----------
    task
        As which the stages know them: their squares are its owner's and its published pictures.
    photos
        In the order of their digests.
    protect
        Digest of the stage that protects them.
    stages
        Digests of that stage and all that it needs, inputs first.
    """

    task: Task
    photos: tuple[Photo, ...]
    protect: str
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """All that is known before anything is computed.

    Attributes
    ----------
    entry, left_out
        The layer that changes pictures, and the ids of the other layers.
    side
        Resolution of the base, at which the defense works.
    out, names
        Where the copies go, None where none are asked for; and their names by those of the pictures.
    notes
        A line on every file of the folder that is no picture.
    """

    request: Request
    entry: Entry
    left_out: tuple[str, ...]
    profile: Profile
    side: int
    out: Path | None
    names: Mapping[str, str]
    notes: tuple[str, ...]
    sets: tuple[Set, ...]
    plan: Plan

    @property
    def task(self) -> Task:
        """Return the first set's task: words are those of all."""
        return self.sets[0].task

    @property
    def photos(self) -> int:
        """Return the number of pictures."""
        return len(self.names)


@contextmanager
def planned(request: Request, catalog: Catalog, *, writes: bool = True) -> Iterator[Planned]:
    """Check a request and plan its stages; inside the block the catalogue knows the pictures as tasks.

    Equal pictures and options give equal stages, so that a run which was stopped goes on.

    Parameters
    ----------
    request
        What is asked.
    catalog
        The catalogue in which the stages look up entries: that of the process.
    writes
        Whether copies are to be written; without, `request.out` may be missing.

    Raises
    ------
    UsageError
        An option, a picture, the base or a file that the defense needs; raised before anything is computed.
    """
    check_options(request)
    entry, left_out = picture_side(catalog, request.defense)
    check_full_size(catalog, entry, request.base)
    like = _like(request, catalog)
    noun = captions.noun_of(request.noun, request.family, like.concept.noun)
    side = catalog.side(request.base)
    if side is None:
        folder = catalog.base_folder(request.base)
        raise UsageError("its unet or vae config does not state the picture size", file=folder)
    profile = chosen_profile(catalog, entry, request.base, side, request.profile)
    files, notes = picture_files(request.folder.expanduser(), field="FOLDER")
    names = outputs(files)
    out = checked_out(request, tuple(names.values())) if writes or request.out is not None else None
    contents = captions.contents(request.captions, request.family, noun, tuple(names))
    photos = sorted((Photo(file.name, read_picture(file, side)) for file in files), key=lambda p: (p.digest, p.name))
    groups = [tuple(photos[i] for i in part) for part in _parts(len(photos), request.at_once)]
    tasks = [_task(request, like, noun, group) for group in groups]
    with TemporaryDirectory(prefix="immunebench-own-") as place, _known(catalog, tasks, Path(place)):
        for task, group in zip(tasks, groups, strict=True):
            _write_squares(catalog.paths["task", task.id].with_suffix(""), group, contents)
        builder = Builder(_suite(entry, tasks, profile), catalog, None)
        sets = []
        for task, group in zip(tasks, groups, strict=True):
            published = builder.published(task, len(group))
            _, _, protected = builder.protect(entry, task, request.seed, {}, published)
            sets.append(Set(task, group, protected, builder.closure((protected,))))
        cells = tuple(Cell(task.id, entry.id, "", profile.id, request.seed) for task in tasks)
        # Without what an entry of several hooks does to a model.
        needed = {digest: builder.specs.stages[digest] for part in sets for digest in part.stages}
        plan = Plan(builder.suite, cells, needed, {})
        yield Planned(request, entry, left_out, profile, side, out, names, tuple(notes), tuple(sets), plan)


def _parts(count: int, most: int) -> list[list[int]]:
    """Divide pictures into as few sets as `most` allows, of sizes that differ by one at most."""
    return [part.tolist() for part in np.array_split(np.arange(count), -(-count // most))]


@contextmanager
def _known(catalog: Catalog, tasks: Sequence[Task], place: Path) -> Iterator[None]:
    """Let a catalogue know tasks whose pictures lie in a folder."""
    try:
        for task in tasks:
            catalog.tasks[task.id] = task
            catalog.paths["task", task.id] = place / task.family / f"{task.id}.toml"
        yield
    finally:
        for task in tasks:
            catalog.tasks.pop(task.id, None)
            catalog.paths.pop(("task", task.id), None)


def _like(request: Request, catalog: Catalog) -> Task:
    """Return a task of the family and the base, or of the base that it is like: its words are the defaults."""
    similar = catalog.models.bases[request.base].like or request.base
    family = [task for task in catalog.tasks.values() if task.family == request.family]
    known = sorted(
        (task for task in family if task.base in (request.base, similar)),
        key=lambda task: (task.base != request.base, task.concept.source == SOURCE, task.split != "suite", task.id),
    )  # fmt: skip
    if not known:
        why = f"there is no {request.family} task on this base, whose words could be used:"
        raise UsageError(why, field="--base", value=request.base)
    return known[0]


def _task(request: Request, like: Task, noun: str, photos: Sequence[Photo]) -> Task:
    """Return a set of pictures as a task: what a defense is told of a concept, and no more."""
    name = f"own-{hashlib.sha256(''.join(photo.digest for photo in photos).encode()).hexdigest()[:16]}"

    def own(text: str) -> str:
        return captions.with_noun(text, like.concept.noun, noun, request.family)

    caption = own(like.owner.caption)
    if request.caption is not None:
        caption = captions.checked(request.caption, None, "--caption")
    prior = None
    if like.prior is not None:
        prior = Prior(prompts=tuple(map(own, like.prior.prompts)), per_prompt=like.prior.per_prompt)
    # A copy is not validated: the fields of the attacker and of the evaluation are not used.
    return like.model_copy(
        update={
            "id": name,
            "base": request.base,
            "split": "dev",
            "title": "Pictures of one's own",
            "concept": TaskConcept(source=SOURCE, name=f"{request.family}/{name}", kind="far", noun=noun),
            "pictures": TaskPictures(owner=len(photos), published=len(photos)),
            "owner": Wording.model_construct(caption=caption, token=like.owner.token),
            "prior": prior,
            "dataset": None,
        }
    )


def _suite(entry: Entry, tasks: Sequence[Task], profile: Profile) -> Suite:
    return Suite(
        id=_SUITE, version="1.0", title="Pictures of one's own", profile=profile.id, seeds=(0,),
        tasks=tuple(task.id for task in tasks), defenses=(entry.id,), chains=("lora",), prompts=1, pictures=1,
        curve_pictures=0,
    )  # fmt: skip


def _write_squares(folder: Path, photos: Sequence[Photo], contents: Mapping[str, str]) -> None:
    pictures = Pictures(np.stack([photo.pixels for photo in photos]), tuple(contents[photo.name] for photo in photos))
    for split in ("owner", "published"):
        (folder / split).mkdir(parents=True)
        pictures.save(folder / split)
