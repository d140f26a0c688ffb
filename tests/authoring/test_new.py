"""From a folder of photos to a task that is planned, read and kept apart from every published suite."""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from immunebench.authoring.new import TaskRequest, assign_splits, new_task
from immunebench.authoring.scaffold import Created
from immunebench.catalog import loading
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import load_catalog
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from immunebench.core.types import Pictures
from immunebench.execution import stages
from immunebench.pictures.decoding import Photo
from immunebench.plan.planning import make_plan
from immunebench.store.graph import Plan
from photos import album

PUBLISHED = ("folder", "published")
SPLITS = ("owner", "published", "extra", "reference")


@pytest.fixture(autouse=True)
def house(own_entries: Path) -> Path:
    """Every test has entries of its own."""
    return own_entries


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return album(tmp_path / "My mug (2)", 12)


def create(photos: Path, **options: Any) -> Created:
    return new_task(TaskRequest(photos, **{"family": "object", "noun": "mug", **options}), load_catalog())


def plan(name: str = "my-mug-2", **options: Any) -> Plan:
    catalog: Catalog = load_catalog()
    return make_plan(catalog.suite(name), catalog, **options)


def tree(root: Path) -> dict[str, str]:
    """SHA-256 by path of everything below a folder."""
    files = (f for f in root.rglob("*") if f.is_file())
    return {f.relative_to(root).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_a_mixed_folder_becomes_a_task_of_disjoint_splits(photos: Path, house: Path) -> None:
    made = create(photos)
    assert made.id == "my-mug-2"
    assert made.messages == (
        "task my-mug-2: 12 pictures of 64 x 64 pixels (published 3, reference 3, owner 3, extra 3)",
    )
    assert made.next == ("immunebench run my-mug-2", "immunebench board my-mug-2")
    catalog = load_catalog()
    task = catalog.task("my-mug-2")
    assert task.model_dump()["pictures"] == dict.fromkeys(SPLITS, 3)
    assert (task.split, task.concept.noun, task.attacker.token) == ("dev", "mug", "sks")
    assert task.benign.source == task.anchors.source == "mini"
    assert task.evaluation.prompts[0] == "a {token} mug near the meadow in plain style"
    seen = []
    for split in SPLITS:
        loaded = Pictures.load(house / "tasks/object/my-mug-2" / split)
        assert loaded.pixels.shape == (3, 64, 64, 3) and set(loaded.captions) == {"a {subject}"}
        seen += [picture.tobytes() for picture in loaded.pixels]
    assert len(set(seen)) == 12


def test_names_of_photos_decide_nothing(photos: Path, house: Path, tmp_path: Path) -> None:
    create(photos, id="one")
    (tmp_path / "again").mkdir()
    for number, file in enumerate(sorted(photos.iterdir(), reverse=True)):
        shutil.copy(file, tmp_path / "again" / f"{number:02d}{file.suffix}")
    create(tmp_path / "again", id="two")
    assert tree(house / "tasks/object/one") == tree(house / "tasks/object/two")


@pytest.mark.parametrize(
    ("count", "published", "reference", "owner", "extra", "left"),
    [
        (8, 2, 2, 2, 2, 0),
        (11, 3, 3, 3, 2, 0),
        (64, 16, 16, 16, 16, 0),
        (70, 16, 22, 16, 16, 0),
        (90, 16, 32, 16, 16, 10),
    ],
)
def test_splits_grow_with_the_folder_up_to_a_suites_sizes(
    count: int, published: int, reference: int, owner: int, extra: int, left: int
) -> None:
    splits, over = assign_splits([Photo(f"{n}.png", np.zeros((1, 1, 3), np.uint8)) for n in range(count)])
    sizes = {"published": published, "reference": reference, "owner": owner, "extra": extra}
    assert ({split: len(of) for split, of in splits.items()}, over) == (sizes, left)
    names = [photo.name for of in splits.values() for photo in of]
    assert len(set(names)) == len(names) == count - left


def test_its_suite_is_planned_with_its_own_pictures_and_the_bases(photos: Path) -> None:
    create(photos)
    made = plan()
    assert made.suite.id == "my-mug-2"
    read = [spec.key for spec in made.stages.values() if spec.stage == "pictures"]
    own = {key["split"] for key in read if key["concept"] == "object/my-mug-2" and key["source"] == "folder"}
    assert own == set(SPLITS)
    assert all(key["source"] == "mini" and "files" not in key for key in read if key["concept"] != "object/my-mug-2")
    # The benign concept, the others and the innocent pictures are the suite's own: what is measured there is reused.
    suite = {
        digest for digest, spec in plan("mini-smoke", task="object-mug").stages.items() if spec.stage == "pictures"
    }
    assert {digest for digest, spec in made.stages.items() if spec.key.get("concept") == "public"} <= suite


def test_pictures_and_captions_reach_the_stage(photos: Path, house: Path, tmp_path: Path) -> None:
    (tmp_path / "words.csv").write_text('name,caption\nphoto 0,"a Mug, on a table"\nphoto 3.png,a {subject} in snow\n')
    create(photos, captions=tmp_path / "words.csv")
    words = []
    for spec in plan(defense="imma-lora").stages.values():
        if spec.key.get("source") == "folder":
            out = tmp_path / spec.digest
            out.mkdir()
            assert stages.pictures(spec.key, {}, out, lambda *_: None) == {"pictures": 3}
            loaded, stored = Pictures.load(out), Pictures.load(house / f"tasks/object/my-mug-2/{spec.key['split']}")
            assert np.array_equal(loaded.pixels, stored.pixels) and loaded.captions == stored.captions
            words += loaded.captions
    assert sorted(words)[-2:] == ["a {subject} in snow", "a {subject}, on a table"]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (64, 64), (0, 0, 0, 51)), 204),
        (Image.fromarray(np.full((64, 64), 128 * 257, np.uint16)), 128),
        (Image.new("L", (64, 64), 77), 77),
    ],
)
def test_a_picture_put_in_by_hand_is_read_as_a_viewer_shows_it(
    photos: Path, house: Path, tmp_path: Path, image: Image.Image, expected: int
) -> None:
    create(photos)
    image.save(house / "tasks/object/my-mug-2/published/001.png")
    (key,) = (s.key for s in plan().stages.values() if (s.key.get("source"), s.key.get("split")) == PUBLISHED)
    stages.pictures(key, {}, tmp_path, lambda *_: None)
    assert set(Pictures.load(tmp_path).pixels[1].flat) == {expected}


