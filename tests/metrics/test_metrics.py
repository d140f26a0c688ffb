"""Metrics against values worked out by hand and against independent implementations."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from immunebench.bases import weights
from immunebench.core.errors import UsageError
from immunebench.core.types import Pictures
from immunebench.core.wording import content
from immunebench.metrics.collapse import neighbour_correlation, spread
from immunebench.metrics.pixels import linf, psnr, ssim
from immunebench.metrics.table import METRICS, score

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


TEXTS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


class MeanColour:
    """A judge whose embedding is the unit vector along a picture's mean colour; red means a face."""

    def embed_images(self, pixels: Pixels) -> Floats:
        mean = pixels.astype(np.float32).mean((1, 2))
        found: Floats = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return found

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        return np.array([TEXTS[text] for text in texts], np.float32)

    def caption_scores(self, pixels: Pixels, captions: Sequence[str]) -> Floats:
        return self.embed_images(pixels) @ self.embed_texts(captions).T

    def embed_faces(self, pixels: Pixels) -> tuple[Floats, Floats]:
        return self.embed_images(pixels), (pixels[..., 0].mean((1, 2)) > 0).astype(np.float32)

    def concept_probability(self, pixels: Pixels, name: str) -> Floats:
        return self.embed_images(pixels) @ np.array(TEXTS[name], np.float32)

    def nothing_probability(self, pixels: Pixels) -> Floats:
        return np.zeros(len(pixels), np.float32)

    def perceptual(self, a: Pixels, b: Pixels) -> Floats:
        found: Floats = np.abs(self.embed_images(a) - self.embed_images(b)).sum(1)
        return found


def flat(*colours: tuple[int, int, int], captions: Sequence[str] | None = None) -> Pictures:
    """8 x 8 pictures of one colour each."""
    pixels = np.stack([np.full((8, 8, 3), colour, np.uint8) for colour in colours])
    return Pictures(pixels, tuple(captions or ["x"] * len(colours)))


RED, GREEN, BLUE, YELLOW = (200, 0, 0), (0, 200, 0), (0, 0, 200), (100, 100, 0)


def test_image_similarity_is_the_mean_cosine_to_the_reference() -> None:
    found = score(["image_similarity"], MeanColour(), flat(RED, YELLOW, BLUE), flat(RED, GREEN))
    assert found == {"image_similarity@1": pytest.approx([0.5, math.sqrt(0.5), 0.0], abs=1e-6)}


def test_nearest_training_is_the_distance_to_the_closest_picture_and_0_for_a_copy() -> None:
    found = score(["nearest_training"], MeanColour(), flat(YELLOW, BLUE, GREEN), training=flat(RED, GREEN))
    assert found["nearest_training@2"] == pytest.approx([1 - math.sqrt(0.5), 1.0, 0.0], abs=1e-6)
    assert min(found["nearest_training@2"]) >= 0


def test_undetected_faces_count_zero_in_ism0_and_not_at_all_in_ism() -> None:
    found = score(["ism0", "ism", "fdfr"], MeanColour(), flat(YELLOW, BLUE), flat(RED, BLUE))
    assert found["ism0@1"] == pytest.approx([math.sqrt(0.5), 0.0], abs=1e-6)
    assert found["ism@1"] == pytest.approx([math.sqrt(0.5)], abs=1e-6)
    assert found["fdfr@1"] == [0.0, 1.0]


def test_a_reference_without_faces_is_refused() -> None:
    with pytest.raises(UsageError, match="no face"):
        score(["ism0"], MeanColour(), flat(RED), flat(BLUE))


def test_caption_accuracy_counts_pictures_whose_own_caption_is_nearest() -> None:
    made = flat(RED, GREEN, BLUE, captions=["red", "blue", "blue"])
    found = score(["caption_accuracy"], MeanColour(), made, captions=["red", "green", "blue"])
    assert found["caption_accuracy@2"] == [1.0, 0.0, 1.0]


def test_caption_accuracy_refuses_a_caption_that_is_no_candidate() -> None:
    with pytest.raises(UsageError, match=r"'gren'.*nearest: 'green'"):
        score(["caption_accuracy"], MeanColour(), flat(RED, captions=["gren"]), captions=["red", "green"])


