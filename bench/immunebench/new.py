"""``immunebench new task``: a folder of photos becomes a task and a suite that measures it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from immunebench import captions, schema
from immunebench.entry import folders_to_write
from immunebench.errors import UsageError
from immunebench.schema import Id, Suite, Task, TaskPictures

if TYPE_CHECKING:
    from immunebench.entry import Catalog
    from immunebench.intake import Photo

Table = dict[str, object]

FAMILIES = ("style", "object", "identity")
CONTENT = {"style": "a picture", "object": "a {subject}", "identity": "a portrait of {subject}"}
SOURCE = "folder"
#: Pictures are dealt out in this order, so that each split has its share of few and its full size of many.
DEALT = ("published", "reference", "owner", "extra")
#: Two pictures a split: with one, a score has no spread and an attack no variety.
MIN_PICTURES = 2 * len(DEALT)
#: What the task's own suite measures: the controls without which no board renders, one defense and one attack.
DEFENSES, CHAIN, PROFILE = ("none", "none-replicate", "imma-lora", "destroy"), "lora", "cpu"
MAX_PROMPTS = 8


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """What the user said; None stands for a default that `new_task` finds.

    Attributes
    ----------
    images
        Folder of photos.
    family, base
        As in the task's file.
    id
        Default: ``my-`` and the folder's name.
    noun
        What the thing is called; objects need one.
    token, owner_token
        Placeholder of the attacker and of the owner.
    title
        Default: made of id and noun.
    captions, prompts
        Files, see `immunebench.captions`.
    like
        A task of the same family and base, whose prompts, captions, benign concept and other concepts are taken;
        default the first one of a suite.
    out
        House to write to; see `immunebench.entry.folders_to_write`.
    """

    images: Path
    family: str
    base: str = "mini"
    id: str | None = None
    noun: str | None = None
    token: str = "sks"
    owner_token: str = "oqx"
    title: str | None = None
    captions: Path | None = None
    prompts: Path | None = None
    like: str | None = None
    out: Path | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """What was written, what was passed over and which commands come next."""

    id: str
    files: tuple[Path, ...]
    side: int
    counts: Mapping[str, int]
    notes: tuple[str, ...]
    next: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return it for a person."""
        shares = ", ".join(f"{split} {count}" for split, count in self.counts.items())
        size = f"{self.side} x {self.side} pixels"
        return [
            f"task {self.id}: {sum(self.counts.values())} pictures of {size} ({shares})",
            *(f"passed over: {note}" for note in self.notes),
            *(f"wrote {file}" for file in self.files),
            *(f"next: {command}" for command in self.next),
        ]


def new_task(request: TaskRequest, catalog: Catalog) -> Created:
    """Write a task, its pictures and its suite; all of them or nothing.

    Pictures are converted by `immunebench.intake` and dealt to disjoint splits in the order of their digests: the same
    photos give the same task, whatever their names. What does not fit the sizes that a suite's tasks have is left out.

    Raises
    ------
    UsageError
        An option or a picture is wrong, there are too few pictures, or the name is taken; nothing was written.
    """
    like = _like(request, catalog)
    noun = _noun(request, like)
    name = _id(request)
    folders = folders_to_write(request.out)
    file, suite_file = folders["tasks"] / request.family / f"{name}.toml", folders["suites"] / f"{name}.toml"
    for taken in (file, file.with_suffix(""), suite_file):
        if taken.exists() or taken.is_symlink():
            raise UsageError("exists already; choose another --id", file=taken)
    if name in catalog.tasks or name in catalog.suites:
        raise UsageError("is the name of another task or suite:", field="--id", value=name)
    side = resolution(catalog.base_folder(request.base))

    from immunebench.intake import read_folder

    found = read_folder(request.images.expanduser(), side)
    if len(found.photos) < MIN_PICTURES:
        several = f"{len(found.photos)} different pictures of {len(found.names)} files"
        raise UsageError(f"holds {several}; a task needs at least {MIN_PICTURES}", file=request.images)
    words = _captions(request, noun, found.names)
    splits, left = deal(found.photos)
    table = _task(request, name, noun, like, {split: len(photos) for split, photos in splits.items()})
    suite = _suite(name, str(table["title"]), table, catalog)
    _write(file, suite_file, table, suite, splits, words)
    return Created(
        name,
        tuple(_short(path) for path in (file, file.with_suffix(""), suite_file)),
        side,
        {split: len(photos) for split, photos in splits.items()},
        (*found.notes, *([f"{left} more pictures than the splits take"] if left else [])),
        (f"{_prefix(folders['root'])}immunebench run {name}", f"immunebench board {name}"),
    )


