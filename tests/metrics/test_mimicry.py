"""Genre shift, poor matches, faces and fidelity on made-up embeddings, detections and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from immunebench.core.errors import UsageError
from immunebench.core.types import Pictures
from immunebench.execution import grading as stages
from immunebench.execution.grading import load_judge, run_score
from immunebench.metrics.faces import OpenCVFaces
from immunebench.metrics.pixels import psnr, ssim
from immunebench.metrics.table import Judge, score

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

GENRES = ["g0", "g1", "g2", "g3", "g4"]


class Table:
    """A judge that looks a picture's embedding up by its first value; genre k is the k-th unit vector."""

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        self.rows = np.array(rows, np.float32)

    def embed_images(self, pixels: Pixels) -> Floats:
        return cast(Floats, self.rows[pixels[:, 0, 0, 0]])

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        return np.eye(5, dtype=np.float32)[[GENRES.index(text) for text in texts]]


def named(*numbers: int) -> Pictures:
    """Pictures whose first value is a number."""
    return Pictures(np.stack([np.full((4, 4, 3), n, np.uint8) for n in numbers]), ("x",) * len(numbers))


def test_a_genre_has_shifted_where_the_artists_own_is_not_among_the_three_nearest() -> None:
    judge = Table(
        [
            [0.1, 0.9, 0.0, 0.2, 0.0],  # 0, 1: real pictures nearest to g1 ...
            [0.0, 0.8, 0.3, 0.1, 0.0],
            [0.0, 0.1, 0.9, 0.0, 0.0],  # 2: ... and one to g2, so the artist's own genre is g1
            [0.5, 0.3, 0.4, 0.1, 0.2],  # 3: g0, g2, g1: kept, at the third place
            [0.5, 0.2, 0.4, 0.3, 0.1],  # 4: g0, g2, g3: shifted
            [0.0, 0.9, 0.0, 0.0, 0.0],  # 5: kept
        ]
    )
    found = score(["genre_shift"], cast(Judge, judge), named(3, 4, 5), named(0, 1, 2), genres=GENRES)
    assert found == {"genre_shift@1": [0.0, 1.0, 0.0]}


def test_a_match_is_poor_below_what_a_quarter_of_the_pictures_of_others_reaches() -> None:
    # Likeness to the artist is the first coordinate: 0, 1/20, ..., 1 for others, whose 75th percentile is 0.75.
    others = [[k / 20, 0, 0, 0, 0] for k in range(21)]
    own = [[1, 0, 0, 0, 0], [0.74, 0, 0, 0, 0], [0.76, 0, 0, 0, 0]]
    judge = cast(Judge, Table([*others, *own]))
    real, strangers = named(21), named(*range(21))
    found = score(["poor_match"], judge, named(22, 23), real, others=strangers)
    assert found == {"poor_match@1": [1.0, 0.0]}
    # The bound is of real pictures alone: what is drawn beside a picture changes nothing.
    assert score(["poor_match"], judge, named(23, 0, 22), real, others=strangers)["poor_match@1"] == [0.0, 1.0, 1.0]


def test_a_score_stage_joins_the_familys_other_concepts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Of 0.1 and 0.5 the 75th percentile is 0.4; of either alone it is that value itself.
    judge = Table([[1, 0, 0, 0, 0], [0.39, 0, 0, 0, 0], [0.41, 0, 0, 0, 0], [0.1, 0, 0, 0, 0], [0.5, 0, 0, 0, 0]])
    monkeypatch.setattr(stages, "load_judge", lambda name: judge)
    inputs = {}
    pictures = {"generated": named(1, 2), "reference": named(0), "other_0": named(3), "other_1": named(4)}
    for name, part in pictures.items():
        inputs[name] = tmp_path / name
        inputs[name].mkdir()
        part.save(inputs[name])
    rows = [{"id": "poor_match", "version": 1}, {"id": "genre_shift", "version": 1}]
    run_score({"metrics": rows, "judge": "x", "genres": GENRES}, inputs, tmp_path, lambda *_: None)
    found = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert found["poor_match@1"] == {"values": [1.0, 0.0], "mean": 0.5}
    assert found["genre_shift@1"]["mean"] == 0.0


class Detector:
    """Finds the faces that a test says, by the picture's first value."""

    def __init__(self, faces: dict[int, list[list[float]]]) -> None:
        self.faces = faces

    def setInputSize(self, size: tuple[int, int]) -> None:
        assert size == (4, 4)

    def detect(self, bgr: Pixels) -> tuple[int, Any]:
        found = self.faces.get(int(bgr[0, 0, 2]))
        return 1, None if found is None else np.array(found, np.float32)


class Recogniser:
    """Embeds a face by the place of its box."""

    def alignCrop(self, bgr: Pixels, face: Any) -> Any:
        return face

    def feature(self, face: Any) -> Floats:
        vector = np.zeros((1, 128), np.float32)
        vector[0, int(face[0])] = 7.0
        return vector


def face(place: int, side: float, score: float = 0.95) -> list[float]:
    """A detection's row: box, five landmarks, score."""
    return [place, 0, side, side, *[0.0] * 10, score]


def test_real_faces_count_by_the_largest_in_a_picture_and_not_at_all_where_there_is_none() -> None:
    judge = OpenCVFaces()
    judge.__dict__["detector"] = Detector({1: [face(5, 2)], 2: [face(6, 2), face(5, 3)], 3: [face(6, 1)]})
    judge.__dict__["recogniser"] = Recogniser()
    found = score(["fdfr", "ism", "ism0"], cast(Judge, judge), named(1, 2, 3, 9), named(1))
    assert found["fdfr@1"] == [0.0, 0.0, 0.0, 1.0]
    assert found["ism@1"] == [1.0, 1.0, 0.0], "the larger face of the second picture, another person in the third"
    assert found["ism0@1"] == [1.0, 1.0, 0.0, 0.0]


def test_a_judge_without_its_weights_says_so_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from immunebench.catalog.loading import default_catalog

    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    expected = r"judge faces: weights yunet are missing; get them with: immunebench weights fetch yunet"
    with pytest.raises(UsageError, match=expected):
        load_judge("faces")
    with pytest.raises(UsageError, match=expected):
        default_catalog().judge_files("faces")


def test_psnr_agrees_with_torchmetrics_and_equal_pictures_have_ssim_1() -> None:
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio

    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    b = (a + rng.integers(-9, 10, a.shape)).clip(0, 255).astype(np.uint8)
    wanted = peak_signal_noise_ratio(
        torch.from_numpy(a).float(), torch.from_numpy(b).float(), data_range=255.0, reduction="none", dim=(1, 2, 3)
    )
    assert psnr(a, b) == pytest.approx(wanted.numpy(), rel=1e-5)
    assert ssim(a, a) == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)
    assert ssim(a, b).max() < 1