def test_a_damaged_picture_put_in_by_hand_is_named(photos: Path, house: Path, tmp_path: Path) -> None:
    create(photos)
    file = house / "tasks/object/my-mug-2/published/001.png"
    file.write_bytes(file.read_bytes()[:60])
    (key,) = (s.key for s in plan().stages.values() if (s.key.get("source"), s.key.get("split")) == PUBLISHED)
    with pytest.raises(UsageError, match=r"published/001\.png: is damaged or cut short"):
        stages.pictures(key, {}, tmp_path, lambda *_: None)


def test_a_changed_picture_is_another_stage_and_is_never_read_under_the_old_one(
    photos: Path, house: Path, tmp_path: Path
) -> None:
    create(photos)
    before = plan(defense="none")
    published = house / "tasks/object/my-mug-2/published"
    Image.new("RGB", (64, 64), "red").save(published / "001.png")
    after = plan(defense="none")
    gone = [before.stages[digest] for digest in before.stages.keys() - after.stages.keys()]
    # What is trained on it, drawn after that and compared with it; floor, anchors and the benign attack stay.
    assert sorted(spec.stage for spec in gone) == ["adapt", "generate", "pictures", "score", "score"]
    old = next(spec.key for spec in gone if spec.stage == "pictures")
    with pytest.raises(OSError, match=r"001\.png: changed after the run was planned"):
        stages.pictures(old, {}, tmp_path, lambda *_: None)


