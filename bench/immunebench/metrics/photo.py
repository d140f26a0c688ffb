"""The judge `photo` in ``models.toml``: photographs and paintings, for Stable Diffusion bases.

It consists of published networks that no entry trains: CLIP for similarity and captions, ResNet-50 for objects, LPIPS
for perceptual distance, YuNet and SFace for faces. Validated on real pictures are the objects (with Keras's weights),
distances, faces and the pixel-based detection of empty pictures. The parts that use CLIP are not validated yet.
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
    from immunebench.metrics.faces import OpenCVFaces
    from immunebench.metrics.table import Floats, Pixels

#: The artists that it classifies, by their name in tasks: those of ESD's and IMMA's evaluations, and others that CLIP
#: knows well, as alternatives for paintings by none of the former.
ARTISTS = {
    "van-gogh": "Vincent van Gogh", "picasso": "Pablo Picasso", "rembrandt": "Rembrandt",
    "andy-warhol": "Andy Warhol", "caravaggio": "Caravaggio",
    "kelly-mckernan": "Kelly McKernan", "thomas-kinkade": "Thomas Kinkade", "tyler-edlin": "Tyler Edlin",
    "kilian-eng": "Kilian Eng", "ajin-demi-human": "the series Ajin: Demi-Human",
    "monet": "Claude Monet", "cezanne": "Paul Cezanne", "hokusai": "Hokusai", "klimt": "Gustav Klimt",
    "dali": "Salvador Dali", "munch": "Edvard Munch", "vermeer": "Johannes Vermeer", "turner": "J. M. W. Turner",
}  # fmt: skip
#: Caption of the class of pictures by no artist.
_NO_ARTIST = "a photograph"
#: Captions of pictures without content, and of pictures with content.
NOTHING = (
    "a blank picture", "a picture of one colour", "random noise", "television static", "a blurred smudge of colours",
    "a meaningless texture", "a corrupted picture",
)  # fmt: skip
SOMETHING = (
    "a photo of a thing", "a photo of a person", "a photo of an animal", "a photo of a place", "a photo of food",
    "a painting", "a painting of a landscape", "a portrait", "a drawing", "an illustration",
)  # fmt: skip
#: Number of cells per side of the grid on which contrast is measured.
_GRID = 16
#: Contrast between those cells, in 8-bit levels, up to which a picture has no content, and from which it may have
#: content. The smallest of 29 photographs of paintings, a dog and a backpack is 16.8; white noise of 512 x 512 has 2.4,
#: a drawing of a few thin lines on white 9.8.
_FLAT, _VARIED = 4.0, 8.0


class PhotoJudge:
    """Implements :class:`immunebench.metrics.table.Judge`; every network is loaded on first use.

    Parameters
    ----------
    device
        Device of the networks. Stages use the CPU with one thread: the cache key of a score includes no device, so the
        score must not depend on it. Faces and LPIPS always use the CPU.
    classifier
        Loader of the ImageNet classifier. Stages use torchvision's.
    """

    def __init__(self, device: str = "cpu", classifier: Callable[..., networks.Network] = networks.classifier) -> None:
        self.device = device
        self.classifier = classifier

    @property
    def clip(self) -> networks.Clip:
        """CLIP ViT-B/32."""
        return networks.clip(self.device, asked_by="judge photo")

    @cached_property
    def faces(self) -> OpenCVFaces:
        """The judge for faces."""
        from immunebench.metrics.faces import OpenCVFaces

        return OpenCVFaces()

    def embed_images(self, pixels: Pixels) -> Floats:
        """Return CLIP's unit embeddings (n, 512) of pictures uint8 (n, H, W, 3), center-cropped to 224 pixels."""
        return self.clip.embed(pixels)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Return CLIP's unit embeddings (n, 512) of captions."""
        return self.clip.embed_texts(texts)

    def caption_scores(self, pixels: Pixels, captions: Sequence[str]) -> Floats:
        """Return the cosine (n, k) of pictures and captions, CLIPScore without its factor (Hessel et al. 2021)."""
        found: Floats = self.embed_images(pixels) @ self.embed_texts(captions).T
        return found

    def concept_probability(self, pixels: Pixels, name: str) -> Floats:
        """Return the probability (n,) that pictures show a class of ImageNet, or are by an artist of :data:`ARTISTS`.

        Classes, such as the ten of Imagenette, are classified by ResNet-50's softmax over all 1,000, as in ESD's
        evaluation (Gandikota et al. 2023). ESD uses the weights IMAGENET1K_V2 for their top-1 accuracy. Here a
        calibrated probability is needed, which V2's training with mixed labels lowers, so V1 is used.

        Artists are classified by CLIP's zero-shot softmax over the listed artists and "a photograph". The probability
        is relative to that list: paintings by other artists are assigned to one of it.

        Raises
        ------
        UsageError
            The concept is unknown, or its name is that of two classes.
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
        """Return the probability (n,) that a picture has no content: 1 - (1 - p)(1 - q), as either part may detect it.

        p is :func:`blank`, from the pixels. q is CLIP's zero-shot probability of all captions without content together
        ("random noise", "a blank picture", ...) against captions of ordinary pictures ("a painting", ...). The
        threshold of the metric ``collapse`` was calibrated with another judge; until it is calibrated on dev tasks of a
        full-size base, q's contribution is only an indication.
        """
        q = self.clip.choose(pixels, [*NOTHING, *SOMETHING])[:, : len(NOTHING)].sum(1)
        return np.asarray(1 - (1 - blank(pixels)) * (1 - np.minimum(q, 1)), np.float32)

    def embed_faces(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """Return SFace's unit embeddings (n, 128) and YuNet's scores (n,), 0 without a face."""
        return self.faces.embed_faces(pixels)

    def perceptual(self, a: Pixels, b: Pixels) -> Floats:
        """Return LPIPS with AlexNet (n,) between pictures of equal index."""
        from immunebench.metrics.perceptual import lpips_alex

        return lpips_alex(a, b)


def blank(pixels: Pixels) -> Floats:
    """Return the degree, 0 to 1, to which pictures have no content, from the pixels alone, (n,).

    It is 1 for white noise, whose neighbouring pixels do not correlate, and if the means of 16 x 16 cells vary by at
    most 4 of 255 (largest standard deviation of a channel), and falls to 0 at 8. Blur and coarse blobs vary more and
    are left to CLIP.
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
    """Return the index of each class of ImageNet by an id from its name: ``english-springer``, ``golf-ball``.

    Names that two classes share (cardigan, the dog and the jacket) are left out.
    """
    from torchvision.models import ResNet50_Weights

    names = ["-".join(_letters(name).split()) for name in ResNet50_Weights.IMAGENET1K_V1.meta["categories"]]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return {name: number for number, name in enumerate(names) if name not in shared}


def _letters(name: str) -> str:
    """Return a name in lower case with only letters, digits and spaces; apostrophes are removed."""
    lower = name.lower().replace("'", "")
    return "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in lower)


def load() -> PhotoJudge:
    """Return the judge named ``photo`` in ``models.toml``."""
    return PhotoJudge()
