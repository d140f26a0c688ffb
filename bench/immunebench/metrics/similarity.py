"""Similarity by the judge: to a reference set, training pictures, captions, or a known concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.metrics.table import Floats, Judge, Pixels


def image_similarity(judge: Judge, pixels: Pixels, reference: Pixels) -> Floats:
    """Return the judge's mean cosine to the reference, (n,); as CLIP-I (Ruiz et al. 2023, section 4.3)."""
    found: Floats = judge.embed_images(pixels) @ judge.embed_images(reference).mean(0)
    return found


def nearest_training(judge: Judge, pixels: Pixels, training: Pixels) -> Floats:
    """Return the cosine distance to the nearest training picture, (n,), 0 for a copy.

    It is to be compared with that of unseen real pictures: an attack far below them copies, one close to them has
    learned the concept.
    """
    nearest = (judge.embed_images(pixels) @ judge.embed_images(training).T).max(1)
    found: Floats = np.maximum(1 - nearest, np.float32(0))
    return found


def concept_probability(judge: Judge, pixels: Pixels, concept: str) -> Floats:
    """Return the judge's probability of a concept that it knows, (n,)."""
    return judge.concept_probability(pixels, concept)


def trait_agreement(judge: Judge, pixels: Pixels, concept_id: str) -> Floats:
    """Return how well each picture matches a concept: the mean probability of the true value of its traits, (n,).

    Unreadable traits count as in near misses (similar but different concepts), so that a grey picture is no match.
    """
    return judge.agreement(pixels, concept_id)[0]


def unreadable(judge: Judge, pixels: Pixels, concept_id: str) -> Floats:
    """Return the share of a concept's traits that are unreadable in each picture, (n,)."""
    return judge.agreement(pixels, concept_id)[1]


def caption_accuracy(judge: Judge, pixels: Pixels, own: Sequence[str], captions: Sequence[str]) -> Floats:
    """Return 1 if a picture's own caption fits it best among ``captions``, else 0, (n,).

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
    nearest = judge.caption_scores(pixels, list(captions)).argmax(1)
    return np.asarray(nearest == [list(captions).index(caption) for caption in own], np.float32)


def prompt_accuracy(judge: Judge, pixels: Pixels, own: Sequence[str], contents: Mapping[str, str]) -> Floats:
    """Return 1 if the content of a picture's own prompt fits it best among those of all prompts, else 0, (n,).

    Parameters
    ----------
    own
        The prompt of each picture.
    contents
        The content of each prompt without the placeholder. Chance level is 1 / the number of different contents.

    Raises
    ------
    UsageError
        A picture's own prompt has no content.
    """
    for prompt in own:
        if prompt not in contents:
            raise UsageError("not among the prompts", field="prompt_accuracy", value=prompt, choices=contents)
    candidates = list(dict.fromkeys(contents.values()))
    best = judge.caption_scores(pixels, candidates).argmax(1)
    return np.asarray(best == [candidates.index(contents[prompt]) for prompt in own], np.float32)
