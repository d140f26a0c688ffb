"""The judges of the embedded world: networks, weights, and one object that answers what metrics ask.

Two readers (:mod:`immunebench.mini.readers`) read the traits of what is drawn; the first grades. An open_clip model
says how captions fit and embeds pictures, as judges of full-size bases do; a public classifier is for entries to use
because it grades nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from immunebench.errors import UsageError
from immunebench.mini import readers, world
from immunebench.mini.readers import PlainTrunk, Reader
from immunebench.mini.traits import TRAITS

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Floats = NDArray[np.float32]
N = TypeVar("N", bound=nn.Module)

WEIGHTS = Path(__file__).parent / "weights" / "judges"
#: The answer of a head to a picture that shows nothing.
NOTHING = "nothing"
#: What pictures show and how they are painted, as heads name it.
OBJECTS = (*TRAITS["kind"], NOTHING)
STYLES = (*TRAITS["procedure"], NOTHING)
CONTEXT = 64
EMBEDDING = 128
#: Near misses by which the chance of a stranger's trait is known.
STRANGERS = 64
_BATCH = 64


class ClipJudge(nn.Module):
    """An open_clip model (ModifiedResNet and a two-layer text transformer).

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

    def forward(self, x: Tensor) -> Tensor:
        """Embedding (n, 128), not normalised, of pictures (n, 3, 64, 64) in [-1, 1]."""
        return self.clip.encode_image(x)  # type: ignore[no-any-return]

    def text(self, ids: Tensor) -> Tensor:
        """Embedding (n, 128), not normalised, of token ids (n, 64)."""
        return self.clip.encode_text(ids)  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """Names object and style; its first stages serve as a perceptual distance."""

    def __init__(self, widths: Sequence[int] = (24, 40, 64, 80)) -> None:
        super().__init__()
        self.trunk = PlainTrunk(widths)
        self.object = nn.Linear(widths[-1], len(OBJECTS))
        self.style = nn.Linear(widths[-1] + widths[-2], len(STYLES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of :data:`OBJECTS` and :data:`STYLES` for pictures (n, 3, 64, 64) in [-1, 1]."""
        found = [stage.mean((2, 3)) for stage in self.trunk(x)[-2:]]
        return self.object(found[1]), self.style(torch.cat(found, 1))


def perceptual_distance(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
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
    for a, b in zip(network.trunk(x)[:3], network.trunk(y)[:3], strict=True):  # type: ignore[operator]
        parts.append((F.normalize(a, eps=1e-6) - F.normalize(b, eps=1e-6)).square().sum(1).mean((1, 2)))
    return torch.stack(parts).mean(0)


def _load(network: N, file: Path) -> N:
    from safetensors.torch import load_file

    if not file.is_file():
        raise UsageError("the judge's weights are not there", file=file)
    network.load_state_dict(load_file(file))
    return network.float().eval().requires_grad_(False)


def load_public(folder: Path | None = None) -> Classifier:
    """The classifier that entries may use: it grades nothing."""
    return _load(Classifier(), (folder or WEIGHTS) / "public.safetensors")


def load_public_distance(device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The distance that entries may use, see :func:`perceptual_distance`; pictures may have any size from 8 on."""
    return partial(perceptual_distance, load_public().to(device))


def to_input(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, 64, 64, 3) to float32 (n, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


class MiniJudge:
    """Answers metrics; every network is loaded when first asked. Implements :class:`immunebench.metrics.Judge`.

    Parameters
    ----------
    folder
        Weights and tokenizer.
    """

    def __init__(self, folder: Path = WEIGHTS) -> None:
        self.folder = folder
        self.chances = cache(self._chances)

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer of the text tower."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.folder / "tokenizer")

    @cached_property
    def clip(self) -> ClipJudge:
        """The judge of captions."""
        return _load(ClipJudge(len(self.tokenizer)), self.folder / "clip.safetensors")

    @cached_property
    def reader(self) -> Reader:
        """The reader that grades."""
        return readers.load("reader", self.folder)

    @cached_property
    def second(self) -> Reader:
        """The reader that checks the base and the first, and measures perceptual distance."""
        return readers.load("second", self.folder)

    @torch.inference_mode()
    def embed_images(self, pixels: NDArray[np.uint8]) -> Floats:
        """Unit embeddings (n, 128) of pictures uint8 (n, 64, 64, 3)."""
        return _joined(F.normalize(self.clip(x)) for x in _batches(pixels))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit embeddings (n, 128) of captions."""
        return np.asarray(F.normalize(self.clip.text(token_ids(self.tokenizer, texts))).numpy())

    @torch.inference_mode()
    def read(self, pixels: NDArray[np.uint8], *, second: bool = False) -> dict[str, Floats]:
        """Probabilities (n, values + 1) of every trait's values by name; the last column is "cannot be read"."""
        network = self.second if second else self.reader
        logits = torch.cat([network(x) for x in _batches(pixels)])
        return {trait: part.softmax(1).numpy() for trait, part in readers.split(logits).items()}

    def _chances(self, concept: str) -> dict[str, float]:
        """Mean probability of each of a concept's traits in near misses: what a stranger has by chance."""
        pixels, _ = world.concept_pictures(f"{world.NEAR}{concept}", "unseen", STRANGERS)
        read = self.read(pixels)
        return {trait: float(read[trait][:, TRAITS[trait].index(value)].mean())
                for trait, value in world.concept_traits(concept).items()}  # fmt: skip

    def agreement(self, pixels: NDArray[np.uint8], concept: str) -> tuple[Floats, Floats]:
        """How far pictures show a concept: its traits' mean probability (n,), and the share (n,) that is unreadable.

        A trait that cannot be read counts as in near misses, so that grey is a stranger: neither learned nor
        protected.

        Raises
        ------
        UsageError
            The concept has no traits of its own.
        """
        try:
            traits = world.concept_traits(concept)
        except KeyError:
            raise UsageError("the judge knows no traits of the concept", value=concept) from None
        read, chances = self.read(pixels), self.chances(concept)
        lost = np.stack([read[trait][:, -1] for trait in traits], 1)
        true = np.stack([read[trait][:, TRAITS[trait].index(value)] for trait, value in traits.items()], 1)
        chance = np.asarray([chances[trait] for trait in traits], np.float32)
        return (true + lost * chance).mean(1), lost.mean(1)

    def probabilities(self, pixels: NDArray[np.uint8], *, second: bool = False) -> tuple[Floats, Floats]:
        """Probabilities of :data:`OBJECTS` and :data:`STYLES`, by the grading or the ``second`` reader."""
        read = self.read(pixels, second=second)
        return read["kind"], read["procedure"]

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

        The object decides where every caption names another one, for the second reader sees it in styles in which
        the embedding sees the style only.
        """
        named = [[i for i, name in enumerate(OBJECTS) if name in caption.split()] for caption in captions]
        if all(len(found) == 1 for found in named) and len({found[0] for found in named}) == len(captions):
            by_object, _ = self.probabilities(pixels, second=True)
            return by_object[:, [found[0] for found in named]]
        found: Floats = self.embed_images(pixels) @ self.embed_texts(captions).T
        return found

    def nothing_probability(self, pixels: NDArray[np.uint8]) -> Floats:
        """Geometric mean (n,) of "cannot be read" of what is shown and how it is painted, over both readers.

        Both must agree: each alone is unsure of what lies far from its own training pictures.
        """
        heads = [head for second in (False, True) for head in self.probabilities(pixels, second=second)]
        nothing = np.stack([head[:, -1] for head in heads])
        return np.asarray(np.exp(np.log(np.maximum(nothing, 1e-6)).mean(0)), np.float32)

    @torch.inference_mode()
    def embed_faces(self, pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Unit features (n, 256) by which the reader knows people, and the probability (n,) that there is a face."""
        found = [self.reader.embed(x) for x in _batches(pixels)]
        person = TRAITS["kind"].index("person")
        presence = [readers.split(self.reader.heads(e))["kind"].softmax(1)[:, person] for e in found]
        return _joined(F.normalize(e) for e in found), _joined(presence)

    @torch.inference_mode()
    def perceptual(self, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> Floats:
        """Perceptual distance (n,) between pictures of equal index; see :func:`perceptual_distance`."""
        return _joined(perceptual_distance(self.second, x, y) for x, y in zip(_batches(a), _batches(b), strict=True))


def _batches(pixels: NDArray[np.uint8]) -> Iterator[Tensor]:
    return (to_input(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH))


def _joined(parts: Iterable[Tensor]) -> Floats:
    return np.asarray(torch.cat(list(parts)).numpy())


def token_ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Token ids int64 (n, 64); the end token pads."""
    ids = tokenizer(list(texts), padding="max_length", truncation=True, max_length=CONTEXT).input_ids
    return torch.tensor(ids, dtype=torch.int64)


def load(folder: Path | None = None) -> MiniJudge:
    """The judge named ``mini`` in ``models.toml``."""
    return MiniJudge(folder or WEIGHTS)
