"""Pictures by reference: fetched on their own, checked, kept with a lock, and read by a run that never fetches."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import socket
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner

from immunebench.board.loading.checks import comparability
from immunebench.catalog import loading
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import load_catalog
from immunebench.cli import main as cli
from immunebench.core.errors import UsageError
from immunebench.declared.models import SourceSpec
from immunebench.declared.suite import Suite
from immunebench.declared.task import SPLITS, Task
from immunebench.execution import stages
from immunebench.pictures import dataset_fetch
from immunebench.pictures.dataset_source import home, read_lock, state
from immunebench.pictures.decoding import read_picture
from immunebench.plan.planning import make_plan
from immunebench.plan.specs import Specs
from immunebench.records.building import build_record
from immunebench.records.record import Record
from photos import photo

REVISION = "0123456789abcdef0123456789abcdef01234567"
#: Of eight pictures by number, those of each split: consecutive runs in the order owner, published, extra, reference.
DEALT = {"owner": [0, 1], "published": [2, 3, 4], "extra": [5], "reference": [6, 7]}

TASK = """\
id = "{id}"
version = 1
family = "object"
base = "mini"
split = "suite"
title = "A thing that is published elsewhere"

[concept]
source = "dataset"
name = "object/{id}"
kind = "near"
noun = "mug"

[pictures]
owner = 2
published = 3
extra = 1
reference = 2

[dataset]
{table}
licence = "CC BY 4.0"
size_mb = 1.5

[owner]
caption = "a picture of a {{token}} mug"
token = "oqx"

[attacker]
caption = "a photo of a {{token}} mug"
token = "sks"

[evaluation]
prompts = ["a {{token}} mug near the sea in plain style"]

[benign]
source = "mini"
concept = "object/umbrella"
noun = "umbrella"
caption = "a photo of a {{token}} umbrella"
token = "wqd"
prompts = ["a {{token}} umbrella near the sea in plain style"]

[anchors]
source = "mini"
others = ["object/backpack"]
"""
FILES = [f"things/mug/{number:02d}.png" for number in range(8)]
GITHUB = f'host = "github"\nrepo = "some/things"\nrevision = "{REVISION}"\nfiles = {json.dumps(FILES)}'
ROWS = (
    f'host = "huggingface"\nrepo = "some/table"\nrevision = "{REVISION}"\nsplit = "train"\nimage = "picture"\n'
    'where = { artist = "b" }'
)


def png(number: int) -> bytes:
    """A picture as it is published: 96 x 80 pixels, no two alike."""
    held = io.BytesIO()
    photo(number).save(held, "PNG")
    return held.getvalue()


def square(number: int, folder: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What `new task` makes of the picture, from a file."""
    file = folder / "one.png"
    file.write_bytes(png(number))
    return read_picture(file, 64)


@pytest.fixture(autouse=True)
def root(own_entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a test's own tasks, beside those of the checkout, and an empty folder for pictures."""
    monkeypatch.setenv("IMMUNEBENCH_DATA", str(tmp_path / "data"))
    return own_entries


def write(root: Path, table: str, name: str = "mug-x", **changes: str) -> Path:
    """Write a task with a table [dataset]; `changes` replace text of it."""
    file = root / f"tasks/object/{name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = TASK.format(id=name, table=table)
    for old, new in changes.items():
        text = text.replace(old, new)
    file.write_text(text, "utf-8")
    return file


def refused(root: Path, old: str, new: str, table: str = GITHUB) -> str:
    """What is said of a task with a changed line; nothing else is in its way."""
    text = TASK.format(id="mug-x", table=table)
    assert old in text
    file = root / "tasks/object/mug-x.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace(old, new), "utf-8")
    (broken,) = load_catalog().broken
    assert "\n" not in broken.reason
    return broken.reason.removeprefix(f"{file}: ")


def task_of(catalog: Catalog, name: str = "mug-x") -> Task:
    return catalog.task(name)


def suite(*tasks: str) -> Suite:
    values = {
        "id": "own", "version": "1.0", "title": "Own", "profile": "cpu", "seeds": [0], "tasks": list(tasks),
        "defenses": ["none"], "chains": ["lora"], "prompts": 1, "pictures": 1, "curve_pictures": 0,
    }  # fmt: skip
    return Suite.model_validate_json(json.dumps(values))


class Host:
    """A host on this machine that serves files by path, and notes what it was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked, self.moved, host = files, list[str](), dict[str, str](), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append(self.path)
                data = host.files.get(self.path)
                self.send_response(302 if self.path in host.moved else 404 if data is None else 200)
                if self.path in host.moved:
                    self.send_header("Location", host.moved[self.path])
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """GitHub with the eight pictures at the pinned commit."""
    made = Host({f"/some/things/{REVISION}/{file}": png(number) for number, file in enumerate(FILES)})
    monkeypatch.setattr(dataset_fetch, "RAW", made.address)
    yield made
    made.server.shutdown()
    made.server.server_close()


def published(host: Host, number: int, data: bytes) -> None:
    host.files[f"/some/things/{REVISION}/{FILES[number]}"] = data


def fetched(**options: Any) -> list[str]:
    """Fetch the task and return what was said."""
    catalog, said = load_catalog(), list[str]()
    dataset_fetch.fetch(task_of(catalog), catalog, say=said.append, **options)
    return said


def table(folder: Path, rows: list[tuple[bytes, str]], *, names: list[str] | None = None) -> Path:
    """Write a data set as the hub keeps one: a Parquet file with pictures' bytes and an artist."""
    import datasets

    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "artist": datasets.Value("string") if names is None else datasets.ClassLabel(names=names),
        }
    )
    columns = {
        "picture": [{"bytes": data, "path": None} for data, _ in rows],
        "artist": [artist if names is None else names.index(artist) for _, artist in rows],
    }
    (folder / "data").mkdir(parents=True)
    made = datasets.Dataset.from_dict(columns, features=features)
    made.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


