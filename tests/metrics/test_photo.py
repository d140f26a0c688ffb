"""The judge of photographs, papers' likenesses and FID, through small random networks of the same libraries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

import photos
from immunebench.core.errors import UsageError
from immunebench.core.types import Pictures
from immunebench.metrics import continuity, networks, perceptual
from immunebench.metrics.photo import ARTISTS, PhotoJudge, blank, imagenet
from immunebench.metrics.table import METRICS, score

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

CLIP_MEAN, CLIP_STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


def pixels(*numbers: int, width: int = 320, height: int = 256) -> Pixels:
    """Pictures of coarse blocks, one a number, with a slope so that no filter meets constants alone."""
    slope = np.linspace(0, 60, width)[None, :, None]
    found = [np.asarray(photos.photo(number, width, height)) * 0.7 + slope for number in numbers]
    return np.clip(np.stack(found), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of small networks under the names of the published ones, and open_clip's description of the smallest."""
    import lpips
    import open_clip
    import timm
    from torchvision import models

    found = tmp_path_factory.mktemp("weights")
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (found / "clip-of-a-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(found / "clip-of-a-test.json")
    torch.manual_seed(0)
    made = {
        "clip-vit-b32": open_clip.create_model("clip-of-a-test"),
        "dino-vits16": timm.create_model("vit_tiny_patch16_224", num_classes=0),
        "resnet50-imagenet": models.resnet18(),
        "lpips-alex": lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).net,
    }
    for name, network in made.items():
        state = {
            key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()
        }
        if name == "lpips-alex":
            # As torchvision names them, which is how they are kept.
            state = {"features" + key[len("slice1") :]: value for key, value in state.items()}
        save_file({key: value.contiguous() for key, value in state.items()}, found / f"{name}.safetensors")
    return found


@pytest.fixture(autouse=True)
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(folder))
    monkeypatch.setattr(networks, "CLIP", "clip-of-a-test")
    monkeypatch.setattr(networks, "DINO", "vit_tiny_patch16_224")
    monkeypatch.setattr(networks, "CLASSIFIER", "resnet18")
    perceptual.alex.cache_clear()
    yield
    perceptual.alex.cache_clear()


def cosine(a: Floats, b: Floats) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def test_clip_sees_what_openai_prepared_by_hand() -> None:
    """The short side to 224 by Pillow's bicubic filter, the central square, mean and deviation taken off."""
    picture = pixels(1)[0]
    shown = Image.fromarray(picture).resize((280, 224), Image.Resampling.BICUBIC).crop((28, 0, 252, 224))
    expected = (np.asarray(shown) / 255 - CLIP_MEAN) / CLIP_STD
    found = networks.clip().prepare(picture[None])
    assert found.shape == (1, 3, 224, 224)
    assert np.abs(found[0].permute(1, 2, 0).numpy() - expected).max() < 1e-3


def test_dino_sees_imagenets_statistics_at_256_cropped_to_224() -> None:
    picture = pixels(2)[0]
    shown = Image.fromarray(picture).resize((320, 256), Image.Resampling.BICUBIC).crop((48, 16, 272, 240))
    expected = (np.asarray(shown) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(networks.dino().prepare(picture[None])[0].permute(1, 2, 0).numpy() - expected).max() < 1e-3


def cubic(x: Floats) -> Floats:
    """Keys' kernel with a = -0.75."""
    x, a = np.abs(x), -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def enlarging(small: int, large: int) -> Floats:
    """The matrix (large, small) of bicubic enlargement, borders repeated."""
    found = np.zeros((large, small))
    for row in range(large):
        place = (row + 0.5) * small / large - 0.5
        first = int(np.floor(place)) - 1
        for tap in range(first, first + 4):
            found[row, min(max(tap, 0), small - 1)] += cubic(np.array(place - tap))
    return found


def test_the_legacy_recipe_by_hand() -> None:
    """64 x 64 whatever the proportions, (x + 1) / 2 on [0, 1], enlarged, CLIP's statistics."""
    picture = pixels(3)[0]
    shrunk = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BILINEAR)) / 255
    matrix = enlarging(64, 224)
    large = np.einsum("ai,bj,ijc->abc", matrix, matrix, (shrunk + 1) / 2)
    expected = (large - CLIP_MEAN) / CLIP_STD
    found = continuity.legacy_input(picture[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("recipe", ["", "_legacy"])
def test_likeness_is_the_mean_cosine_to_the_reference(folder: Path, recipe: str) -> None:
    """CLIP by open_clip and DINO by timm directly, in double precision by hand."""
    import open_clip
    import timm

    clip = open_clip.create_model("clip-of-a-test", pretrained=str(folder / "clip-vit-b32.safetensors")).eval()
    dino = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    dino.load_state_dict(load_file(folder / "dino-vits16.safetensors"))
    made, real = pixels(4, 5), pixels(4, 6, 7)
    prepare = {"clip": networks.clip().prepare, "dino": networks.dino().prepare}
    for name, network in (("clip", clip.encode_image), ("dino", dino)):
        how = continuity.legacy_input if recipe else prepare[name]
        with torch.no_grad():
            a, b = network(how(made)).numpy(), network(how(real)).numpy()
        metric = f"{name}_similarity{recipe}"
        found = score([metric], None, Pictures(made, ("",) * 2), Pictures(real, ("",) * 3))[f"{metric}@1"]
        assert found == pytest.approx([np.mean([cosine(x, y) for y in b]) for x in a], abs=1e-5)
        assert found[0] > found[1], "the first is among the reference"


def test_lpips_similarity_averages_all_pairs_and_the_legacy_one_feeds_the_wrong_range() -> None:
    import lpips

    made, real = pixels(4, 5, width=96, height=80), pixels(4, 6, 7, width=96, height=80)
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    state = load_file(networks.require("lpips-alex"))
    network.net.load_state_dict(
        {key: state["features" + key[len("slice1") :]].float() for key in network.net.state_dict()}
    )

    def tensor(picture: Pixels, least: float) -> torch.Tensor:
        x = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
        return x * (1 - least) + least

    def small(picture: Pixels) -> Pixels:
        return np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BILINEAR))

    def expected(size: object, least: float) -> list[float]:
        prepared = [[tensor(size(p), least) for p in part] for part in (made, real)]  # type: ignore[operator]
        with torch.no_grad():
            return [1 - float(np.mean([network(x, y).item() for y in prepared[1]])) for x in prepared[0]]

    names = ["lpips_similarity", "lpips_similarity_legacy"]
    found = score(names, None, Pictures(made, ("",) * 2), Pictures(real, ("",) * 3))
    assert found["lpips_similarity@1"] == pytest.approx(expected(lambda p: p, -1), abs=1e-5)
    assert found["lpips_similarity_legacy@1"] == pytest.approx(expected(small, 0), abs=1e-5)
    with pytest.raises(UsageError, match=r"lpips_similarity: .* pictures of 96 x 80 .* reference of 64 x 80"):
        continuity.lpips_similarity(made, real[:, :, :64])
    assert len(continuity.lpips_similarity_legacy(made, real[:, :, :64])) == 2, "the legacy recipe shrinks all alike"


