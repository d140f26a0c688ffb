"""``immunebench new task``: creates a task, and a suite that measures it, from a folder of photos."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.authoring import captions
from immunebench.authoring.scaffold import Created, Draft, checked_id, command, toml, write_all
from immunebench.bases import base_folder
from immunebench.catalog.places import folders_to_write
from immunebench.core.errors import UsageError
from immunebench.declared import schema
from immunebench.declared.suite import Suite
from immunebench.declared.task import Task, TaskPictures

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog
    from immunebench.pictures.decoding import Photo

Table = dict[str, object]

FAMILIES = ("style", "object", "identity")
SOURCE = "folder"
#: The order in which pictures are assigned to splits in turn, so that few pictures are shared evenly.
ASSIGNED = ("published", "reference", "owner", "extra")
#: Two pictures per split: with one, a score has no variance and an attack no variety.
MIN_PICTURES = 2 * len(ASSIGNED)
#: The content of the task's suite: the controls that a board requires, one defense and one attack.
DEFENSES, CHAIN = ("none", "none-replicate", "imma-lora", "destroy"), "lora"
MAX_PROMPTS = 8


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """The user's options; None means that `new_task` chooses a default.

    Attributes
    ----------
    images
        Folder of photos.
    family, base
        As in the task's file.
    id
        Default: ``my-`` and the folder's name.
    noun
        Class noun of the concept; required for objects.
    token, owner_token
        Placeholders of the attacker and of the owner; the owner's default is the first free one of the base.
    title
        Default: from folder and noun.
    captions, prompts
        Files, see `immunebench.authoring.captions`.
    like
        A task of the same family and base whose prompts, captions, benign concept and other concepts are copied;
        default: the first one of a suite.
    out
        Root folder to write to; see `immunebench.catalog.places.folders_to_write`.
    """

    images: Path
    family: str
    base: str = "mini"
    id: str | None = None
    noun: str | None = None
    token: str = "sks"
    owner_token: str | None = None
    title: str | None = None
    captions: Path | None = None
    prompts: Path | None = None
    like: str | None = None
    out: Path | None = None


def new_task(request: TaskRequest, catalog: Catalog) -> Created:
    """Write a task, its pictures and its suite, all of them or none.

    Pictures are converted by `immunebench.pictures.decoding` and assigned to disjoint splits in the order of their
    digests, so that the same photos give the same task whatever their names. Pictures beyond the default split sizes
    are left out.

    Raises
    ------
    UsageError
        An option or a picture is not valid, there are too few pictures, or the name is taken; nothing is written.
    """
    like = _like(request, catalog)
    noun = captions.noun_of(request.noun, request.family, like.concept.noun)
    name = _id(request)
    folders = folders_to_write(request.out)
    file, suite_file = folders["tasks"] / request.family / f"{name}.toml", folders["suites"] / f"{name}.toml"
    if file.exists():
        raise UsageError("exists already; choose another --id", file=file)
    if name in catalog.tasks or name in catalog.suites:
        raise UsageError("is the name of another task or suite:", field="--id", value=name)
    base = catalog.base_folder(request.base)
    side = base_folder.side(base)
    if side is None:
        raise UsageError("its unet or vae config does not state the picture size", file=base)
    profile = _profile(catalog, side)

    from immunebench.pictures.decoding import read_folder

    found = read_folder(request.images.expanduser(), side)
    if len(found.photos) < MIN_PICTURES:
        several = f"{len(found.photos)} different pictures of {len(found.names)} files"
        raise UsageError(f"holds {several}; a task needs at least {MIN_PICTURES}", file=request.images)
    words = captions.contents(request.captions, request.family, noun, found.names)
    splits, left = assign_splits(found.photos)
    counts = {split: len(photos) for split, photos in splits.items()}
    table = _task(request, name, noun, like, counts, catalog.models.bases[request.base].placeholders)
    suite = _suite(name, str(table["title"]), table, catalog, profile)
    drafts: dict[Path, Draft] = {
        file.with_suffix(""): lambda place: _write_pictures(place, splits, words),
        suite_file: lambda place: _write_checked(place, suite, Suite),
        # Last, as the catalogue finds the others through it.
        file: lambda place: _write_checked(place, table, Task),
    }
    write_all(drafts)
    shares = ", ".join(f"{split} {count}" for split, count in counts.items())
    skipped = [*found.notes, *([f"{left} more pictures than the splits take"] if left else [])]
    return Created(
        name,
        (file, file.with_suffix(""), suite_file),
        (
            f"task {name}: {sum(counts.values())} pictures of {side} x {side} pixels ({shares})",
            *(f"skipped: {note}" for note in skipped),
        ),
        (command(folders["root"], f"run {name}"), f"immunebench board {name}"),
    )


def assign_splits(photos: Sequence[Photo]) -> tuple[dict[str, list[Photo]], int]:
    """Assign pictures to the splits in turn; return the splits and the number of remaining pictures."""
    full = TaskPictures().model_dump()
    places = [split for i in range(max(full.values())) for split in ASSIGNED if i < full[split]]
    splits: dict[str, list[Photo]] = {split: [] for split in ASSIGNED}
    for split, photo in zip(places, photos, strict=False):
        splits[split].append(photo)
    return splits, max(0, len(photos) - len(places))


def _like(request: TaskRequest, catalog: Catalog) -> Task:
    if request.family not in FAMILIES:
        raise UsageError("is not a family for tasks from pictures:", field="--family", value=request.family,
                         choices=FAMILIES)  # fmt: skip
    catalog.find("base", catalog.models.bases, request.base, field="--base")

    # A base without tasks of its own uses the texts of tasks on the base in its field `like`.
    similar = catalog.models.bases[request.base].like or request.base

    def fits(task: Task) -> bool:
        own = task.concept.source == SOURCE or task.dataset is not None
        return task.family == request.family and task.base in (request.base, similar) and not own

    if request.like is not None:
        task = catalog.task(request.like, field="--like")
        if not fits(task):
            why = f"is not a task of the family {request.family} on base {request.base}:"
            raise UsageError(why, field="--like", value=task.id)
        return task
    # Tasks of concepts that the base knows come last: their prompts and anchors do not suit unknown concepts.
    known = sorted(
        (task for task in catalog.tasks.values() if fits(task)),
        key=lambda task: (
            task.base != request.base, task.concept.kind == "known", task.split != "suite", task.id,
        ),
    )  # fmt: skip
    if not known:
        message = f"there is no {request.family} task on this base to copy prompts and the benign concept from:"
        raise UsageError(message, field="--base", value=request.base)
    return known[0]


def _id(request: TaskRequest) -> str:
    folder = request.images.expanduser().resolve().name
    slug = re.sub(r"[^a-z0-9]+", "-", folder.lower()).strip("-").removeprefix("my-")
    return checked_id(request.id or f"my-{slug or 'photos'}"[:64].strip("-"), "--id")


def _task(
    request: TaskRequest,
    name: str,
    noun: str,
    like: Task,
    counts: Mapping[str, int],
    placeholders: Sequence[str],
) -> Table:
    taken = {request.token, like.benign.token}
    owner_token = request.owner_token or next((word for word in placeholders if word not in taken), "oqx")
    for option, token in (("--token", request.token), ("--owner-token", owner_token)):
        if not re.fullmatch(r"[a-z0-9]{1,16}", token):
            raise UsageError("must be one word of lower-case letters and digits, not", field=option, value=token)
        if placeholders and token not in placeholders:
            message = f"is not a placeholder of base {request.base}:"
            raise UsageError(message, field=option, value=token, choices=placeholders)
    if len({owner_token, *taken}) < 3:
        message = f"--token, --owner-token and {like.benign.token!r} of the benign concept must differ, not"
        raise UsageError(message, field="--token", value=request.token)
    source = like.concept.source

    def own(prompts: Sequence[str]) -> list[str]:
        return [captions.with_noun(prompt, like.concept.noun, noun, request.family) for prompt in prompts]

    prompts = own(like.evaluation.prompts)
    if request.prompts is not None:
        prompts = list(captions.read_prompts(request.prompts))
    prior = {} if like.prior is None else {**like.prior.model_dump(), "prompts": own(like.prior.prompts)}
    benign = {"source": source, **like.benign.model_dump(mode="json", exclude_none=True)}
    others = dict.fromkeys((like.concept.name, *like.anchors.others))
    drawn = {
        name: list(like.drawn[name]) for name in dict.fromkeys([like.benign.concept, *others]) if name in like.drawn
    }
    return {
        "id": name,
        "version": 1,
        "family": request.family,
        "base": request.base,
        "split": "dev",
        "title": captions.checked(request.title or _title(request, noun), None, "--title"),
        "concept": {"source": SOURCE, "name": f"{request.family}/{name}", "kind": "far", "noun": noun},
        "pictures": dict(counts),
        "owner": {"caption": like.owner.caption, "token": owner_token},
        "attacker": {"caption": like.attacker.caption, "token": request.token},
        "evaluation": {"prompts": prompts},
        **({"prior": prior} if prior else {}),
        **({"drawn": drawn} if drawn else {}),
        "benign": benign,
        "anchors": {"source": like.anchors.source or source, "others": list(others)},
    }


def _title(request: TaskRequest, noun: str) -> str:
    folder = request.images.expanduser().resolve().name
    return f"The {noun} of the folder {folder}" if folder.isprintable() else f"The {noun} of a folder of photos"


def _profile(catalog: Catalog, side: int) -> str:
    """Return the smallest profile with a given resolution, as larger hardware can emulate it.

    Among profiles with equal memory, full precision comes first.
    """
    fitting = [profile for profile in catalog.profiles.values() if profile.resolution == side]
    if not fitting:
        raise UsageError("no profile has the base's resolution, in pixels:", field="--base", value=side)
    return min(fitting, key=lambda p: (p.device != "cpu", p.memory_gib, p.precision != "fp32")).id


def _suite(name: str, title: str, task: Table, catalog: Catalog, profile: str) -> Table:
    prompts = [len(task[part]["prompts"]) for part in ("evaluation", "benign")]  # type: ignore[index]
    return {
        "id": name,
        "version": "1.0",
        "title": f"{title}: the controls and one defense",
        "profile": profile,
        "seeds": [0],
        "tasks": [name],
        "defenses": [entry for entry in DEFENSES if entry in catalog.defenses],
        "chains": [catalog.attack(CHAIN).id],
        "prompts": min(MAX_PROMPTS, *prompts),
        "pictures": 2,
        "curve_pictures": 0,
        "unrelated_pictures": 1,
    }


def _write_pictures(folder: Path, splits: Mapping[str, Sequence[Photo]], words: Mapping[str, str]) -> None:
    import numpy as np

    from immunebench.core.types import Pictures

    for split, photos in splits.items():
        (folder / split).mkdir(parents=True)
        content = tuple(words[photo.name] for photo in photos)
        Pictures(np.stack([photo.pixels for photo in photos]), content).save(folder / split)


def _write_checked(file: Path, table: Table, model: type[Task] | type[Suite]) -> None:
    file.write_text(toml(table), "utf-8")
    schema.load(file, model)
