"""The judges of the embedded world: losses, training pictures, networks, and the shipped weights."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch

from immunebench.errors import UsageError
from immunebench.metrics.collapse import collapse
from immunebench.metrics.perceptual import perceptual
from immunebench.metrics.similarity import nearest_training, prompt_accuracy
from immunebench.mini import judge_data, judges, portraits, styles, world
from immunebench.mini.judge_augment import NOTHING_KINDS, augment, nothing
from immunebench.mini.judge_losses import classification, contrastive, grouped
from immunebench.mini.judges import OBJECTS, STYLES, MiniJudge, build

NETWORKS = ("clip", "second", "identity", "public")
trained = pytest.mark.skipif(
    not all((judges.WEIGHTS / f"{name}.safetensors").is_file() for name in NETWORKS),
    reason="the judges have not been trained (python -m immunebench.mini.train_judges)",
)


@pytest.fixture(scope="module")
def judge() -> MiniJudge:
    return judges.load()


def test_grouped_loss_agrees_with_a_loop() -> None:
    torch.manual_seed(0)
    x, groups, t = torch.randn(7, 5), np.array([0, 0, 1, 1, 1, -1, 2]), 0.3
    unit = (x / x.norm(dim=1, keepdim=True)).numpy().astype(np.float64)
    losses = []
    for i, own in enumerate(groups):
        mates = [j for j in range(7) if j != i and groups[j] == own and own >= 0]
        if mates:
            below = sum(np.exp(unit[i] @ unit[k] / t) for k in range(7) if k != i)
            losses.append(-np.mean([np.log(np.exp(unit[i] @ unit[j] / t) / below) for j in mates]))
    assert grouped(x, groups, t).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_contrastive_loss_of_a_sure_match_is_small_and_of_a_swap_large() -> None:
    eye, scale = torch.eye(4), torch.tensor(20.0)
    same = torch.eye(4, dtype=torch.bool)
    assert contrastive(eye, eye, same, scale).item() < 1e-3
    assert contrastive(eye, eye.roll(1, 0), same, scale).item() == pytest.approx(20.0, abs=1e-3)


def test_labels_of_minus_one_do_not_count() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    only_first = classification(logits, np.array([0, -1])).item()
    assert only_first == pytest.approx(classification(logits[:1], np.array([0])).item())
    assert classification(logits, np.array([-1, -1])).item() == 0.0


def test_siblings_share_what_makes_them_hard_to_tell_apart() -> None:
    people = [judge_data.someone("unseen", i) for i in range(8)]
    for family in (people[:4], people[4:]):
        assert len({(p.skin, p.hair_colour, p.glasses) for p in family}) == 1
        assert len({astuple(p) for p in family}) == 4
    assert judge_data.artist("unseen", 0)[0].name == judge_data.artist("unseen", 1)[0].name
    assert judge_data.artist("unseen", 0)[1] != judge_data.artist("unseen", 1)[1]
    assert judge_data.thing("unseen", 2)[0] == judge_data.thing("unseen", 3)[0]


def test_no_judge_is_trained_on_a_held_out_concept() -> None:
    held_out = [params for _, params in styles.HELD_OUT_PARAMS.values()]
    held_out += [{k: (a + b) / 2 for k, (a, b) in s.ranges.items()} for s in styles.UNSEEN_STYLES.values()]
    for group in range(judge_data.COUNTS["styles"] // judge_data.GROUP):
        assert judge_data.artist("train", group)[1] not in held_out
    instances = {(i.colour, i.pattern, i.marking) for _, i in world.INSTANCES.values()}
    for group in range(judge_data.COUNTS["looks"] // judge_data.GROUP):
        look = judge_data.thing("train", group)[1]
        assert (look.colour, look.pattern, look.marking) not in instances
    known = set(portraits.PEOPLE.values())
    assert not any(
        judge_data.someone("train", i) in known for i in range(judge_data.COUNTS["people"] // judge_data.GROUP)
    )


def test_wide_ranges_name_the_parameters_of_each_style() -> None:
    every = {**styles.STYLES, **styles.UNSEEN_STYLES}
    assert set(judge_data.WIDE) == set(every) - {"plain"}
    for name, ranges in judge_data.WIDE.items():
        assert set(ranges) == set(every[name].ranges) - {"hue", "contrast"}


@pytest.mark.parametrize("name", sorted(judge_data.COUNTS))
def test_drawing_does_not_depend_on_where_it_starts(name: str) -> None:
    whole, tail = judge_data.draw(name, "unseen", 3), judge_data.draw(name, "unseen", 1, start=2)
    assert np.array_equal(whole.pixels[2], tail.pixels[0])
    assert all(np.array_equal(whole.labels[key][2], tail.labels[key][0]) for key in whole.labels)


def test_augmented_pictures_stay_in_range_and_repeat() -> None:
    pixels = judge_data.draw("known", "unseen", 12).pixels
    x = augment(pixels, np.random.default_rng(0))
    assert x.shape == (12, 3, 64, 64) and x.dtype == torch.float32
    assert x.min() >= -1 and x.max() <= 1
    assert torch.equal(x, augment(pixels, np.random.default_rng(0)))


def test_every_kind_of_nothing_can_be_drawn() -> None:
    real = judge_data.draw("known", "unseen", 4).pixels
    found = nothing(8 * len(NOTHING_KINDS), real, real, np.random.default_rng(0))
    assert found.shape == (8 * len(NOTHING_KINDS), 64, 64, 3) and found.dtype == np.uint8


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_answer_in_their_shapes(name: str) -> None:
    network = build(name, 1000).eval()
    out = network(torch.zeros(2, 3, 64, 64))
    shapes = {"clip": [(2, 128)], "identity": [(2, 128), (2,)]}.get(name, [(2, len(OBJECTS)), (2, len(STYLES))])
    assert [tuple(part.shape) for part in (out if isinstance(out, tuple) else (out,))] == shapes


def test_perceptual_distance_is_zero_for_equals_symmetric_and_differentiable() -> None:
    network = build("public").eval()
    assert isinstance(network, judges.Classifier)
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64, requires_grad=True)
    distance = judges.perceptual_distance(network, x, y)
    assert distance.shape == (2,)
    assert torch.allclose(distance, judges.perceptual_distance(network, y, x))
    assert judges.perceptual_distance(network, x, x).abs().max() < 1e-6
    (slope,) = torch.autograd.grad(distance.sum(), y)
    assert slope.abs().sum() > 0


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"second\.safetensors: the judge's weights are not there"):
        MiniJudge(tmp_path).perceptual(np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 64, 64, 3), np.uint8))


@trained
def test_the_judge_names_held_out_pictures(judge: MiniJudge) -> None:
    held_out = judge_data.draw("known", "unseen", 200)
    for second in (False, True):
        by_object, by_style = judge.probabilities(held_out.pixels, second=second)
        assert (by_object.argmax(1) == held_out.labels["object"]).mean() >= 0.95
        assert (by_style.argmax(1) == held_out.labels["style"]).mean() >= 0.95


@trained
def test_a_concept_is_nearer_to_itself_than_to_others(judge: MiniJudge) -> None:
    names = ("object/mug", "object/robot", "style/solano", "style/weave")
    sets = [
        [judge.embed_images(world.concept_pictures(n, s, 8)[0]).mean(0) for s in ("reference", "extra")] for n in names
    ]
    likeness = np.array([[a[0] @ b[1] for b in sets] for a in sets])
    assert (likeness.argmax(1) == np.arange(len(names))).all()


@trained
def test_people_are_told_apart_and_scenes_show_no_face(judge: MiniJudge) -> None:
    ada, chidi = (world.concept_pictures(f"identity/{n}", "reference", 8)[0] for n in ("ada", "chidi"))
    (a, seen), (b, _) = judge.embed_faces(ada), judge.embed_faces(chidi)
    assert (seen >= 0.5).all()
    assert (a @ a.T).mean() > (a @ b.T).mean() + 0.4
    assert (judge.embed_faces(world.concept_pictures("object/mug", "reference", 8)[0])[1] < 0.5).all()


@trained
def test_nothing_is_far_from_every_concept(judge: MiniJudge) -> None:
    void = judge.embed_images(
        nothing(100, world.concept_pictures("known/cat", "extra", 8)[0], None, np.random.default_rng(1))
    )
    for name in ("object/mug", "style/solano", "style/rays"):
        reference = judge.embed_images(world.concept_pictures(name, "reference", 8)[0])
        assert (void @ reference.T).mean() < 0.1


@trained
def test_pictures_of_nothing_collapse_and_rendered_ones_do_not(judge: MiniJudge) -> None:
    drawn = [
        world.draw("unseen", i, group="collapse test", style=style, person=i == 0)
        for style in world.STYLE_NAMES
        for i in range(8)
    ]
    real = np.stack([picture.pixels for picture in drawn])
    rng = np.random.default_rng(5)
    one_colour = np.stack([np.full((64, 64, 3), rng.integers(0, 256, 3), np.uint8) for _ in range(8)])
    noise = rng.integers(0, 256, (8, 64, 64, 3)).astype(np.uint8)
    assert collapse(judge, real).mean() <= 0.01
    assert collapse(judge, one_colour).all() and collapse(judge, noise).all()
    assert collapse(judge, nothing(80, real, None, rng)).mean() >= 0.97
    # What the judge adds to the pixels: blobs that vary as much as a picture does.
    assert judge.nothing_probability(nothing(80, real, None, rng)).mean() >= 0.9


@trained
def test_swapped_prompts_are_seen(judge: MiniJudge) -> None:
    prompts = {f"a sks {name}": f"a {name} in plain style" for name in ("house", "cat", "boat", "flower")}
    shown = np.stack([world.draw("unseen", i, name=p[6:], style="plain").pixels for p in prompts for i in range(4)])
    own = [prompt for prompt in prompts for _ in range(4)]
    assert prompt_accuracy(judge, shown, own, prompts).mean() >= 0.9
    assert prompt_accuracy(judge, shown, own[4:] + own[:4], prompts).mean() <= 0.1


@trained
def test_the_object_of_a_prompt_is_seen_in_styles_that_no_judge_was_trained_on(judge: MiniJudge) -> None:
    prompts = {f"a {name} in sks style": f"a {name}" for name in ("house", "tree", "car", "church", "fish", "cat")}
    drawn = []
    for name in ("house", "tree", "car", "church", "fish", "cat"):
        rng = world.generator("test", name)
        drawn += [world.paint("brandt", *world.object_scene(name, None, rng)[0].arrays(), rng) for _ in range(4)]
    own = [prompt for prompt in prompts for _ in range(4)]
    assert prompt_accuracy(judge, np.stack(drawn), own, prompts).mean() >= 0.85


@trained
def test_equal_pictures_keep_their_integrity_and_other_noise_does_not(judge: MiniJudge) -> None:
    pixels = world.concept_pictures("known/cat", "extra", 8)[0]
    assert perceptual(judge, pixels, pixels).max() <= 1e-6
    assert perceptual(judge, pixels, pixels[::-1].copy()).min() > 0.1
    assert nearest_training(judge, pixels, pixels).max() <= 1e-6


@trained
def test_concept_probability_knows_objects_and_styles_and_refuses_others(judge: MiniJudge) -> None:
    fish = world.concept_pictures("known/fish", "reference", 8)[0]
    assert judge.concept_probability(fish, "fish").mean() > 0.7
    assert judge.concept_probability(fish, "mosaic").mean() < 0.2
    with pytest.raises(UsageError, match="nearest: 'fish'"):
        judge.concept_probability(fish, "fsh")
