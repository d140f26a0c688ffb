"""The judges of the embedded world: networks, weights, and one object that answers what metrics ask.

Four small networks, trained by :mod:`immunebench.mini.train_judges`: an open_clip model that grades, a
second classifier of another architecture that checks the base and measures perceptual distance, a face
embedding, and a public classifier that entries may use because it grades nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from immunebench.errors import UsageError
from immunebench.mini import world

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Floats = NDArray[np.float32]

WEIGHTS = Path(__file__).parent / "weights" / "judges"
#: Classes of the two heads. The last of each is for pictures that show nothing.
OBJECTS = (*world.OBJECT_NAMES, "person", "nothing")
STYLES = (*world.STYLE_NAMES, "nothing")
#: The caption of a picture that shows nothing.
NOTHING = "nothing"
CONTEXT = 40
EMBEDDING = 128
_BATCH = 64


class ClipJudge(nn.Module):
    """An open_clip model (ModifiedResNet and a two-layer text transformer) with heads for object and style.

    Parameters
    ----------
    vocabulary
        Number of tokens of the tokenizer.
    """

    def __init__(self, vocabulary: int) -> None:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        super().__init__()
        vision = CLIPVisionCfg(layers=(1, 2, 2, 1), width=16, head_width=64, image_size=64)
        text = CLIPTextCfg(context_length=CONTEXT, vocab_size=vocabulary, width=128, heads=4, layers=2)
        self.clip = CLIP(EMBEDDING, vision, text)
        self.object = nn.Linear(EMBEDDING, len(OBJECTS))
        self.style = nn.Linear(EMBEDDING, len(STYLES))

    def forward(self, x: Tensor) -> Tensor:
        """Embedding (n, 128), not normalised, of pictures (n, 3, 64, 64) in [-1, 1]."""
        return self.clip.encode_image(x)  # type: ignore[no-any-return]

    def text(self, ids: Tensor) -> Tensor:
        """Embedding (n, 128), not normalised, of token ids (n, 40)."""
        return self.clip.encode_text(ids)  # type: ignore[no-any-return]


class Trunk(nn.Module):
    """A VGG-like stack: every stage halves the picture by a strided convolution, then convolves once more."""

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


class Classifier(nn.Module):
    """Names object and style; its first stages serve as a perceptual distance."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.trunk = Trunk(widths)
        self.object = nn.Linear(widths[-1], len(OBJECTS))
        self.style = nn.Linear(widths[-1] + widths[-2], len(STYLES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of object (n, 18) and style (n, 11) for pictures (n, 3, 64, 64) in [-1, 1]."""
        found = [stage.mean((2, 3)) for stage in self.trunk(x)[-2:]]
        return self.object(found[1]), self.style(torch.cat(found, 1))


class FaceNet(nn.Module):
    """A face embedding with the probability that there is a face at all."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.trunk = Trunk(widths)
        self.embedding = nn.Linear(widths[-1] * 16, EMBEDDING)
        self.presence = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding (n, 128), not normalised, and presence logit (n) of pictures (n, 3, 64, 64)."""
        last = self.trunk(x)[-1]
        return self.embedding(last.flatten(1)), self.presence(last.mean((2, 3)))[:, 0]


def build(name: str, vocabulary: int = 0) -> nn.Module:
    """An untrained network: ``clip``, ``second``, ``identity`` or ``public``."""
    if name == "clip":
        return ClipJudge(vocabulary)
    if name == "identity":
        return FaceNet((32, 48, 64, 96))
    return Classifier((32, 64, 96, 112) if name == "second" else (24, 40, 64, 80))


def perceptual_distance(network: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """LPIPS-form distance (Zhang et al. 2018, eq. 1 with unit weights), differentiable.

    Parameters
    ----------
    x, y
        Pictures (n, 3, 64, 64) in [-1, 1].

    Returns
    -------
    Tensor
        (n,), at least 0: squared difference of unit-normalised features, mean over places and three stages.
    """
    parts = []
    for a, b in zip(network.trunk(x)[:3], network.trunk(y)[:3], strict=True):
        parts.append((F.normalize(a, eps=1e-6) - F.normalize(b, eps=1e-6)).square().sum(1).mean((1, 2)))
    return torch.stack(parts).mean(0)


def _load(network: nn.Module, file: Path) -> nn.Module:
    from safetensors.torch import load_file

    if not file.is_file():
        raise UsageError("the judge's weights are not there", file=file)
    network.load_state_dict(load_file(file))
    return network.float().eval().requires_grad_(False)


def load_public(folder: Path | None = None) -> Classifier:
    """The classifier that entries may use: it grades nothing."""
    network = _load(build("public"), (folder or WEIGHTS) / "public.safetensors")
    assert isinstance(network, Classifier)
    return network


def load_public_distance(device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The distance that entries may use, see :func:`perceptual_distance`; pictures may have any size from 8 on."""
    return partial(perceptual_distance, load_public().to(device))


def to_input(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, 64, 64, 3) to float32 (n, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


class MiniJudge:
    """Answers metrics; every network is loaded when first asked. Implements
    :class:`immunebench.metrics.Judge`.

    Parameters
    ----------
    folder
        Weights and tokenizer.
    """

    def __init__(self, folder: Path = WEIGHTS) -> None:
        self.folder = folder

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer of the text tower."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.folder / "tokenizer")

    @cached_property
    def clip(self) -> ClipJudge:
        """The grader of styles, objects and captions."""
        network = _load(build("clip", len(self.tokenizer)), self.folder / "clip.safetensors")
        assert isinstance(network, ClipJudge)
        return network

    @cached_property
    def second(self) -> Classifier:
        """The classifier that checks the base and measures perceptual distance."""
        network = _load(build("second"), self.folder / "second.safetensors")
        assert isinstance(network, Classifier)
        return network

    @cached_property
    def identity(self) -> FaceNet:
        """The grader of faces."""
        network = _load(build("identity"), self.folder / "identity.safetensors")
        assert isinstance(network, FaceNet)
        return network

    @torch.inference_mode()
    def embed_images(self, pixels: NDArray[np.uint8]) -> Floats:
        """Unit embeddings (n, 128) of pictures uint8 (n, 64, 64, 3)."""
        return _joined(F.normalize(self.clip(x)) for x in _batches(pixels))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit embeddings (n, 128) of captions."""
        return np.asarray(F.normalize(self.clip.text(token_ids(self.tokenizer, texts))).numpy())

    @torch.inference_mode()
    def probabilities(self, pixels: NDArray[np.uint8], *, second: bool = False) -> tuple[Floats, Floats]:
        """Probabilities of :data:`OBJECTS` (n, 18) and :data:`STYLES` (n, 11), by grader or ``second``."""
        found = []
        for x in _batches(pixels):
            if second:
                found.append(self.second(x))
            else:
                embedding = self.clip(x)
                found.append((self.clip.object(embedding), self.clip.style(embedding)))
        return _joined(a.softmax(1) for a, _ in found), _joined(b.softmax(1) for _, b in found)

    def concept_probability(self, pixels: NDArray[np.uint8], name: str) -> Floats:
        """Probability (n,) that each picture shows a known object or style.

        Raises
        ------
        UsageError
            The name is neither an object nor a style that the judge knows.
        """
        by_object, by_style = self.probabilities(pixels)
        if name in OBJECTS:
            return by_object[:, OBJECTS.index(name)]
        if name in STYLES:
            return by_style[:, STYLES.index(name)]
        raise UsageError("the judge knows no concept", value=name, choices={*OBJECTS, *STYLES})

    def caption_scores(self, pixels: NDArray[np.uint8], captions: Sequence[str]) -> Floats:
        """How well captions fit pictures, (n, k): probability of the object each names, else cosine to its words.

        The object decides where every caption names another one, for the second judge sees it in styles in which
        the embedding sees the style only.
        """
        named = [[i for i, name in enumerate(OBJECTS) if name in caption.split()] for caption in captions]
        if all(len(found) == 1 for found in named) and len({found[0] for found in named}) == len(captions):
            by_object, _ = self.probabilities(pixels, second=True)
            return by_object[:, [found[0] for found in named]]
        found: Floats = self.embed_images(pixels) @ self.embed_texts(captions).T
        return found

    def nothing_probability(self, pixels: NDArray[np.uint8]) -> Floats:
        """Geometric mean (n,) of the class "nothing" over both heads of both judges.

        Both must agree: each alone is unsure of what lies far from its own training pictures, the first of the
        noise of broken weights, the second of artists that it has not seen.
        """
        heads = [head for second in (False, True) for head in self.probabilities(pixels, second=second)]
        nothing = np.stack([head[:, -1] for head in heads])
        return np.asarray(np.exp(np.log(np.maximum(nothing, 1e-6)).mean(0)), np.float32)

    @torch.inference_mode()
    def embed_faces(self, pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Unit face embeddings (n, 128) and the probability (n,) that there is a face."""
        found = [self.identity(x) for x in _batches(pixels)]
        return _joined(F.normalize(e) for e, _ in found), _joined(p.sigmoid() for _, p in found)

    @torch.inference_mode()
    def perceptual(self, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> Floats:
        """Perceptual distance (n,) between pictures of equal index; see :func:`perceptual_distance`."""
        return _joined(perceptual_distance(self.second, x, y) for x, y in zip(_batches(a), _batches(b), strict=True))


def _batches(pixels: NDArray[np.uint8]) -> Iterator[Tensor]:
    return (to_input(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH))


def _joined(parts: Iterator[Tensor]) -> Floats:
    return np.asarray(torch.cat(list(parts)).numpy())


def token_ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Token ids int64 (n, 40); the end token pads."""
    ids = tokenizer(list(texts), padding="max_length", truncation=True, max_length=CONTEXT).input_ids
    return torch.tensor(ids, dtype=torch.int64)


def load(folder: Path | None = None) -> MiniJudge:
    """The judge named ``mini`` in ``models.toml``."""
    return MiniJudge(folder or WEIGHTS)
