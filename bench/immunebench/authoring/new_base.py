"""``immunebench new base``: one's own checkpoint as a base, with a suite of its own tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunebench.authoring.scaffold import Created, Draft, checked_id, command, toml, write_all
from immunebench.bases import base_folder, own
from immunebench.catalog.places import folders_to_write
from immunebench.core.errors import UsageError
from immunebench.core.home import expanded
from immunebench.declared import schema
from immunebench.declared.own_base import OwnBase
from immunebench.declared.suite import Suite
from immunebench.declared.task import Task

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog


@dataclass(frozen=True, slots=True)
class BaseRequest:
    """The user's options.

    Attributes
    ----------
    id
        Name of the base and of its suite.
    path
        Single-file checkpoint, or diffusers folder.
    like
        The base whose architecture it has.
    suite
        The suite whose tasks are copied for it; default that of the other base, ``<base>-lite``.
    out
        Root folder to write to; see `immunebench.catalog.places.folders_to_write`.
    """

    id: str
    path: Path
    like: str
    suite: str | None = None
    out: Path | None = None


def new_base(request: BaseRequest, catalog: Catalog) -> Created:
    """Convert a checkpoint, and write the base, its tasks and its suite, all of them or none.

    Tasks and suite have names of their own, so that no record of the base meets one of the base that it is like.

    Raises
    ------
    UsageError
        The name is taken, or the checkpoint is no whole model of that architecture; nothing is written.
    """
    name, path = checked_id(request.id, "ID"), expanded(request.path)
    like = catalog.find("base", catalog.models.bases, request.like, field="--like")
    if name in catalog.models.bases or name in catalog.suites:
        raise UsageError("is the name of another base or suite:", field="ID", value=name)
    root_base = like.like or request.like
    chosen = request.suite or f"{root_base}-lite"
    suite = catalog.find("suite", catalog.suites, chosen, field="--suite")
    tasks = {task: catalog.task(task) for task in suite.names("tasks")}
    for task in tasks.values():
        if task.base not in (request.like, root_base):
            why = f"has the task {task.id}, which is on the base {task.base}, not on {request.like}:"
            raise UsageError(why, field="--suite", value=chosen)
    folder = catalog.base_folder(request.like) if like.path is not None else None
    own.check(path, request.like, like.shape, folder)
    if path.is_dir() and folder is not None:
        _require_embedded_form(path, folder)
    base = OwnBase(
        id=name, title=f"{path.name}, like {request.like}", like=request.like, checkpoints={path.name: own.digest(path)}
    )
    folders = folders_to_write(request.out)
    names = {task: f"{name}-{task.removeprefix(f'{root_base}-')}" for task in tasks}
    for new in names.values():
        checked_id(new, "ID")
        if new in catalog.tasks:
            raise UsageError("is the name of another task:", field="ID", value=new)
    drafts: dict[Path, Draft] = {
        folders["tasks"] / task.family / f"{names[old]}.toml": partial(
            _write_checked, table=_on_base(task, names[old], name), model=Task
        )
        for old, task in tasks.items()
    }
    drafts[folders["suites"] / f"{name}.toml"] = partial(_write_checked, table=_suite(suite, name, names), model=Suite)
    # Last, as the others are broken without it.
    drafts[folders["bases"] / f"{name}.toml"] = partial(
        _write_checked, table=base.model_dump(mode="json", exclude_none=True), model=OwnBase
    )
    messages: list[str] = []
    taken = next((place for place in drafts if place.exists()), None)
    if taken is None:
        own.add(name, path, like.shape, messages.append)
    write_all(drafts)
    fetched = [names[old] for old, task in tasks.items() if task.dataset is not None]
    fetch = [command(folders["root"], f"data fetch {' '.join(fetched)}")] if fetched else []
    run = command(folders["root"], f"run {name} --dry-run")
    return Created(name, tuple(drafts), (f"base {name}: like {request.like}", *messages), (*fetch, run))


def _require_embedded_form(path: Path, folder: Path) -> None:
    if base_folder.side(path) != base_folder.side(folder):
        why = f"must draw pictures of {base_folder.side(folder)} pixels, as the base that it is like, not of"
        raise UsageError(why, file=path, value=base_folder.side(path))


def _on_base(task: Task, name: str, base: str) -> dict[str, Any]:
    return {**task.model_dump(mode="json", exclude_unset=True, exclude_none=True), "id": name, "base": base}


def _suite(suite: Suite, name: str, names: Mapping[str, str]) -> dict[str, Any]:
    table = suite.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    table |= {"id": name, "version": "1.0", "title": f"{suite.title}: on the base {name}"}
    for block in (table, *table.get("cells", ())):
        if "tasks" in block:
            block["tasks"] = [names[task] for task in block["tasks"]]
    return table


def _write_checked(place: Path, *, table: Mapping[str, object], model: type[schema.Model]) -> None:
    place.write_text(toml(table), "utf-8")
    schema.load(place, model)
