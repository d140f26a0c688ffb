"""The upscaler of the embedded world: a small network for denoising and upscaling by two.

Purifiers use it; no judge was trained with it. For its training see :mod:`immunebench.mini.training.upscaler`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from immunebench.core.errors import UsageError
from immunebench.core.types import Numerics
from immunebench.mini.judges import to_input

WEIGHTS = Path(__file__).parent / "weights" / "upscaler"
FILE = "upscaler.safetensors"
#: Scale factor: pictures are rendered at twice their size and downscaled, so finer training targets do not exist.
FACTOR = 2
_WIDTH, _LAYERS = 24, 5


class UpscalerNet(nn.Module):
    """Convolutions at half size between sub-pixel shuffles (Shi et al. 2016), added to a bilinear upsampling.

    Half size doubles the receptive field at a quarter of the computation (Zhang et al. 2018, FFDNet, sec. III-B).
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, _WIDTH, 3, 1, 1), nn.ReLU()]
        for _ in range(_LAYERS):
            layers += [nn.Conv2d(_WIDTH, _WIDTH, 3, 1, 1), nn.ReLU()]
        layers += [nn.Conv2d(_WIDTH, 3 * (2 * FACTOR) ** 2, 3, 1, 1), nn.PixelShuffle(2 * FACTOR)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale pictures (n, 3, h, w) in [-1, 1] to (n, 3, 2 h, 2 w); h and w are even."""
        enlarged = F.interpolate(x, scale_factor=FACTOR, mode="bilinear", align_corners=False)
        correction: Tensor = self.layers(x)
        return enlarged + correction


class MiniUpscaler:
    """Upscales pictures one at a time, so that none depends on the others.

    Parameters
    ----------
    network
        A trained :class:`UpscalerNet`.
    device
        Where it runs.
    """

    def __init__(self, network: UpscalerNet, device: str = "cpu") -> None:
        self.device = device
        self.network = network.float().eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def __call__(
        self, pixels: NDArray[np.uint8], captions: Sequence[str] = (), seeds: Sequence[int] = (), **options: float
    ) -> NDArray[np.uint8]:
        """Upscale pictures uint8 (n, h, w, 3) to uint8 (n, 2 h, 2 w, 3); all other arguments are ignored."""
        made = torch.cat([self.network(to_input(picture[None]).to(self.device)).cpu() for picture in pixels])
        rounded = ((made + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        return np.ascontiguousarray(rounded.numpy())


def load(numerics: Numerics, folder: Path = WEIGHTS) -> MiniUpscaler:
    """Return the upscaler named ``mini`` in ``models.toml``.

    Raises
    ------
    UsageError
        Its weights are missing.
    """
    from safetensors.torch import load_file

    file = folder / FILE
    if not file.is_file():
        raise UsageError("the upscaler's weights are missing", file=file)
    network = UpscalerNet()
    network.load_state_dict(load_file(file))
    return MiniUpscaler(network, numerics.device)