#: Where a hub's data set has its files.
HUB = f"hf://datasets/some/table@{REVISION}/"


def hub_of(folder: Path, monkeypatch: pytest.MonkeyPatch, address: str = HUB) -> list[tuple[str, str]]:
    """Put a folder's files in the place of the hub's, and note what is asked for."""
    import datasets
    from fsspec.implementations.local import LocalFileSystem

    load, asked = datasets.load_dataset_builder, list[tuple[str, str]]()

    class Hub(LocalFileSystem):  # type: ignore[misc]
        protocol = "hf"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return str(folder / path.removeprefix(address)) if path.startswith(address) else str(path)

    def from_hub(repo: str, *arguments: Any, **options: Any) -> Any:
        asked.append((repo, options["revision"]))
        builder = load(str(folder), *arguments, **options)
        files = builder.config.data_files
        for split in files:
            files[split][:] = [file.replace(f"{folder}/", address) for file in files[split]]
        return builder

    known = importlib.import_module("fsspec.registry")._registry  # its name in the package is a view of this one
    monkeypatch.setitem(known, "hf", Hub)
    monkeypatch.setattr(datasets, "load_dataset_builder", from_hub)
    return asked


def check_squares(tmp_path: Path, numbers: dict[str, list[int]] = DEALT, name: str = "mug-x") -> None:
    """The pictures of a plan's stages are those of their splits, each made as `new task` makes it."""
    loading.default_catalog.cache_clear()
    plan = make_plan(suite(name), load_catalog(), defense=["none", "imma-lora"])
    read = {}
    for spec in plan.stages.values():
        if spec.stage == "pictures" and spec.key["source"] == "dataset":
            found = stages.read_split(spec.key, load_catalog())
            assert set(found.captions) == {"a {subject}"}
            read[spec.key["split"]] = found.pixels
            assert spec.key["files"] == {
                f"{place:03d}.png": hashlib.sha256(pixels.tobytes()).hexdigest()
                for place, pixels in enumerate(found.pixels)
            }
    assert set(read) == set(SPLITS)
    for split, expected in numbers.items():
        assert np.array_equal(read[split], np.stack([square(number, tmp_path) for number in expected])), split


