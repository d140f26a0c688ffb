"""Finds entries, tasks, suites, profiles and models, and reads manifests without running any code.

Two kinds of places are read. One *house*: the first of the folder given, ``$IMMUNEBENCH_ENTRIES``, the
checkout that holds the current folder, the entries bundled with the package, and the checkout that the
package lies in. Beside it come *extra* folders: one that was given and is no house itself, and plug-ins
of the group ``immunebench.entries``.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import tomllib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import JsonValue

from immunebench.bases import base_folder, weights
from immunebench.bases.weights import require, require_folder
from immunebench.catalog.artefact import check_folder
from immunebench.catalog.layers import Layers, layered
from immunebench.core.errors import UsageError
from immunebench.declared import schema
from immunebench.declared.manifest import Artefact, AttackManifest, DefenseManifest
from immunebench.declared.models import Models
from immunebench.declared.profile import Profile
from immunebench.declared.schema import Values
from immunebench.declared.suite import Suite
from immunebench.declared.task import Task

PACKAGE = Path(__file__).resolve().parents[1]
GROUP = "immunebench.entries"
Kind = Literal["defense", "attack"]
T = TypeVar("T")

# What these files say reaches a stage's key as resolved parameters, or changes no number at all.
_NO_CODE = frozenset({".toml", ".bib", ".md", ".pyc"})
_COMPILED = frozenset({".pyc", ".pyo", ".so", ".pyd"})


@dataclass(frozen=True)
class Entry:
    """A defense or an attack: one manifest, or one of its variants.

    Attributes
    ----------
    id
        The name on the board; of a variant, the variant's.
    folder
        Where the code lies; its name is the id of the code.
    """

    id: str
    kind: Kind
    folder: Path
    manifest: DefenseManifest | AttackManifest
    variant: str | None = None

    @property
    def code(self) -> str:
        """Return the id of the code, which variants share."""
        return self.manifest.id

    @property
    def path(self) -> Path:
        """Return the manifest's path."""
        return self.folder / f"{self.kind}.toml"

    @property
    def version(self) -> int:
        """Return the version of the manifest."""
        return self.manifest.version

    @property
    def hooks(self) -> tuple[str, ...]:
        """Return the names of the functions that the code offers."""
        return self.manifest.hooks

    @property
    def kind_of(self) -> str:
        """Return the kind of a defense, such as ``model`` or ``data``; nothing of an attack."""
        return str(getattr(self.manifest, "kind", ""))

    @property
    def erases(self) -> bool:
        """Whether this defense takes a known concept out of the base, in the place of the task's own erasure."""
        return self.kind_of == "erasure"

    @property
    def layers(self) -> tuple[Entry, ...]:
        """Return the entry itself: a defense of one layer."""
        return (self,)

    @property
    def title(self) -> str:
        """Return the variant's title, else the manifest's."""
        return self._own("title") or self.manifest.title

    @property
    def aliases(self) -> tuple[str, ...]:
        """Return further names of this entry."""
        return self.manifest.aliases if self.variant is None else self.manifest.variants[self.variant].aliases

    @property
    def budget(self) -> int | None:
        """Return the declared Linf budget, of 255."""
        own: int | None = self._own("budget")
        return own if own is not None else getattr(self.manifest, "budget", None)

    @property
    def perceptual_budget(self) -> float | None:
        """Return the declared bound on the perceptual distance, in place of a Linf budget."""
        own: float | None = self._own("perceptual_budget")
        return own if own is not None else getattr(self.manifest, "perceptual_budget", None)

    @property
    def needs_perceptual(self) -> bool:
        """Whether the entry is lent the base's perceptual distance, to be held to it or to compute with it."""
        return self.perceptual_budget is not None or "perceptual" in self.manifest.needs

    @property
    def needs_upscaler(self) -> bool:
        """Whether the entry is lent what enlarges pictures."""
        return "upscaler" in self.manifest.needs

    @property
    def artefact(self) -> Artefact | None:
        """Return the pictures that a closed tool made, None for an entry of code."""
        return getattr(self.manifest, "artefact", None)

    @property
    def against(self) -> tuple[str, ...]:
        """Return the attacks that a defense simulates, none where its manifest names none."""
        named: str | tuple[str, ...] | None = self._own("against") or getattr(self.manifest, "against", None)
        return (named,) if isinstance(named, str) else named or ()

    @property
    def surrogates(self) -> tuple[str, ...]:
        """Return the bases that a defense computes on, none where that is the task's."""
        own: tuple[str, ...] | None = self._own("surrogates")
        return own or getattr(self.manifest, "surrogates", None) or ()

    @property
    def replicate(self) -> bool:
        """Whether the attacker's adaptation uses another seed: the control that measures noise."""
        own: bool | None = self._own("replicate")
        return own if own is not None else getattr(self.manifest, "replicate", False)

    @functools.cached_property
    def files(self) -> dict[str, str]:
        """Return SHA-256 by relative name of every file that the code consists of."""
        return digests(self.folder)

    def params(self, base: str, like: str | None = None) -> Values:
        """Resolve ``[params]``, then ``[presets.<base>]``, then the variant's two, then its factors.

        Where there is no preset for ``base``, that for ``like`` is taken. An artefact has the tool and its version.
        """
        if self.artefact is not None:
            return {"tool": self.artefact.tool, "tool_version": self.artefact.tool_version}

        def preset(presets: Mapping[str, Values]) -> Values:
            return presets.get(base, presets.get(like or base, {}))

        values = {**self.manifest.params, **preset(self.manifest.presets)}
        if self.variant is not None:
            variant = self.manifest.variants[self.variant]
            values |= {**variant.params, **preset(variant.presets)}
            values |= {name: _scaled(values[name], factor) for name, factor in variant.scale.items()}
        return values | ({"against": list(self.against)} if self.against else {})

    def seconds(self, base: str, like: str | None = None) -> float | None:
        """Return what one task takes on one core, as the variant or else the manifest says; see `params` for `like`."""
        tables = (self._own("seconds") or {}, self.manifest.seconds)
        return next((table[name] for table in tables for name in (base, like or base) if name in table), None)

    def function(self, hook: str) -> Callable[..., Any]:
        """Load the code by path, under a package of its own, and return one of its functions.

        Raises
        ------
        UsageError
            The entry does not offer the hook.
        """
        if hook not in self.hooks:
            raise UsageError("no such hook", file=self.path, field="hooks", value=hook, choices=self.hooks)
        # Named by content: an edited entry is another package, never the one that this process loaded before.
        content = f"{self.folder} {sorted(digests(self.folder).items())}"
        parent = f"immunebench_entries_{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        if parent not in sys.modules:
            package = types.ModuleType(parent)
            package.__path__ = [str(self.folder)]
            sys.modules[parent] = package
        # Bytecode that lies in the folder is no part of the key, so only sources are read.
        before, sys.pycache_prefix = sys.pycache_prefix, tempfile.gettempdir() + f"/{parent}"
        try:
            function: Callable[..., Any] = getattr(importlib.import_module(f"{parent}.{self.kind}"), hook)
        finally:
            sys.pycache_prefix = before
        return function

    def _own(self, name: str) -> Any:
        return None if self.variant is None else getattr(self.manifest.variants[self.variant], name)