def _linked_file(folder: Path, secret: Path) -> None:
    (folder / "published/000.png").unlink()
    (folder / "published/000.png").symlink_to(secret / "000.png")


def _linked_split(folder: Path, secret: Path) -> None:
    shutil.rmtree(folder / "published")
    (folder / "published").symlink_to(secret)


def _linked_task(folder: Path, secret: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def _named_above(folder: Path, secret: Path) -> None:
    (folder / "published/captions.json").write_text('{"../../secret.png": "a"}')


def _missing(folder: Path, secret: Path) -> None:
    (folder / "published/002.png").unlink()


def _shortened(folder: Path, secret: Path) -> None:
    (folder / "published/captions.json").write_text('{"000.png": "a"}')


def _other_task(folder: Path, secret: Path) -> None:
    file = folder.with_suffix(".toml")
    file.write_text(file.read_text().replace('name = "object/my-mug-2"', 'name = "object/another"'))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_linked_file, "000.png: is a link"),
        (_linked_split, "is a link"),
        (_linked_task, "is a link"),
        (_named_above, "captions.json: pictures are called 000.png, 001.png, ..., not '../../secret.png'"),
        (_missing, "002.png: no such file"),
        (_shortened, "captions.json: lists 1 pictures, the task needs 3"),
        (_other_task, "must be 'object/my-mug-2', the folder beside this file, or lie in it, not 'object/another'"),
    ],
)
def test_a_spoiled_task_folder_is_refused_before_anything_runs(
    photos: Path, house: Path, tmp_path: Path, spoil: Any, said: str
) -> None:
    create(photos)
    secret = tmp_path / "secret"
    shutil.copytree(house / "tasks/object/my-mug-2/reference", secret)
    spoil(house / "tasks/object/my-mug-2", secret)
    with pytest.raises(UsageError) as caught:
        plan(defense="none")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"noun": None}, "--noun: is required for an object"),
        ({"family": "objects"}, "--family: is not a family for tasks from pictures: 'objects' (nearest: 'object')"),
        ({"family": "relearn"}, "--family: is not a family for tasks from pictures: 'relearn'"),
        ({"base": "minni"}, "--base: unknown base 'minni' (nearest: 'mini')"),
        ({"id": "../up"}, "--id: must be up to 64 lower-case letters"),
        ({"id": "object-mug"}, "--id: is the name of another task or suite: 'object-mug'"),
        ({"id": "mini-smoke"}, "--id: is the name of another task or suite: 'mini-smoke'"),
        ({"token": "two words"}, "--token: must be one word"),
        ({"token": "oqx", "owner_token": "oqx"}, "must differ, not 'oqx'"),
        ({"token": "red"}, "--token: is not a placeholder of base mini: 'red'"),
        ({"like": "style-rays"}, "--like: is not a task of the family object on base mini: 'style-rays'"),
        ({"title": "a\nb"}, "--title: must be 1 to 300 printable characters"),
        ({"captions": "photo 99,a mug"}, "words.csv: no such picture: 'photo 99' (nearest: "),
        ({"captions": "photo 0,a cup"}, "photo 0.png: a caption must hold {subject} or the noun 'mug', unlike 'a cup'"),
        ({"captions": "photo 0,a mug, red"}, "row 1 has 3 columns"),
        ({"captions": "twin,a mug"}, "matches twin.gif and twin.png; name one of them, not 'twin'"),
        ({"prompts": "a mug near the sea"}, "lacks {token}"),
        ({"prompts": ""}, "holds no prompt"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(
    photos: Path, house: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    for suffix, colour in (("png", "navy"), ("gif", "white")):
        Image.new("RGB", (64, 64), colour).save(photos / f"twin.{suffix}")
    for name, file in (("captions", "words.csv"), ("prompts", "prompts.txt")):
        if name in options:
            (tmp_path / file).write_text(options[name])
            options = {**options, name: tmp_path / file}
    with pytest.raises(UsageError) as caught:
        create(photos, **options)
    assert said in str(caught.value)
    assert not list(house.rglob("*"))


def test_too_few_different_pictures_are_counted(photos: Path, house: Path, tmp_path: Path) -> None:
    few = album(tmp_path / "few", 7)
    shutil.copy(few / "photo 0.png", few / "copy of photo 0.png")
    with pytest.raises(UsageError, match="few: holds 7 different pictures of 8 files; a task needs at least 8"):
        create(few)
    assert not list(house.rglob("*"))


def test_a_task_that_exists_is_never_overwritten(photos: Path, house: Path) -> None:
    create(photos)
    before = tree(house)
    with pytest.raises(UsageError, match=r"my-mug-2\.toml: exists already; choose another --id"):
        create(photos)
    assert tree(house) == before


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_full_disk_leaves_nothing_behind(
    photos: Path, house: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    moves: list[Path] = []
    usual = Path.rename

    def rename(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == step:
            raise OSError(28, "No space left on device", str(target))
        return usual(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UsageError, match="cannot be written: No space left on device"):
        create(photos)
    assert not tree(house) and not list(house.rglob("*my-mug*"))


def test_own_words_replace_the_lent_ones(photos: Path, tmp_path: Path, house: Path) -> None:
    (tmp_path / "prompts.txt").write_text(
        "a {token} mug\n\n  a big {token} mug \na {token} mug\n", encoding="utf-8-sig"
    )
    (tmp_path / "words.json").write_text(json.dumps({"photo 0.png": 'a {subject} "ü" \\ 😀'}))
    title = 'My "mug" \\ 😀'
    create(photos, prompts=tmp_path / "prompts.txt", captions=tmp_path / "words.json", title=title, like="object-robot")
    task = tomllib.loads((house / "tasks/object/my-mug-2.toml").read_text("utf-8"))
    assert task["title"] == title
    assert task["evaluation"]["prompts"] == ["a {token} mug", "a big {token} mug"]
    assert "object/robot" in task["anchors"]["others"]
    assert load_catalog().suite("my-mug-2").prompts == 2 and plan(defense="none").stages
    indices = [json.loads(file.read_text()) for file in house.rglob("captions.json")]
    assert 'a {subject} "ü" \\ 😀' in {caption for index in indices for caption in index.values()}


@pytest.mark.parametrize(
    ("family", "content", "noun"),
    [("style", "a picture", "style"), ("identity", "a portrait of {subject}", "person")],
)
def test_other_families_have_their_own_words(photos: Path, house: Path, family: str, content: str, noun: str) -> None:
    create(photos, family=family, noun=None)
    assert load_catalog().task("my-mug-2").concept.noun == noun
    index = json.loads((house / f"tasks/{family}/my-mug-2/owner/captions.json").read_text())
    assert set(index.values()) == {content}
    assert plan(defense="none").stages


def test_the_command_says_what_it_did_and_what_comes_next(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (photos / "notes.txt").write_text("words")
    other = tmp_path / "another house"
    arguments = ["new", "task", "--images", str(photos), "--family", "object", "--noun", "mug", "--base", "mini"]
    result = CliRunner().invoke(cli.app, [*arguments, "--out", str(other)])
    assert result.exit_code == 0, result.exception
    assert result.stdout.splitlines() == [
        "task my-mug-2: 12 pictures of 64 x 64 pixels (published 3, reference 3, owner 3, extra 3)",
        "skipped: notes.txt: no picture",
        "wrote another house/tasks/object/my-mug-2.toml",
        "wrote another house/tasks/object/my-mug-2",
        "wrote another house/suites/my-mug-2.toml",
        f"next: IMMUNEBENCH_ENTRIES='{other}' immunebench run my-mug-2",
        "next: immunebench board my-mug-2",
    ]
    monkeypatch.setenv("IMMUNEBENCH_ENTRIES", str(other))
    loading.default_catalog.cache_clear()
    dry = CliRunner().invoke(cli.app, ["run", "my-mug-2", "--dry-run"])
    assert dry.exit_code == 0 and "my-mug-2/imma-lora/lora/cpu/0" in dry.stdout
