"""``immunebench new artefact``: creates a defense without code from pictures that a closed-source tool cloaked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from immunebench.authoring.published import published_pictures
from immunebench.authoring.scaffold import Created, Draft, checked_id, command, toml, write_all
from immunebench.authoring.templates import CITE, DEV_SUITE
from immunebench.catalog import artefact
from immunebench.catalog.places import folders_to_write
from immunebench.core.errors import UsageError, printable
from immunebench.core.types import Pictures
from immunebench.declared import schema
from immunebench.declared.manifest import DefenseManifest
from immunebench.declared.suite import Suite
from immunebench.declared.task import Task
from immunebench.metrics.pixels import linf
from immunebench.pictures import cloaked
from immunebench.pictures.decoding import picture_files, read_picture

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog


@dataclass(frozen=True, slots=True)
class ArtefactRequest:
    """The user's options.

    Attributes
    ----------
    id
        Of the new defense.
    tasks, images
        Tasks, and for each the folder of its cloaked pictures.
    tool, tool_version
        The tool that cloaked them.
    budget, perceptual
        The declared bound, one of the two: largest change of a value (of 255), or largest perceptual distance.
    out
        Root folder to write to; see `immunebench.catalog.places.folders_to_write`.
    """

    id: str
    tasks: tuple[str, ...]
    images: tuple[Path, ...]
    tool: str
    tool_version: str
    budget: int | None = None
    perceptual: float | None = None
    out: Path | None = None


def new_artefact(request: ArtefactRequest, catalog: Catalog) -> Created:
    """Write ``defenses/<id>`` and a suite that measures it, all of it or nothing.

    Raises
    ------
    UsageError
        An option is not valid, or a picture is missing, duplicate, damaged, of another size, closer to another clean
        picture than to its own, or changed by more than declared; nothing is written.
    """
    _check_options(request, catalog)
    tasks = [catalog.task(name, field="--task") for name in request.tasks]
    clean = [published_pictures(task, catalog) for task in tasks]
    pairs = [read_cloaked(folder.expanduser(), of) for folder, of in zip(request.images, clean, strict=True)]
    messages = [
        f"task {task.id}: {len(found)} pictures, {_bounded(request, task, found, of, catalog)}"
        for task, found, of in zip(tasks, pairs, clean, strict=True)
    ]
    folders = folders_to_write(request.out)
    folder, suite_file = folders["defenses"] / request.id, folders["suites"] / f"{request.id}.toml"

    def write_entry(place: Path) -> None:
        place.mkdir()
        for task, found in zip(tasks, pairs, strict=True):
            (place / task.id).mkdir()
            found.save(place / task.id)
            (place / task.id / "captions.json").unlink()
        table = {task.id: _rows(place / task.id, of) for task, of in zip(tasks, clean, strict=True)}
        (place / "defense.toml").write_text(toml(_manifest(request, table)), "utf-8")
        (place / "cite.bib").write_text(CITE.format(id=request.id), "utf-8")
        manifest = schema.load(place / "defense.toml", DefenseManifest)
        assert manifest.artefact is not None
        artefact.check_folder(place, manifest.artefact)

    def write_suite(place: Path) -> None:
        place.write_text(toml(_suite(request, catalog)), "utf-8")
        schema.load(place, Suite)

    drafts: dict[Path, Draft] = {suite_file: write_suite, folder: write_entry}
    write_all(drafts)
    messages.append("fill in authors, licence and description in defense.toml, and the tool's paper in cite.bib")
    return Created(request.id, (folder, suite_file), tuple(messages), (command(folders["root"], f"run {request.id}"),))


def read_cloaked(folder: Path, clean: Pictures) -> Pictures:
    """Read the cloaked pictures of a folder in the order of the clean ones.

    The number at the start of a file's name is that of its clean picture: ``003.png``, ``003-cloaked.jpg``.

    Raises
    ------
    UsageError
        A picture is missing, duplicate, unreadable, of another size or closer to another clean picture than to its own;
        or all of them equal the clean pictures.
    """
    files = _by_number(folder, len(clean))
    pixels = []
    for file, of in zip(files, clean.pixels, strict=True):
        pixels.append(read_picture(file, clean=(of.shape[1], of.shape[0])))
        if pixels[-1].shape != of.shape:
            raise UsageError(f"is {cloaked.size(pixels[-1])}, its clean picture {cloaked.size(of)}", file=file)
    found = Pictures(np.stack(pixels), clean.captions)
    for file, own, nearest in zip(files, range(len(clean)), _nearest(found, clean), strict=True):
        if nearest != own:
            raise UsageError(f"shows the published picture {nearest:03d}.png, not {own:03d}.png", file=file)
    if np.array_equal(found.pixels, clean.pixels):
        raise UsageError("holds the clean pictures themselves; name the folder of the cloaked ones", file=folder)
    return found


def _by_number(folder: Path, count: int) -> list[Path]:
    files, _ = picture_files(folder)
    numbered: dict[int, Path] = {}
    for file in files:
        number = re.match(r"\d+", file.stem, re.ASCII)
        # int() refuses thousands of digits, so long numbers are excluded first.
        index = int(number[0]) if number is not None and len(number[0]) < 9 else -1
        if not 0 <= index < count:
            raise UsageError(f"does not begin with a published picture's number, 000 to {count - 1:03d}", file=file)
        if index in numbered:
            others = f"{printable(numbered[index].name)} and {printable(file.name)} both begin with {index:03d}"
            raise UsageError(f"{others}; remove one", file=folder)
        numbered[index] = file
    missing = next((index for index in range(count) if index not in numbered), None)
    if missing is not None:
        raise UsageError(f"lacks the published picture {missing:03d}.png", file=folder)
    return [numbered[index] for index in range(count)]


def _nearest(found: Pictures, clean: Pictures) -> list[int]:
    """Return the index of the clean picture with the least squared difference, its own in case of ties."""
    nearest = []
    for index, pixels in enumerate(found.pixels):
        distances = [float(np.square(pixels.astype(np.float32) - of).mean()) for of in clean.pixels]
        nearest.append(index if distances[index] == min(distances) else int(np.argmin(distances)))
    return nearest


def _check_options(request: ArtefactRequest, catalog: Catalog) -> None:
    checked_id(request.id, "ID")
    if any((kind, request.id) in catalog.paths for kind in ("defense", "attack", "suite")):
        raise UsageError("is the name of another entry or suite:", field="ID", value=request.id)
    if len(request.tasks) != len(request.images):
        counts = f"{len(request.tasks)} --task and {len(request.images)} --images"
        raise UsageError(f"one is required for each --task, in the same order; there are {counts}", field="--images")
    if len(set(request.tasks)) != len(request.tasks):
        raise UsageError("holds a task twice", field="--task")
    for option, value in (("--tool", request.tool), ("--tool-version", request.tool_version)):
        if not value.strip() or not value.isprintable():
            raise UsageError("must be printable text, not", field=option, value=value)
    if request.budget is not None and request.perceptual is not None:
        raise UsageError("replaces --budget; give one of the two", field="--perceptual")
    if request.budget is not None and not 1 <= request.budget <= 255:
        raise UsageError("must be from 1 to 255, not", field="--budget", value=request.budget)
    if request.perceptual is not None and not 0 < request.perceptual <= 1:
        raise UsageError("must be above 0 and at most 1, not", field="--perceptual", value=request.perceptual)


def _bounded(request: ArtefactRequest, task: Task, found: Pictures, clean: Pictures, catalog: Catalog) -> str:
    """Check a task's pictures against the declared bound; return a description of the measured change."""
    changes = linf(found.pixels, clean.pixels)
    most = int(changes.max())
    if request.perceptual is not None:
        network = catalog.perceptual(task.base, asked_by=catalog.paths["task", task.id])
        from immunebench.execution.inputs import load_distance
        from immunebench.methods.bound import paired_distances

        distances = paired_distances(clean, found, load_distance(str(network["id"]), "cpu"))
        furthest = float(distances.max())
        if furthest > request.perceptual:
            worst = f"picture {int(distances.argmax()):03d} of task {task.id} is {furthest:.4f} from its clean one"
            raise UsageError(f"{worst}, more than the declared", field="--perceptual", value=request.perceptual)
        return f"at most {furthest:.4f} from the clean ones (values change by up to {most} of 255)"
    if request.budget is None:
        raise UsageError(
            f"or --perceptual is required: the pictures of task {task.id} change by up to {most} of 255",
            field="--budget",
        )
    if most > request.budget:
        worst = f"picture {int(changes.argmax()):03d} of task {task.id} changes by {most} of 255"
        raise UsageError(f"{worst}, more than the declared", field="--budget", value=request.budget)
    return f"changed by up to {most} of 255"


