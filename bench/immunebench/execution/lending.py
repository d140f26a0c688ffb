"""What the process of a stage is lent: copies of inputs, the hashed files of its entries, a key cut to its needs."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from immunebench.bases.weights import cache_folder, require, require_folder, sha256
from immunebench.box.choice import Kind
from immunebench.box.folders import remove
from immunebench.box.view import View
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry, digests
from immunebench.catalog.own_entries import is_own
from immunebench.core.machine import GIB
from immunebench.core.wording import opaque
from immunebench.store.artifacts import Spec
from immunebench.store.files import files_below
from immunebench.store.manifest import MANIFEST

_ENTRY = ("entry", "entry_files", "params", "base", "base_files", "numerics", "seed", "perceptual", "upscaler")
#: The parts of a key that the code of a stage reads; whatever else a key holds, no entry sees.
_LENT: Mapping[str, tuple[str, ...]] = {
    "protect": (*_ENTRY, "hook", "budget", "perceptual_budget", "against", "surrogates", "concept"),
    "purify": (*_ENTRY, "token", "noun"),
    "adapt": (*_ENTRY, "caption", "token", "noun"),
    "generate": ("base", "base_files", "numerics", "prompts", "per_prompt", "noise_key", "step", "cleaning"),
}
_SPARE = 1 << 30


@dataclass
class Lent:
    """Folders of one attempt at a stage, and what its process is told of them.

    Attributes
    ----------
    place
        The folder that holds all; removed with `remove`.
    job
        What the process is told.
    view
        What it sees.
    environment
        Variables that it gets.
    admission
        What admission is told in addition to the folders, None for stages that are not the suite's own.
    read
        Files that admission reads beside the inputs.
    """

    place: Path
    job: dict[str, Any]
    view: View
    environment: dict[str, str] = field(default_factory=dict)
    admission: dict[str, Any] | None = None
    read: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        """Return the folder that the stage fills."""
        return self.place / "out"

    @property
    def mark(self) -> Path:
        """Return the folder of its bookmarks."""
        return self.place / "mark"

    def remove(self) -> None:
        """Remove everything."""
        remove(self.place)


def prepared(place: Path, inputs: Mapping[str, Path], kind: Kind) -> dict[str, str]:
    """Make the folders of an attempt and fill in the inputs, without the manifests that say what they are."""
    for name in ("tmp", "out", "mark", "in", "entry"):
        (place / name).mkdir(parents=True)
    lent = {}
    for name, folder in inputs.items():
        for file in files_below(folder):
            target = place / "in" / name / file.relative_to(folder)
            if file.name == MANIFEST and file.parent == folder:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            _lend(file, target, linked=kind == "bubblewrap")
        (place / "in" / name).mkdir(exist_ok=True)
        lent[name] = str(place / "in" / name)
    return lent


def _lend(file: Path, target: Path, *, linked: bool) -> None:
    """Copy a file; behind a read-only mount, where nobody can write to the store's own, a link does."""
    if linked:
        try:
            os.link(file, target)
            return
        except OSError:  # The file system has no links.
            pass
    shutil.copyfile(file, target)


def lend_other(place: Path, spec: Spec, inputs: Mapping[str, Path], kind: Kind, run_stage: str) -> Lent:
    """Lend what a stage by another function than the suite's needs: its whole key."""
    job = {
        "run_stage": run_stage, "stage": spec.stage, "key": dict(spec.key), "digest": spec.digest,
        "digests": dict(spec.inputs), "inputs": prepared(place, inputs, kind), "out": str(place / "out"),
    }  # fmt: skip
    return Lent(place, job, View(_within(place), _writable(place)))


def lend(place: Path, spec: Spec, inputs: Mapping[str, Path], kind: Kind, catalog: Catalog) -> Lent:
    """Lend what a stage of the suite needs.

    Raises
    ------
    OSError
        Files of an entry or of a base changed after planning, or something cannot be copied.
    """
    key = spec.key
    cut = {name: key[name] for name in _LENT[spec.stage] if name in key}
    if "concept" in cut:
        cut["concept"] = {**cut["concept"], "id": opaque(cut["concept"]["id"])}
    lent = prepared(place, inputs, kind)
    bases = {name: str(_base(catalog, name, files)) for name, files in _bases(key)}
    networks, read, admission_reads = _networks(catalog, key)
    entries = [_entry(place, entry, files) for entry, files in _entries(catalog, spec)]
    saves = len(key["params"].get("saves", ())) if spec.stage == "adapt" else 1
    size = sum(file.stat().st_size for folder in bases.values() for file in files_below(Path(folder)))
    on_gpu = key["numerics"].get("device") == "cuda"
    view = View(
        read=(*_within(place), *bases.values(), *read),
        write=_writable(place),
        bytes=_SPARE + 2 * size * (saves + 4),
        gpu=on_gpu,
        # On a GPU the cap is the card's, whose memory this side cannot see.
        memory=None if on_gpu else int(float(key["numerics"]["memory_gib"]) * GIB),
    )
    job = {
        "stage": spec.stage, "key": cut, "inputs": lent, "out": str(place / "out"), "bases": bases,
        "entries": entries, **networks,
    }  # fmt: skip
    distance = networks["perceptual"].get(key.get("perceptual", {}).get("id", ""))
    admission = {
        "stage": spec.stage, "key": dict(key), "entry": key.get("entry", spec.stage), "base": bases[key["base"]],
        "distance": distance, "words_alone": spec.stage == "adapt" and entries[0]["trains"] == "words",
    }  # fmt: skip
    environment = {"IMMUNEBENCH_WEIGHTS": str(cache_folder())} if read else {}
    return Lent(place, job, view, environment, admission, (bases[key["base"]], *admission_reads))


