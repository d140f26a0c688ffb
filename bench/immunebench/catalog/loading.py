"""Reads every manifest into a `Catalog`, without running any code of an entry."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from immunebench.catalog.artefact import check_folder
from immunebench.catalog.catalog import Broken, Catalog, T
from immunebench.catalog.entry import Entry, Kind, inside
from immunebench.catalog.places import PACKAGE, folders, roots
from immunebench.core.errors import UsageError
from immunebench.declared import schema
from immunebench.declared.manifest import AttackManifest, DefenseManifest
from immunebench.declared.models import Models
from immunebench.declared.own_base import OwnBase
from immunebench.declared.profile import Profile
from immunebench.declared.suite import Suite
from immunebench.declared.task import Task

_COMPILED = frozenset({".pyc", ".pyo", ".so", ".pyd"})


@dataclass(frozen=True)
class _Declared:
    """An entry whose manifest and folder are sound; its names are not claimed yet."""

    kind: Kind
    path: Path
    manifest: DefenseManifest | AttackManifest

    @property
    def aliases(self) -> list[str]:
        """Return the further names of the entry and of its variants."""
        further = [variant.aliases for variant in self.manifest.variants.values()]
        return [alias for aliases in (self.manifest.aliases, *further) for alias in aliases]


def load_catalog(entries: Path | str | None = None, *, models: Path | None = None) -> Catalog:
    """Read every manifest; broken ones are listed with their reason and do not affect the others.

    Where two claim one name, the id of an entry counts before a variant's, and that before an alias; of two equals the
    one that was read first. The other is broken.

    Parameters
    ----------
    entries
        Folder with ``defenses``, ``attacks``, ``tasks``, ``suites`` or ``profiles``; default
        ``$IMMUNEBENCH_ENTRIES``.
    models
        A ``models.toml`` to use instead of the package's.

    Raises
    ------
    UsageError
        The folder does not exist, or ``models.toml`` is not valid.
    """
    models = models or PACKAGE / "models.toml"
    catalog = Catalog(schema.load(models, Models), models)
    declared: list[_Declared] = []
    for root in roots(entries):
        found = folders(root)
        if root != PACKAGE:  # whose folder of that name holds code
            for path in _manifests(found["bases"], "*.toml"):
                _add_base(catalog, path)
        for path in _manifests(found["defenses"], "*/defense.toml"):
            _add_entry(catalog, "defense", path, DefenseManifest, declared)
        for path in _manifests(found["attacks"], "*/attack.toml"):
            _add_entry(catalog, "attack", path, AttackManifest, declared)
        for path in _manifests(found["tasks"], "*/*.toml"):
            _add(catalog, "task", path, Task, catalog.tasks)
        for path in _manifests(found["suites"], "*.toml"):
            _add(catalog, "suite", path, Suite, catalog.suites)
        for path in _manifests(found["profiles"], "*.toml"):
            _add(catalog, "profile", path, Profile, catalog.profiles)
    for entry in _claimed(catalog, declared):
        _enter(catalog, entry)
    _drop_dangling(catalog)
    return catalog


_given: list[Catalog] = []


def give(catalog: Catalog) -> None:
    """Let the stages of this process look up their entries in a catalogue, and read no manifests."""
    _given[:] = [catalog]
    default_catalog.cache_clear()


@functools.cache
def default_catalog() -> Catalog:
    """Return the catalogue in which stages look up their entries, read once per process."""
    return _given[0] if _given else load_catalog()


def _manifests(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern)) if folder.is_dir() else []


@contextmanager
def _breaking_alone(catalog: Catalog, kind: str, name: str, path: Path) -> Iterator[None]:
    """List what fails in the block as broken: whatever a stranger's file provokes concerns that file alone."""
    try:
        yield
    except UsageError as error:
        catalog.broken.append(Broken(kind, name, path, str(error)))
    except Exception as error:
        reason = UsageError(f"cannot be read: {type(error).__name__}: {error}", file=path)
        catalog.broken.append(Broken(kind, name, path, str(reason)))


def _add(catalog: Catalog, kind: str, path: Path, model: type[schema.M], table: dict[str, schema.M]) -> None:
    with _breaking_alone(catalog, kind, path.stem, path):
        if inside(path.parent.parent, path) is None:
            raise UsageError("links to a file outside its folder", file=path)
        item = schema.load(path, model)
        _require_name(getattr(item, "id", ""), path.stem, path, "file")
        _register_name(catalog.paths, kind, path.stem, path)
        table[path.stem] = item


def _add_base(catalog: Catalog, path: Path) -> None:
    """Add a user's own base to those of ``models.toml``."""
    with _breaking_alone(catalog, "base", path.stem, path):
        if inside(path.parent.parent, path) is None:
            raise UsageError("links to a file outside its folder", file=path)
        own = schema.load(path, OwnBase)
        _require_name(own.id, path.stem, path, "file")
        bases = catalog.models.bases
        if own.id in bases:
            raise UsageError("is the name of another base:", file=path, field="id", value=own.id)
        others = [name for name, other in bases.items() if not other.own]
        if own.like not in others:
            raise UsageError("unknown base", file=path, field="like", value=own.like, choices=others)
        known = {**bases, own.id: own.spec(bases[own.like])}
        catalog.models = catalog.models.model_copy(update={"bases": known})


def _add_entry(
    catalog: Catalog,
    kind: Kind,
    path: Path,
    model: type[DefenseManifest] | type[AttackManifest],
    declared: list[_Declared],
) -> None:
    folder = path.parent
    with _breaking_alone(catalog, kind, folder.name, path):
        _check_folder(folder)
        manifest = schema.load(path, model)
        _require_name(manifest.id, folder.name, path, "folder")
        if isinstance(manifest, DefenseManifest) and manifest.artefact is not None:
            check_folder(folder, manifest.artefact)
        else:
            _check_code(folder / f"{kind}.py", manifest)
        declared.append(_Declared(kind, path, manifest))


