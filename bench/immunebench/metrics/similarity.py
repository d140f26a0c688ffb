"""Likeness in the judge's embedding: to a reference set, training pictures, captions, a known concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.metrics import Floats, Judge, Pixels


def image_similarity(judge: Judge, pixels: Pixels, reference: Pixels) -> Floats:
    """Mean over the reference of the cosine to each picture, (n,); CLIP-I (Ruiz et al. 2023, section 4.3)."""
    found: Floats = judge.embed_images(pixels) @ judge.embed_images(reference).mean(0)
    return found


def nearest_training(judge: Judge, pixels: Pixels, training: Pixels) -> Floats:
    """Cosine distance to the nearest training picture, (n,), 0 for a copy.

    It has a meaning beside that of real pictures which the attacker never saw: an attack that lies well below
    them copies, one that lies near them has learnt.
    """
    nearest = (judge.embed_images(pixels) @ judge.embed_images(training).T).max(1)
    found: Floats = np.maximum(1 - nearest, np.float32(0))
    return found


def concept_probability(judge: Judge, pixels: Pixels, concept: str) -> Floats:
    """The judge's probability of a concept that it knows, (n,)."""
    return judge.concept_probability(pixels, concept)


def trait_agreement(judge: Judge, pixels: Pixels, concept_id: str) -> Floats:
    """How far each picture shows a concept: the mean probability of the true value over its traits, (n,).

    A trait that cannot be read counts as much as it does in near misses, so that grey is a stranger.
    """
    return judge.agreement(pixels, concept_id)[0]


def unreadable(judge: Judge, pixels: Pixels, concept_id: str) -> Floats:
    """Share of a concept's traits that cannot be read in each picture, (n,)."""
    return judge.agreement(pixels, concept_id)[1]


def caption_accuracy(judge: Judge, pixels: Pixels, own: Sequence[str], captions: Sequence[str]) -> Floats:
    """1 where a picture's own caption fits it best of all ``captions``, else 0, (n,).

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
    """1 where the content of a picture's own prompt fits it best of the contents of all prompts, else 0, (n,).

    Parameters
    ----------
    own
        The prompt of each picture.
    contents
        What each prompt asks for without the placeholder, in words that the judge knows. A guess is right once
        in as many as there are different contents.

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
