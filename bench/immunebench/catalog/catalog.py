"""`Catalog`: all defenses, attacks, tasks, suites, profiles and models, by kind and name."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from immunebench.bases import base_folder
from immunebench.bases.weights import FETCHABLE, require, require_folder
from immunebench.catalog.entry import Entry, digests, inside, sha256
from immunebench.catalog.layers import Defense, layered
from immunebench.core.errors import UsageError
from immunebench.declared import schema
from immunebench.declared.models import Models
from immunebench.declared.profile import Profile
from immunebench.declared.schema import Values
from immunebench.declared.suite import Suite
from immunebench.declared.task import Task

T = TypeVar("T")


@dataclass(frozen=True)
class Broken:
    """A manifest that cannot be used, with the reason in one line."""

    kind: str
    id: str
    path: Path
    reason: str


@dataclass
class Catalog:
    """All defenses, attacks, tasks, suites, profiles and models that a suite or the command line can name."""

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
        """Return an item of a table by its name or an alias.

        Raises
        ------
        UsageError
            The name is unknown (the message has the nearest one), or its manifest is broken (it has the reason).
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
        """Return an entry's parameters on a base; without a preset for it, those of the base in its field `like`."""
        return entry.params(base, self.models.bases[base].like)

    def base_folder(self, base: str, *, file: Path | None = None) -> Path:
        """Return the folder of a base.

        Raises
        ------
        UsageError
            There is no such base in ``models.toml``, or its files are missing.
        """
        spec = self.find("base", self.models.bases, base, file=file, field="base")
        return base_folder.find(base, spec, self.models_path)

    def base_files(self, base: str) -> dict[str, str]:
        """Return SHA-256 by name of the files of a base; those from a hub are compared with ``models.toml``.

        Raises
        ------
        UsageError
            As `base_folder`; or a file differs from the one of the pinned revision.
        """
        folder, spec = self.base_folder(base), self.models.bases[base]
        return digests(folder) if spec.path is not None else base_folder.verified(base, spec, folder, sha256)

    @property
    def outlined(self) -> bool:
        """Whether absent weights and pictures are no error; see `immunebench.catalog.outline`."""
        return False

    def side(self, base: str) -> int | None:
        """Return the native resolution of a base in pixels, None if its configs do not state it."""
        return base_folder.side(self.base_folder(base))

    def prediction(self, base: str) -> str:
        """Return the prediction type of a base's denoiser; see `base_folder.prediction`."""
        return base_folder.prediction(self.base_folder(base))

    def words(self, base: str) -> frozenset[str]:
        """Return the words that are single tokens of a base's tokenizer.

        Raises
        ------
        UsageError
            The base is not embedded and has no list of them.
        """
        file = self.base_folder(base) / "tokenizer" / "vocab.json"
        entries = base_folder.settings(file)
        if not entries and not self.models.bases[base].embedded:
            raise UsageError("is missing: it says which words the base knows", file=file)
        return frozenset(word.removesuffix("</w>") for word in entries if word.endswith("</w>"))

    def check_base(self, base: str, profile: Profile) -> None:
        """Check that a base that is not embedded can be run on a profile; see `base_folder.check` for errors."""
        if not self.models.bases[base].embedded:
            base_folder.check(base, self.base_folder(base), profile)

    def is_fetchable(self, name: str) -> bool:
        """Return whether weights of this name can be downloaded."""
        return name in FETCHABLE

    def fetched(self, name: str, *, asked_by: str) -> str:
        """Return the SHA-256 of downloaded weights; see `immunebench.bases.weights.require` for errors."""
        return sha256(require(name, asked_by=asked_by))

    def base_revision(self, base: str) -> str:
        """Return the revision of a base for records; see `base_folder.revision`."""
        return base_folder.revision(base, self.models.bases[base])

    def judge_files(self, judge: str) -> dict[str, str]:
        """Return SHA-256 by name of the files and downloaded weights that a judge loads.

        Raises
        ------
        UsageError
            There is no such judge in ``models.toml``, or one of its files is missing.
        """
        spec = self.find("judge", self.models.judges, judge, file=self.models_path, field="judge")
        fetched = {f"weights/{name}": self.fetched(name, asked_by=f"judge {judge}") for name in spec.weights}
        return self._files(spec.files, f"judges.{judge}.files") | fetched

    def split_files(self, source: str, task: Task, concept: str, split: str, count: int) -> dict[str, str] | None:
        """Return SHA-256 by name of the files of a split; None if the source reads no files of the task.

        Raises
        ------
        UsageError
            Files are missing or differ from those that the task lists.
        """
        named = self.models.sources[source].files
        if named is None:
            return None
        module, _, function = named.partition(":")
        read: Callable[..., Mapping[str, str]] = getattr(importlib.import_module(module), function)
        return dict(read(self, task, concept, split, count))

    def perceptual(self, base: str, *, asked_by: Path) -> Values:
        """Return the perceptual distance that a base provides to entries, as in a stage's cache key.

        Raises
        ------
        UsageError
            The base provides none, or its weights are missing.
        """
        name = self.models.bases[base].perceptual
        if name is None:
            raise UsageError(f"needs a perceptual distance, which the base {base!r} does not provide", file=asked_by)
        spec = self.find("perceptual distance", self.models.perceptual, name, file=self.models_path)
        files = self._files(spec.files, f"perceptual.{name}.files")
        files |= {weights: self.fetched(weights, asked_by=f"perceptual.{name}") for weights in spec.weights}
        return {"id": name, "version": spec.version, "files": dict(files)}

    def upscaler(self, base: str, *, asked_by: Path) -> Values:
        """Return the upscaler that a base provides to entries, as in a stage's cache key.

        Raises
        ------
        UsageError
            The base provides none, or its weights are missing.
        """
        name = self.models.bases[base].upscaler
        if name is None:
            raise UsageError(f"needs an upscaler, which the base {base!r} does not provide", file=asked_by)
        spec = self.find("upscaler", self.models.upscalers, name, file=self.models_path)
        files = self._files(spec.files, f"upscalers.{name}.files")
        if spec.folder is not None:
            files |= digests(require_folder(spec.folder, asked_by=f"upscalers.{name}"))
        return {"id": name, "version": spec.version, "files": dict(files)}

    def _files(self, names: Iterable[str], field: str) -> dict[str, str]:
        found = {}
        for name in names:
            path = inside(self.models_path.parent, self.models_path.parent / name)
            if path is None or not path.is_file():
                raise UsageError("no such file", file=self.models_path, field=field, value=name)
            found[name] = sha256(path)
        return found