def test_files_of_a_commit_are_fetched_dealt_and_locked(root: Path, host: Host, tmp_path: Path) -> None:
    write(root, GITHUB)
    said = fetched()
    assert said[0] == "mug-x: about 1.5 MB (CC BY 4.0) from some/things at 0123456789ab"
    assert said[1].startswith(
        "mug-x: 8 pictures of 64 x 64 pixels (owner 2, published 3, extra 1, reference 2), locked, in "
    )
    assert host.asked == [f"/some/things/{REVISION}/{file}" for file in FILES]
    lock = json.loads((home("mug-x") / "lock.json").read_text())
    assert [picture["source"] for picture in lock["pictures"]] == [
        hashlib.sha256(png(number)).hexdigest() for number in range(8)
    ]
    assert [picture["square"] for picture in lock["pictures"]] == [
        hashlib.sha256(square(number, tmp_path).tobytes()).hexdigest() for number in range(8)
    ]
    assert (lock["side"], lock["reference"]["revision"]) == (64, REVISION)
    check_squares(tmp_path)


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_rows_of_a_data_set_are_chosen_by_a_column_in_their_order(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str] | None
) -> None:
    """Through the loading code of a data set's files; only the hub itself is replaced, by a folder with its files."""
    rows = [(png(100 + number), "a") if number % 2 else (png(number // 2), "b") for number in range(20)]
    asked = hub_of(table(tmp_path / "table", rows, names=names), monkeypatch)
    write(root, ROWS)
    fetched()
    assert asked == [("some/table", REVISION)]
    lock = read_lock(task_of(load_catalog()))
    assert lock is not None and [picture.name for picture in lock.pictures] == [f"row {2 * n}" for n in range(8)]
    check_squares(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            'image = "picture"', 'image = "pictures"',
            "dataset.image: has no such column: 'pictures' (nearest: 'picture')",
        ),
        ("artist = ", "artst = ", "dataset.where.artst: has no such column: 'artst' (nearest: 'artist')"),
        ('"b" }', '"bb" }', "dataset.where.artist: is no value of the column: 'bb' (nearest: 'b')"),
        ('split = "train"', 'split = "test"', "could not be read: Bad split: test. Available splits: ['train']"),
        (
            'where = { artist = "b" }', 'where = { artist = "c" }',
            "dataset.where: holds 3 pictures (artist = 'c'), the splits take 8",
        ),
    ],
)  # fmt: skip
def test_a_wrong_description_of_a_table_is_one_line(
    root: Path, tmp_path: Path, old: str, new: str, expected: str
) -> None:
    rows = [(png(number), "b") for number in range(8)] + [(png(number), "c") for number in range(8, 11)]
    folder = table(tmp_path / "table", rows, names=["a", "b", "c"])
    write(root, ROWS.replace(old, new))
    catalog = load_catalog()
    with pytest.raises(UsageError) as caught:
        dataset_fetch.add(task_of(catalog), catalog, folder, say=lambda line: None)
    line = str(caught.value)
    assert line == f"some/table at 0123456789ab: {expected}" and not home("mug-x").exists()


def test_a_column_of_something_else_than_pictures_is_named_with_its_row(root: Path, tmp_path: Path) -> None:
    folder = table(tmp_path / "table", [(png(number), "b") for number in range(8)])
    write(root, ROWS.replace('image = "picture"', 'image = "artist"'))
    catalog = load_catalog()
    with pytest.raises(UsageError, match=r"^some/table at 0123456789ab: row 0: holds no picture's bytes$"):
        dataset_fetch.add(task_of(catalog), catalog, folder, say=lambda line: None)


def test_a_table_that_is_no_parquet_is_not_read(root: Path, tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "train.csv").write_text("picture,artist\nx,b\n")
    write(root, ROWS)
    catalog = load_catalog()
    with pytest.raises(UsageError, match=r"must be a data set of Parquet files.*not of kind 'csv'"):
        dataset_fetch.add(task_of(catalog), catalog, tmp_path / "table", say=lambda line: None)


def test_a_folder_with_the_name_of_a_hub_s_data_set_is_not_read_in_its_place(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path / "some" / "table", [(png(number), "b") for number in range(8)])
    monkeypatch.chdir(tmp_path)
    write(root, ROWS)
    with pytest.raises(UsageError, match=r"^some/table: is also a folder here, .* from another folder than '.*'$"):
        fetched()
    assert not home("mug-x").exists()


@pytest.mark.parametrize(
    "address",
    [
        HUB.replace(REVISION, "f" * 40), HUB.replace("some/table", "other/table"), f"hf://datasets/some/table/{REVISION}/",
        f"{HUB}../../", "https://example.org/", f"zip://{HUB}",
    ],
)  # fmt: skip
def test_files_of_anything_but_the_pinned_repository_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    hub_of(table(tmp_path / "table", [(png(number), "b") for number in range(8)]), monkeypatch, address)
    write(root, ROWS)
    with pytest.raises(UsageError) as caught:
        fetched()
    assert str(caught.value).startswith(
        f"some/table at 0123456789ab: has a data file that lies outside of {HUB}: '{address}data/train"
    )


@pytest.mark.parametrize("written", ["{secret}/data/*.parquet", "../secret/data/*.parquet"])
def test_a_card_does_not_lead_out_of_the_folder(root: Path, tmp_path: Path, written: str) -> None:
    table(tmp_path / "secret", [(png(number), "b") for number in range(8)])
    folder = table(tmp_path / "table", [(png(20 + number), "b") for number in range(8)])
    path = written.format(secret=tmp_path / "secret")
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {path}\n---\n"
    )
    write(root, ROWS)
    catalog = load_catalog()
    with pytest.raises(UsageError, match=rf"has a data file that lies outside of {folder}: '.*secret/data/train"):
        dataset_fetch.add(task_of(catalog), catalog, folder, say=lambda line: None)
    assert not home("mug-x").exists()


def test_a_linked_table_does_not_lead_out_of_the_folder(root: Path, tmp_path: Path) -> None:
    secret = table(tmp_path / "secret", [(png(number), "b") for number in range(8)])
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "train.parquet").symlink_to(secret / "data" / "train-00000-of-00001.parquet")
    write(root, ROWS)
    catalog = load_catalog()
    with pytest.raises(UsageError, match="has a data file that lies outside of"):
        dataset_fetch.add(task_of(catalog), catalog, tmp_path / "table", say=lambda line: None)


def test_a_path_in_the_place_of_a_pictures_bytes_is_not_followed(root: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "secret.png").write_bytes(png(0))
    (tmp_path / "table").mkdir()
    cells = [{"bytes": None, "path": str(tmp_path / "secret.png")}] * 8
    pq.write_table(pa.table({"picture": cells, "artist": ["b"] * 8}), tmp_path / "table" / "train.parquet")
    write(root, ROWS)
    catalog = load_catalog()
    with pytest.raises(UsageError, match=r"row 0: holds no picture's bytes"):
        dataset_fetch.add(task_of(catalog), catalog, tmp_path / "table", say=lambda line: None)