CONTENTS = {"a sks red": "red", "a sks green": "green", "one more sks red": "red"}


def test_prompt_accuracy_asks_for_the_content_of_a_pictures_own_prompt() -> None:
    made = flat(RED, GREEN, YELLOW, captions=["a sks red", "one more sks red", "a sks green"])
    found = score(["prompt_accuracy"], MeanColour(), flat(RED, GREEN, captions=list(CONTENTS)[:2]), contents=CONTENTS)
    assert found["prompt_accuracy@1"] == [1.0, 1.0]
    found = score(["prompt_accuracy"], MeanColour(), Pictures(made.pixels[:2], made.captions[:2]), contents=CONTENTS)
    assert found["prompt_accuracy@1"] == [1.0, 0.0], "two prompts with one content are one candidate"


def test_prompt_accuracy_refuses_a_prompt_without_content() -> None:
    with pytest.raises(UsageError, match=r"'a sks rd'.*nearest: 'a sks red'"):
        score(["prompt_accuracy"], MeanColour(), flat(RED, captions=["a sks rd"]), contents=CONTENTS)


@pytest.mark.parametrize(
    ("prompt", "noun", "expected"),
    [
        ("a red house near the meadow in {token} style", "style", "a red house near the meadow"),
        ("a big {token} mug near the beach in plain style", "mug", "a big mug near the beach in plain style"),
        ("a {token} umbrella near the sea", "umbrella", "an umbrella near the sea"),
        ("a portrait of {token} person, sad, in a red shirt", "person", "a portrait of a person, sad, in a red shirt"),
        ("a {token} near the mugs", "mug", "a mug near the mugs"),
    ],
)
def test_the_content_of_a_prompt_has_no_placeholder(prompt: str, noun: str, expected: str) -> None:
    assert content(prompt, noun) == expected


