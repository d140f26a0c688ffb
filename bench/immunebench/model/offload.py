"""`Resident`: a network that is on the device while something needs it, and in the host's memory otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


class Resident:
    """A network with two places.

    Parameters
    ----------
    network : Module
    device : torch.device
        Where it computes.
    leaves : bool
        Whether it leaves the device between uses; False keeps it there always.

    Attributes
    ----------
    here : bool
        Whether it is on the device.
    """

    def __init__(self, network: nn.Module, device: torch.device, *, leaves: bool) -> None:
        self.network = network
        self.device = device
        self.leaves = leaves
        self._users = 0
        self._stays = False
        self.here = not leaves
        self._move()

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Have the network on the device while the block runs.

        Where gradients are recorded it stays until `release`: their backward pass comes after the block and reads the
        weights where they were.
        """
        if self.leaves and torch.is_grad_enabled():
            self.stay()
        self._users += 1
        self._settle()
        try:
            yield
        finally:
            self._users -= 1
            self._settle()

    def stay(self) -> None:
        """Keep the network on the device until `release`: it is trained, or gradients pass through it."""
        self._stays = True
        self._settle()

    def release(self) -> None:
        """Let the network leave again."""
        self._stays = False
        self._settle()

    def _settle(self) -> None:
        wanted = not self.leaves or self._stays or self._users > 0
        if wanted != self.here:
            self.here = wanted
            self._move()

    def _move(self) -> None:
        self.network.to(self.device if self.here else torch.device("cpu"))
