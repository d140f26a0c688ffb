"""`Mask`: the tensors of a UNet that the publisher's fine-tuning interface keeps as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mask:
    """Which tensors of a UNet may not be trained; the weights themselves stay those of the start model.

    Parameters
    ----------
    frozen : mapping of str to bool
        Every tensor of the UNet by its name in the base (`LatentDiffusion.unet_tensors("all")`): True where it is
        frozen. At least one is False.
    """

    frozen: Mapping[str, bool]

    @classmethod
    def of(cls, tensors: Iterable[str], frozen: Iterable[str]) -> Mask:
        """Return the mask of all `tensors` in which those named by `frozen` are frozen.

        Raises
        ------
        ValueError
            If a frozen name is not among the tensors.
        """
        names, chosen = list(tensors), set(frozen)
        if unknown := sorted(chosen - set(names)):
            raise ValueError(f"no tensor has the name {unknown[0]!r}")
        return cls({name: name in chosen for name in names})

    @property
    def names(self) -> frozenset[str]:
        """The names of the frozen tensors."""
        return frozenset(name for name, frozen in self.frozen.items() if frozen)