Defense = Entry | Layers


@dataclass(frozen=True)
class Broken:
    """A manifest that cannot be used, and why in one line."""

    kind: str
    id: str
    path: Path
    reason: str


@dataclass
class Catalog:
    """Everything that can be named in a suite or on the command line."""

    models: Models
    models_path: Path
    defenses: dict[str, Entry] = field(default_factory=dict)
    attacks: dict[str, Entry] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    suites: dict[str, Suite] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    paths: dict[tuple[str, str], Path] = field(default_factory=dict)
    names: dict[tuple[str, str], str] = field(default_factory=dict)

    def defense(self, name: str, *, file: Path | None = None, field: str | None = None) -> Defense:
        """Return a defense by id or alias, or several joined by ``+``; see :meth:`find` and `layered` for errors."""
        parts = tuple(
            self.find("defense", self.defenses, part, file=file, field=field) for part in (name or "-").split("+")
        )
        return parts[0] if len(parts) == 1 else layered(parts, name=name, file=file, field=field)

    def attack(self, name: str, *, file: Path | None = None, field: str | None = None) -> Entry:
        """Return an attack by id or alias; see :meth:`find` for errors."""
        return self.find("attack", self.attacks, name, file=file, field=field)

    def task(self, name: str, *, file: Path | None = None, field: str | None = None) -> Task:
        """Return a task by id; see :meth:`find` for errors."""
        return self.find("task", self.tasks, name, file=file, field=field)

    def profile(self, name: str, *, file: Path | None = None, field: str | None = None) -> Profile:
        """Return a profile by id; see :meth:`find` for errors."""
        return self.find("profile", self.profiles, name, file=file, field=field)

    def suite(self, name: str | Path) -> Suite:
        """Return a suite by id, or read it from a ``.toml`` file; see :meth:`find` for errors."""
        if str(name).endswith(".toml"):
            suite = schema.load(Path(name), Suite)
            self.paths.setdefault(("suite", suite.id), Path(name))
            return suite
        return self.find("suite", self.suites, str(name), field="suite")

    def find(
        self,
        kind: str,
        table: Mapping[str, T],
        name: str,
        *,
        file: Path | None = None,
        field: str | None = None,
    ) -> T:
        """Return what ``name`` or its alias stands for.

        Raises
        ------
        UsageError
            Unknown, with the nearest name; or broken, with the reason.
        """
        known = self.names.get((kind, name), name)
        if known in table:
            return table[known]
        for broken in self.broken:
            if (broken.kind, broken.id) == (kind, name):
                raise UsageError(f"{kind} {name!r} is broken: {broken.reason}", file=file, field=field)
        choices = {*table, *(alias for of, alias in self.names if of == kind)}
        raise UsageError(f"unknown {kind}", file=file, field=field, value=name, choices=choices)

    def params(self, entry: Defense, base: str) -> Values:
        """Return an entry's parameters on a base, with presets of the base that `models.toml` names instead."""
        return entry.params(base, self.models.bases[base].like)

    def base_folder(self, base: str, *, file: Path | None = None) -> Path:
        """Return the folder of a base.

        Raises
        ------
        UsageError
            No such base in ``models.toml``, or its files are not there.
        """
        spec = self.find("base", self.models.bases, base, file=file, field="base")
        return base_folder.find(base, spec, self.models_path)

    def base_files(self, base: str) -> dict[str, str]:
        """Return SHA-256 by name of the files of a base, held against ``models.toml`` where it comes from a hub.

        Raises
        ------
        UsageError
            As `base_folder`; or a file is another than the one of the pinned revision.
        """
        folder, spec = self.base_folder(base), self.models.bases[base]
        return digests(folder) if spec.path is not None else base_folder.verified(base, spec, folder, sha256)

    def base_revision(self, base: str) -> str:
        """Return the revision of a base as records name it; see `base_folder.revision`."""
        return base_folder.revision(base, self.models.bases[base])

    def judge_files(self, judge: str) -> dict[str, str]:
        """Return SHA-256 by name of the files and fetched weights that a judge reads.

        Raises
        ------
        UsageError
            No such judge in ``models.toml``, or something that it reads is not there.
        """
        spec = self.find("judge", self.models.judges, judge, file=self.models_path, field="judge")
        fetched = {f"weights/{name}": sha256(require(name, asked_by=f"judge {judge}")) for name in spec.weights}
        return self._files(spec.files, f"judges.{judge}.files") | fetched

    def split_files(self, source: str, task: Task, concept: str, split: str, count: int) -> dict[str, str] | None:
        """Return SHA-256 by name of what a split of a source consists of; None where it reads no files of the task's.

        Raises
        ------
        UsageError
            They are not there, or are not what they should be.
        """
        named = self.models.sources[source].files
        if named is None:
            return None
        module, _, function = named.partition(":")
        read: Callable[..., Mapping[str, str]] = getattr(importlib.import_module(module), function)
        return dict(read(self, task, concept, split, count))

    def perceptual(self, base: str, *, asked_by: Path) -> Values:
        """Return what identifies the perceptual distance that entries on a base are lent, as a stage's key names it.

        Raises
        ------
        UsageError
            The base names none, or what it reads is not there.
        """
        name = self.models.bases[base].perceptual
        if name is None:
            raise UsageError(f"asks for a perceptual distance, which the base {base!r} does not name", file=asked_by)
        spec = self.find("perceptual distance", self.models.perceptual, name, file=self.models_path)
        files = self._files(spec.files, f"perceptual.{name}.files")
        files |= {weights: sha256(require(weights, asked_by=f"perceptual.{name}")) for weights in spec.weights}
        return {"id": name, "version": spec.version, "files": dict(files)}

    def upscaler(self, base: str, *, asked_by: Path) -> Values:
        """Return what identifies the upscaler that entries on a base are lent, as a stage's key names it.

        Raises
        ------
        UsageError
            The base names none, or its weights are not there.
        """
        name = self.models.bases[base].upscaler
        if name is None:
            raise UsageError(f"asks for an upscaler, which the base {base!r} does not name", file=asked_by)
        spec = self.find("upscaler", self.models.upscalers, name, file=self.models_path)
        files = self._files(spec.files, f"upscalers.{name}.files")
        if spec.folder is not None:
            files |= digests(require_folder(spec.folder, asked_by=f"upscalers.{name}"))
        return {"id": name, "version": spec.version, "files": dict(files)}

    def _files(self, names: Iterable[str], field: str) -> dict[str, str]:
        found = {}
        for name in names:
            path = _inside(self.models_path.parent, self.models_path.parent / name)
            if path is None or not path.is_file():
                raise UsageError("no such file", file=self.models_path, field=field, value=name)
            found[name] = sha256(path)
        return found


