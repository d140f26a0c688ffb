"""Published networks for evaluating photographs, with their preprocessing, loaded on first use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from immunebench.bases.weights import require
from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from immunebench.metrics.table import Floats, Pixels

#: Names of the weights in :mod:`immunebench.bases.weights`.
CLIP_WEIGHTS, DINO_WEIGHTS, CLASSIFIER_WEIGHTS = "clip-vit-b32", "dino-vits16", "resnet50-imagenet"
#: Architectures, by open_clip's, timm's and torchvision's names. OpenAI trained CLIP with the quick form of GELU.
CLIP, DINO, CLASSIFIER = "ViT-B-32-quickgelu", "vit_small_patch16_224.dino", "resnet50"
_BATCH = 32

Prepare = Callable[["Pixels"], "Tensor"]


@dataclass(frozen=True, slots=True)
class Network:
    """A network with its preprocessing.

    Attributes
    ----------
    forward
        Tensor (n, 3, h, w) to features or logits (n, d).
    prepare
        Pictures uint8 (n, H, W, 3) to that tensor.
    device
        The device on which it runs.
    """

    forward: Callable[[Tensor], Tensor]
    prepare: Prepare
    device: str

    def outputs(self, pixels: Pixels, prepare: Prepare | None = None) -> Tensor:
        """Return the network's outputs, (n, d) on the CPU; ``prepare`` replaces its own preprocessing."""
        import torch

        with torch.inference_mode():
            inputs = map(prepare or self.prepare, batches(pixels))
            return torch.cat([self.forward(x.to(self.device)).float().cpu() for x in inputs])

    def embed(self, pixels: Pixels, prepare: Prepare | None = None) -> Floats:
        """Return the outputs normalised to unit length."""
        from torch.nn import functional as F

        return np.asarray(F.normalize(self.outputs(pixels, prepare)).numpy())


@dataclass(frozen=True, slots=True)
class Clip(Network):
    """CLIP, which embeds pictures and texts in one space.

    Attributes
    ----------
    texts
        Captions to features (n, d), not normalised; truncated to 77 tokens.
    scale
        The logit scale, by which cosines are multiplied before a softmax; 100 in the published weights.
    """

    texts: Callable[[Sequence[str]], Tensor]
    scale: float

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Return unit embeddings (n, d) of captions."""
        import torch
        from torch.nn import functional as F

        with torch.inference_mode():
            return np.asarray(F.normalize(self.texts(texts).float().cpu()).numpy())

    def choose(self, pixels: Pixels, captions: Sequence[str]) -> Floats:
        """Return zero-shot probabilities (n, k) of captions for each picture (Radford et al. 2021, 3.1.2)."""
        logits = self.scale * (self.embed(pixels) @ self.embed_texts(captions).T)
        found = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(found / found.sum(1, keepdims=True), np.float32)


def clip(device: str = "cpu", *, asked_by: str | None = None) -> Clip:
    """Return CLIP ViT-B/32 (Radford et al. 2021) with OpenAI's weights and open_clip's preprocessing.

    Raises
    ------
    UsageError
        The weights have not been downloaded or do not fit, as for the other networks.
    """
    return _clip(require(CLIP_WEIGHTS, asked_by=asked_by), CLIP, device)


def dino(device: str = "cpu", *, asked_by: str | None = None) -> Network:
    """Return DINO ViT-S/16 (Caron et al. 2021), class token, with its authors' preprocessing."""
    return _dino(require(DINO_WEIGHTS, asked_by=asked_by), DINO, device)


def classifier(device: str = "cpu", *, asked_by: str | None = None) -> Network:
    """Return torchvision's ResNet-50 (weights IMAGENET1K_V1); its outputs are logits of ImageNet's 1,000 classes."""
    return _classifier(require(CLASSIFIER_WEIGHTS, asked_by=asked_by), CLASSIFIER, device)


def keras_classifier(device: str = "cpu", *, asked_by: str | None = None) -> Network:
    """Return the ResNet-50 of He et al. 2016 with Keras's weights, if :func:`classifier`'s are unavailable."""
    return _classifier(require("resnet50-keras", asked_by=asked_by), CLASSIFIER, device, halves_first=True)


def batches(pixels: Pixels) -> Iterator[Pixels]:
    """Split pictures into batches."""
    return (pixels[i : i + _BATCH] for i in range(0, len(pixels), _BATCH))


@cache
def _clip(file: Path, name: str, device: str) -> Clip:
    import open_clip

    try:
        network, transform = open_clip.create_model_from_pretrained(name, pretrained=str(file), device=device)
    except Exception as error:  # such as a truncated file, or another network's weights
        raise _unfit(file, error) from error
    network = network.float().eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(name)
    return Clip(
        network.encode_image,
        _each(transform),
        device,
        lambda texts: network.encode_text(tokenizer(list(texts)).to(device)),
        float(network.logit_scale.exp()),
    )


@cache
def _dino(file: Path, name: str, device: str) -> Network:
    import timm
    from torchvision import transforms

    network = timm.create_model(name, pretrained=False, num_classes=0)
    mean, deviation = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    transform = transforms.Compose([
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(mean, deviation),
    ])  # fmt: skip
    return Network(_filled(network, file, device), _each(transform), device)


@cache
def _classifier(file: Path, name: str, device: str, *, halves_first: bool = False) -> Network:
    from torchvision import models

    network = models.get_model(name, weights=None)
    for stage in (network.layer2, network.layer3, network.layer4) if halves_first else ():
        stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride
    transform = models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    return Network(_filled(network, file, device), _each(transform), device)


def _each(transform: Callable[[Image], Tensor]) -> Prepare:
    """Apply a library's transform of one picture to a batch."""
    import torch
    from PIL.Image import fromarray

    return lambda pixels: torch.stack([transform(fromarray(picture)) for picture in pixels])


def _filled(network: Any, file: Path, device: str) -> Any:
    """Load the weights of a file into a network; they must be complete."""
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(file))
    except Exception as error:
        raise _unfit(file, error) from error
    return network.float().eval().requires_grad_(False).to(device)


def _unfit(file: Path, error: Exception) -> UsageError:
    why = " ".join(str(error).split())[:200]
    return UsageError(f"weights {file.stem} do not fit ({why}); remove the file and download them again", file=file)
