"""Captions in the forms in which people keep them, under names that are written in several ways."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from immunebench.authoring.captions import read_captions
from immunebench.core.errors import UsageError

WANTED = {"a.png": "a mug, blue", "b.jpg": "a cup"}
JSON_LINES = '{"file_name": "a.png", "text": "a mug, blue"}\n\n{"file_name": "b.jpg", "text": "a cup"}\n'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", 'file_name,text\na.png,"a mug, blue"\nb.jpg,a cup\n'),
        ("c.csv", 'name,caption\na.png,"a mug, blue"\nb.jpg,a cup\n'),
        ("c.csv", 'a,"a mug, blue"\nb,a cup\n'),
        ("c.csv", "name;caption\na.png;a mug, blue\nb.jpg;a cup\n"),
        ("c.tsv", "a.png\ta mug, blue\nb.jpg\ta cup\n"),
        ("c.jsonl", JSON_LINES),
        ("c.json", '{"a.png": "a mug, blue", "b.jpg": "a cup"}'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_form_and_encoding_is_read(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_text(text, encoding)
    assert read_captions(tmp_path / name, list(WANTED)) == WANTED


def test_texts_beside_the_pictures_and_metadata_are_read_from_their_folder(tmp_path: Path) -> None:
    for name, caption in WANTED.items():
        (tmp_path / name).touch()
        (tmp_path / name).with_suffix(".txt").write_text(f"{caption}\n")
    (tmp_path / "notes.txt").write_text("no caption")
    assert read_captions(tmp_path, list(WANTED)) == WANTED
    assert read_captions(tmp_path / "b.txt", list(WANTED)) == {"b.jpg": "a cup"}
    (tmp_path / "metadata.jsonl").write_text(JSON_LINES.replace("a cup", "another"))
    assert read_captions(tmp_path, list(WANTED))["b.jpg"] == "another"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.jsonl", '{"file_name": "a.png"}\n', "c.jsonl:1: must hold the texts file_name and text"),
        ("c.jsonl", "\n[1]\n", "c.jsonl:2: must hold the texts file_name and text"),
        ("c.jsonl", "{\n", "c.jsonl:1: is no JSON"),
        ("c.json", "[" * 100_000, "c.json: is no JSON"),
        ("c.csv", "a;b;c\n", "row 1 has 1 columns"),
        ("c.csv", "z.png,words\n", "no such picture: 'z.png'"),
    ],
)
def test_what_is_no_caption_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as caught:
        read_captions(tmp_path / name, list(WANTED))
    assert said in str(caught.value)


def test_a_folder_without_captions_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no captions: a \.txt beside a picture"):
        read_captions(tmp_path, list(WANTED))


def test_accents_and_case_may_be_written_in_another_way(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "tasse-bleu\u00e9.png") for form in ("NFC", "NFD"))
    file = tmp_path / "c.csv"
    for written, there in ((composed, decomposed), (decomposed, composed), ("TASSE-BLEU\u00c9", decomposed)):
        file.write_text(f"{written},a cup\n", "utf-8")
        assert read_captions(file, [there, "b.png"]) == {there: "a cup"}
    # The exact name counts first; a name that fits two in another case is asked for.
    file.write_text("A.png,one\na.png,two\n")
    assert read_captions(file, ["A.png", "a.png"]) == {"A.png": "one", "a.png": "two"}
    file.write_text("a.PNG,one\n")
    with pytest.raises(UsageError, match=r"matches A\.png and a\.png"):
        read_captions(file, ["A.png", "a.png"])
