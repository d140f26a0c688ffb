"""Keras's ResNet-50 under torchvision's names, against Keras's own arithmetic written out, and on real pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from immunebench.bases import keras_resnet, weights
from immunebench.metrics import networks
from immunebench.metrics.photo import PhotoJudge

Arrays = dict[str, NDArray[np.float32]]
PHOTOS = Path(__file__).parents[3] / "shared" / "photos"


def shapes() -> dict[str, tuple[int, ...]]:
    """Keras's names and shapes, as its model is described."""
    found: dict[str, tuple[int, ...]] = {"fc1000/kernel": (2048, 1000), "fc1000/bias": (1000,)}

    def layer(kernel: str, norm: str, side: int, before: int, after: int) -> None:
        found[f"{kernel}/kernel"], found[f"{kernel}/bias"] = (side, side, before, after), (after,)
        found.update({f"{norm}/{name}": (after,) for name in ("gamma", "beta", "moving_mean", "moving_variance")})

    layer("conv1", "bn_conv1", 7, 3, 64)
    before = 64
    for stage, letters, width in ((2, "abc", 64), (3, "abcd", 128), (4, "abcdef", 256), (5, "abc", 512)):
        for letter in letters:
            name = f"{stage}{letter}_branch"
            if letter == "a":
                layer(f"res{name}1", f"bn{name}1", 1, before, 4 * width)
            for part, side, into, out in (("a", 1, before, width), ("b", 3, width, width), ("c", 1, width, 4 * width)):
                layer(f"res{name}2{part}", f"bn{name}2{part}", side, into, out)
            before = 4 * width
    return found


def random_arrays() -> Arrays:
    """Small enough for an epsilon to matter, and of a size that neither dies out nor explodes."""
    rng = np.random.default_rng(0)
    found: Arrays = {}
    for name, shape in shapes().items():
        part = name.rpartition("/")[2]
        if part == "kernel":
            size = 0.1 * np.sqrt(2 / np.prod(shape[:-1])) / (64 if name.startswith("conv1") else 1)
            value = size * rng.standard_normal(shape, np.float32)
        elif part in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, shape) * (0.01 if part == "moving_variance" else 0.5)
        else:
            value = 0.03 * rng.standard_normal(shape, np.float32)
        found[name] = np.asarray(value, np.float32)
    return found


def keras(arrays: Arrays, picture: NDArray[np.uint8]) -> Tensor:
    """Logits (1000,): blue first, less the mean; biases; epsilon 1e-3; each stage halves in its first convolution."""
    told = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def layer(x: Tensor, kernel: str, norm: str, stride: int = 1) -> Tensor:
        w = told[f"{kernel}/kernel"].permute(3, 2, 0, 1)
        x = F.conv2d(x, w, told[f"{kernel}/bias"], stride, w.shape[-1] // 2)
        gamma, beta, mean, var = (
            told[f"{norm}/{name}"][:, None, None] for name in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return gamma * (x - mean) / (var + 1e-3).sqrt() + beta

    bgr = torch.from_numpy(picture[..., ::-1].astype(np.float32) - np.float32([103.939, 116.779, 123.68]))
    x = F.max_pool2d(layer(bgr.permute(2, 0, 1)[None], "conv1", "bn_conv1", 2).relu(), 3, 2, 1)
    for stage, letters in ((2, "abc"), (3, "abcd"), (4, "abcdef"), (5, "abc")):
        for letter in letters:
            name, stride = f"{stage}{letter}_branch", 2 if letter == "a" and stage > 2 else 1
            y = layer(x, f"res{name}2a", f"bn{name}2a", stride).relu()
            y = layer(layer(y, f"res{name}2b", f"bn{name}2b").relu(), f"res{name}2c", f"bn{name}2c")
            x = (y + (layer(x, f"res{name}1", f"bn{name}1", stride) if letter == "a" else x)).relu()
    return x.mean((2, 3))[0] @ told["fc1000/kernel"] + told["fc1000/bias"]


def test_the_converted_network_computes_what_keras_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrays = random_arrays()
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    save_file(keras_resnet.tensors(arrays), tmp_path / "resnet50-keras.safetensors")
    blocks = np.random.default_rng(1).integers(0, 256, (14, 14, 3)).astype(np.uint8)
    large = np.asarray(Image.fromarray(blocks).resize((256, 256), Image.Resampling.BICUBIC))
    found = networks.keras_classifier().outputs(large[None])[0]
    expected = keras(arrays, large[16:240, 16:240])
    # Only what stands beside the picture differs, by less than half a step of 255.
    assert (found - expected).abs().max() < 0.01 * expected.std()


def test_a_list_of_arrays_must_fit_its_files() -> None:
    rows = [{"name": "a/kernel", "shape": [2, 1], "dtype": "float32"}, {"name": "b", "shape": [1], "dtype": "float32"}]
    files = {
        "model.json": json.dumps({"weightsManifest": [{"paths": ["2", "1"], "weights": rows}]}).encode(),
        "1": np.array([2, 3], np.float32).tobytes(),
        "2": np.array([1], np.float32).tobytes(),
    }
    found = keras_resnet.arrays(files.__getitem__)
    assert found["a/kernel"].tolist() == [[1], [2]] and found["b"].tolist() == [3]
    with pytest.raises(OSError, match="4 bytes belong to no"):
        keras_resnet.arrays({**files, "1": files["1"] + b"1234"}.__getitem__)
    with pytest.raises(OSError, match="b is not where"):
        keras_resnet.arrays({**files, "1": files["1"][:4]}.__getitem__)


@pytest.mark.skipif(
    not (weights.cache_folder() / "resnet50-keras.safetensors").is_file() or not PHOTOS.is_dir(),
    reason="needs photos and immunebench weights fetch resnet50-keras",
)
def test_real_photos_of_a_corgi_are_seen_as_one() -> None:
    judge = PhotoJudge(classifier=networks.keras_classifier)
    files = sorted((PHOTOS / "dog6").glob("*.jpg"))
    shown = np.stack([np.asarray(Image.open(file).convert("RGB").resize((320, 320))) for file in files])
    assert (judge.concept_probability(shown, "pembroke") > 0.7).all()
    assert (judge.concept_probability(shown, "church") < 0.01).all()