@pytest.mark.parametrize("column", ["picture", "artist"])
def test_no_cell_is_decoded_and_no_path_in_one_followed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    """A picture inside of a picture's cell, and one in the column that rows are chosen by."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    secret = tmp_path / "secret.png"
    secret.write_bytes(png(0))
    link, binary = {"bytes": None, "path": str(secret)}, datasets.Value("binary")
    nested = column == "picture"
    features = datasets.Features({
        "picture": {"bytes": datasets.Image(), "path": datasets.Value("string")} if nested else binary,
        "artist": datasets.Value("string") if nested else datasets.Image(),
    })  # fmt: skip
    cells = {
        "picture": [{"bytes": link, "path": "x"}] * 8 if nested else [png(number) for number in range(8)],
        "artist": ["b"] * 8 if nested else [link] * 8,
    }
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table(cells, schema=features.arrow_schema), tmp_path / "table" / "train.parquet")
    opened, really = list[object](), Image.open

    def spy(file: Any, *arguments: Any, **options: Any) -> Image.Image:
        opened.append(file)
        return really(file, *arguments, **options)

    monkeypatch.setattr(Image, "open", spy)
    write(root, ROWS)
    catalog = load_catalog()
    said = "row 0: holds no picture's bytes" if nested else r"dataset\.where: holds 0 pictures"
    with pytest.raises(UsageError, match=said):
        dataset_fetch.add(task_of(catalog), catalog, tmp_path / "table", say=lambda line: None)
    assert opened == []


def test_no_more_is_read_than_ten_times_what_the_task_says(root: Path, tmp_path: Path) -> None:
    """The picture that is too many is of zeros, which a file holds in a few bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "table").mkdir()
    columns = {"picture": [png(number) for number in range(8)] + [bytes(16_000_000)], "artist": ["b"] * 9}
    file = tmp_path / "table" / "train.parquet"
    pq.write_table(pa.table(columns), file, row_group_size=8, compression="zstd")
    assert file.stat().st_size < 1_000_000
    write(root, ROWS)
    catalog = load_catalog()
    dataset_fetch.add(task_of(catalog), catalog, tmp_path / "table", say=lambda line: None)
    pq.write_table(pa.table(columns).take([8, *range(8)]), file, row_group_size=8, compression="zstd")
    with pytest.raises(UsageError) as caught:
        dataset_fetch.add(task_of(catalog), catalog, tmp_path / "table", say=lambda line: None)
    assert str(caught.value) == (
        "some/table at 0123456789ab: dataset.size_mb: takes more than 10 times the MB that the task states, counted "
        "unpacked: 1.5"
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (REVISION, "main", "dataset.revision: string should match pattern '^[0-9a-f]{40}$', not 'main'"),
        (REVISION, REVISION[:12], "dataset.revision: string should match pattern"),
        (REVISION, REVISION.upper(), "dataset.revision: string should match pattern"),
        ("size_mb = 1.5", 'size_mb = 1.5\nlicense = "x"', "unknown field 'license' (nearest: 'licence')"),
        ('"github"', '"gihub"', "dataset.host: is not valid: 'gihub' (nearest: 'github')"),
        (FILES[3], FILES[0], f"dataset: files holds '{FILES[0]}' twice: each picture belongs to one split"),
        (FILES[3], "../../secret.png", "dataset.files.3: must be a path inside the repository, not '../../secret.png'"),
        (FILES[3], "/etc/secret.png", "dataset.files.3: must be a path inside the repository"),
        (FILES[3], "things//x.png", "dataset.files.3: must be a path inside the repository"),
        (FILES[3], "things/weights.pkl", "dataset.files.3: string should match pattern"),
        ('"some/things"', '"../things"', "dataset.repo: string should match pattern"),
        ('"some/things"', '"some/things.."', "dataset.repo: string should match pattern"),
        ('"some/things"', '"some/things."', "dataset.repo: string should match pattern"),
        ('"some/things"', '"some./things"', "dataset.repo: string should match pattern"),
        (f', "{FILES[7]}"', "", "dataset.files lists 7 pictures, the splits need 8"),
        ("size_mb = 1.5", f'size_mb = 1.5\nsha256 = ["{"0" * 64}"]', "dataset.sha256 lists 1 pictures, the splits"),
        ("size_mb = 1.5", 'size_mb = 1.5\nterms = "http://x.org/"', "dataset.terms: string should match pattern"),
        ("size_mb = 1.5", 'size_mb = 1.5\nimage = "x"', "dataset: image does not apply to the host 'github'"),
        ('name = "object/mug-x"', 'name = "object/mug"', "concept.name of a task with [dataset] must be 'object"),
        ('source = "dataset"', 'source = "mini"', "concept.source 'dataset' and the table [dataset] require"),
        ('[anchors]\nsource = "mini"', "[anchors]", "anchors.source is required: the data set holds only"),
    ],
)  # fmt: skip
def test_a_wrong_reference_breaks_its_task_in_one_line(root: Path, old: str, new: str, expected: str) -> None:
    assert refused(root, old, new).startswith(expected)


def test_a_table_of_rows_needs_its_columns(root: Path) -> None:
    said = refused(root, 'image = "picture"\n', "", ROWS)
    assert said == "dataset: image is required on the host 'huggingface'"
    assert refused(root, 'split = "train"', f'split = "train"\nfiles = ["{FILES[0]}"]', ROWS) == (
        "dataset: files does not apply to the host 'huggingface'"
    )


def test_a_second_fetch_is_held_against_the_lock(root: Path, host: Host, tmp_path: Path) -> None:
    write(root, GITHUB)
    fetched()
    before = (home("mug-x") / "lock.json").read_bytes()
    assert ", as locked before, in " in fetched()[1]
    published(host, 4, png(50))
    with pytest.raises(UsageError) as caught:
        fetched()
    line, digests = str(caught.value), [hashlib.sha256(png(number)).hexdigest()[:12] for number in (50, 4)]
    assert line.startswith(f"{FILES[4]}: has the SHA-256 {digests[0]}..., and {digests[1]}... in the lock")
    assert (home("mug-x") / "lock.json").read_bytes() == before
    check_squares(tmp_path)