def test_the_judge_answers_captions_by_the_cosine_of_open_clips_embeddings(folder: Path) -> None:
    import open_clip

    network = open_clip.create_model("clip-of-a-test", pretrained=str(folder / "clip-vit-b32.safetensors")).eval()
    shown, captions = pixels(8, 9), ["a dog in the snow", "a red backpack", "Starry Night"]
    with torch.no_grad():
        images = network.encode_image(networks.clip().prepare(shown)).numpy()
        texts = network.encode_text(open_clip.tokenize(captions)).numpy()
    judge = PhotoJudge()
    expected = [[cosine(image, text) for text in texts] for image in images]
    assert judge.caption_scores(shown, captions) == pytest.approx(np.array(expected), abs=1e-5)
    assert np.linalg.norm(judge.embed_images(shown), axis=1) == pytest.approx([1, 1], abs=1e-5)
    # Zero-shot probabilities: cosines times the model's own factor, 1 / 0.07 where it is not trained.
    logits = np.array(expected) / 0.07
    by_hand = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert judge.clip.choose(shown, captions) == pytest.approx(by_hand, abs=1e-3)


def test_a_class_is_judged_by_the_classifier_and_an_artist_among_the_listed_ones(folder: Path) -> None:
    from torchvision import models

    network = models.resnet18().eval()
    network.load_state_dict(load_file(folder / "resnet50-imagenet.safetensors"))
    shown, judge = pixels(10, 11), PhotoJudge()
    # torchvision: the short side to 256, bilinear, the central 224.
    prepared = [
        Image.fromarray(p).resize((320, 256), Image.Resampling.BILINEAR).crop((48, 16, 272, 240)) for p in shown
    ]
    x = (np.stack([np.asarray(p) for p in prepared]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        expected = network(torch.from_numpy(x).permute(0, 3, 1, 2).float()).softmax(1)[:, 497]  # church, class 497
    assert judge.concept_probability(shown, "church") == pytest.approx(expected.numpy(), rel=1e-3)
    captions = [*(f"an artwork by {artist}" for artist in ARTISTS.values()), "a photograph"]
    odds = np.exp(judge.caption_scores(shown, captions) / 0.07)
    expected = odds[:, captions.index("an artwork by Vincent van Gogh")] / odds.sum(1)
    # The model's factor is kept in half precision, and what stands in an exponent is sensitive to it.
    assert judge.concept_probability(shown, "van-gogh") == pytest.approx(expected, rel=0.05)
    with pytest.raises(UsageError, match=r"'van-gohg'.*nearest: 'van-gogh'"):
        judge.concept_probability(shown, "van-gohg")


def test_the_ten_classes_of_imagenette_have_their_numbers_and_an_ambiguous_name_none() -> None:
    # In ImageNet's order of 1,000.
    numbers = {
        "tench": 0, "english-springer": 217, "cassette-player": 482, "chain-saw": 491, "church": 497,
        "french-horn": 566, "garbage-truck": 569, "gas-pump": 571, "golf-ball": 574, "parachute": 701,
    }  # fmt: skip
    assert {name: imagenet()[name] for name in numbers} == numbers
    assert "cardigan" not in imagenet() and len(imagenet()) == 998
    assert not imagenet().keys() & ARTISTS.keys()


def checks(step: int) -> Pixels:
    """16 x 16 places of two greys that alternate, whose standard deviation is half their difference."""
    board = (np.indices((256, 320)) // [[[16]], [[20]]]).sum(0) % 2
    return np.repeat((122 + step * board)[..., None], 3, 2).astype(np.uint8)


def test_the_pixel_part_of_nothing_knows_grey_and_noise_from_pictures() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (256, 320, 3)).astype(np.uint8)
    grey = np.full_like(noise, 128)
    faint = np.clip(128 + rng.normal(0, 3, noise.shape), 0, 255).astype(np.uint8)
    found = blank(np.stack([grey, noise, faint, checks(12), pixels(1)[0]]))
    assert found == pytest.approx([1, 1, 1, 0.5, 0])


@pytest.mark.skipif(not Path(__file__).parents[3].joinpath("shared/photos").is_dir(), reason="no real pictures here")
def test_no_real_picture_is_blank() -> None:
    for file in sorted(Path(__file__).parents[3].joinpath("shared/photos").rglob("*.jpg")):
        shown = np.asarray(Image.open(file).convert("RGB"))
        assert blank(shown[None])[0] == 0, file.name


def test_a_picture_shows_nothing_where_either_the_pixels_or_clip_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(self: networks.Clip, shown: Pixels, captions: list[str]) -> Floats:
        found = np.full((len(shown), len(captions)), 0.01, np.float32)
        found[:, captions.index("random noise")] = 0.2
        found[:, captions.index("a painting")] = 1 - found[:, 1:].sum(1)
        return found

    monkeypatch.setattr(networks.Clip, "choose", choose)
    shown = np.concatenate([np.full((1, 256, 320, 3), 90, np.uint8), pixels(1), checks(12)[None]])
    # Six of the seven captions of nothing have 0.01: 0.26 together. With a half of the pixels' it is 1 - 0.5 * 0.74.
    assert PhotoJudge().nothing_probability(shown) == pytest.approx([1, 0.26, 0.63], abs=1e-5)


def test_faces_and_perceptual_distance_are_those_of_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from immunebench.metrics.faces import OpenCVFaces

    answer = (np.ones((2, 128), np.float32), np.array([0.95, 0.0], np.float32))
    monkeypatch.setattr(OpenCVFaces, "embed_faces", lambda self, shown: answer)
    a, b = pixels(1, 2), pixels(1, 3)
    assert PhotoJudge().embed_faces(a) is answer
    found = PhotoJudge().perceptual(a, b)
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found == pytest.approx(perceptual.lpips_alex(a, b))


def test_only_the_networks_that_are_asked_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "clip-vit-b32.safetensors").symlink_to(folder / "clip-vit-b32.safetensors")
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    judge = PhotoJudge()
    assert judge.embed_images(pixels(1)).shape == (1, 16)
    with pytest.raises(UsageError, match=r"judge photo: weights resnet50-imagenet are missing.*weights fetch resnet50"):
        judge.concept_probability(pixels(1), "church")


def test_the_judge_in_models_toml_needs_all_its_weights_and_knows_genres(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from immunebench.bases.weights import FETCHABLE
    from immunebench.catalog.loading import default_catalog
    from immunebench.execution.grading import load_judge
    from immunebench.metrics.mimicry import TOP_GENRES

    spec = default_catalog().models.judges["photo"]
    assert set(spec.weights) <= FETCHABLE.keys()
    assert len(set(spec.genres)) == len(spec.genres) > TOP_GENRES
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(UsageError, match=r"judge photo: weights clip-vit-b32 are missing.*weights fetch clip-vit-b32$"):
        load_judge("photo")
    for name in spec.weights:
        FETCHABLE[name].file(name).write_bytes(b"")
    load_judge.cache_clear()
    assert isinstance(load_judge("photo"), PhotoJudge), "nothing is read before it is asked"


@pytest.mark.parametrize("name", [name for name, row in METRICS.items() if "continuity" in row.function])
def test_missing_weights_are_one_line_with_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    (weights,) = METRICS[name].weights
    with pytest.raises(UsageError, match=f"metric {name}: .*immunebench weights fetch {weights}$") as caught:
        score([name], None, Pictures(pixels(1), ("",)), Pictures(pixels(2), ("",)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["clip-vit-b32", "dino-vits16", "resnet50-imagenet"])
def test_weights_of_another_network_are_one_line_with_the_file(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    ask = {"clip-vit-b32": networks.clip, "dino-vits16": networks.dino, "resnet50-imagenet": networks.classifier}[name]
    file = tmp_path / f"{name}.safetensors"
    save_file({"other": torch.zeros(2)}, file)
    with pytest.raises(UsageError, match=f"weights {name} do not fit") as caught:
        ask()
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(UsageError, match=f"weights {name} do not fit"):
        ask()