def deal(photos: Sequence[Photo]) -> tuple[dict[str, list[Photo]], int]:
    """Deal pictures to the splits in turn, none to two of them; return the splits and how many were left over."""
    full = TaskPictures().model_dump()
    seats = [split for turn in range(max(full.values())) for split in DEALT if turn < full[split]]
    splits: dict[str, list[Photo]] = {split: [] for split in DEALT}
    for split, photo in zip(seats, photos, strict=False):
        splits[split].append(photo)
    return splits, max(0, len(photos) - len(seats))


def resolution(base: Path) -> int:
    """Return the side of the pictures that a base draws, in pixels: its latents' times what its autoencoder shrinks.

    Raises
    ------
    UsageError
        The folder is no diffusers pipeline.
    """
    try:
        latents = json.loads((base / "unet" / "config.json").read_text("utf-8"))["sample_size"]
        blocks = json.loads((base / "vae" / "config.json").read_text("utf-8"))["block_out_channels"]
        side: int = int(latents) * 2 ** (len(blocks) - 1)
        return side
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError("its unet or vae config says no picture size", file=base) from error


def _like(request: TaskRequest, catalog: Catalog) -> Task:
    if request.family not in FAMILIES:
        raise UsageError("is no family of tasks from pictures:", field="--family", value=request.family,
                         choices=FAMILIES)  # fmt: skip
    catalog.find("base", catalog.models.bases, request.base, field="--base")

    def fits(task: Task) -> bool:
        return (task.family, task.base) == (request.family, request.base) and task.concept.source != SOURCE

    if request.like is not None:
        task = catalog.task(request.like, field="--like")
        if not fits(task):
            raise UsageError(f"is no {request.family} task on base {request.base}:", field="--like", value=task.id)
        return task
    known = sorted((task for task in catalog.tasks.values() if fits(task)), key=lambda t: (t.split != "suite", t.id))
    if not known:
        message = f"no {request.family} task on this base could lend its prompts and benign concept:"
        raise UsageError(message, field="--base", value=request.base)
    return known[0]


def _noun(request: TaskRequest, like: Task) -> str:
    if request.noun is not None:
        return captions.checked(request.noun, None, "--noun")
    if request.family == "object":
        raise UsageError("is needed for an object: what is it called, e.g. --noun mug", field="--noun")
    return like.concept.noun


def _id(request: TaskRequest) -> str:
    folder = request.images.expanduser().resolve().name
    slug = re.sub(r"[^a-z0-9]+", "-", folder.lower()).strip("-").removeprefix("my-")
    name = request.id or f"my-{slug or 'photos'}"[:64].strip("-")
    try:
        return TypeAdapter(Id).validate_python(name)
    except ValidationError as error:
        message = "must be up to 64 lower-case letters and digits with single hyphens between, not"
        raise UsageError(message, field="--id", value=name) from error


def _captions(request: TaskRequest, noun: str, names: Sequence[str]) -> dict[str, str]:
    words = dict.fromkeys(names, CONTENT[request.family])
    if request.captions is not None:
        own = captions.read_captions(request.captions, names)
        words |= own if request.family == "style" else captions.with_subject(own, noun, request.captions)
    return words


