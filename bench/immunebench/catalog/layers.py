"""`Layers`: several defenses combined into one, such as ``esd+imma-lora``: model defenses in order, then pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from immunebench.catalog.entry import Entry
from immunebench.core.errors import UsageError
from immunebench.declared.schema import Values


@dataclass(frozen=True)
class Layers:
    """A combination of defenses, with the properties of an `Entry` combined from its layers.

    Parameters
    ----------
    layers
        At least two entries; each that changes the model starts from the weights that the one before it released.
    """

    layers: tuple[Entry, ...]

    @property
    def id(self) -> str:
        """Return the layers' ids, joined by ``+``."""
        return "+".join(entry.id for entry in self.layers)

    @property
    def kind_of(self) -> str:
        """Return ``layered`` if both model and pictures are changed, else the kind of the first layer."""
        return "layered" if len(set(self.hooks)) > 1 else self.layers[0].kind_of

    @property
    def erases(self) -> bool:
        """Whether the first layer is an erasure, which starts from the base."""
        return self.layers[0].erases

    @property
    def title(self) -> str:
        """Return the layers' titles."""
        return " + ".join(entry.title for entry in self.layers)

    @property
    def version(self) -> int:
        """Return the sum of the layers' versions, which increases with each of them."""
        return sum(entry.version for entry in self.layers)

    @property
    def hooks(self) -> tuple[str, ...]:
        """Return the hooks of all layers without duplicates."""
        return tuple(dict.fromkeys(hook for entry in self.layers for hook in entry.hooks))

    @property
    def budget(self) -> int | None:
        """Return the budget of the layer that changes pictures."""
        return next((entry.budget for entry in self.layers if entry.budget is not None), None)

    @property
    def perceptual_budget(self) -> float | None:
        """Return the perceptual bound of the layer that changes pictures."""
        return next((entry.perceptual_budget for entry in self.layers if entry.perceptual_budget is not None), None)

    @property
    def against(self) -> tuple[str, ...]:
        """Return the attacks that the layers simulate."""
        return tuple(dict.fromkeys(name for entry in self.layers for name in entry.against))

    @property
    def replicate(self) -> bool:
        """Return False, as no layer is a control."""
        return False

    @property
    def path(self) -> Path:
        """Return the first layer's manifest."""
        return self.layers[0].path

    @property
    def files(self) -> dict[str, str]:
        """Return the layers' files, with the layer's id as the first part of their names."""
        return {f"{entry.id}/{name}": digest for entry in self.layers for name, digest in entry.files.items()}

    def params(self, base: str, like: str | None = None) -> Values:
        """Return each layer's parameters under its id; see `Entry.params`."""
        return {entry.id: entry.params(base, like) for entry in self.layers}


def layered(entries: tuple[Entry, ...], *, name: str, file: Path | None = None, field: str | None = None) -> Layers:
    """Combine defenses.

    Raises
    ------
    UsageError
        If a layer occurs twice, is a control, or is in a position where it would undo another layer.
    """

    def refuse(why: str) -> UsageError:
        return UsageError(why, file=file, field=field, value=name)

    ids = [entry.id for entry in entries]
    if len(set(ids)) != len(ids):
        raise refuse("holds a layer twice:")
    for entry in entries:
        if not entry.hooks or entry.kind_of == "control":
            raise refuse(f"{entry.id} is a control and cannot be a layer:")
    for entry in entries:
        if entry.freezes:
            raise refuse(f"{entry.id} says what may be trained and cannot be a layer:")
    if any(entry.kind_of == "erasure" for entry in entries[1:]):
        raise refuse("an erasure starts from the base, so it must be the first layer of")
    pictures = ["protect_images" in entry.hooks for entry in entries]
    if pictures != sorted(pictures) or sum(pictures) > 1:
        raise refuse("model defenses come first, and at most one layer changes pictures, unlike in")
    return Layers(entries)


Defense = Entry | Layers
