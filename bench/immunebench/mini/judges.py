"""The judge of the embedded world, and a public classifier for entries.

Two readers (:mod:`immunebench.mini.readers`) classify the traits of pictures; the first one is used for scores. Their
probabilities also serve as embeddings of pictures and captions. Entries may use the public classifier, as no metric
uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from immunebench.core.errors import UsageError
from immunebench.mini import readers, traits, world
from immunebench.mini.readers import PlainTrunk, Reader
from immunebench.mini.traits import TRAITS

Floats = NDArray[np.float32]
N = TypeVar("N", bound=nn.Module)

WEIGHTS = Path(__file__).parent / "weights" / "judges"
#: The class of a head for pictures without content.
NOTHING = "nothing"
#: The heads for the kind of subject and for the style.
OBJECTS = (*TRAITS["kind"], NOTHING)
STYLES = (*TRAITS["procedure"], NOTHING)
#: Number of near misses from which chance levels of traits are estimated: the pictures of a task's anchor, so that a
#: completely unreadable picture scores 0.
STRANGERS = 64
_BATCH = 64


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
        raise UsageError("the judge's weights are missing", file=file)
    network.load_state_dict(load_file(file))
    return network.float().eval().requires_grad_(False)


def load_public(folder: Path | None = None) -> Classifier:
    """Load the classifier that entries may use; no metric uses it."""
    return _load(Classifier(), (folder or WEIGHTS) / "public.safetensors")


def load_public_distance(device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Load the distance that entries may use, see :func:`perceptual_distance`, for pictures of at least 8 pixels."""
    return partial(perceptual_distance, load_public().to(device))


def to_input(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, 64, 64, 3) to float32 (n, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


class MiniJudge:
    """Implements :class:`immunebench.metrics.table.Judge`; every network is loaded on first use.

    Parameters
    ----------
    folder
        Weights.
    """

    def __init__(self, folder: Path = WEIGHTS) -> None:
        self.folder = folder
        self.chances = cache(self._chances)

    @cached_property
    def reader(self) -> Reader:
        """The reader used for scores."""
        return readers.load("reader", self.folder)

    @cached_property
    def second(self) -> Reader:
        """The reader that checks the base and the first reader, and measures perceptual distance."""
        return readers.load("second", self.folder)

    def embed_images(self, pixels: NDArray[np.uint8]) -> Floats:
        """Return unit embeddings (n, answers) of pictures uint8 (n, 64, 64, 3): square roots of all probabilities.

        The cosine of two pictures is the mean over traits of the Bhattacharyya coefficient of their probabilities.
        """
        return np.asarray(np.sqrt(np.concatenate(list(self.read(pixels).values()), 1) / len(TRAITS)), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Return unit embeddings (n, answers) of captions from the traits that they name, in the pictures' space."""
        found = np.zeros((len(texts), sum(readers.ANSWERS)), np.float32)
        starts = dict(zip(TRAITS, np.cumsum([0, *readers.ANSWERS[:-1]]).tolist(), strict=True))
        for row, text in zip(found, texts, strict=True):
            names = traits.named(text)
            for trait, value in names.items():
                row[starts[trait] + TRAITS[trait].index(value)] = len(names) ** -0.5
        return found

    @torch.inference_mode()
    def read(self, pixels: NDArray[np.uint8], *, second: bool = False) -> dict[str, Floats]:
        """Return the probabilities (n, values + 1) of every trait by name; the last column is "cannot be read"."""
        network = self.second if second else self.reader
        logits = torch.cat([network(x) for x in _batches(pixels)])
        return {trait: part.softmax(1).numpy() for trait, part in readers.split(logits).items()}

    def _chances(self, concept: str) -> dict[str, float]:
        """Return the chance level of each of a concept's traits: its mean probability in near misses."""
        pixels, _ = world.concept_pictures(f"{world.NEAR}{concept}", "reference", STRANGERS)
        read = self.read(pixels)
        return {trait: float(read[trait][:, TRAITS[trait].index(value)].mean())
                for trait, value in world.concept_traits(concept).items()}  # fmt: skip

    def agreement(self, pixels: NDArray[np.uint8], concept: str) -> tuple[Floats, Floats]:
        """Return the mean probability (n,) of a concept's traits in pictures, and the share (n,) of unreadable ones.

        Unreadable traits count as in near misses, so that a grey picture counts as a different concept.

        Raises
        ------
        UsageError
            The concept has no defining traits.
        """
        try:
            own = world.concept_traits(concept)
        except KeyError:
            raise UsageError("the judge knows no traits of the concept", value=concept) from None
        read, chances = self.read(pixels), self.chances(concept)
        lost = np.stack([read[trait][:, -1] for trait in own], 1)
        true = np.stack([read[trait][:, TRAITS[trait].index(value)] for trait, value in own.items()], 1)
        chance = np.asarray([chances[trait] for trait in own], np.float32)
        return (true + lost * chance).mean(1), lost.mean(1)

    def probabilities(self, pixels: NDArray[np.uint8], *, second: bool = False) -> tuple[Floats, Floats]:
        """Return the probabilities of :data:`OBJECTS` and :data:`STYLES`, by the first or the ``second`` reader."""
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
        """Return how well captions fit pictures, (n, k): mean log-probability of the traits that each caption names.

        A caption without traits (:func:`immunebench.mini.traits.named`) has the same, lowest score for every picture.
        """
        read = {trait: np.log(np.maximum(p, 1e-4)) for trait, p in self.read(pixels).items()}
        scores = np.full((len(pixels), len(captions)), np.log(1e-4), np.float32)
        for k, caption in enumerate(captions):
            names = traits.named(caption)
            if names:
                scores[:, k] = np.mean([read[t][:, TRAITS[t].index(value)] for t, value in names.items()], 0)
        return scores

    def nothing_probability(self, pixels: NDArray[np.uint8]) -> Floats:
        """Return the geometric mean (n,) of "cannot be read" for subject and style, over both readers.

        Both must agree, as each alone is unreliable far from its own training pictures.
        """
        heads = [head for second in (False, True) for head in self.probabilities(pixels, second=second)]
        nothing = np.stack([head[:, -1] for head in heads])
        return np.asarray(np.exp(np.log(np.maximum(nothing, 1e-6)).mean(0)), np.float32)

    @torch.inference_mode()
    def embed_faces(self, pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return unit features (n, 256) of the reader, and the probability (n,) that there is a face."""
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


def load(folder: Path | None = None) -> MiniJudge:
    """Return the judge named ``mini`` in ``models.toml``."""
    return MiniJudge(folder or WEIGHTS)
