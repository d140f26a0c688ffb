"""FID and KID against the formulas in numpy, on features that are simple to compute by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.linalg import sqrtm
from torch import Tensor, nn
from typer.testing import CliRunner

from immunebench.cli.main import app
from immunebench.core.errors import UsageError
from immunebench.metrics import sets
from immunebench.metrics.sets import fid, kid

Pixels = NDArray[np.uint8]
N = 1000


class Corners(nn.Module):
    """Red of the four pixels of a picture, the second also times the third, as five features."""

    num_features = 5

    def forward(self, x: Tensor) -> Tensor:
        red = x[:, 0].flatten(1).float() / 255
        return torch.cat([red, red[:, 1:2] * red[:, 2:3]], 1)


class Quarters(nn.Module):
    """Mean red of each quarter of a picture of any size."""

    num_features = 4

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x[:, :1].float() / 255, 2).flatten(1)


def pictures(seed: int, count: int = N, spread: float = 40, mean: float = 120) -> Pixels:
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(mean, spread, (count, 2, 2, 3)), 0, 255).astype(np.uint8)


def features(shown: Pixels) -> NDArray[np.float64]:
    red = shown[..., 0].reshape(len(shown), 4) / 255
    return np.concatenate([red, red[:, 1:2] * red[:, 2:3]], 1)


def test_fid_is_the_frechet_distance_of_the_features() -> None:
    made, real = pictures(0, mean=130), pictures(1, count=1200, spread=30)
    a, b = features(made), features(real)
    product = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
    traces = np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * np.real(sqrtm(product)))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + traces
    assert expected > 0.01
    assert fid(made, real, Corners()) == pytest.approx(expected, rel=1e-3)
    assert fid(real, real, Corners()) == pytest.approx(0, abs=1e-5)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten subsets in the place of a hundred."""
    monkeypatch.setattr(sets, "_SUBSETS", 10)


@pytest.mark.usefixtures("few")
def test_kid_is_the_unbiased_cubic_kernel_distance() -> None:
    made, real = pictures(0, mean=130), pictures(1, spread=30)
    a, b = features(made), features(real)

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return (x @ y.T / 5 + 1) ** 3

    def apart(x: NDArray[np.float64]) -> float:
        k = kernel(x, x)
        return float((k.sum() - np.trace(k)) / (N * (N - 1)))

    expected = apart(a) + apart(b) - 2 * kernel(a, b).mean()
    mean, deviation = kid(made, real, Corners())
    assert mean == pytest.approx(expected, rel=1e-2, abs=1e-6)
    assert deviation == pytest.approx(0, abs=1e-6), "subsets of 1,000 of 1,000 are all the same"


@pytest.mark.usefixtures("few")
def test_kid_draws_the_same_subsets_for_a_seed_and_leaves_the_callers_draws_alone() -> None:
    made, real = pictures(0, count=1100), pictures(1, count=1100)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = kid(made, real, Corners())
    assert torch.rand(1) == expected
    assert kid(made, real, Corners()) == first
    assert first[1] > 0
    assert kid(made, real, Corners(), seed=1) != first


@pytest.mark.parametrize("metric", [fid, kid])
@pytest.mark.parametrize(("made", "real"), [(N - 1, N), (N, 12)])
def test_small_sets_are_refused_in_one_line_before_any_network_is_asked(metric: object, made: int, real: int) -> None:
    name, short = metric.__name__, min(made, real)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=rf"{name}: needs at least 1,000 pictures in each set, not {short}") as caught:
        metric(pictures(0, made), pictures(1, real))  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_missing_inception_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(UsageError, match=r"fid: weights inception-fid are missing.*weights fetch inception-fid"):
        fid(pictures(0), pictures(1))


def test_missing_torch_fidelity_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torchmetrics.image import fid as library

    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(library, "_TORCH_FIDELITY_AVAILABLE", False)
    save_file({"a": torch.zeros(1)}, tmp_path / "inception-fid.safetensors")
    sets.inception.cache_clear()
    with pytest.raises(UsageError, match=r"fid: torch-fidelity is not installed.*pip install 'immunebench\[fid\]'"):
        sets.inception()


def test_inception_answers_with_the_weights_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    from safetensors.torch import save_file

    # The constructor wants weights too; random ones of the same names come from its parts.
    blank = extractor.FeatureExtractorInceptionV3
    monkeypatch.setattr(blank, "load_state_dict", lambda self, state: None)
    monkeypatch.setattr(extractor, "load_state_dict_from_url", lambda *_, **__: {})
    torch.manual_seed(0)
    network = blank("inception-v3-compat", ["2048"])
    monkeypatch.undo()
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    save_file(network.state_dict(), tmp_path / "inception-fid.safetensors")
    sets.inception.cache_clear()
    shown = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 40, 40)).astype(np.uint8))
    found = sets.inception()
    assert found(shown).shape == (2, 2048)
    kept = found.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in network.state_dict().items())
    sets.inception.cache_clear()


@pytest.mark.usefixtures("few")
def test_the_command_measures_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network and small sets in the place of Inception and thousands; each pixel enlarged to a quarter."""
    monkeypatch.setattr(sets, "LEAST", 20)
    monkeypatch.setattr(sets, "_SUBSET", 20)
    monkeypatch.setattr(sets, "inception", Quarters)
    shown = {"drawn": pictures(0, 20, mean=150), "real": pictures(1, 20)}
    for name, pixels in shown.items():
        (tmp_path / name).mkdir()
        for i, picture in enumerate(pixels.repeat(4, 1).repeat(4, 2)):
            Image.fromarray(picture).save(tmp_path / name / f"{i:03d}.png")
    command = ["fid", str(tmp_path / "drawn"), str(tmp_path / "real"), "--side", "8"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["pictures"] == [20, 20]
    assert found["fid"] == pytest.approx(fid(*shown.values(), Quarters()), rel=1e-6)
    assert found["kid"] == pytest.approx(kid(*shown.values(), Quarters())[0], rel=1e-6)


def test_the_command_refuses_small_sets_before_it_reads_any_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    result = CliRunner().invoke(app, ["fid", str(tmp_path), str(tmp_path)])
    assert result.exit_code != 0
    assert str(result.exception) == "DRAWN: needs at least 1,000 pictures in each set, not 1"


def test_what_is_missing_is_said_before_a_picture_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path / "weights"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(sets.LEAST):
            (tmp_path / name / f"{number}.png").write_bytes(b"no picture, which reading it would say")
    sets.inception.cache_clear()
    found = CliRunner().invoke(app, ["fid", str(tmp_path / "a"), str(tmp_path / "b")]).exception
    assert isinstance(found, UsageError) and "weights inception-fid are missing" in str(found)
    (tmp_path / "b" / "0.png").unlink()
    found = CliRunner().invoke(app, ["fid", str(tmp_path / "a"), str(tmp_path / "b")]).exception
    assert "REFERENCE: needs at least 1,000 pictures in each set, not 999" in str(found)
