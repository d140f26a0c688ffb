"""Readers: networks that classify every trait of a picture.

The renderer provides each trait of each picture as a label, so a reader has one head per trait; the last class of each
head is "cannot be read". There are two readers with different architecture, seed and training pictures: the first is
used for scores, the second checks the base's pictures and the first reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from immunebench.core.errors import UsageError
from immunebench.mini.traits import TRAITS

#: Number of answers of each head, in the order of the traits.
ANSWERS = tuple(len(values) + 1 for values in TRAITS.values())
FEATURES = 256


class PlainTrunk(nn.Module):
    """A VGG-like stack of stages with a strided and a plain convolution each."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        stages, before = [], 3
        for width in widths:
            stages.append(nn.Sequential(
                nn.Conv2d(before, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            ))  # fmt: skip
            before = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs of all stages, the finest first."""
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class _Residual(nn.Module):
    """A residual block of two convolutions (He et al. 2016), with group normalisation before each."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.GroupNorm(8, before), nn.SiLU(), nn.Conv2d(before, width, 3, 1, 1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(before, width, 1) if before != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.inner(x)  # type: ignore[no-any-return]


class ResidualTrunk(nn.Module):
    """A stem and residual stages, with average pooling by 2 in each."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 5, 2, 2)
        self.stages = nn.ModuleList(
            [_Residual(before, width) for before, width in zip((widths[0], *widths), widths, strict=False)]
        )
        self.down = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs of all stages, the finest first."""
        x, found = self.stem(x), []
        for at, stage in enumerate(self.stages):
            x = stage(self.down(x) if at else x)
            found.append(x)
        return found


class Reader(nn.Module):
    """Classifies every trait of pictures.

    Parameters
    ----------
    trunk
        Returns feature maps, the finest first, the last of 4 x 4.
    widths
        Their channels.
    """

    def __init__(self, trunk: nn.Module, widths: Sequence[int]) -> None:
        super().__init__()
        self.trunk = trunk
        # The last map has the layout; strokes are described by means and standard deviations of the finer maps.
        self.places = nn.Linear(widths[-1] * 16, FEATURES)
        self.texture = nn.Linear(2 * sum(widths[:-1]), FEATURES // 2)
        self.mix = nn.Sequential(
            nn.LayerNorm(FEATURES * 3 // 2), nn.ReLU(), nn.Linear(FEATURES * 3 // 2, FEATURES), nn.ReLU()
        )
        self.heads = nn.Linear(FEATURES, sum(ANSWERS))

    def embed(self, x: Tensor) -> Tensor:
        """Features (n, 256), not normalised, of pictures (n, 3, 64, 64) in [-1, 1]."""
        maps = self.trunk(x)
        moments = [
            part for m in maps[:-1] for part in (m.mean((2, 3)), (m.float().var((2, 3)) + 1e-5).sqrt().to(m.dtype))
        ]
        joined = torch.cat([self.places(maps[-1].flatten(1)), self.texture(torch.cat(moments, 1))], 1)
        return self.mix(joined)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, sum of ANSWERS), head after head, of pictures (n, 3, 64, 64) in [-1, 1]."""
        return self.heads(self.embed(x))  # type: ignore[no-any-return]


def split(logits: Tensor) -> dict[str, Tensor]:
    """Logits (n, answers) of each trait by name."""
    return dict(zip(TRAITS, torch.split(logits, list(ANSWERS), dim=1), strict=True))


def build(name: str) -> Reader:
    """An untrained reader: ``reader`` or ``second``."""
    if name == "reader":
        widths = (48, 96, 128, 160)
        return Reader(PlainTrunk(widths), widths)
    widths = (40, 80, 120, 160)
    return Reader(ResidualTrunk(widths), widths)


def load(name: str, folder: Path) -> Reader:
    """A trained reader from ``folder/<name>.safetensors``."""
    from safetensors.torch import load_file

    file = folder / f"{name}.safetensors"
    if not file.is_file():
        raise UsageError("the reader's weights are missing", file=file)
    network = build(name)
    network.load_state_dict(load_file(file))
    return network.float().eval().requires_grad_(False)