def load_catalog(entries: Path | str | None = None, *, models: Path | None = None) -> Catalog:
    """Read every manifest; one that is broken is listed with its reason and stops no other.

    Parameters
    ----------
    entries
        Folder with ``defenses``, ``attacks``, ``tasks``, ``suites`` or ``profiles``; default
        ``$IMMUNEBENCH_ENTRIES``.
    models
        Another ``models.toml``.

    Raises
    ------
    UsageError
        The folder does not exist, ``models.toml`` is wrong, or two manifests claim one name (both paths are
        named).
    """
    models = models or PACKAGE / "models.toml"
    catalog = Catalog(schema.load(models, Models), models)
    for root in _roots(entries):
        folders = _folders(root)
        for path in _manifests(folders["defenses"], "*/defense.toml"):
            _add_entry(catalog, "defense", path, DefenseManifest, catalog.defenses)
        for path in _manifests(folders["attacks"], "*/attack.toml"):
            _add_entry(catalog, "attack", path, AttackManifest, catalog.attacks)
        for path in _manifests(folders["tasks"], "*/*.toml"):
            _add(catalog, "task", path, Task, catalog.tasks)
        for path in _manifests(folders["suites"], "*.toml"):
            _add(catalog, "suite", path, Suite, catalog.suites)
        for path in _manifests(folders["profiles"], "*.toml"):
            _add(catalog, "profile", path, Profile, catalog.profiles)
    _drop_dangling(catalog)
    return catalog