def test_digests_that_the_task_states_are_enforced(root: Path, host: Host) -> None:
    digests = [hashlib.sha256(png(number)).hexdigest() for number in range(8)]
    write(root, f"{GITHUB}\nsha256 = {json.dumps(digests)}")
    fetched()
    published(host, 6, png(50))
    (home("mug-x") / "lock.json").unlink()
    with pytest.raises(
        UsageError, match=rf"{FILES[6]}: dataset.sha256: has the SHA-256 .*, not the task's '{digests[6]}'"
    ):
        fetched()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


#: A PNG whose header says 20,000 x 20,000 pixels, and which holds none.
HUGE = (
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")
)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(3)[:200], "is damaged or cut short"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is no picture of a kind that is read"),
        (b"\x80\x04\x95pickle", "is no picture of a kind that is read"),
        (HUGE, "million pixels; make it smaller"),
        (png(0), f"{FILES[3]}: mug-x: is the same picture as {FILES[0]}; each belongs to one split"),
    ],
)  # fmt: skip
def test_a_picture_that_cannot_serve_is_named_and_nothing_is_kept(
    root: Path, host: Host, data: bytes, said: str
) -> None:
    write(root, GITHUB)
    published(host, 3, data)
    with pytest.raises(UsageError) as caught:
        fetched()
    line = str(caught.value)
    assert FILES[3] in line and said in line and "\n" not in line
    assert not home("mug-x").exists()


def test_a_copy_in_another_format_is_the_same_picture(root: Path, host: Host) -> None:
    write(root, GITHUB)
    held = io.BytesIO()
    photo(0).save(held, "BMP")
    published(host, 7, held.getvalue())
    with pytest.raises(UsageError, match="is the same picture as"):
        fetched()


def as_people_have_them(number: int) -> bytes:
    """The picture turned by EXIF, with alpha, grey, or in 16 bits."""
    held, image = io.BytesIO(), photo(number)
    match number % 4:
        case 0:
            exif = Image.Exif()
            exif[0x0112] = 6
            image.save(held, "JPEG", exif=exif, quality=95)
        case 1:
            image.putalpha(128)
            image.save(held, "PNG")
        case 2:
            image.convert("L").save(held, "PNG")
        case 3:
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(held, "PNG")
    return held.getvalue()


def test_every_kind_of_picture_becomes_an_rgb_square(root: Path, host: Host) -> None:
    write(root, GITHUB)
    for number in range(8):
        published(host, number, as_people_have_them(number))
    fetched()
    found = [np.asarray(Image.open(file)) for file in sorted(home("mug-x").rglob("*.png"))]
    assert [pixels.shape for pixels in found] == [(64, 64, 3)] * 8


def test_what_a_host_lacks_or_sends_too_much_of_is_one_line(
    root: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, GITHUB)
    del host.files[f"/some/things/{REVISION}/{FILES[5]}"]
    with pytest.raises(UsageError, match=rf"{FILES[5]}: could not be fetched: 404"):
        fetched()
    published(host, 5, png(5))
    monkeypatch.setattr(dataset_fetch, "MAX_BYTES", len(png(0)) - 1)
    with pytest.raises(UsageError, match=rf"{FILES[0]}: has more than 0 MB"):
        fetched()
    monkeypatch.setattr(dataset_fetch, "RAW", "http://127.0.0.1:1")
    with pytest.raises(UsageError, match=r"could not be fetched: .*refused"):
        fetched()


def test_a_redirect_to_an_address_that_is_asked_otherwise_is_refused_before_anything_is_sent(
    root: Path, host: Host
) -> None:
    write(root, GITHUB)
    moved = f"/some/things/{REVISION}/{FILES[0]}"
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.2)
        elsewhere = f"ftp://127.0.0.1:{other.getsockname()[1]}/x.png"
        host.moved[moved] = elsewhere
        with pytest.raises(UsageError) as caught:
            fetched()
        with pytest.raises(TimeoutError):
            other.accept()
    assert str(caught.value) == f"{host.address}{moved}: leads to an address that is not encrypted: '{elsewhere}'"
    # One that is asked in the same way is followed.
    host.files["/moved.png"], host.moved[moved] = png(0), f"{host.address}/moved.png"
    fetched()


def test_a_place_that_cannot_be_written_is_one_line(root: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, GITHUB)
    monkeypatch.setenv("IMMUNEBENCH_DATA", str(root / "pyproject.toml"))
    (root / "pyproject.toml").write_text("")
    with pytest.raises(UsageError, match=r"pyproject\.toml.*: cannot be (read|written)"):
        fetched()


def test_terms_must_be_accepted_and_their_address_is_said(root: Path, host: Host) -> None:
    write(root, f'{GITHUB}\nterms = "https://example.org/terms"')
    runner = CliRunner()
    result = runner.invoke(cli.app, ["data", "fetch", "mug-x"])
    assert str(result.exception) == (
        "--accept-terms: is needed: the pictures of mug-x have terms of their own; read them at "
        "https://example.org/terms"
    )
    assert host.asked == []
    result = runner.invoke(cli.app, ["data", "fetch", "mug-x", "--accept-terms"])
    assert result.exit_code == 0, result.output
    lock = read_lock(task_of(load_catalog()))
    assert lock is not None and lock.terms == "https://example.org/terms"


