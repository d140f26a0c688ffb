"""Training data: encoded pictures, and batches with noise and time steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """Encoded pictures and captions, computed once per stage.

    Parameters
    ----------
    latents : Tensor, shape (n, 4, h, w)
        Scaled means of the VAE's posterior.
    condition : Tensor, shape (n, length, width)
        Text embeddings, one per picture.
    captions : tuple of str
        The captions that they embed, for methods that train the text encoder or embeddings.
    """

    latents: Tensor
    condition: Tensor
    captions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A training batch of the denoising objective: pictures, captions, noise and time steps.

    Parameters
    ----------
    latents, noise : Tensor, shape (b, 4, h, w)
        z_0 and epsilon.
    condition : Tensor, shape (b, length, width)
        c.
    timesteps : Tensor of int64, shape (b,)
        t, from 0 to T - 1.
    captions : tuple of str
        The captions that `condition` embeds.
    """

    latents: Tensor
    condition: Tensor
    noise: Tensor
    timesteps: Tensor
    captions: tuple[str, ...] = ()