def _claimed(catalog: Catalog, declared: list[_Declared]) -> list[_Declared]:
    """Return the entries whose names are theirs; one that claims another's name is broken as a whole."""
    taken: dict[tuple[str, str], Path] = {}
    rounds: tuple[Callable[[_Declared], list[str]], ...] = (
        lambda entry: [entry.manifest.id],
        lambda entry: list(entry.manifest.variants),
        lambda entry: entry.aliases,
    )
    for names in rounds:
        sound = []
        for entry in declared:
            before = dict(taken)
            with _breaking_alone(catalog, entry.kind, entry.manifest.id, entry.path):
                try:
                    for name in names(entry):
                        _register_name(taken, entry.kind, name, entry.path)
                except UsageError:
                    taken = {key: path for key, path in before.items() if path != entry.path}
                    raise
                sound.append(entry)
        declared = sound
    return declared


def _enter(catalog: Catalog, declared: _Declared) -> None:
    """Put an entry and its variants into the catalogue under all their names."""
    kind, path, manifest = declared.kind, declared.path, declared.manifest
    table = catalog.defenses if kind == "defense" else catalog.attacks
    for variant in (None, *manifest.variants):
        entry = Entry(variant or manifest.id, kind, path.parent, manifest, variant)
        for name in (entry.id, *entry.aliases):
            catalog.paths[kind, name] = path
            catalog.names[kind, name] = entry.id
        table[entry.id] = entry


def _register_name(taken: dict[tuple[str, str], Path], kind: str, name: str, path: Path) -> None:
    before = taken.get((kind, name))
    if before is not None:
        raise UsageError(f"{kind} {name!r} is already defined in {before}", file=path)
    taken[kind, name] = path


def _require_name(name: str, expected: str, path: Path, what: str) -> None:
    if name != expected:
        raise UsageError(f"must equal the {what}'s name {expected!r}, not", file=path, field="id", value=name)


def _check_folder(folder: Path) -> None:
    """Refuse symbolic links out of an entry's folder, and compiled code."""
    if inside(folder.parent, folder) is None:
        raise UsageError("links to a folder outside", file=folder)
    for path in folder.rglob("*"):
        if path.is_symlink() and inside(folder, path) is None:
            raise UsageError("links to a file outside its folder", file=path)
        if path.suffix in _COMPILED and path.parent.name != "__pycache__":
            raise UsageError("is compiled code, which cannot be reviewed", file=path)


def _check_code(path: Path, manifest: DefenseManifest | AttackManifest) -> None:
    """Check, without running it, that the code parses and defines every hook."""
    if not manifest.hooks:
        return
    if not path.exists():
        raise UsageError("is missing", file=path)
    try:
        tree = ast.parse(schema.read_text(path))
    except (RecursionError, MemoryError) as error:
        raise UsageError("does not parse: an expression is too long or nested too deeply", file=path) from error
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"does not parse: {error}", file=path) from error
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for hook in manifest.hooks:
        if hook not in defined:
            raise UsageError("does not define the function", file=path, value=hook, choices=defined)


def _drop_dangling(catalog: Catalog) -> None:
    """Mark entries and tasks as broken that refer to something that does not exist."""
    for entry in list(catalog.defenses.values()):
        field = "against" if entry.variant is None else f"variants.{entry.variant}.against"
        for name in entry.against:
            _require(catalog, "defense", entry.id, entry.path, catalog.defenses, "attack", name, field)
            simulated = catalog.attacks.get(catalog.names.get(("attack", name), name))
            if simulated is not None and simulated.hooks != ("adapt",):
                why = "is a purifier, which trains nothing that a defense could simulate:"
                error = UsageError(why, file=entry.path, field=field, value=name)
                catalog.broken.append(Broken("defense", entry.id, entry.path, str(error)))
                catalog.defenses.pop(entry.id, None)
        field = field.replace("against", "surrogates")
        unknown = [name for name in entry.surrogates if name not in catalog.models.bases]
        for name in unknown[:1]:
            _require(catalog, "defense", entry.id, entry.path, catalog.defenses, "base", name, field)
        for name in entry.artefact.tasks if entry.artefact is not None else ():
            _require(catalog, "defense", entry.id, entry.path, catalog.defenses, "task", name, "artefact.tasks")
    for task in list(catalog.tasks.values()):
        path = catalog.paths["task", task.id]
        if task.start_from is not None:
            _require(catalog, "task", task.id, path, catalog.tasks, "defense", task.start_from, "start_from")
        _require(catalog, "task", task.id, path, catalog.tasks, "base", task.base, "base")
        parts = {"concept": task.concept.source, "benign": task.benign.source, "anchors": task.anchors.source}
        for part, source in parts.items():
            if source is not None:
                _require(catalog, "task", task.id, path, catalog.tasks, "source", source, f"{part}.source")


def _require(
    catalog: Catalog,
    kind: str,
    name: str,
    path: Path,
    table: dict[str, T],
    wanted: str,
    value: str,
    field: str,
) -> None:
    tables: dict[str, Mapping[str, object]] = {
        "attack": catalog.attacks,
        "defense": catalog.defenses,
        "task": catalog.tasks,
        "base": catalog.models.bases,
        "source": catalog.models.sources,
    }
    try:
        catalog.find(wanted, tables[wanted], value, file=path, field=field)
    except UsageError as error:
        catalog.broken.append(Broken(kind, name, path, str(error)))
        table.pop(name, None)
