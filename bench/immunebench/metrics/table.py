"""Metrics: one table, which imports no torch, and one function that computes any of them.

A metric is a plain function in a module of this package. Its row in the table lists the arguments that it takes, so
that callers pass all inputs they have, and get one value per picture.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from immunebench.core.types import Pictures

    Pixels = NDArray[np.uint8]
    Floats = NDArray[np.float32]

Direction = Literal["higher", "lower"]


class Judge(Protocol):
    """Interface of judges, the evaluation networks that metrics use; pictures are uint8 (n, H, W, 3)."""

    def embed_images(self, pixels: Pixels) -> Floats:
        """Return unit embeddings (n, d) of pictures."""

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Return unit embeddings (n, d) of texts, in the space of the pictures' embeddings."""

    def caption_scores(self, pixels: Pixels, captions: Sequence[str]) -> Floats:
        """Return scores (n, k) of how well each caption fits each picture."""

    def embed_faces(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """Return unit face embeddings (n, d) and the probability (n,) that there is a face."""

    def concept_probability(self, pixels: Pixels, name: str) -> Floats:
        """Return the probability (n,) that a picture shows a concept."""

    def agreement(self, pixels: Pixels, concept: str) -> tuple[Floats, Floats]:
        """Return the mean probability (n,) of a concept's traits, and the share (n,) of unreadable traits."""

    def nothing_probability(self, pixels: Pixels) -> Floats:
        """Return the probability (n,) that a picture has no content: one colour, noise, a blur."""

    def perceptual(self, a: Pixels, b: Pixels) -> Floats:
        """Return the perceptual distance (n,) between pictures of equal index."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table.

    Attributes
    ----------
    id, version
        ``id@version`` identifies the metric in records; the version increases whenever values could change.
    direction
        Whether a higher or a lower value means more similar or more accurate.
    range
        Smallest and largest value; None if unbounded.
    needs
        Arguments of the function by name: ``judge``, ``pixels``, ``reference``, ``training``, ``captions``,
        ``own``, ``contents``, ``concept``, ``concept_id``, ``others``, ``genres``.
    function
        ``module:name``.
    weights
        Names of weights that must be downloaded first; see :mod:`immunebench.bases.weights`.
    """

    id: str
    version: int
    direction: Direction
    range: tuple[float | None, float | None]
    needs: tuple[str, ...]
    function: str
    weights: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """``id@version``."""
        return f"{self.id}@{self.version}"

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


_JUDGED, _TO_REFERENCE, _PAIR = ("judge", "pixels"), ("judge", "pixels", "reference"), ("pixels", "reference")
_HERE = "immunebench.metrics"
_ROWS = (
    Metric("image_similarity", 1, "higher", (-1, 1), _TO_REFERENCE, f"{_HERE}.similarity:image_similarity"),
    Metric(
        "nearest_training",
        2,
        "lower",
        (0, 2),
        (*_JUDGED, "training"),
        f"{_HERE}.similarity:nearest_training",
    ),
    Metric(
        "concept_probability",
        1,
        "higher",
        (0, 1),
        (*_JUDGED, "concept"),
        f"{_HERE}.similarity:concept_probability",
    ),
    Metric(
        "caption_accuracy",
        2,
        "higher",
        (0, 1),
        (*_JUDGED, "own", "captions"),
        f"{_HERE}.similarity:caption_accuracy",
    ),
    Metric(
        "prompt_accuracy",
        1,
        "higher",
        (0, 1),
        (*_JUDGED, "own", "contents"),
        f"{_HERE}.similarity:prompt_accuracy",
    ),
    Metric("trait_agreement", 1, "higher", (0, 1), (*_JUDGED, "concept_id"), f"{_HERE}.similarity:trait_agreement"),
    Metric("unreadable", 1, "lower", (0, 1), (*_JUDGED, "concept_id"), f"{_HERE}.similarity:unreadable"),
    Metric("collapse", 1, "lower", (0, 1), _JUDGED, f"{_HERE}.collapse:collapse"),
    Metric("genre_shift", 1, "lower", (0, 1), (*_TO_REFERENCE, "genres"), f"{_HERE}.mimicry:genre_shift"),
    Metric("poor_match", 1, "lower", (0, 1), (*_TO_REFERENCE, "others"), f"{_HERE}.mimicry:poor_match"),
    Metric("ism0", 1, "higher", (-1, 1), _TO_REFERENCE, f"{_HERE}.identity:ism0"),
    Metric("ism", 1, "higher", (-1, 1), _TO_REFERENCE, f"{_HERE}.identity:ism"),
    Metric("fdfr", 1, "lower", (0, 1), _JUDGED, f"{_HERE}.identity:fdfr"),
    Metric("perceptual", 1, "lower", (0, None), _TO_REFERENCE, f"{_HERE}.perceptual:perceptual"),
    Metric("lpips", 1, "lower", (0, None), _PAIR, f"{_HERE}.perceptual:lpips_alex", ("lpips-alex",)),
    Metric("linf", 1, "lower", (0, 255), _PAIR, f"{_HERE}.pixels:linf"),
    Metric("psnr", 1, "higher", (0, None), _PAIR, f"{_HERE}.pixels:psnr"),
    Metric("ssim", 2, "higher", (-1, 1), _PAIR, f"{_HERE}.pixels:ssim"),
    Metric("brisque", 1, "lower", (None, None), ("pixels",), f"{_HERE}.brisque:brisque", ("brisque",)),
    # Similarity as measured in papers: with current preprocessing, and with that of IMMA's published figures.
    *(
        Metric(
            f"{network}_similarity{recipe}",
            1,
            "higher",
            (least, 1),
            _PAIR,
            f"{_HERE}.continuity:{network}_similarity{recipe}",
            (weights,),
        )
        for network, least, weights in (
            ("clip", -1, "clip-vit-b32"),
            ("dino", -1, "dino-vits16"),
            ("lpips", None, "lpips-alex"),
        )
        for recipe in ("", "_legacy")
    ),
)
METRICS: dict[str, Metric] = {metric.id: metric for metric in _ROWS}


def find(metric: str) -> Metric:
    """Return the row of a metric.

    Raises
    ------
    UsageError
        There is no such metric; the message has the nearest one.
    """
    if metric not in METRICS:
        raise UsageError("unknown metric", field="metrics", value=metric, choices=METRICS)
    return METRICS[metric]


def score(
    metrics: Iterable[str],
    judge: Judge | None,
    generated: Pictures,
    reference: Pictures | None = None,
    *,
    training: Pictures | None = None,
    captions: Sequence[str] = (),
    contents: Mapping[str, str] | None = None,
    concept: str | None = None,
    others: Pictures | None = None,
    genres: Sequence[str] = (),
) -> dict[str, list[float]]:
    """Compute metrics on pictures, one value per picture.

    Parameters
    ----------
    metrics
        Ids out of :data:`METRICS`.
    judge
        Loaded judge; None if no metric needs one.
    generated
        Pictures to score; their captions are their prompts.
    reference
        Pictures to compare with: a set of any size, or for paired metrics one per generated picture.
    training
        The attacker's pictures.
    captions
        Candidates of ``caption_accuracy``, including every generated picture's own.
    contents
        For ``prompt_accuracy``: the content of each prompt, without the placeholder.
    concept
        Name of a concept that the judge knows, with its family for metrics on traits.
    others
        Real pictures of other concepts of the family, with which ``poor_match`` compares.
    genres
        Captions of the candidate genres of ``genre_shift``.

    Returns
    -------
    dict
        Values by ``id@version``.

    Raises
    ------
    UsageError
        Unknown metric, missing argument or missing weights; raised before anything is computed.
    """
    available: Mapping[str, object] = {
        "judge": judge,
        "pixels": generated.pixels,
        "reference": None if reference is None else reference.pixels,
        "training": None if training is None else training.pixels,
        "captions": tuple(captions) or None,
        "own": generated.captions,
        "contents": contents or None,
        "concept": None if concept is None else concept.rpartition("/")[2],
        "concept_id": concept,
        "others": None if others is None else others.pixels,
        "genres": tuple(genres) or None,
    }
    rows = [find(metric) for metric in metrics]
    for row in rows:
        for need in row.needs:
            if available[need] is None:
                raise UsageError(f"metric {row.id} needs", value=need)
        for name in row.weights:
            from immunebench.bases.weights import require

            require(name, asked_by=f"metric {row.id}")
    return {row.key: [float(v) for v in row.load()(*(available[need] for need in row.needs))] for row in rows}
