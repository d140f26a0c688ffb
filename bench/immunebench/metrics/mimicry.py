"""Does a protection of pictures stop the mimicry of a style: Glaze's two measures, with the judge for the raters.

Both are shares over generated pictures, 1 where a picture counts for the protection and 0 where it does not, and both
take what they are held against from real pictures alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from immunebench.metrics.similarity import image_similarity

if TYPE_CHECKING:
    from immunebench.metrics import Floats, Judge, Pixels

#: Genres of a picture that are looked at (Shan et al. 2023, section 6.2).
TOP_GENRES = 3
#: A picture is a poor match where it is less like the artist than this percentile of other artists' real pictures.
#: On the dev task style-okafor, LoRA without a defense, six pictures: 1 of 6 lies below it, 4 of 6 below the 95th,
#: all 6 of the start model below either, and none of 16 real unseen ones.
POOR_MATCH_PERCENTILE = 75.0


def genre_shift(judge: Judge, pixels: Pixels, reference: Pixels, genres: Sequence[str]) -> Floats:
    """1 where the three genres that the judge finds nearest to a picture lack the artist's own, else 0, (n,).

    CLIP-based genre shift (Shan et al. 2023, section 6.2). A genre is as near as the cosine of its caption to the
    picture. The artist's own is the one that is nearest to most of the reference's real pictures, the earlier in the
    list of equal ones, so that no artist needs a label.

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
    """1 where a picture is a poor match of the artist, else 0, (n,); its mean is the protection success rate.

    Shan et al. 2023, section 6.2, ask raters; here the judge stands for them. A picture's likeness is its mean cosine
    to the reference. It is poor below the 75th percentile of the likeness of other artists' real pictures: where more
    than a quarter of what somebody else painted is more like the artist.

    Parameters
    ----------
    reference, others
        Real pictures of the artist, and of the family's other artists.
    """
    bound = np.percentile(image_similarity(judge, others, reference), POOR_MATCH_PERCENTILE)
    return np.asarray(image_similarity(judge, pixels, reference) < bound, np.float32)