@functools.cache
def default_catalog() -> Catalog:
    """Return the catalogue of this process, read once; what a stage finds its entry in."""
    return load_catalog()


def sha256(path: Path) -> str:
    """Return a file's SHA-256; a file that did not change is read once a process."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


def digests(folder: Path) -> dict[str, str]:
    """Return SHA-256 by relative name of a folder's files, without manifests, citations and notes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and path.suffix not in _NO_CODE and not any(p.startswith(".") for p in name.parts):
            found[name.as_posix()] = sha256(path)
    return found


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:
    return weights.sha256(path)


def _roots(entries: Path | str | None) -> Iterator[Path]:
    given = entries or os.environ.get("IMMUNEBENCH_ENTRIES")
    root = None if not given else Path(given).expanduser().resolve()
    if root is not None and not root.is_dir():
        name = "--entries" if entries else "IMMUNEBENCH_ENTRIES"
        raise UsageError("no such folder", field=name, value=str(given))
    if root is not None and _is_house(root):
        yield root
    else:
        house = _checkout(Path.cwd()) or (
            PACKAGE / "_entries" if (PACKAGE / "_entries").is_dir() else _checkout(PACKAGE)
        )
        yield from (place for place in (house, root) if place is not None)
    # Suites and profiles belong to the engine: a checkout that lies elsewhere brings its own entries only.
    yield PACKAGE
    for point in importlib.metadata.entry_points(group=GROUP):
        spec = importlib.util.find_spec(point.module)
        yield from (Path(place) for place in (spec.submodule_search_locations or () if spec else ()))


def folders_to_write(out: Path | None = None) -> dict[str, Path]:
    """Return the folders of tasks, suites, defenses and attacks that a new one belongs into, by kind.

    Parameters
    ----------
    out
        Another house, which need not exist; default ``$IMMUNEBENCH_ENTRIES``, else the checkout that holds the
        current folder.

    Raises
    ------
    UsageError
        There is none of them.
    """
    given = out or os.environ.get("IMMUNEBENCH_ENTRIES")
    root = Path(given).expanduser().resolve() if given else _checkout(Path.cwd())
    if root is None:
        raise UsageError("is needed outside a checkout: the folder that it is written to", field="--out")
    return {"root": root, **_folders(root)}


def _checkout(start: Path) -> Path | None:
    return next((folder for folder in (start, *start.parents) if _is_house(folder)), None)


