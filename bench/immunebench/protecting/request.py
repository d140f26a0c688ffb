"""What somebody asks of ``immunebench protect``, and the checks that need no picture: defense, base, profile, names."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from immunebench.authoring.new import FAMILIES
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.core.errors import UsageError, printable
from immunebench.core.home import expanded
from immunebench.declared.profile import Profile
from immunebench.declared.task import TaskPictures
from immunebench.plan.checks import check_base, check_predictions

Size = Literal["square", "own"]
SIZES: tuple[Size, ...] = ("square", "own")
#: Pictures of a set: as many as a task of the suites publishes.
AT_ONCE = TaskPictures().published
#: Of a set; its files have names of three digits.
MOST_AT_ONCE = 999
REPORT = "report.json"
SUFFIX = ".png"


@dataclass(frozen=True, slots=True)
class Request:
    """The user's options; None means a default.

    Attributes
    ----------
    folder
        Folder of pictures.
    defense
        A defense with the hook ``protect_images``; of a layered one, that layer is used.
    base
        Full-size base that it computes on.
    out
        Folder of the protected copies.
    family, noun, caption
        As in a task: style, object or identity; the class noun; the owner's caption template.
    captions
        File with the content of each picture, see `immunebench.authoring.captions`.
    size
        ``square``: the middle square at the base's resolution, as the boards measure it. ``own``: the picture's own
        size, with the change of the middle square enlarged.
    profile
        Profile; by default the largest one that this machine's GPU can emulate.
    seed
        Of all random draws.
    at_once
        Most pictures of a set that is protected together.
    replace
        Whether files of `out` may be replaced.
    """

    folder: Path
    defense: str
    base: str = "sd14"
    out: Path | None = None
    family: str = "style"
    noun: str | None = None
    caption: str | None = None
    captions: Path | None = None
    size: str = "square"
    profile: str | None = None
    seed: int = 0
    at_once: int = AT_ONCE
    replace: bool = False


def check_options(request: Request) -> None:
    """Check the options that no file decides.

    Raises
    ------
    UsageError
        One is not valid; the message names it.
    """
    if request.family not in FAMILIES:
        raise UsageError("is not a family of pictures:", field="--family", value=request.family, choices=FAMILIES)
    if request.size not in SIZES:
        raise UsageError("is no size of copies:", field="--size", value=request.size, choices=SIZES)
    if request.seed < 0:
        raise UsageError("must not be negative, not", field="--seed", value=request.seed)
    if not 1 <= request.at_once <= MOST_AT_ONCE:
        raise UsageError(f"must be from 1 to {MOST_AT_ONCE}, not", field="--at-once", value=request.at_once)


def picture_side(catalog: Catalog, name: str) -> tuple[Entry, tuple[str, ...]]:
    """Return the layer of a defense that changes pictures, and the ids of its other layers.

    Raises
    ------
    UsageError
        There is no such defense (the message has the nearest), or it cannot protect pictures of one's own (it says
        which can).
    """
    found = catalog.defense(name, field="--defense")
    changing = [layer for layer in found.layers if "protect_images" in layer.hooks]
    able = ", ".join(entry.id for entry in picture_defenses(catalog) if entry.variant is None)
    can = f"those that can are {able}, and their variants (immunebench list defenses):"
    if not changing:
        why = f"changes no pictures (its hooks: {', '.join(found.hooks) or 'none'});"
        raise UsageError(f"{why} {can}", field="--defense", value=name)
    (entry,) = changing
    if entry.kind_of == "control":
        raise UsageError(f"is a control, which protects nothing; {can}", field="--defense", value=name)
    if entry.artefact is not None:
        why = "holds pictures of a closed tool and no code that could run on yours;"
        raise UsageError(f"{why} {can}", field="--defense", value=name)
    return entry, tuple(layer.id for layer in found.layers if layer is not entry)


def picture_defenses(catalog: Catalog) -> list[Entry]:
    """Return the entries that can protect pictures of one's own."""
    return [
        entry for entry in catalog.defenses.values()
        if "protect_images" in entry.hooks and entry.kind_of != "control" and entry.artefact is None
    ]  # fmt: skip


