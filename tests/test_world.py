"""The embedded world: what its pictures and captions promise."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import numpy as np
import pytest

from immunebench.mini import objects, portraits, styles, world
from immunebench.mini.vocabulary import CONCEPTS, RARE_TOKENS, family


def test_a_picture_depends_on_its_name_alone() -> None:
    alone = world.draw("train", 7)
    for index in range(3):
        world.draw("train", index)
    again = world.draw("train", 7)
    assert np.array_equal(alone.pixels, again.pixels) and alone.caption == again.caption
    assert alone.pixels.shape == (64, 64, 3) and alone.pixels.dtype == np.uint8


def test_splits_and_groups_are_different_pictures() -> None:
    names = [("train", "world"), ("reference", "world"), ("train", "other")]
    drawn = [world.draw(split, 3, group=group).pixels for split, group in names]  # type: ignore[arg-type]
    for a, b in itertools.combinations(drawn, 2):
        assert not np.array_equal(a, b)


def test_more_pictures_do_not_change_the_first() -> None:
    few, _ = world.concept_pictures("object/mug", "published", 2)
    many, captions = world.concept_pictures("object/mug", "published", 5)
    assert np.array_equal(few, many[:2]) and len(captions) == 5


@pytest.mark.parametrize("concept", sorted(CONCEPTS))
def test_splits_of_a_concept_share_no_picture(concept: str) -> None:
    seen = [p.tobytes() for split in world.SPLITS for p in world.concept_pictures(concept, split, 3)[0]]
    assert len(set(seen)) == len(seen)


def test_captions_say_what_is_drawn() -> None:
    for index in range(40):
        picture = world.draw("train", index, wordings=0)
        labels = picture.labels
        assert picture.caption.endswith(f"in {picture.style} style")
        if labels["object"] == "person":
            assert picture.content.startswith("a portrait of ")
            continue
        assert f" {labels['object']}" in picture.content and labels["colour"] in picture.content
        assert labels["setting"] in picture.content
        assert (labels["marking"] == "none") == (f"a {labels['marking']}" not in picture.content)


def test_the_colour_in_the_caption_is_the_colour_in_the_picture() -> None:
    strongest = {"red": 0, "green": 1, "blue": 2}
    for colour, channel in strongest.items():
        look = objects.Look(colour, "white", "plain", "none", (0.0, 0.0, 0.0))
        canvas, _, _ = world.object_scene("ball", look, np.random.default_rng(0), "plain wall")
        rgb, parts = canvas.arrays()
        assert rgb[parts == 2].mean(0).argmax() == channel


def test_a_caption_omits_attributes_but_never_the_style() -> None:
    picture = world.draw("train", 1, name="mug", wordings=8)
    captions = picture.labels["captions"]
    assert len(captions) == 8 and len(set(captions)) > 1
    assert all("mug" in caption and picture.style in caption for caption in captions)


def test_held_out_words_occur_in_no_training_caption() -> None:
    unknown = {
        *RARE_TOKENS,
        *objects.UNSEEN_OBJECTS,
        *styles.UNSEEN_STYLES,
        *styles.HELD_OUT_PARAMS,
        *portraits.PEOPLE,
    }
    for index in range(150):
        for caption in world.draw("train", index, wordings=2).labels["captions"]:
            assert not unknown & set(caption.replace(",", " ").split())


def test_no_known_object_looks_like_a_held_out_instance() -> None:
    rng = np.random.default_rng(1)
    fixed = {(i.colour, i.pattern, i.marking) for _, i in world.INSTANCES.values()}
    assert not fixed & {(k.colour, k.pattern, k.marking) for k in (world.random_look(rng) for _ in range(3000))}


def test_the_table_of_concepts_holds_what_the_tasks_need() -> None:
    for name in ("style", "object", "identity"):
        rows = [CONCEPTS[key] for key in CONCEPTS if key.startswith(f"{name}/")]
        assert len(rows) >= 5 and {row.kind for row in rows} == {"near", "far"}
        assert len(family("suite", name)) == 4 and len(family("dev", name)) == 1 and family("benign", name)
        assert sum(CONCEPTS[key].kind == "near" for key in family("suite", name)) >= 2
    assert sum(entry.kind == "known" for entry in CONCEPTS.values()) >= 5
    assert len(world.OBJECT_NAMES) >= 16 and len(styles.STYLES) + len(styles.UNSEEN_STYLES) > 10


def test_a_person_stays_the_same_over_views_and_differs_from_others() -> None:
    """Within a person, pictures of views differ less than the average faces of two people do."""

    def faces(identity: portraits.Identity, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        views = [portraits.draw_portrait(identity, portraits.View.random(rng), rng) for _ in range(12)]
        return np.stack([np.where(parts[..., None] > 1, rgb, 0.5) for rgb, parts in views])

    people = [portraits.Identity.random(np.random.default_rng(seed)) for seed in range(6)]
    first, second = [[faces(p, seed).mean(0) for p in people] for seed in (1, 2)]
    distance = np.array([[np.square(a - b).mean() for b in second] for a in first])
    assert (distance.argmin(1) == np.arange(6)).all()


def test_random_people_are_many() -> None:
    rng = np.random.default_rng(0)
    drawn = [portraits.Identity.random(rng) for _ in range(500)]
    categories = [name for name, value in asdict(drawn[0]).items() if isinstance(value, str)]
    assert len({tuple(getattr(p, name) for name in categories) for p in drawn}) > 450
    assert not any(p.extra for p in drawn)


def test_styles_are_procedures_not_filters() -> None:
    """Every style leaves its own texture on one drawing: no two are nearly the same picture."""
    canvas, _, _ = world.object_scene("house", None, np.random.default_rng(3), "meadow")
    rgb, parts = canvas.arrays()
    names = [*styles.STYLES, *styles.UNSEEN_STYLES, *styles.HELD_OUT_PARAMS]
    drawn = {name: world.paint(name, rgb, parts, np.random.default_rng(0)).astype(float) for name in names}
    for a, b in itertools.combinations(names, 2):
        assert np.abs(drawn[a] - drawn[b]).mean() > 8, (a, b)


def test_datasets_go_out_and_in() -> None:
    rows = world.dataset("extra", 4)
    pixels, captions = world.from_dataset(rows)
    drawn = list(world.stream("extra", 4))
    assert np.array_equal(pixels, np.stack([p.pixels for p in drawn]))
    assert captions == tuple(p.caption for p in drawn)


def test_unknown_concepts_and_splits_are_refused() -> None:
    with pytest.raises(KeyError):
        world.concept_pictures("object/unicorn", "published", 1)
    with pytest.raises(KeyError):
        world.concept_pictures("object/mug", "test", 1)