def test_a_run_without_the_pictures_says_so_before_anything_and_fetches_none(
    root: Path, host: Host, tmp_path: Path
) -> None:
    write(root, GITHUB)
    write(root, GITHUB, "mug-y", **{"CC BY 4.0": "CC0", "size_mb = 1.5": 'size_mb = 2.0\nterms = "https://x.org/t"'})
    loading.default_catalog.cache_clear()
    catalog = load_catalog()
    with pytest.raises(UsageError) as caught:
        make_plan(suite("object-mug", "mug-x", "mug-y"), catalog)
    assert str(caught.value) == (
        "the pictures of the tasks mug-x, mug-y are not there (about 3.5 MB, CC BY 4.0, CC0); get them with: "
        "immunebench data fetch mug-x mug-y --accept-terms (read https://x.org/t first), or name a folder of them: "
        "immunebench data add TASK FOLDER"
    )
    # The rest of the suite runs.
    assert {cell.task for cell in make_plan(suite("object-mug", "mug-x"), catalog, task="object-mug").cells} == {
        "object-mug"
    }
    file = tmp_path / "own.toml"
    file.write_text(
        'id = "own"\nversion = "1.0"\ntitle = "Own"\nprofile = "cpu"\nseeds = [0]\ntasks = ["mug-x"]\n'
        'defenses = ["none"]\nchains = ["lora"]\nprompts = 1\npictures = 1\ncurve_pictures = 0\n'
    )
    store = tmp_path / "store"
    result = CliRunner().invoke(cli.app, ["run", str(file), "--store", str(store), "--results", str(tmp_path / "r")])
    assert isinstance(result.exception, UsageError)
    assert "immunebench data fetch mug-x" in str(result.exception)
    assert host.asked == [] and not list(store.rglob("manifest.json"))


class Nothing:
    """A store in which nothing was computed."""

    def path(self, digest: str) -> None: ...
    def manifest(self, digest: str) -> None: ...
    def failure(self, digest: str) -> None: ...


def made_record(task: str = "mug-x") -> Record:
    """The record of a task's one cell, of which nothing was run."""
    plan = make_plan(suite(task), load_catalog())
    (cell,) = plan.cells
    return build_record(cell, plan.roots[cell.key], Nothing())


def test_records_of_other_pictures_share_no_column(root: Path, host: Host) -> None:
    write(root, GITHUB)
    fetched()
    one = made_record()
    squares = [picture["square"] for picture in json.loads((home("mug-x") / "lock.json").read_text())["pictures"]]
    short = hashlib.sha256("\n".join(squares).encode()).hexdigest()[:12]
    assert one.cell.pictures == short and f"/mug-x@1:{short}/" in one.comparability
    again = Record.model_validate_json(one.model_dump_json())
    assert comparability(again) == one.comparability
    published(host, 4, png(50))
    (home("mug-x") / "lock.json").unlink()
    fetched()
    assert made_record().comparability != one.comparability
    # Stated digests leave no choice, and what the package draws itself has none: their keys hold names alone.
    digests = [hashlib.sha256(host.files[f"/some/things/{REVISION}/{file}"]).hexdigest() for file in FILES]
    write(root, f"{GITHUB}\nsha256 = {json.dumps(digests)}")
    fetched()
    for record in (made_record(), made_record("object-mug")):
        assert f"/{record.cell.task}@{record.cell.task_version}/" in record.comparability
        assert "pictures" not in record.model_dump(mode="json")["cell"]


def test_pictures_of_another_revision_are_not_the_task_s(root: Path, host: Host) -> None:
    write(root, GITHUB)
    fetched()
    assert state(task_of(load_catalog())) == "fetched"
    write(root, GITHUB.replace(REVISION, "f" * 40))
    assert state(task_of(load_catalog())) == "outdated"
    with pytest.raises(UsageError, match="the pictures of the task mug-x are not there"):
        make_plan(suite("mug-x"), load_catalog())


def test_a_square_that_changed_or_a_broken_lock_is_seen(root: Path, host: Host, tmp_path: Path) -> None:
    write(root, GITHUB)
    fetched()
    spoilt = home("mug-x") / "published" / "001.png"
    Image.new("RGB", (64, 64)).save(spoilt)
    with pytest.raises(UsageError, match=r"001\.png: is missing or is not what was fetched; start again: immunebench"):
        make_plan(suite("mug-x"), load_catalog())
    fetched()
    check_squares(tmp_path)
    spoilt.unlink()
    spoilt.symlink_to(home("mug-x") / "published" / "000.png")
    with pytest.raises(UsageError, match="is a link"):
        make_plan(suite("mug-x"), load_catalog())
    (home("mug-x") / "lock.json").write_text("{}")
    with pytest.raises(UsageError, match=r"lock\.json: is damaged; remove it and start: immunebench data fetch mug-x"):
        make_plan(suite("mug-x"), load_catalog())


def test_a_lock_of_other_pictures_than_the_splits_take_is_damaged_and_the_remedy_works(
    root: Path, host: Host, tmp_path: Path
) -> None:
    write(root, GITHUB)
    fetched()
    file = home("mug-x") / "lock.json"
    whole = json.loads(file.read_text())
    swapped = [whole["pictures"][1], whole["pictures"][0], *whole["pictures"][2:]]
    for pictures in (whole["pictures"][:5], [*whole["pictures"], whole["pictures"][0]], swapped):
        file.write_text(json.dumps({**whole, "pictures": pictures}))
        for attempt in (fetched, lambda: make_plan(suite("mug-x"), load_catalog())):
            with pytest.raises(UsageError) as caught:
                attempt()
            assert str(caught.value) == f"{file}: is damaged; remove it and start: immunebench data fetch mug-x"
    file.unlink()
    fetched()
    check_squares(tmp_path)


