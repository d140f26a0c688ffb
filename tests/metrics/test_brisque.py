"""BRISQUE's fits against samples of known distributions, and its regression against a sum by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from immunebench.bases import weights
from immunebench.bases.weights import brisque_tensors
from immunebench.metrics import brisque


@pytest.mark.parametrize("shape", [1.0, 2.0, 4.0])
def test_the_symmetric_fit_finds_the_shape_and_variance_of_a_sample(shape: float) -> None:
    x = stats.gennorm(shape, scale=3.0).rvs(100_000, random_state=0)
    found, variance = brisque.symmetric_fit(x)
    assert found == pytest.approx(shape, rel=0.05)
    assert variance == pytest.approx(stats.gennorm(shape, scale=3.0).var(), rel=0.03)


def test_the_skewed_fit_finds_both_sides_and_the_mean_of_a_sample() -> None:
    rng = np.random.default_rng(0)
    normal = np.abs(rng.normal(size=90_000))
    # A density that is continuous at 0 has as much on each side as that side is wide.
    x = np.where(rng.random(normal.size) < 2 / 3, -2 * normal, normal)
    nu, mean, left, right = brisque.skewed_fit(x)
    assert nu == pytest.approx(2.0, rel=0.05)
    assert (left, right) == (pytest.approx(4.0, rel=0.03), pytest.approx(1.0, rel=0.03))
    assert mean == pytest.approx(-math.sqrt(2 / math.pi), rel=0.03)
    assert mean == pytest.approx(x.mean(), rel=0.03)


def test_brightness_is_normalised_by_its_neighbourhood() -> None:
    assert brisque.normalised(np.full((9, 9), 77.0)) == pytest.approx(np.zeros((9, 9)), abs=1e-6)
    # Far from the edge a step is flat; next to it, more contrast than the constant 1 brings values to about +-1.
    step = np.zeros((20, 20))
    step[:, 10:] = 200.0
    found = brisque.normalised(step)
    assert found[10, 2] == pytest.approx(0.0, abs=1e-6) and found[10, 17] == pytest.approx(0.0, abs=1e-4)
    assert found[10, 9] < -0.5 and found[10, 10] > 0.5


SVM = "svm_type epsilon_svr\nkernel_type rbf\ngamma 0.5\nnr_class 2\ntotal_sv 2\nrho -10\nSV\n3 1:1 \n-2 2:-1 \n"


def test_the_regression_is_the_sum_over_support_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = brisque_tensors(SVM, {"min_": [0.0, 0.0], "max_": [2.0, 4.0]})
    assert tensors["vectors"].tolist() == [[1.0, 0.0], [0.0, -1.0]]
    monkeypatch.setattr(brisque, "_model", lambda: {name: tensor.numpy() for name, tensor in tensors.items()})
    monkeypatch.setattr(brisque, "features", lambda picture: np.array([1.0, 4.0]))
    # Scaled to (0, 1): squared distances 2 and 4, so 3 exp(-1) - 2 exp(-2) + 10.
    found = brisque.brisque(np.zeros((1, 8, 8, 3), np.uint8))
    assert found == pytest.approx([3 * math.exp(-1) - 2 * math.exp(-2) + 10])


def test_noise_raises_the_score_of_a_picture_with_the_spectrum_of_photos() -> None:
    if not weights.FETCHABLE["brisque"].file("brisque").is_file():
        pytest.skip("the weights brisque have not been fetched (immunebench weights fetch brisque)")
    rng = np.random.default_rng(0)
    # Noise whose power falls with the square of the frequency has the spectrum of photos.
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    grey = np.fft.ifft2(np.fft.fft2(rng.normal(size=(256, 256))) / np.maximum(radius, 1 / 256)).real
    grey = 128 + 45 * grey / grey.std()
    clean = np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, 2)
    noisy = (clean + rng.normal(0, 40, clean.shape)).clip(0, 255).astype(np.uint8)
    scores = brisque.brisque(np.stack([clean, noisy]))
    assert scores[1] > scores[0] + 10


def test_an_asset_in_bytes_is_kept_as_it_was_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    asset = weights.Asset("a test", {"nowhere": lambda: 1 / 0, "here": lambda: b"onnx"}, ".onnx")  # type: ignore[dict-item, return-value]
    monkeypatch.setitem(weights.FETCHABLE, "toy", asset)
    said: list[str] = []
    assert weights.fetch("toy", said.append).read_bytes() == b"onnx"
    assert said[:2] == ["toy: trying nowhere", "toy: trying here"]
    assert weights.require("toy") == tmp_path / "toy.onnx"


def test_a_download_with_another_digest_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from immunebench.core.errors import UsageError

    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(weights, "_download", lambda url: b"something else")
    with pytest.raises(UsageError, match="YuNet has another SHA-256"):
        weights.fetch("yunet", lambda _: None)
    assert not list(tmp_path.iterdir())
