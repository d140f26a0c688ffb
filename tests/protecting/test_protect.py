"""One's own pictures: what is written, what is refused before anything is computed, what goes on after a stop."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import narrow_world
from immunebench import api
from immunebench.catalog import loading
from immunebench.catalog.loading import default_catalog
from immunebench.catalog.outline import Outline
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from immunebench.core.types import Pictures
from immunebench.execution import stages
from immunebench.execution.progress import duration
from immunebench.protecting import measuring
from immunebench.protecting.copies import Done
from immunebench.protecting.planning import planned
from immunebench.protecting.request import Request
from immunebench.protecting.running import Unprotected, priced, protect
from narrow_world import BUDGET
from photos import photo

SIDE = 64
Stage = Callable[..., dict[str, object]]


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the entries and of the weights."""
    root, weights = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("weights")
    narrow_world.write(root, weights)
    return root, weights


@pytest.fixture(autouse=True)
def world(entries: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("IMMUNEBENCH_ENTRIES", str(entries[0]))
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(entries[1]))
    monkeypatch.setenv("IMMUNEBENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    loading.default_catalog.cache_clear()
    yield
    loading.default_catalog.cache_clear()


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Five pictures: wide, upright, square, a JPEG and one in grey."""
    folder = tmp_path / "album"
    folder.mkdir()
    photo(1, 200, 120).save(folder / "wide.png")
    photo(2, 90, 130).save(folder / "upright.webp", lossless=True)
    photo(3, 64, 64).save(folder / "square.png")
    photo(4, 140, 100).save(folder / "camera.jpeg", quality=95)
    photo(5, 80, 80).convert("L").save(folder / "grey.png")
    (folder / "notes.txt").write_text("mine")
    return folder


def toy(spec: Any, inputs: dict[str, Path], out: Path, report: Callable[..., None]) -> dict[str, object]:
    """Move every value by the whole budget, up or down by the digest, and draw one black picture for what is drawn."""
    if spec.stage == "pictures":
        return stages.run_stage(spec, inputs, out, report)
    if spec.stage == "protect":
        found = Pictures.load(inputs["published"])
        rng = np.random.default_rng(int(spec.digest[:8], 16))
        sign = rng.choice(np.array([-1, 1]), found.pixels.shape)
        moved = np.clip(found.pixels + spec.key["budget"] * sign, 0, 255).astype(np.uint8)
        Pictures(moved, found.captions).save(out)
    else:
        Pictures(np.zeros((1, SIDE, SIDE, 3), np.uint8), ("",)).save(out)
    return {}


def request(folder: Path, out: Path | None, **options: Any) -> Request:
    return Request(folder, **{"defense": "two-steps", "base": "narrow", "profile": "quick", "out": out, **options})


def run(asked: Request, tmp_path: Path, stage: Stage = toy, store: str = "store") -> Done:
    catalog = default_catalog()
    with planned(asked, catalog) as plan:
        return protect(plan, catalog, api.open_store(tmp_path / store), known={"text": []}, run_stage=stage)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["protect", *map(str, arguments)])


def middle(file: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The middle square of a picture at the base's resolution, by Pillow alone."""
    with Image.open(file) as image:
        whole = image.convert("RGB")
    side = min(whole.size)
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    square = whole.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(square)


def loaded(file: Path) -> np.ndarray[Any, np.dtype[np.int16]]:
    with Image.open(file) as image:
        assert image.format == "PNG" or file.suffix != ".png"
        return np.asarray(image.convert("RGB"), dtype=np.int16)


@pytest.mark.slow
def test_real_stages_write_copies_that_keep_the_budget(album: Path, tmp_path: Path) -> None:
    done = call(album, "--defense", "two-steps", "--base", "narrow", "--profile", "quick", "--out", tmp_path / "out",
                "--trust", "--noun", "style", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "out/report.json").read_text())
    names = ["camera.png", "grey.png", "square.png", "upright.png", "wide.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*names, "report.json"])
    for row in told["pictures"]:
        clean, copy = middle(album / row["file"]).astype(np.int16), loaded(tmp_path / "out" / row["output"])
        change = np.abs(copy - clean)
        assert 0 < change.max() == row["linf"] <= BUDGET and row["within_budget"]
        error = float((change.astype(np.float64) ** 2).mean())
        assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
        assert (row["width"], row["height"], row["covered"], row["survives"]) == (SIDE, SIDE, 1.0, 1.0)
        assert row["perceptual"] is None and row["seconds"] > 0
    assert told["defense"] == "two-steps" and told["version"] == 3 and told["profile"] == "quick@2"
    assert not any(str(tmp_path) in value for value in json.dumps(told).split('"'))
    assert "How long this lasts is not known" in told["known"]["text"][0]


def test_a_copy_of_its_own_size_is_changed_within_the_budget_in_its_middle_alone(album: Path, tmp_path: Path) -> None:
    done = run(request(album, tmp_path / "out", size="own"), tmp_path)
    rows = {copy.file: copy for copy in done.copies}
    clean, copy = loaded(album / "wide.png"), loaded(tmp_path / "out/wide.png")
    assert copy.shape == clean.shape == (120, 200, 3)
    change = np.abs(copy - clean)
    assert change.max() == rows["wide.png"].linf <= BUDGET and change.max() > 0
    assert not change[:, :40].any() and not change[:, 160:].any() and change[:, 40:160].any()
    assert rows["wide.png"].covered == 0.6
    reread = np.abs(middle(tmp_path / "out/wide.png").astype(np.int16) - middle(album / "wide.png")).mean()
    survives = rows["wide.png"].survives
    assert survives is not None and 0 < survives < 1 and survives == pytest.approx(reread / BUDGET, rel=0.1)
    assert rows["square.png"].survives == 1.0 and rows["square.png"].covered == 1.0


def test_metadata_of_a_camera_does_not_travel_and_pictures_are_turned(tmp_path: Path) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera of Somebody"
    photo(1, 120, 80).save(folder / "a.jpg", exif=exif, quality=95)
    run(request(folder, tmp_path / "out", size="own"), tmp_path)
    with Image.open(tmp_path / "out/a.png") as copy:
        assert copy.size == (80, 120) and not copy.getexif() and not copy.info
    assert b"Somebody" not in (tmp_path / "out/a.png").read_bytes()


def test_a_stopped_run_leaves_nothing_and_goes_on_where_it_was(album: Path, tmp_path: Path) -> None:
    made: list[str] = []

    def stopping(spec: Any, *rest: Any) -> dict[str, object]:
        if spec.stage == "protect" and made.count("protect") == 1 and "again" not in made:
            raise KeyboardInterrupt
        found = toy(spec, *rest)
        made.append(spec.stage)
        return found

    asked = request(album, tmp_path / "out", at_once=2)
    with pytest.raises(KeyboardInterrupt):
        run(asked, tmp_path, stopping)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out-*"))
    made.append("again")
    run(asked, tmp_path, stopping)
    assert made.count("protect") == 3, "five pictures are three sets, of which the first was made before"
    run(request(album, tmp_path / "other", at_once=2), tmp_path, store="fresh")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.png")} == {
        p.name: p.read_bytes() for p in (tmp_path / "other").glob("*.png")
    }


