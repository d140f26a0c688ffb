"""Likeness in the judge's embedding: to a reference set, training pictures, captions, a known concept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from immunebench.errors import UsageError

if TYPE_CHECKING:
    from immunebench.metrics import Floats, Judge, Pixels


def image_similarity(judge: Judge, pixels: Pixels, reference: Pixels) -> Floats:
    """Mean over the reference of the cosine to each picture, (n,); CLIP-I (Ruiz et al. 2023, section 4.3)."""
    found: Floats = judge.embed_images(pixels) @ judge.embed_images(reference).mean(0)
    return found


def nearest_training(judge: Judge, pixels: Pixels, training: Pixels) -> Floats:
    """Greatest cosine to any training picture, (n,): close to 1 where an attack merely copies."""
    found: Floats = (judge.embed_images(pixels) @ judge.embed_images(training).T).max(1)
    return found


def concept_probability(judge: Judge, pixels: Pixels, concept: str) -> Floats:
    """The judge's probability of a concept that it knows, (n,)."""
    return judge.concept_probability(pixels, concept)


def caption_accuracy(judge: Judge, pixels: Pixels, own: Sequence[str], captions: Sequence[str]) -> Floats:
    """1 where a picture's own caption is the nearest of all ``captions``, else 0, (n,).

    Raises
    ------
    UsageError
        A picture's own caption is not among the candidates.
    """
    for caption in own:
        if caption not in captions:
            raise UsageError(
                "not among the captions to choose from",
                field="caption_accuracy",
                value=caption,
                choices=captions,
            )
    nearest = (judge.embed_images(pixels) @ judge.embed_texts(captions).T).argmax(1)
    return np.asarray(nearest == [list(captions).index(caption) for caption in own], np.float32)
