"""Identity metrics of Anti-DreamBooth (Van Le et al. 2023, section 5.1): ISM and FDFR."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.metrics.table import Floats, Judge, Pixels

#: Detection threshold of a face.
DETECTED = 0.5


def _identity(judge: Judge, reference: Pixels) -> Floats:
    """Return the mean embedding (d,) of the faces detected in the reference."""
    faces, presence = judge.embed_faces(reference)
    if not (presence >= DETECTED).any():
        raise UsageError("the reference shows no face", field="ism", value=len(reference))
    mean: Floats = faces[presence >= DETECTED].mean(0)
    return mean


def ism0(judge: Judge, pixels: Pixels, reference: Pixels) -> Floats:
    """Return identity score matching, (n,): mean cosine to the reference's faces, 0 if no face is detected."""
    faces, presence = judge.embed_faces(pixels)
    found: Floats = np.where(presence >= DETECTED, faces @ _identity(judge, reference), np.float32(0))
    return found


def ism(judge: Judge, pixels: Pixels, reference: Pixels) -> Floats:
    """Return identity score matching of the pictures with a face only, (m,), m <= n; empty if there are none."""
    faces, presence = judge.embed_faces(pixels)
    return faces[presence >= DETECTED] @ _identity(judge, reference)


def fdfr(judge: Judge, pixels: Pixels) -> Floats:
    """Return 1 if no face is detected, else 0, (n,); its mean is the face detection failure rate."""
    return np.asarray(judge.embed_faces(pixels)[1] < DETECTED, np.float32)