def test_a_set_that_fails_writes_nothing_and_is_tried_again(album: Path, tmp_path: Path) -> None:
    broken = [True]

    def failing(spec: Any, *rest: Any) -> dict[str, object]:
        if spec.stage == "protect" and broken.pop():
            raise ValueError("the gradient is not finite")
        return toy(spec, *rest)

    with pytest.raises(Unprotected, match="nothing is written: error: the gradient is not finite"):
        run(request(album, tmp_path / "out"), tmp_path, failing)
    assert not (tmp_path / "out").exists()
    broken[:] = [False]
    assert len(run(request(album, tmp_path / "out"), tmp_path, failing).copies) == 5


def test_files_are_replaced_only_where_asked_and_others_stay(album: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/wide.png").write_bytes(b"mine")
    (tmp_path / "out/other.png").write_bytes(b"mine too")
    with pytest.raises(UsageError, match=r"has 1 of the files already, such as wide\.png \(--replace replaces them\)"):
        run(request(album, tmp_path / "out"), tmp_path)
    assert (tmp_path / "out/wide.png").read_bytes() == b"mine"
    run(request(album, tmp_path / "out", replace=True), tmp_path)
    assert loaded(tmp_path / "out/wide.png").shape == (SIDE, SIDE, 3)
    assert (tmp_path / "out/other.png").read_bytes() == b"mine too"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out-")]


def test_a_disk_that_fails_while_writing_leaves_the_old_copies(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(request(album, tmp_path / "out"), tmp_path)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    saved = Image.Image.save

    def full(image: Image.Image, file: Any, *rest: Any, **options: Any) -> None:
        if str(file).endswith("upright.png"):
            raise OSError(28, "No space left on device")
        saved(image, file, *rest, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UsageError, match="cannot be written: No space left on device"):
        run(request(album, tmp_path / "out", replace=True, seed=1), tmp_path)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out-")]


def test_the_seed_and_the_words_are_what_the_defense_is_told(album: Path, tmp_path: Path) -> None:
    keys: list[dict[str, Any]] = []

    def listening(spec: Any, *rest: Any) -> dict[str, object]:
        keys.extend([dict(spec.key)] if spec.stage == "protect" else [])
        return toy(spec, *rest)

    words = {"family": "object", "noun": "teapot", "caption": "my {token} {noun}"}
    for options in ({}, {"seed": 1}, words):
        run(request(album, tmp_path / f"out{len(keys)}", **options), tmp_path, listening)
    first, other, told = keys
    assert first["concept"]["family"] == "style" and first["concept"]["caption"] == "a painting in {token} style"
    assert first["seed"] != other["seed"] and first["concept"] == other["concept"]
    assert (told["concept"]["noun"], told["concept"]["caption"]) == ("teapot", "my {token} {noun}")
    assert {key["base"] for key in keys} == {"narrow"}


def bomb(folder: Path) -> Path:
    """Write a PNG of a few bytes whose header names a picture of 10 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    file = folder / "bomb.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    return file


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f.rename(f.with_name("moved")), r"FOLDER: no such folder"),
        (empty, r"holds no picture"),
        (bomb, r"bomb\.png: .*more than 100 million pixels"),
        (lambda f: (f / "cut.png").write_bytes((f / "wide.png").read_bytes()[:150]), r"cut\.png: is damaged or cut"),
        (lambda f: (f / "text.jpg").write_text("no picture"), r"text\.jpg: is no picture of a kind that is read"),
        (lambda f: (f / "raw.dng").write_bytes(b"x"), r"raw\.dng: pictures of kind \.dng are not read"),
        (lambda f: (f / "link.png").symlink_to(f / "wide.png"), r"link\.png: is a link"),
        (lambda f: photo(9, 900, 90).save(f / "strip.png"), r"strip\.png: is 900 x 90: longer than 4 times"),
        (lambda f: photo(9, 20, 20).save(f / "small.png"), r"small\.png: is 20 x 20: too small"),
        (
            lambda f: photo(9).save(f / "WIDE.jpg"),
            r"album: WIDE\.jpg and wide\.png would both be written as wide\.png; rename one",
        ),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_protected_is_one_line_before_anything_runs(
    album: Path, tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(album)

    def never(*of: Any) -> dict[str, object]:
        raise AssertionError("computed")

    with pytest.raises(UsageError, match=said):
        run(request(album, tmp_path / "out"), tmp_path, never)
    assert not (tmp_path / "out").exists() and not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--defense", "two-step"], r"--defense: unknown defense 'two-step' (nearest: 'two-steps')"),
        (["--defense", "imma-lora"], "--defense: changes no pictures (its hooks: protect_model); those that can are"),
        (["--defense", "none"], "--defense: changes no pictures (its hooks: none)"),
        (["--defense", "noise"], "--defense: is a control, which protects nothing; those that can are"),
        (["--defense", "aspl-ensemble"], "--defense: computes on mini, of the embedded world of 64-pixel drawings"),
        (
            ["--base", "mini"],
            "--base: is of the embedded world of 64-pixel drawings, and nothing computed on it protects",
        ),
        (["--base", "mini-b"], "--base: is of the embedded world"),
        (["--base", "narow"], "--base: unknown base 'narow' (nearest: 'narrow')"),
        (["--base", "sd14", "--profile", "a100-40g"], "get them with: immunebench weights fetch sd14"),
        (["--profile", "a100-40g"], "profile: has pictures of 512 pixels, the base narrow draws 64"),
        (["--family", "styles"], "--family: is not a family of pictures: 'styles' (nearest: 'style')"),
        (["--family", "object"], "--noun: is required for an object, e.g. --noun mug"),
        (["--size", "full"], "--size: is no size of copies: 'full' (valid: own, square)"),
        (["--at-once", "0"], "--at-once: must be from 1 to 999, not 0"),
        (["--seed", "-1"], "--seed: must not be negative, not -1"),
        (["--caption", " "], "--caption: must be 1 to 300 printable characters"),
        (["--captions", "nowhere.json"], "nowhere.json"),
        (["--defense", "glaze-open"], "immunebench weights fetch lpips-alex"),
        (["--page", "x.md"], "--page: needs --known"),
    ],
)
def test_an_option_that_is_wrong_is_one_line_before_anything_runs(
    album: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    usual = {"--defense": "two-steps", "--base": "narrow", "--profile": "quick", "--out": str(tmp_path / "out")}
    usual |= dict(zip(options[::2], options[1::2], strict=True))
    error = call(album, *(part for pair in usual.items() for part in pair)).exception
    assert isinstance(error, UsageError) and said in str(error), error
    assert "\n" not in str(error) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["itself", "dotted", "linked", "file", "missing"])
def test_copies_never_go_where_the_pictures_are(album: Path, tmp_path: Path, given: str) -> None:
    (tmp_path / "link").symlink_to(album)
    (tmp_path / "plain").write_text("a file")
    outs = {"itself": album, "dotted": album / ".." / "album", "linked": tmp_path / "link", "file": tmp_path / "plain"}
    said = {"file": "--out: is no folder", "missing": "--out: is required"}
    before = {p.name: p.read_bytes() for p in album.iterdir()}
    with pytest.raises(UsageError, match=said.get(given, "--out: is the folder of the pictures themselves")):
        run(request(album, outs.get(given), replace=True), tmp_path)
    assert {p.name: p.read_bytes() for p in album.iterdir()} == before


def test_a_layered_defense_protects_by_its_layer_of_pictures(album: Path, tmp_path: Path) -> None:
    with planned(request(album, tmp_path / "out", defense="imma-lora+two-steps"), default_catalog()) as plan:
        assert (plan.entry.id, plan.left_out) == ("two-steps", ("imma-lora",))
        assert [s.key["entry"] for s in plan.plan.stages.values() if s.stage == "protect"] == ["two-steps"]
        alone = set(plan.plan.stages)
    with planned(request(album, tmp_path / "out"), default_catalog()) as plan:
        assert set(plan.plan.stages) == alone, "the same stages, so that the store has them"
    assert not any(name.startswith("own-") for name in default_catalog().tasks), "the catalogue is as before"


def test_a_dry_run_says_what_and_how_long_and_writes_nothing(album: Path, tmp_path: Path) -> None:
    common = (album, "--defense", "two-steps", "--base", "narrow", "--profile", "quick", "--at-once", 3, "--dry-run")
    done = call(*common)
    assert done.exit_code == 0, done.output
    assert "5 pictures in 2 sets of at most 3, on narrow by the profile quick" in done.stdout
    assert "skipped: notes.txt: no picture" in done.stdout and "nothing was written" in done.stdout
    told = json.loads(call(*common, "--json").stdout)
    assert told["sets"] == 2 and told["seconds"] > 0 and told["reused"] == 0
    assert told["pictures"]["camera.jpeg"] == "camera.png"
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").rglob("manifest.json"))


def test_a_dry_run_needs_no_weights_and_says_that_a_run_does(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    photo(1, 600, 520).save(folder / "a.png")
    done = call(folder, "--defense", "mist-16", "--base", "sd15", "--dry-run", "--profile", "a100-40g")
    assert done.exit_code == 0, done.output
    assert "planned without: weights of the base sd15" in done.output
    assert "scaled to 512 x 512 pixels" in done.output and "from arithmetic, so not measured here" in done.output


@pytest.mark.parametrize(("p", "kept"), [(0.5, True), (1e-4, False)])
def test_a_perceptual_budget_is_held_against_the_saved_copy(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, p: float, kept: bool
) -> None:
    def distance(x: Any, y: Any) -> Any:
        return (x - y).abs().mean(dim=(1, 2, 3))

    monkeypatch.setattr(measuring, "_distance", lambda catalog, base: distance)
    entry = default_catalog().defenses["two-steps"]
    manifest = entry.manifest.model_copy(update={"budget": None, "perceptual_budget": p})
    with planned(request(album, tmp_path / "out"), default_catalog()) as plan:
        loose = replace(plan, entry=replace(entry, manifest=manifest))
        done = protect(loose, default_catalog(), api.open_store(tmp_path / "store"), known={}, run_stage=toy)
    for copy in done.copies:
        change = np.abs(loaded(tmp_path / "out" / copy.output) - middle(album / copy.file)).mean() * 2 / 255
        assert copy.perceptual == pytest.approx(change, abs=1e-4) and copy.within_budget is kept
    assert done.within_budget is kept


def test_the_page_has_the_times_that_the_dry_run_says(tmp_path: Path) -> None:
    folder = tmp_path / "sixteen"
    folder.mkdir()
    for number in range(16):
        photo(number, 512, 512).save(folder / f"{number}.png")
    page = (Path(__file__).parents[2] / "docs/protecting.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", page, flags=re.MULTILINE)
    outline, nowhere = Outline.of(default_catalog()), api.open_store(tmp_path / "store")
    assert len(rows) == 5
    for defense, cells in rows:
        said = dict(zip(("t4-16g", "a10-24g", "a100-40g", "h200-141g"), cells.split(" | "), strict=True))
        # One profile of each row is planned anew, as planning takes a second.
        profile = list(said)[len(defense) % 4]
        with planned(Request(folder, defense, profile=profile), outline, writes=False) as plan:
            assert duration(sum(price.seconds for price in priced(plan, nowhere).values())) == said[profile]