@functools.cache
def _house(folder: Path) -> dict[str, Any] | None:
    try:
        table = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None
    found: dict[str, Any] | None = table.get("tool", {}).get("immunebench")
    return found


def _is_house(folder: Path) -> bool:
    return _house(folder) is not None


def _folders(root: Path) -> dict[str, Path]:
    named = _house(root) or {}
    kinds = ("defenses", "attacks", "tasks", "suites", "profiles")
    return {kind: root / str(named.get(kind, kind)) for kind in kinds}


def _manifests(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern)) if folder.is_dir() else []


def _inside(folder: Path, path: Path) -> Path | None:
    resolved = path.resolve()
    return resolved if resolved.is_relative_to(folder.resolve()) else None


def _add(catalog: Catalog, kind: str, path: Path, model: type[schema.M], table: dict[str, schema.M]) -> None:
    try:
        if _inside(path.parent.parent, path) is None:
            raise UsageError("links to a file outside its folder", file=path)
        item = schema.load(path, model)
        _same_name(getattr(item, "id", ""), path.stem, path, "file")
    except UsageError as error:
        catalog.broken.append(Broken(kind, path.stem, path, str(error)))
        return
    _claim(catalog, kind, path.stem, path)
    table[path.stem] = item


def _add_entry(
    catalog: Catalog,
    kind: Kind,
    path: Path,
    model: type[DefenseManifest] | type[AttackManifest],
    table: dict[str, Entry],
) -> None:
    folder = path.parent
    try:
        _check_folder(folder)
        manifest = schema.load(path, model)
        _same_name(manifest.id, folder.name, path, "folder")
        if isinstance(manifest, DefenseManifest) and manifest.artefact is not None:
            check_folder(folder, manifest.artefact)
        else:
            _check_code(folder / f"{kind}.py", manifest)
    except UsageError as error:
        catalog.broken.append(Broken(kind, folder.name, path, str(error)))
        return
    for variant in (None, *manifest.variants):
        entry = Entry(variant or manifest.id, kind, folder, manifest, variant)
        for name in (entry.id, *entry.aliases):
            _claim(catalog, kind, name, path)
            catalog.names[kind, name] = entry.id
        table[entry.id] = entry


def _claim(catalog: Catalog, kind: str, name: str, path: Path) -> None:
    before = catalog.paths.get((kind, name))
    if before is not None:
        raise UsageError(f"{kind} {name!r} is defined already in {before}", file=path)
    catalog.paths[kind, name] = path


def _scaled(value: JsonValue, factor: float) -> JsonValue:
    """Multiply a number, or each of a list; whole numbers stay whole."""
    if isinstance(value, list):
        return [_scaled(item, factor) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return round(value * factor) if isinstance(value, int) else value * factor


def _same_name(name: str, expected: str, path: Path, what: str) -> None:
    if name != expected:
        raise UsageError(f"must equal the {what}'s name {expected!r}, not", file=path, field="id", value=name)


def _check_folder(folder: Path) -> None:
    """Refuse links that lead out of an entry's folder, and a folder that lies outside its own root."""
    if _inside(folder.parent, folder) is None:
        raise UsageError("links to a folder outside", file=folder)
    for path in folder.rglob("*"):
        if path.is_symlink() and _inside(folder, path) is None:
            raise UsageError("links to a file outside its folder", file=path)
        if path.suffix in _COMPILED and path.parent.name != "__pycache__":
            raise UsageError("is compiled code, which nobody can read", file=path)


def _check_code(path: Path, manifest: DefenseManifest | AttackManifest) -> None:
    """Look, without running it, whether the code parses and defines every hook."""
    if not manifest.hooks:
        return
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError("is missing", file=path) from error
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"does not parse: {error}", file=path) from error
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for hook in manifest.hooks:
        if hook not in defined:
            raise UsageError("lacks the function", file=path, value=hook, choices=defined)


def _drop_dangling(catalog: Catalog) -> None:
    """Break entries and tasks that name what does not exist."""
    for entry in list(catalog.defenses.values()):
        field = "against" if entry.variant is None else f"variants.{entry.variant}.against"
        for name in entry.against:
            _require(catalog, "defense", entry.id, entry.path, catalog.defenses, "attack", name, field)
            simulated = catalog.attacks.get(catalog.names.get(("attack", name), name))
            if simulated is not None and simulated.hooks != ("adapt",):
                why = "cleans pictures, it trains nothing to defend against:"
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
