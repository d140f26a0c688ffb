"""`Resident`: CPU offloading of a network that is not in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


class Resident:
    """A network that is moved to the device for use, and back to CPU memory if the profile offloads.

    Parameters
    ----------
    network : Module
    device : torch.device
        The device on which it runs.
    offload : bool
        Move it to CPU memory between uses; False leaves it on the device.

    Attributes
    ----------
    on_device : bool
        Whether it is on the device now.
    """

    def __init__(self, network: nn.Module, device: torch.device, *, offload: bool) -> None:
        self.network = network
        self.device = device
        self.offload = offload
        self._users = 0
        self._pinned = False
        self.on_device = not offload
        self._move()

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Hold the network on the device inside the block.

        If gradients are recorded it remains there until `release`, because the backward pass comes after the block and
        needs the weights in place.
        """
        if self.offload and torch.is_grad_enabled():
            self.pin()
        self._users += 1
        self._update()
        try:
            yield
        finally:
            self._users -= 1
            self._update()

    def pin(self) -> None:
        """Hold the network on the device until `release`: it is trained, or gradients pass through it."""
        self._pinned = True
        self._update()

    def release(self) -> None:
        """Allow offloading again."""
        self._pinned = False
        self._update()

    def _update(self) -> None:
        wanted = not self.offload or self._pinned or self._users > 0
        if wanted != self.on_device:
            self.on_device = wanted
            self._move()

    def _move(self) -> None:
        self.network.to(self.device if self.on_device else torch.device("cpu"))
