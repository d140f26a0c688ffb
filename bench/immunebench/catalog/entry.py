"""`Entry`: a defense or an attack as its manifest declares it, its parameters, files and functions."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from immunebench.bases import weights
from immunebench.core.errors import UsageError
from immunebench.declared.manifest import Artefact, AttackManifest, DefenseManifest
from immunebench.declared.schema import Values

Kind = Literal["defense", "attack"]
# What these files say reaches a stage's key as resolved parameters, or changes no number at all.
_NO_CODE = frozenset({".toml", ".bib", ".md", ".pyc"})


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


def inside(folder: Path, path: Path) -> Path | None:
    """Return where a path leads, None where that is outside the folder."""
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError):  # Links that lead to each other.
        return None
    return resolved if resolved.is_relative_to(folder.resolve()) else None


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:
    return weights.sha256(path)


def _scaled(value: JsonValue, factor: float) -> JsonValue:
    """Multiply a number, or each of a list; whole numbers stay whole."""
    if isinstance(value, list):
        return [_scaled(item, factor) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return round(value * factor) if isinstance(value, int) else value * factor