def check_full_size(catalog: Catalog, entry: Entry, base: str) -> None:
    """Refuse bases of the embedded world, which know nothing of photographs.

    Raises
    ------
    UsageError
        The base, or one that the defense computes on, is embedded or derived from an embedded one; or unknown.
    """
    bases = catalog.models.bases
    catalog.find("base", bases, base, field="--base")

    def drawn(name: str) -> bool:
        spec = bases[name]
        return spec.embedded or (spec.own and spec.like is not None and bases[spec.like].embedded)

    if drawn(base):
        why = "is of the embedded world of 64-pixel drawings, and nothing computed on it protects a photograph:"
        raise UsageError(why, field="--base", value=base, choices=[name for name in bases if not drawn(name)])
    small = next((name for name in entry.surrogates if drawn(name)), None)
    if small is not None:
        why = f"computes on {small}, of the embedded world of 64-pixel drawings, which protects no photograph:"
        raise UsageError(why, field="--defense", value=entry.id)


def chosen_profile(catalog: Catalog, entry: Entry, base: str, side: int, named: str | None) -> Profile:
    """Return the profile: as named, else the largest that a GPU of this machine can emulate, else the smallest.

    Raises
    ------
    UsageError
        There is none of this name or of the base's resolution, or the base cannot be run on it.
    """
    if named is not None:
        profile = catalog.profile(named, field="--profile")
    else:
        fitting = [known for known in catalog.profiles.values() if known.resolution == side]
        if not fitting:
            raise UsageError("no profile has the base's resolution, in pixels:", field="--base", value=side)
        profile = _largest_here(fitting) or min(
            fitting, key=lambda known: (known.device != "cpu", known.memory_gib, known.precision != "fp32", known.id)
        )
    check_base(catalog, base, profile)
    check_predictions(catalog, [entry], base)
    return profile


def _largest_here(fitting: Sequence[Profile]) -> Profile | None:
    """Return the profile of most memory that a GPU of this machine has, None without a GPU."""
    from immunebench.hardware.doctor import cuda_devices, shortfall

    cards = [profile for profile in fitting if profile.device == "cuda"]
    gpus = cuda_devices() if cards else ()
    able = [profile for profile in cards if not shortfall(gpus, profile.memory_gib)]
    return max(able, key=lambda profile: (profile.memory_gib, profile.id), default=None)


def outputs(files: Sequence[Path]) -> dict[str, str]:
    """Return the name of each picture's copy, by the picture's name.

    Raises
    ------
    UsageError
        Two copies would have one name, on file systems that ignore case too.
    """
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    for file in files:
        name = f"{file.stem}{SUFFIX}"
        if name.lower() in taken:
            both = f"{printable(taken[name.lower()])} and {printable(file.name)}"
            raise UsageError(f"{both} would both be written as {printable(name)}; rename one", file=file.parent)
        taken[name.lower()] = file.name
        found[file.name] = name
    return found


def checked_out(request: Request, names: Sequence[str]) -> Path:
    """Return the folder of the copies, after checking that they can be written there.

    Raises
    ------
    UsageError
        It is not given, is the folder of the pictures, is no folder, cannot be written, or has such files already.
    """
    if request.out is None:
        raise UsageError("is required: the folder of the protected copies", field="--out")
    out, folder = expanded(request.out), expanded(request.folder)
    if out.resolve() == folder.resolve() or (out.exists() and folder.exists() and out.samefile(folder)):
        raise UsageError("is the folder of the pictures themselves; name another:", field="--out", value=str(out))
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise UsageError("is no folder:", field="--out", value=str(out))
    present = [name for name in (*names, REPORT) if (out / name).exists() or (out / name).is_symlink()]
    if present and not request.replace:
        why = f"has {len(present)} of the files already, such as {printable(present[0])} (--replace replaces them):"
        raise UsageError(why, field="--out", value=str(out))
    folders = [name for name in present if (out / name).is_dir()]
    if folders:
        raise UsageError("is a folder, and a copy would take its name", file=out / folders[0])
    place = next(parent for parent in (out, *out.parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".write-"):
            pass
    except OSError as error:
        raise UsageError(f"cannot be written ({error.strerror}):", field="--out", value=str(out)) from error
    return out