def test_a_damaged_lock_is_listed_beside_the_others(root: Path, host: Host) -> None:
    write(root, GITHUB)
    write(root, GITHUB, "mug-y")
    fetched()
    (home("mug-x") / "lock.json").write_text("{")
    result = CliRunner().invoke(cli.app, ["data", "list", "--json"])
    assert result.exit_code == 0, result.exception
    states = {row["task"]: row["state"] for row in json.loads(result.output)}
    assert (states["mug-x"], states["mug-y"]) == ("damaged", "missing")


@pytest.mark.parametrize("which", [1, 2])
def test_a_fetch_that_is_stopped_leaves_what_was_there(
    root: Path, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    write(root, GITHUB)
    fetched()
    before, really, calls = (home("mug-x") / "lock.json").read_bytes(), Path.rename, list[Path]()

    def rename(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) == which:
            raise KeyboardInterrupt
        return really(self, to)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", rename)
        fetched()
    assert (home("mug-x") / "lock.json").read_bytes() == before
    check_squares(tmp_path)


def test_what_a_killed_fetch_had_moved_aside_is_put_back_and_held_against(root: Path, host: Host) -> None:
    write(root, GITHUB)
    fetched()
    before = (home("mug-x") / "lock.json").read_bytes()
    home("mug-x").rename(home(".mug-x.old"))
    published(host, 4, png(50))
    with pytest.raises(UsageError, match=r"in the lock; nothing was changed"):
        fetched()
    assert (home("mug-x") / "lock.json").read_bytes() == before and not home(".mug-x.old").exists()


def test_two_fetches_at_once_leave_one_whole_set(root: Path, host: Host, tmp_path: Path) -> None:
    write(root, GITHUB)
    catalog, failed = load_catalog(), list[BaseException]()

    def fetch() -> None:
        try:
            for _ in range(3):
                dataset_fetch.fetch(task_of(catalog), catalog, say=lambda line: None)
        except BaseException as error:
            failed.append(error)

    threads = [Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    check_squares(tmp_path)
    assert {file.name for file in home("mug-x").parent.iterdir()} <= {"mug-x", ".mug-x.lock"}


@pytest.mark.parametrize("odd", ["object-mug", "mug-terms", "mug-damaged"])
def test_nothing_is_fetched_where_one_of_several_tasks_would_be_refused(root: Path, host: Host, odd: str) -> None:
    write(root, GITHUB)
    write(root, f'{GITHUB}\nterms = "https://example.org/terms"', "mug-terms")
    write(root, GITHUB, "mug-damaged")
    if odd == "mug-damaged":
        home(odd).mkdir(parents=True)
        (home(odd) / "lock.json").write_text("{")
    result = CliRunner().invoke(cli.app, ["data", "fetch", "mug-x", odd])
    assert isinstance(result.exception, UsageError)
    assert host.asked == [] and not home("mug-x").exists()


def test_a_square_that_changes_after_the_plan_stops_its_stage(root: Path, host: Host) -> None:
    write(root, GITHUB)
    fetched()
    plan = make_plan(suite("mug-x"), load_catalog())
    (spec,) = (
        spec for spec in plan.stages.values()
        if spec.key.get("source") == "dataset" and spec.key["split"] == "extra"
    )  # fmt: skip
    Image.new("RGB", (64, 64)).save(home("mug-x") / "extra" / "000.png")
    with pytest.raises(OSError, match="changed after the run was planned"):
        stages.read_split(spec.key, load_catalog())


def folder_of(place: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(png(number))
    return place


@pytest.mark.parametrize("name", [lambda file: file, lambda file: file.split("/", 1)[1], lambda file: file[-6:]])
def test_a_checkout_or_a_folder_with_its_names_is_taken(root: Path, tmp_path: Path, name: Callable[[str], str]) -> None:
    folder = folder_of(tmp_path / "mug", [name(file) for file in FILES])
    write(root, GITHUB)
    result = CliRunner().invoke(cli.app, ["data", "add", "mug-x", str(folder)])
    assert result.exit_code == 0, result.output
    assert "the task states no SHA-256; that these are its pictures is taken on trust" in result.output
    check_squares(tmp_path)


def test_another_subject_s_pictures_which_are_called_the_same_are_not_taken(root: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "things" / "clock", [file[-6:] for file in FILES])
    write(root, GITHUB)
    catalog = load_catalog()
    with pytest.raises(UsageError) as caught:
        dataset_fetch.add(task_of(catalog), catalog, folder, say=lambda line: None)
    assert str(caught.value) == (
        f"{folder}: does not say by its name that its pictures are those of things/mug; the task states no SHA-256, so "
        "it must be called 'mug'"
    )
    assert not home("mug-x").exists()
    # Digests tell them apart whatever the folder is called.
    digests = [hashlib.sha256(png(number)).hexdigest() for number in range(8)]
    write(root, f"{GITHUB}\nsha256 = {json.dumps(digests)}")
    catalog = load_catalog()
    dataset_fetch.add(task_of(catalog), catalog, folder, say=lambda line: None)
    check_squares(tmp_path)


def test_a_shipped_task_does_not_take_the_pictures_of_another(tmp_path: Path) -> None:
    catalog = load_catalog()
    clock = tmp_path / "dreambooth" / "dataset" / "clock"
    folder_of(clock, [f"{number:02d}.jpg" for number in range(6)])
    with pytest.raises(UsageError, match=r"those of dataset/vase; .* it must be called 'vase'$"):
        dataset_fetch.add(catalog.task("sd14-vase"), catalog, clock, say=lambda line: None)


def test_a_folder_that_lacks_a_picture_or_leads_out_of_itself_is_refused(root: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", FILES)
    write(root, GITHUB)
    catalog = load_catalog()

    def add() -> None:
        dataset_fetch.add(task_of(catalog), catalog, folder, say=lambda line: None)

    os.rename(folder / FILES[2], tmp_path / "elsewhere.png")
    with pytest.raises(UsageError, match=rf"mine: lacks the picture '{FILES[2]}'"):
        add()
    (folder / FILES[2]).symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(UsageError, match="is a link or no regular file"):
        add()
    assert not home("mug-x").exists()


def test_a_folder_of_pictures_stands_for_a_table(root: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", [f"{number}.png" for number in range(8)])
    write(root, ROWS)
    catalog = load_catalog()
    dataset_fetch.add(task_of(catalog), catalog, folder, say=lambda line: None)
    check_squares(tmp_path)
    (folder / "9.png").write_bytes(png(9))
    with pytest.raises(UsageError, match="mine: holds 9 pictures, the splits take 8"):
        dataset_fetch.add(task_of(catalog), catalog, folder, say=lambda line: None)
    # Where the task states digests, they choose: whatever else lies there, and whatever the names are.
    digests = [hashlib.sha256(png(number)).hexdigest() for number in (9, *range(7))]
    write(root, f"{ROWS}\nsha256 = {json.dumps(digests)}")
    catalog = load_catalog()
    dataset_fetch.add(task_of(catalog), catalog, folder, say=lambda line: None)
    order = {"owner": [9, 0], "published": [1, 2, 3], "extra": [4], "reference": [5, 6]}
    check_squares(tmp_path, order)


def test_the_published_pictures_of_a_data_set_s_task_are_exported(root: Path, host: Host, tmp_path: Path) -> None:
    write(root, GITHUB)
    fetched()
    loading.default_catalog.cache_clear()
    result = CliRunner().invoke(cli.app, ["export", "published", "mug-x", str(tmp_path / "out")])
    assert result.exit_code == 0, result.exception
    for place, number in enumerate(DEALT["published"]):
        made = np.asarray(Image.open(tmp_path / "out" / f"{place:03d}.png"))
        assert np.array_equal(made, square(number, tmp_path))


def test_a_source_names_what_says_which_files_a_split_has(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that the package does not know, in `models.toml` alone."""
    module = ModuleType("third_source")
    module.split_files = lambda catalog, task, concept, split, count: {  # type: ignore[attr-defined]
        f"{task.id}-{split}-{count}.png": "0" * 64
    }
    monkeypatch.setitem(sys.modules, "third_source", module)
    catalog = load_catalog()
    catalog.models.sources["third"] = SourceSpec(
        loader="third_source:pictures", version=3, files="third_source:split_files"
    )
    specs = Specs(suite("object-mug"), catalog, None)
    spec = specs.stages[specs.pictures(catalog.task("object-mug"), "object/mug", "owner", 2, "third")]
    assert spec.key["files"] == {"object-mug-owner-2.png": "0" * 64}
    with pytest.raises(ValidationError, match="loader and drawn"):
        SourceSpec(drawn=True, version=1, files="third_source:split_files")


def test_the_list_says_what_is_there(root: Path, host: Host) -> None:
    write(root, GITHUB)
    runner = CliRunner()
    rows = {row["task"]: row for row in json.loads(runner.invoke(cli.app, ["data", "list", "--json"]).output)}
    assert (rows["mug-x"]["state"], rows["mug-x"]["size_mb"], rows["mug-x"]["licence"]) == ("missing", 1.5, "CC BY 4.0")
    fetched()
    assert "fetched" in next(
        line for line in runner.invoke(cli.app, ["data", "list"]).output.splitlines() if "mug-x" in line
    )
    result = runner.invoke(cli.app, ["data", "fetch", "object-mug"])
    assert str(result.exception).startswith("TASK: has no pictures to fetch: 'object-mug'")
    assert "nearest: 'mug-x'" in str(runner.invoke(cli.app, ["data", "fetch", "mug-y"]).exception)


def test_shipped_references_are_pinned_and_those_with_terms_are_in_no_suite() -> None:
    catalog = load_catalog()
    own = {task.id: task for task in catalog.tasks.values() if task.dataset is not None}
    assert {task.family for task in own.values()} == {"object", "identity"}
    commits = {task.dataset.repo: task.dataset.revision for task in own.values() if task.dataset is not None}
    assert commits == {
        "google/dreambooth": "e9b8c013ef2e30ab3d5d9018808513e9093e3bc4",
        "VinAIResearch/Anti-DreamBooth": "d583eefb4d9416b5effa043510495a0007969867",
    }
    measured = {task for suite in catalog.suites.values() for task in suite.names("tasks")}
    terms = {task.id for task in own.values() if task.dataset is not None and task.dataset.terms is not None}
    assert terms == {"sd14-vggface2"} and not terms & measured
    assert own.keys() - terms <= measured
