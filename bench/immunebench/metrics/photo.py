"""The judge of photographs and paintings, for bases of Stable Diffusion's kind: `photo` in ``models.toml``.

Published networks that no entry trains: CLIP for likeness and captions, ResNet-50 for things, LPIPS for perceptual
distance, YuNet and SFace for faces. What it says of real pictures has been looked at where weights were to be had:
of things (with Keras's weights), distances and faces, and of nothing by the pixels. What rests on CLIP has not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np

from immunebench.core.errors import UsageError
from immunebench.metrics import networks
from immunebench.metrics.collapse import LEAST_CORRELATION, neighbour_correlation

if TYPE_CHECKING:
    from immunebench.metrics import Floats, Pixels
    from immunebench.metrics.faces import OpenCVFaces

#: Artists that it tells apart, by the name that a task gives them: those of ESD's and IMMA's evaluations, and others
#: that CLIP has seen much of, so that a painting by none of the first has somewhere to go.
ARTISTS = {
    "van-gogh": "Vincent van Gogh", "picasso": "Pablo Picasso", "rembrandt": "Rembrandt",
    "andy-warhol": "Andy Warhol", "caravaggio": "Caravaggio",
    "kelly-mckernan": "Kelly McKernan", "thomas-kinkade": "Thomas Kinkade", "tyler-edlin": "Tyler Edlin",
    "kilian-eng": "Kilian Eng", "ajin-demi-human": "the series Ajin: Demi-Human",
    "monet": "Claude Monet", "cezanne": "Paul Cezanne", "hokusai": "Hokusai", "klimt": "Gustav Klimt",
    "dali": "Salvador Dali", "munch": "Edvard Munch", "vermeer": "Johannes Vermeer", "turner": "J. M. W. Turner",
}  # fmt: skip
#: What is no painting is by no artist.
_NO_ARTIST = "a photograph"
#: Captions of pictures that show nothing, and of those that show something.
NOTHING = (
    "a blank picture", "a picture of one colour", "random noise", "television static", "a blurred smudge of colours",
    "a meaningless texture", "a corrupted picture",
)  # fmt: skip
SOMETHING = (
    "a photo of a thing", "a photo of a person", "a photo of an animal", "a photo of a place", "a photo of food",
    "a painting", "a painting of a landscape", "a portrait", "a drawing", "an illustration",
)  # fmt: skip
#: Places a side over which contrast is looked for.
_GRID = 16
#: Contrast between those places, in 8-bit steps, up to which a picture shows nothing, and from which it may show
#: something. Of 29 photographs of paintings, a dog and a backpack the least has 16.8; white noise of 512 x 512 has
#: 2.4, a drawing of a few thin lines on white 9.8.
_FLAT, _VARIED = 4.0, 8.0


class PhotoJudge:
    """Answers metrics; every network is loaded when first asked. Implements :class:`immunebench.metrics.Judge`.

    Parameters
    ----------
    device
        Where networks compute. Stages leave it at the CPU, under one thread: the key of a score names no device, so
        it must not depend on one. Faces and LPIPS stay there in any case.
    classifier
        Loads the network that names classes of ImageNet. Stages leave it at torchvision's.
    """

    def __init__(self, device: str = "cpu", classifier: Callable[..., networks.Network] = networks.classifier) -> None:
        self.device = device
        self.classifier = classifier

    @property
    def clip(self) -> networks.Clip:
        """CLIP ViT-B/32, which most questions go to."""
        return networks.clip(self.device, asked_by="judge photo")

    @cached_property
    def faces(self) -> OpenCVFaces:
        """The judge of faces."""
        from immunebench.metrics.faces import OpenCVFaces

        return OpenCVFaces()

    def embed_images(self, pixels: Pixels) -> Floats:
        """CLIP's unit embeddings (n, 512) of pictures uint8 (n, H, W, 3), the central square of each at 224 pixels."""
        return self.clip.embed(pixels)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """CLIP's unit embeddings (n, 512) of captions."""
        return self.clip.embed_texts(texts)

    def caption_scores(self, pixels: Pixels, captions: Sequence[str]) -> Floats:
        """Cosine (n, k) of each picture to each caption, as CLIPScore before its factor (Hessel et al. 2021)."""
        found: Floats = self.embed_images(pixels) @ self.embed_texts(captions).T
        return found

    def concept_probability(self, pixels: Pixels, name: str) -> Floats:
        """Probability (n,) that each picture shows a class of ImageNet, or is by an artist of :data:`ARTISTS`.

        A class, such as the ten of Imagenette, by the softmax of ResNet-50 over all 1,000, the classifier's family in
        ESD's evaluation (Gandikota et al. 2023). That took weights IMAGENET1K_V2 for their top-1
        accuracy; here a probability is wanted, and V2's training by mixed labels spreads it thin, so V1 answers.

        An artist by CLIP's zero-shot softmax over the artists listed and "a photograph". It is relative to that list:
        a painter who is not on it has to be somebody.

        Raises
        ------
        UsageError
            It knows no such concept, or two of that name.
        """
        if name in ARTISTS:
            captions = [f"an artwork by {artist}" for artist in ARTISTS.values()]
            return self.clip.choose(pixels, [*captions, _NO_ARTIST])[:, list(ARTISTS).index(name)]
        known = imagenet()
        if name not in known:
            raise UsageError("the judge knows no concept", value=name, choices={*known, *ARTISTS})
        logits = self.classifier(self.device, asked_by="judge photo").outputs(pixels)
        return np.asarray(logits.softmax(1)[:, known[name]].numpy())

    def nothing_probability(self, pixels: Pixels) -> Floats:
        """Probability (n,) that a picture shows nothing: 1 - (1 - p)(1 - q), for either part may see it alone.

        p is :func:`blank`, by the pixels. q is CLIP's zero-shot probability of all captions of nothing together
        ("random noise", "a blank picture", ...) against captions of ordinary pictures ("a painting", ...). Where the
        metric ``collapse`` draws its line was set on another judge; until it is set on dev tasks of a full-size base,
        read q's share of it as an indication.
        """
        q = self.clip.choose(pixels, [*NOTHING, *SOMETHING])[:, : len(NOTHING)].sum(1)
        return np.asarray(1 - (1 - blank(pixels)) * (1 - np.minimum(q, 1)), np.float32)

    def embed_faces(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """SFace's unit embeddings (n, 128) and YuNet's score (n,), 0 without a face."""
        return self.faces.embed_faces(pixels)

    def perceptual(self, a: Pixels, b: Pixels) -> Floats:
        """LPIPS with AlexNet (n,) between pictures of equal index."""
        from immunebench.metrics.perceptual import lpips_alex

        return lpips_alex(a, b)


def blank(pixels: Pixels) -> Floats:
    """How surely the pixels alone say that a picture shows nothing, (n,), 0 to 1.

    1 for white noise, whose neighbours do not correlate, and where the means of 16 x 16 places differ by at most 4
    steps of 255 (standard deviation of the channel that varies most); falling to 0 at 8. A blur and coarse blobs
    differ by more: those it leaves to CLIP.
    """
    count, height, width, _ = pixels.shape
    places = [np.array_split(np.arange(side), min(_GRID, side)) for side in (height, width)]
    rows = np.stack([pixels[:, part].mean(1, dtype=np.float64) for part in places[0]], 1)
    means = np.stack([rows[:, :, part].mean(2) for part in places[1]], 2)
    contrast = means.reshape(count, -1, 3).std(1).max(1)
    flat = np.clip((_VARIED - contrast) / (_VARIED - _FLAT), 0, 1)
    return np.asarray(np.where(neighbour_correlation(pixels) < LEAST_CORRELATION, 1, flat), np.float32)


@cache
def imagenet() -> dict[str, int]:
    """Number of each class of ImageNet, by its name as an id: ``english-springer``, ``golf-ball``.

    A name that two classes share (cardigan, the dog and the jacket) is left out.
    """
    from torchvision.models import ResNet50_Weights

    names = ["-".join(_letters(name).split()) for name in ResNet50_Weights.IMAGENET1K_V1.meta["categories"]]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return {name: number for number, name in enumerate(names) if name not in shared}


def _letters(name: str) -> str:
    """A name in lower case with letters and digits alone, apostrophes dropped."""
    kept = name.lower().replace("'", "")
    return "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in kept)


def load() -> PhotoJudge:
    """The judge named ``photo`` in ``models.toml``."""
    return PhotoJudge()
