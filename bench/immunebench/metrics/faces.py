"""The judge `faces` in ``models.toml``: OpenCV's YuNet for face detection and SFace for face recognition.

It implements only `Judge.embed_faces`, which is sufficient for FDFR, ISM and ISM0.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from immunebench.bases.weights import require
from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.metrics.table import Floats, Pixels

#: Smallest score of a detection, as in OpenCV's sample for face recognition.
_LEAST_SCORE = 0.9
_EMBEDDING = 128


class OpenCVFaces:
    """YuNet (Wu et al. 2023) and SFace (Zhong et al. 2021), applied to the largest face of each picture."""

    @cached_property
    def detector(self) -> Any:
        """YuNet, which detects faces with five landmarks each."""
        return _cv2().FaceDetectorYN.create(str(require("yunet", asked_by="judge faces")), "", (64, 64), _LEAST_SCORE)

    @cached_property
    def recogniser(self) -> Any:
        """SFace, which embeds a face aligned by its landmarks."""
        return _cv2().FaceRecognizerSF.create(str(require("sface", asked_by="judge faces")), "")

    def embed_faces(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """Return unit embeddings (n, 128) and detection scores (n,), both 0 for pictures without a face."""
        found = [self._embed(np.ascontiguousarray(picture[..., ::-1])) for picture in pixels]
        return np.stack([embedding for embedding, _ in found]), np.array([score for _, score in found], np.float32)

    def _embed(self, bgr: Pixels) -> tuple[Floats, float]:
        self.detector.setInputSize((bgr.shape[1], bgr.shape[0]))
        _, faces = self.detector.detect(bgr)
        if faces is None or not len(faces):
            return np.zeros(_EMBEDDING, np.float32), 0.0
        # A row holds x, y, width, height, five landmarks and the score.
        largest = max(faces, key=lambda face: float(face[2] * face[3]))
        embedding = self.recogniser.feature(self.recogniser.alignCrop(bgr, largest)).reshape(-1)
        return np.asarray(embedding / np.linalg.norm(embedding), np.float32), float(largest[-1])


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        how = "OpenCV is not installed; get it with: pip install 'immunebench[face]'"
        raise UsageError(how, field="judge faces") from error
    return cv2


def load() -> OpenCVFaces:
    """Return the judge named ``faces`` in ``models.toml``, with both networks loaded.

    Raises
    ------
    UsageError
        OpenCV or weights are missing; the message has the command that gets them.
    """
    judge = OpenCVFaces()
    _ = judge.detector, judge.recogniser
    return judge