def foreign(spec: Spec) -> list[str]:
    """Return the ids of the entries of a stage whose code is not that of the suite's own; see `own_entries`."""
    key = spec.key
    codes = [key] if "entry_files" in key else []
    codes += [*key.get("against", {}).values(), *key.get("cleaning", {}).get("clean_samples", ())]
    return [code["entry"] for code in codes if not is_own(code["entry_files"])]


def _within(place: Path) -> tuple[str, ...]:
    return str(place / "in"), str(place / "entry")


def _writable(place: Path) -> tuple[str, ...]:
    return str(place / "tmp"), str(place / "out"), str(place / "mark")


def _bases(key: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, str]]]:
    yield key["base"], key["base_files"]
    for name, surrogate in key.get("surrogates", {}).items():
        yield name, surrogate["base_files"]


def _base(catalog: Catalog, name: str, files: Mapping[str, str]) -> Path:
    """Return the folder of a base; an OSError if files that are not embedded differ from those of the key."""
    if not catalog.models.bases[name].embedded and catalog.base_files(name) != files:
        raise OSError(f"base {name}: its files changed after the run was planned; start it again")
    return catalog.base_folder(name)


def _networks(
    catalog: Catalog, key: Mapping[str, Any]
) -> tuple[dict[str, dict[str, str]], tuple[str, ...], tuple[str, ...]]:
    """Return loaders by kind and name, the files that they read, and those of them that admission reads too."""
    codes = [key, *key.get("cleaning", {}).get("clean_samples", ())]
    perceptual = {code["perceptual"]["id"] for code in codes if "perceptual" in code}
    upscalers = {code["upscaler"]["id"] for code in codes if "upscaler" in code}
    models, root = catalog.models, catalog.models_path.parent
    measured = [str(root / name) for each in perceptual for name in models.perceptual[each].files]
    measured += [str(require(name)) for each in perceptual for name in models.perceptual[each].weights]
    read = [*measured, *(str(root / name) for each in upscalers for name in models.upscalers[each].files)]
    folders = [models.upscalers[each].folder for each in upscalers]
    read += [str(require_folder(name)) for name in folders if name is not None]
    loaders = {
        "perceptual": {name: models.perceptual[name].loader for name in perceptual},
        "upscalers": {name: models.upscalers[name].loader for name in upscalers},
    }
    for named in {module_of(loader) for kind in loaders.values() for loader in kind.values()}:
        read.append(named)
        measured.append(named)
    return loaders, tuple(read), tuple(measured)


def module_of(loader: str) -> str:
    """Return the file of the module of a ``module:function``."""
    spec = importlib.util.find_spec(loader.partition(":")[0])
    return str(spec.origin) if spec is not None else os.devnull


def _entries(catalog: Catalog, spec: Spec) -> Iterator[tuple[Entry, Mapping[str, str]]]:
    """Yield every entry whose code the stage runs, with the files that its key names."""
    key = spec.key
    if "entry" in key:
        found = catalog.attack(key["entry"]) if spec.stage != "protect" else catalog.defense(key["entry"]).layers[0]
        yield found, key["entry_files"]
    simulated = key.get("against", {}).values()
    for code in [*simulated, *key.get("cleaning", {}).get("clean_samples", ())]:
        yield catalog.attack(code["entry"]), code["entry_files"]


def _entry(place: Path, entry: Entry, files: Mapping[str, str]) -> dict[str, Any]:
    """Copy the hashed files of an entry, and no other; an OSError if they changed since planning."""
    changed = OSError(f"{entry.id}: its files changed after the run was planned; start it again")
    if digests(entry.folder) != files:
        raise changed
    folder = place / "entry" / entry.kind / entry.folder.name
    for name, digest in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(entry.folder / name, target)
        if sha256(target) != digest:
            raise changed
    trains = "words" if entry.trains_words else "networks"
    return {"id": entry.id, "kind": entry.kind, "folder": str(folder), "hooks": list(entry.hooks), "trains": trains}
