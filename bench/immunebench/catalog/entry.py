"""`Entry`: a defense or an attack with its manifest, parameters, files and functions."""

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
from immunebench.declared.manifest import Artefact, AttackManifest, DefenseManifest, PublicBase
from immunebench.declared.schema import Values

Kind = Literal["defense", "attack"]
# Files that are left out of the code's digests: manifests enter a stage's cache key as resolved parameters, and the
# others change no result.
_NO_CODE = frozenset({".toml", ".bib", ".md", ".pyc"})


@dataclass(frozen=True)
class Entry:
    """A defense or an attack: one manifest, or one of its variants.

    Attributes
    ----------
    id
        The name on the board; for a variant, that of the variant.
    folder
        The folder of manifest and code; its name is the id in the manifest.
    """

    id: str
    kind: Kind
    folder: Path
    manifest: DefenseManifest | AttackManifest
    variant: str | None = None

    @property
    def code(self) -> str:
        """Return the id in the manifest, which all variants share."""
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
        """Return the names of the hook functions that the code defines."""
        return self.manifest.hooks

    @property
    def kind_of(self) -> str:
        """Return the kind of a defense, such as ``model`` or ``data``; empty for an attack."""
        return str(getattr(self.manifest, "kind", ""))

    @property
    def erases(self) -> bool:
        """Whether this defense erases a known concept from the base, instead of the task's own erasure."""
        return self.kind_of == "erasure"

    @property
    def layers(self) -> tuple[Entry, ...]:
        """Return the entry itself, as a defense of one layer."""
        return (self,)

    @property
    def title(self) -> str:
        """Return the variant's title, else the manifest's."""
        return self._own("title") or self.manifest.title

    @property
    def aliases(self) -> tuple[str, ...]:
        """Return the alternative names of this entry."""
        return self.manifest.aliases if self.variant is None else self.manifest.variants[self.variant].aliases

    @property
    def budget(self) -> int | None:
        """Return the declared L_inf budget in 8-bit levels (of 255), None if there is none."""
        own: int | None = self._own("budget")
        return own if own is not None else getattr(self.manifest, "budget", None)

    @property
    def perceptual_budget(self) -> float | None:
        """Return the declared bound on the perceptual distance, None if there is none."""
        own: float | None = self._own("perceptual_budget")
        return own if own is not None else getattr(self.manifest, "perceptual_budget", None)

    @property
    def freezes(self) -> bool:
        """Whether this defense says what may be trained, instead of releasing weights or pictures."""
        return "freeze" in self.hooks

    @property
    def trains_words(self) -> bool:
        """Whether this attack trains embeddings of words alone."""
        return getattr(self.manifest, "trains", "networks") == "words"

    @property
    def needs_perceptual(self) -> bool:
        """Whether the stage needs the base's perceptual distance: for the entry's bound or for its own computation."""
        return self.perceptual_budget is not None or "perceptual" in self.manifest.needs

    @property
    def needs_upscaler(self) -> bool:
        """Whether the entry needs the base's upscaler."""
        return "upscaler" in self.manifest.needs

    @property
    def needs_prior(self) -> bool:
        """Whether a defense needs class pictures."""
        return "prior" in self.manifest.needs

    @property
    def pictures(self) -> int | None:
        """Return the number of an attacker's pictures, None if it is the task's."""
        own: int | None = self._own("pictures")
        return own if own is not None else getattr(self.manifest, "pictures", None)

    @property
    def public_base(self) -> PublicBase | None:
        """Return how an attacker uses the public base, None if it does not have it."""
        own: PublicBase | None = self._own("public_base")
        return own if own is not None else getattr(self.manifest, "public_base", None)

    @property
    def artefact(self) -> Artefact | None:
        """Return the pictures that a closed-source tool made, None for an entry with code."""
        return getattr(self.manifest, "artefact", None)

    @property
    def against(self) -> tuple[str, ...]:
        """Return the attacks that a defense simulates."""
        named: str | tuple[str, ...] | None = self._own("against") or getattr(self.manifest, "against", None)
        return (named,) if isinstance(named, str) else named or ()

    @property
    def surrogates(self) -> tuple[str, ...]:
        """Return the surrogate bases that a defense computes on; empty if it uses the task's base."""
        own: tuple[str, ...] | None = self._own("surrogates")
        return own or getattr(self.manifest, "surrogates", None) or ()

    @property
    def replicate(self) -> bool:
        """Whether the attack uses another seed: the control that measures the noise between seeds."""
        own: bool | None = self._own("replicate")
        return own if own is not None else getattr(self.manifest, "replicate", False)

    @functools.cached_property
    def files(self) -> dict[str, str]:
        """Return SHA-256 by relative name of every code file."""
        return digests(self.folder)

    def params(self, base: str, like: str | None = None) -> Values:
        """Resolve ``[params]``, then ``[presets.<base>]``, then those of the variant, then its ``scale`` factors.

        Without a preset for ``base``, the one for ``like`` is used. The parameters of an artefact are its tool and
        version.
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
        """Return the declared CPU seconds per task, of the variant or else the manifest; see `params` for `like`."""
        tables = (self._own("seconds") or {}, self.manifest.seconds)
        return next((table[name] for table in tables for name in (base, like or base) if name in table), None)

    def function(self, hook: str) -> Callable[..., Any]:
        """Import the code from its path, as a package of its own, and return one of its hook functions.

        Raises
        ------
        UsageError
            The entry does not define the hook.
        """
        if hook not in self.hooks:
            raise UsageError("no such hook", file=self.path, field="hooks", value=hook, choices=self.hooks)
        # The package name depends on the content, so that an edited entry is imported again in the same process.
        content = f"{self.folder} {sorted(digests(self.folder).items())}"
        parent = f"immunebench_entries_{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        if parent not in sys.modules:
            package = types.ModuleType(parent)
            package.__path__ = [str(self.folder)]
            sys.modules[parent] = package
        # Bytecode in the folder is no part of the cache key, so only sources are read.
        before, sys.pycache_prefix = sys.pycache_prefix, tempfile.gettempdir() + f"/{parent}"
        try:
            function: Callable[..., Any] = getattr(importlib.import_module(f"{parent}.{self.kind}"), hook)
        finally:
            sys.pycache_prefix = before
        return function

    def _own(self, name: str) -> Any:
        return None if self.variant is None else getattr(self.manifest.variants[self.variant], name)


def sha256(path: Path) -> str:
    """Return a file's SHA-256; cached per process until the file changes."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


def digests(folder: Path) -> dict[str, str]:
    """Return SHA-256 by relative name of a folder's files, without manifests, citations and Markdown files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and path.suffix not in _NO_CODE and not any(p.startswith(".") for p in name.parts):
            found[name.as_posix()] = sha256(path)
    return found


def inside(folder: Path, path: Path) -> Path | None:
    """Resolve a path; None if it points outside the folder."""
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError):  # Symbolic links that point at each other.
        return None
    return resolved if resolved.is_relative_to(folder.resolve()) else None


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:
    return weights.sha256(path)


def _scaled(value: JsonValue, factor: float) -> JsonValue:
    """Multiply a number, or each number of a list; integers are rounded to integers."""
    if isinstance(value, list):
        return [_scaled(item, factor) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return round(value * factor) if isinstance(value, int) else value * factor