def _task(request: TaskRequest, name: str, noun: str, like: Task, counts: Mapping[str, int]) -> Table:
    for option, token in (("--token", request.token), ("--owner-token", request.owner_token)):
        if not re.fullmatch(r"[a-z0-9]{1,16}", token):
            raise UsageError("must be one word of lower-case letters and digits, not", field=option, value=token)
    if len({request.token, request.owner_token, like.benign.token}) < 3:
        message = f"--token, --owner-token and {like.benign.token!r} of the benign concept must differ, not"
        raise UsageError(message, field="--token", value=request.token)
    source = like.concept.source
    prompts = like.evaluation.prompts
    if request.prompts is not None:
        prompts = captions.read_prompts(request.prompts)
    elif request.family == "object":
        prompts = tuple(p.replace(f"{{token}} {like.concept.noun}", f"{{token}} {noun}") for p in prompts)
    others = dict.fromkeys((like.concept.name, *like.anchors.others))
    return {
        "id": name,
        "version": 1,
        "family": request.family,
        "base": request.base,
        "split": "dev",
        "title": captions.checked(request.title or _title(request, noun), None, "--title"),
        "concept": {"source": SOURCE, "name": f"{request.family}/{name}", "kind": "far", "noun": noun},
        "pictures": dict(counts),
        "owner": {"caption": like.owner.caption, "token": request.owner_token},
        "attacker": {"caption": like.attacker.caption, "token": request.token},
        "evaluation": {"prompts": list(prompts)},
        "benign": {"source": like.benign.source or source, **like.benign.model_dump(mode="json", exclude={"source"})},
        "anchors": {"source": like.anchors.source or source, "others": list(others)},
    }


def _title(request: TaskRequest, noun: str) -> str:
    folder = request.images.expanduser().resolve().name
    return f"The {noun} of the folder {folder}" if folder.isprintable() else f"The {noun} of a folder of photos"


def _suite(name: str, title: str, task: Table, catalog: Catalog) -> Table:
    prompts = [len(task[part]["prompts"]) for part in ("evaluation", "benign")]  # type: ignore[index]
    return {
        "id": name,
        "version": "1.0",
        "title": f"{title}: the controls and one defense",
        "profile": catalog.profile(PROFILE).id,
        "seeds": [0],
        "tasks": [name],
        "defenses": [entry for entry in DEFENSES if entry in catalog.defenses],
        "chains": [catalog.attack(CHAIN).id],
        "prompts": min(MAX_PROMPTS, *prompts),
        "pictures": 2,
        "curve_pictures": 0,
        "unrelated_pictures": 1,
    }


def _write(
    file: Path,
    suite_file: Path,
    task: Table,
    suite: Table,
    splits: Mapping[str, Sequence[Photo]],
    words: Mapping[str, str],
) -> None:
    """Write everything beside its place, check it by reading it, and only then move it there, the task's file last."""
    import numpy as np

    from immunebench.types import Pictures

    moved: list[Path] = []
    drafts: list[Path] = []
    try:
        for folder in (file.parent, suite_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
            drafts.append(Path(tempfile.mkdtemp(prefix=".new-", dir=folder)))
        beside, suites = drafts
        for split, photos in splits.items():
            (beside / "pictures" / split).mkdir(parents=True)
            content = tuple(words[photo.name] for photo in photos)
            Pictures(np.stack([photo.pixels for photo in photos]), content).save(beside / "pictures" / split)
        (beside / file.name).write_text(toml(task), "utf-8")
        (suites / suite_file.name).write_text(toml(suite), "utf-8")
        schema.load(beside / file.name, Task)
        schema.load(suites / suite_file.name, Suite)
        moves = {beside / "pictures": file.with_suffix(""), suites / suite_file.name: suite_file,
                 beside / file.name: file}  # fmt: skip
        for draft, place in moves.items():
            draft.rename(place)
            moved.append(place)
    except OSError as error:
        _remove(moved)
        raise UsageError(f"cannot be written: {error.strerror}", file=error.filename or file) from error
    except BaseException:
        _remove(moved)
        raise
    finally:
        _remove(drafts)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def toml(table: Mapping[str, object]) -> str:
    """Write strings, whole numbers, lists of strings and one level of tables as TOML."""
    plain = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    text = "".join(f"{name} = {_value(value)}\n" for name, value in plain.items())
    for name, value in table.items():
        if isinstance(value, Mapping):
            text += f"\n[{name}]\n{toml(value)}"
    return text


def _value(value: object) -> str:
    # TOML's basic strings are JSON's, as long as no character beyond the first plane is escaped.
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and len(text) > 100:
        return "[\n" + "".join(f"    {json.dumps(item, ensure_ascii=False)},\n" for item in value) + "]"
    return text


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _prefix(root: Path) -> str:
    """Say where entries are read from, unless they are read from there anyway."""
    try:
        read_anyway = folders_to_write()["root"] == root
    except UsageError:
        read_anyway = False
    return "" if read_anyway else f"IMMUNEBENCH_ENTRIES={shlex.quote(os.fspath(root))} "