def _rows(folder: Path, clean: Pictures) -> list[dict[str, object]]:
    files = sorted(folder.iterdir())
    return [
        {
            "index": index,
            "file": file.name,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "clean": cloaked.digest(pixels),
        }
        for index, (file, pixels) in enumerate(zip(files, clean.pixels, strict=True))
    ]


def _manifest(request: ArtefactRequest, tasks: dict[str, list[dict[str, object]]]) -> dict[str, object]:
    made_by = f"{request.tool} {request.tool_version}"
    bound = {"budget": request.budget} if request.budget is not None else {"perceptual_budget": request.perceptual}
    return {
        "id": request.id,
        "version": 1,
        "title": f"Pictures from {made_by}",
        "authors": ["Your Name"],
        "licence": "CC-BY-4.0",
        "kind": "artefact",
        "hooks": ["protect_images"],
        "status": "artefact",
        **bound,
        "description": f"Pictures that {made_by} cloaked, submitted as files; its settings were: list them.",
        "threat_model": "The attacker trains on the cloaked pictures and has no clean ones.",
        "artefact": {"tool": request.tool, "tool_version": request.tool_version, "tasks": tasks},
    }


def _suite(request: ArtefactRequest, catalog: Catalog) -> dict[str, object]:
    dev = catalog.suite(DEV_SUITE)
    defenses: Sequence[str] = [name for name in ("none", "noise") if name in catalog.defenses]
    return {
        **dev.model_dump(mode="json", include={"profile", "seeds", "prompts", "pictures", "curve_pictures"}),
        "id": request.id,
        "version": "1.0",
        "title": f"Pictures from {request.tool} {request.tool_version} against their controls",
        "tasks": list(request.tasks),
        "defenses": [*defenses, request.id],
        "chains": ["lora"],
        "unrelated_pictures": 1,
    }
