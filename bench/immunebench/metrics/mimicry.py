"""Glaze's two measures of style mimicry, with the judge in place of human raters.

Both are 1 for generated pictures that count as protected, else 0, so that their means are success rates. What they
compare with comes from real pictures only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from immunebench.metrics.similarity import image_similarity

if TYPE_CHECKING:
    from immunebench.metrics.table import Floats, Judge, Pixels

#: Number of top genres of a picture that are considered (Shan et al. 2023, section 6.2).
TOP_GENRES = 3
#: A picture is a poor match if it is less similar to the artist than this percentile of other artists' real pictures.
#: On the dev task style-okafor, LoRA without a defense, six pictures: 1 of 6 lies below it, 4 of 6 below the 95th,
#: all 6 of the start model below either, and none of 16 real unseen ones.
POOR_MATCH_PERCENTILE = 75.0


def genre_shift(judge: Judge, pixels: Pixels, reference: Pixels, genres: Sequence[str]) -> Floats:
    """Return 1 if the artist's genre is not among the three genres closest to a picture, else 0, (n,).

    CLIP-based genre shift (Shan et al. 2023, section 6.2). Closeness is the cosine of the genre's caption to the
    picture. The artist's genre is the one closest to most of the reference's real pictures (the first in case of ties),
    so that artists need no label.

    Parameters
    ----------
    genres
        A caption for each genre, more than three.
    """
    captions = judge.embed_texts(genres).T
    nearest = (judge.embed_images(reference) @ captions).argmax(1)
    own = np.bincount(nearest, minlength=len(genres)).argmax()
    order = np.argsort(-(judge.embed_images(pixels) @ captions), axis=1, kind="stable")
    return np.asarray((order[:, :TOP_GENRES] != own).all(1), np.float32)


def poor_match(judge: Judge, pixels: Pixels, reference: Pixels, others: Pixels) -> Floats:
    """Return 1 if a picture is a poor match of the artist, else 0, (n,); its mean is the protection success rate.

    Shan et al. 2023, section 6.2, ask human raters; here the judge replaces them. A picture's similarity is its mean
    cosine to the reference. A match is poor below the 75th percentile of the similarity of other artists' real
    pictures, that is, if more than a quarter of these are more similar to the artist.

    Parameters
    ----------
    reference, others
        Real pictures of the artist, and of the family's other artists.
    """
    bound = np.percentile(image_similarity(judge, others, reference), POOR_MATCH_PERCENTILE)
    return np.asarray(image_similarity(judge, pixels, reference) < bound, np.float32)