def test_neighbour_correlation_and_spread_by_hand() -> None:
    # Columns 0 and 255 in turn: -1 across, 1 down; spread is half of 255.
    stripes = np.zeros((1, 8, 8, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert neighbour_correlation(stripes) == pytest.approx([0.0])
    assert spread(stripes) == pytest.approx([127.5])
    halves = np.zeros((1, 8, 8, 3), np.uint8)
    halves[:, :, 4:] = 255
    # Across six of seven pairs agree and one is opposed, down all agree.
    assert neighbour_correlation(halves) == pytest.approx([(5 / 7 + 1) / 2])
    assert spread(halves[..., ::-1] // 255 * np.array([0, 10, 20], np.uint8)) == pytest.approx([10.0])
    assert neighbour_correlation(np.full((1, 8, 8, 3), 9, np.uint8)) == [0.0]


def test_a_picture_collapses_by_its_pixels_or_by_the_judge() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, 64)[:, None, None], (64, 64, 3)).astype(np.uint8)[None]
    empty = ramp // 2

    class Dark(MeanColour):
        """Takes dark pictures for nothing."""

        def nothing_probability(self, pixels: Pixels) -> Floats:
            return (pixels.mean((1, 2, 3)) < 100).astype(np.float32)

    grey = np.full((1, 64, 64, 3), 200, np.uint8)
    pixels = np.concatenate([ramp, empty, np.maximum(noise, 80), grey])
    found = score(["collapse"], Dark(), Pictures(pixels, ("",) * 4))
    assert found["collapse@1"] == [0.0, 1.0, 1.0, 1.0]


def test_concept_probability_takes_a_concept_with_its_family() -> None:
    found = score(["concept_probability"], MeanColour(), flat(RED, BLUE), concept="known/red")
    assert found["concept_probability@1"] == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("metric", sorted(name for name in METRICS if METRICS[name].needs != ("pixels",)))
def test_a_metric_without_its_arguments_says_which(metric: str) -> None:
    missing = [need for need in METRICS[metric].needs if need not in ("pixels", "own")]
    with pytest.raises(UsageError, match=f"metric {metric} needs '{missing[0]}'"):
        score([metric], None, flat(RED))


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'image_similarty'.*nearest: 'image_similarity'"):
        score(["image_similarty"], None, flat(RED))


def test_missing_weights_are_named_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(UsageError, match=r"metric lpips: weights lpips-alex are missing.*weights fetch lpips-alex"):
        score(["linf", "lpips"], None, flat(RED), flat(RED))


def test_linf_is_the_greatest_difference_either_way() -> None:
    a, b = flat((10, 20, 30), (0, 0, 0)), flat((10, 20, 30), (0, 0, 0))
    b.pixels[0, 3, 4] = (2, 36, 30)
    b.pixels[1, 0, 0] = (0, 0, 255)
    assert linf(a.pixels, b.pixels).tolist() == [16.0, 255.0]


def test_psnr_by_hand() -> None:
    # A mean squared error of 25 gives 20 log10(255 / 5).
    a, b = flat((10, 10, 10), RED), flat((15, 15, 15), RED)
    assert psnr(a.pixels, b.pixels) == pytest.approx([20 * math.log10(51), 100.0], rel=1e-5)


def naive_ssim(a: Pixels, b: Pixels) -> float:
    """Wang et al. 2004, equation 13: mean over channels and places where the whole window fits."""
    offsets = np.arange(11) - 5
    line = np.exp(-0.5 * (offsets / 1.5) ** 2)
    window = np.outer(line, line) / np.outer(line, line).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        x, y = (p[..., channel].astype(float) for p in (a, b))
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                u, v = (p[top : top + 11, left : left + 11] for p in (x, y))
                mu, mv = (window * u).sum(), (window * v).sum()
                var_u, var_v = (window * u * u).sum() - mu**2, (window * v * v).sum() - mv**2
                cov = (window * u * v).sum() - mu * mv
                values.append((2 * mu * mv + c1) * (2 * cov + c2) / ((mu**2 + mv**2 + c1) * (var_u + var_v + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_plain_picture_is_exactly_like_itself(value: int) -> None:
    plain = np.full((1, 64, 64, 3), value, np.uint8)
    assert ssim(plain, plain).tolist() == [1.0]


def test_ssim_agrees_with_the_formula() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    b = np.clip(a + rng.normal(0, 25, a.shape), 0, 255).astype(np.uint8)
    b[1] = a[1]
    found = ssim(a, b)
    # torchmetrics reflects the borders before it cuts them off again, so only the inside is averaged, as
    # here.
    assert found[0] == pytest.approx(naive_ssim(a[0], b[0]), abs=2e-3)
    assert found[1] == pytest.approx(1.0, abs=1e-6)


def test_pairs_of_different_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="one shape"):
        linf(flat(RED).pixels, flat(RED, RED).pixels)


@pytest.mark.skipif(
    not (weights.cache_folder() / "lpips-alex.safetensors").is_file(),
    reason="the weights lpips-alex have not been fetched (immunebench weights fetch lpips-alex)",
)
def test_lpips_agrees_with_the_formula_on_the_same_features() -> None:
    import lpips
    import torch
    from torch.nn import functional as F

    from immunebench.metrics.perceptual import lpips_alex

    rng = np.random.default_rng(1)
    a = np.repeat(np.repeat(rng.integers(0, 256, (3, 8, 8, 3)), 8, 1), 8, 2).astype(np.uint8)
    b = a.copy()
    b[1] = np.clip(a[1] + rng.normal(0, 12, a[1].shape), 0, 255).astype(np.uint8)
    b[2] = rng.integers(0, 256, a[2].shape).astype(np.uint8)
    found = lpips_alex(a, b)
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert 0.001 < found[1] < found[2]

    # AlexNet by torch's functions alone, on torchvision's names of the weights.
    from safetensors.torch import load_file

    w = load_file(weights.require("lpips-alex"))
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def features(pixels: Pixels) -> list[torch.Tensor]:
        x = (torch.from_numpy(pixels).float() / 127.5 - 1 - shift) / scale
        x, out = x.permute(0, 3, 1, 2), []
        for index, (layer, stride, pad) in enumerate(((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))):
            x = F.max_pool2d(x, 3, 2) if index in (1, 2) else x
            x = F.relu(F.conv2d(x, w[f"features.{layer}.weight"], w[f"features.{layer}.bias"], stride, pad))
            out.append(x)
        return out

    total = torch.zeros(3)
    heads = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).requires_grad_(False).lins
    for head, x, y in zip(heads, features(a), features(b), strict=True):
        difference = (x / (x.norm(dim=1, keepdim=True) + 1e-10) - y / (y.norm(dim=1, keepdim=True) + 1e-10)).square()
        total += (difference * head.model[-1].weight).sum(1).mean((1, 2))
    assert found == pytest.approx(total.numpy(), rel=1e-4, abs=1e-7)


def test_only_arrays_are_unpickled() -> None:
    wanted = {"a": {"kernel": np.arange(6.0).reshape(2, 3)}}
    assert np.array_equal(weights.read_arrays(pickle.dumps(wanted))["a"]["kernel"], wanted["a"]["kernel"])
    with pytest.raises(pickle.UnpicklingError, match="not part of an array"):
        weights.read_arrays(pickle.dumps(Path("x")))


def test_a_damaged_embedded_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "judges").mkdir()
    file = tmp_path / "judges" / "a.bin"
    file.write_bytes(b"abc")
    weights.write_sums(tmp_path)
    # SHA-256 of "abc", FIPS 180-4's example.
    assert weights.read_sums(tmp_path)["judges/a.bin"].startswith("ba7816bf8f01cfea")
    weights.verify(tmp_path)
    file.write_bytes(b"abd")
    with pytest.raises(UsageError, match=r"a\.bin: embedded weights are damaged"):
        weights.verify(tmp_path)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'lpips-alx'.*nearest: 'lpips-alex'"):
        weights.fetch("lpips-alx")


def test_the_table_needs_no_torch() -> None:
    code = (
        "import sys, immunebench.metrics, immunebench.bases.weights;"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_stages_write_scores_and_anchors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from immunebench.execution import grading as stage

    monkeypatch.setattr(stage, "load_judge", lambda name: MeanColour())
    folders = {}
    for name, pictures in {"generated": flat(RED, BLUE), "reference": flat(RED), "same": flat(RED),
                           "other_0": flat(BLUE), "other_1": flat(YELLOW)}.items():  # fmt: skip
        folders[name] = tmp_path / name
        folders[name].mkdir()
        pictures.save(folders[name])
    key = {"metrics": [{"id": "image_similarity", "version": 1}], "judge": "x"}
    stage.run_score(key, {n: folders[n] for n in ("generated", "reference")}, tmp_path, lambda *_: None)
    found = json.loads((tmp_path / "scores.json").read_text())["metrics"]["image_similarity@1"]
    assert found == {"values": [1.0, 0.0], "mean": 0.5}
    stage.run_anchor(key, {n: f for n, f in folders.items() if n != "generated"}, tmp_path, lambda *_: None)
    anchors = json.loads((tmp_path / "scores.json").read_text())
    assert anchors == {"m_same": pytest.approx(1.0), "m_other": pytest.approx(math.sqrt(0.5) / 2)}


def test_a_score_stage_reads_contents_and_training_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from immunebench.execution import grading as stage

    monkeypatch.setattr(stage, "load_judge", lambda name: MeanColour())
    for name, pictures in {"generated": flat(RED, BLUE, captions=list(CONTENTS)[:2]), "training": flat(BLUE)}.items():
        (tmp_path / name).mkdir()
        pictures.save(tmp_path / name)
    rows = [{"id": "prompt_accuracy", "version": 1}, {"id": "nearest_training", "version": 2}]
    inputs = {name: tmp_path / name for name in ("generated", "training")}
    stage.run_score({"metrics": rows, "judge": "x", "contents": CONTENTS}, inputs, tmp_path, lambda *_: None)
    found = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert found["prompt_accuracy@1"]["values"] == [1.0, 0.0]
    assert found["nearest_training@2"]["values"] == pytest.approx([1.0, 0.0])


def test_a_stage_refuses_another_version_of_a_metric(tmp_path: Path) -> None:
    from immunebench.execution import grading as stage

    flat(RED).save(tmp_path)
    key = {"metrics": [{"id": "linf", "version": 2}], "judge": "x"}
    with pytest.raises(UsageError, match="metric linf has version 1 here 2"):
        stage.run_score(key, {"protected": tmp_path, "published": tmp_path}, tmp_path, lambda *_: None)
