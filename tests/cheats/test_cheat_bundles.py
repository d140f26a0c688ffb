"""Bundles and entry folders of strangers: nothing leaves the folder, nothing large is unpacked, each is named."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from immunebench.core.errors import UsageError
from immunebench.records.attestation import payload_digest
from immunebench.store.graph import canonical_json
from immunebench.submission.bundles import check_bundle, read_table, unpacked, write_bundle
from immunebench.submission.check import check_entry
from immunebench.submission.code import check_code
from immunebench.submission.folder import check_files

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "results" / "mini-smoke"
OWN = "results/mini-smoke/imma-lora@2.jsonl"


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    """The files of a sound bundle: entry, records whose hashes fit, one picture, weights of one tensor."""
    place = tmp_path / "parts"
    place.mkdir()
    save_file({"unet.a": np.ones((2, 3), np.float32)}, place / "weights.safetensors")
    (place / "p00-00.png").write_bytes(png(64, 64))
    records = [json.loads(line) for line in (SMOKE / "imma-lora@2.jsonl").read_text().splitlines()]
    files = {"protect_model": digest(place / "weights.safetensors"), "pictures": digest(place / "p00-00.png")}
    for record in records:
        record["sheet"] = None
        record["attestation"] = {"files": files, "boxes": {}, "prompts": 12, "pictures": 12}
    (place / "records.jsonl").write_text("".join(canonical_json(record) + "\n" for record in records))
    cells = ["--".join(record_key(record)) for record in records]
    named = {f"entry/{file.name}": file for file in (ROOT / "defenses" / "imma-lora").iterdir() if file.is_file()}
    return named | {
        OWN: place / "records.jsonl",
        f"artifacts/{cells[0]}/protect_model/weights.safetensors": place / "weights.safetensors",
        f"artifacts/{cells[1]}/pictures/p00-00.png": place / "p00-00.png",
    }


def record_key(record: dict[str, Any]) -> tuple[str, ...]:
    cell = record["cell"]
    return cell["task"], cell["defense"], cell["chain"], cell["profile"], str(cell["seed"])


def digest(file: Path) -> str:
    return payload_digest({file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}})


def png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


TABLE = {"schema_version": 1, "defense": "imma-lora", "version": 2, "suite": "mini-smoke", "closed": False}


def bundle(tmp_path: Path, parts: dict[str, Path]) -> Path:
    return write_bundle(tmp_path / "out" / "imma-lora.tar", TABLE, parts)


def with_member(file: Path, change: Callable[[tarfile.TarInfo], object], data: bytes = b"") -> Path:
    """Add a member that no writer of bundles would write."""
    member = tarfile.TarInfo("entry/extra.py")
    member.size = len(data)
    change(member)
    with tarfile.open(file, "a") as tar:
        tar.addfile(member, io.BytesIO(data))
    return file


def test_a_sound_bundle_has_no_finding_and_equal_files_give_equal_bytes(tmp_path: Path, parts: dict[str, Path]) -> None:
    file = bundle(tmp_path, parts)
    assert check_bundle(file) == []
    assert write_bundle(tmp_path / "again.tar", TABLE, dict(reversed(parts.items()))).read_bytes() == file.read_bytes()
    with unpacked(file) as found:
        assert found.records.read_bytes() == parts[OWN].read_bytes()
        inside = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    assert inside == {*parts, "bundle.json"} and not found.folder.exists()


def named(name: str) -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.name = name

    return change


def link(kind: bytes, to: str) -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, to

    return change


def sparse(member: tarfile.TarInfo) -> None:
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)}


HOSTILE: list[tuple[str, Callable[[tarfile.TarInfo], object], str]] = [
    ("above", named("../../evil.py"), "is no plain relative name"),
    ("above inside", named("entry/../../evil.py"), "is no plain relative name"),
    ("absolute", named("/etc/evil.py"), "is no plain relative name"),
    ("drive", named("C:\\evil.py"), "is no plain relative name"),
    ("backslash", named("entry\\evil.py"), "is no plain relative name"),
    ("hidden", named("entry/.bashrc"), "is no plain relative name"),
    ("dot", named("./entry/a.py"), "is no plain relative name"),
    ("long", named("entry/" + "a" * 400 + ".py"), "is no plain relative name"),
    ("escape", named("entry/\x1b[2Ja.py"), "is no plain relative name"),
    ("elsewhere", named("home/a.py"), "is none of the files that a bundle holds"),
    ("compiled", named("entry/a.so"), "is none of the files that a bundle holds"),
    ("pickle", named("artifacts/a/protect_model/a.pt"), "is none of the files that a bundle holds"),
    ("twice", named("entry/defense.py"), "is there twice"),
    ("twice but for case", named("entry/Defense.py"), "is there twice"),
    ("unnamed", named("entry/extra.py"), "is not named in its table"),
    ("symbolic link", link(tarfile.SYMTYPE, "/etc/passwd"), "is a link, a device or sparse"),
    ("hard link", link(tarfile.LNKTYPE, "entry/defense.py"), "is a link, a device or sparse"),
    ("device", link(tarfile.CHRTYPE, ""), "is a link, a device or sparse"),
    ("pipe", link(tarfile.FIFOTYPE, ""), "is a link, a device or sparse"),
]


@pytest.mark.parametrize(("what", "change", "said"), HOSTILE, ids=[what for what, _, _ in HOSTILE])
def test_a_member_that_no_bundle_has_is_refused_before_anything_is_unpacked(
    tmp_path: Path, parts: dict[str, Path], what: str, change: Callable[[tarfile.TarInfo], object], said: str
) -> None:
    file = with_member(bundle(tmp_path, parts), change)
    before = sorted(tmp_path.rglob("*"))
    (found,) = check_bundle(file)
    assert found.code == "bundle" and said in found.message and found.message.isprintable()
    assert sorted(tmp_path.rglob("*")) == before


def test_sizes_that_are_not_there_and_packed_bundles_are_refused(tmp_path: Path, parts: dict[str, Path]) -> None:
    file = bundle(tmp_path, parts)
    packed = tmp_path / "packed.tar"
    packed.write_bytes(gzip.compress(b"\0" * 50_000_000))
    assert "is no bundle" in check_bundle(packed)[0].message
    archive = tmp_path / "zip.tar"
    archive.write_bytes(b"PK\x03\x04" + b"\0" * 600)
    assert "is no bundle" in check_bundle(archive)[0].message
    with pytest.raises(UsageError, match=r"is a link, a device or sparse|is no bundle"):
        read_table(with_member(shutil.copy(file, tmp_path / "sparse.tar"), sparse, b"1\n0\n" + b"\0" * 508))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(file.read_bytes()[:20_000])
    assert check_bundle(cut)
    large = tmp_path / "large.tar"
    with large.open("wb") as stream:
        stream.truncate(2**40)
    assert "has more than 512 MiB" in check_bundle(large)[0].message


def test_more_files_than_a_bundle_has_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "many.tar"
    with tarfile.open(file, "w") as tar:
        for number in range(5_005):
            tar.addfile(tarfile.TarInfo(f"entry/a{number}.py"))
    assert "holds more than 5000 files" in check_bundle(file)[0].message


def test_changed_bytes_differ_from_the_table_and_the_records(tmp_path: Path, parts: dict[str, Path]) -> None:
    file = bundle(tmp_path, parts)
    data = bytearray(file.read_bytes())
    at = data.index(b"def protect_model")
    data[at : at + 3] = b"del"
    file.write_bytes(bytes(data))
    assert "entry/defense.py has another SHA-256 than its table says" in check_bundle(file)[0].message
    (weights,) = (path for name, path in parts.items() if name.endswith(".safetensors"))
    save_file({"unet.a": np.zeros((2, 3), np.float32)}, weights)
    (found,) = check_bundle(bundle(tmp_path, parts))
    assert found.line == 1 and "attestation.files.protect_model: is not the SHA-256 of artifacts/" in found.message


def test_pictures_and_weights_are_measured_by_their_headers_alone(tmp_path: Path, parts: dict[str, Path]) -> None:
    (picture,) = (path for name, path in parts.items() if name.endswith(".png"))
    (weights,) = (path for name, path in parts.items() if name.endswith(".safetensors"))
    picture.write_bytes(png(60_000, 60_000))
    assert "says that it is 60000 x 60000; at most 2048 a side" in check_bundle(bundle(tmp_path, parts))[0].message
    picture.write_bytes(b"GIF89a" + b"\0" * 40)
    assert "is no PNG" in check_bundle(bundle(tmp_path, parts))[0].message
    picture.write_bytes(png(64, 64))
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 4]}}).encode()
    for length in (len(header), 2**60):
        weights.write_bytes(struct.pack("<Q", length) + header + b"\0" * 4)
        (found,) = check_bundle(bundle(tmp_path, parts))
        assert found.file.endswith("weights.safetensors")
        assert "promises more values" in found.message or "is not a safetensors file" in found.message
    header = json.dumps({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    weights.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    assert "holds tensors of I64" in check_bundle(bundle(tmp_path, parts))[0].message


def test_the_entry_and_the_records_of_a_bundle_are_checked_as_any(tmp_path: Path, parts: dict[str, Path]) -> None:
    code = tmp_path / "defense.py"
    code.write_text("import os\n\n\ndef protect_model(model, concepts, params, ctx):\n    os.system('true')\n")
    records = tmp_path / "records.jsonl"
    records.write_text(parts[OWN].read_text().replace('"m_same":0.99', '"m_same":7.99', 1))
    found = check_bundle(bundle(tmp_path, parts | {"entry/defense.py": code, OWN: records}))
    assert [(one.code, one.line) for one in found] == [("import", 1), ("record", 1)]
    assert found[0].file == "imma-lora.tar: entry/defense.py" and "anchors.m_same" in found[1].message
    with pytest.raises(UsageError, match="none of the files that a bundle holds"):
        bundle(tmp_path, parts | {"entry/run.sh": code})


# Entries


@pytest.fixture
def entry(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "root" / "defenses" / "imma-lora-mine"
    shutil.copytree(ROOT / "defenses" / "imma-lora", folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / "defense.toml").read_text().partition("[variants.imma-lora-max]")[0]
    text = text.replace('id = "imma-lora"', 'id = "imma-lora-mine"').replace('aliases = ["imma"]\n', "")
    (folder / "defense.toml").write_text(text)
    yield folder


def test_every_entry_of_the_house_passes() -> None:
    for kind in ("defenses", "attacks"):
        for folder in sorted((ROOT / kind).iterdir()):
            assert [str(one) for one in [*check_files(folder), *check_code(folder)] if one.severity == "error"] == []


def test_a_sound_entry_outside_the_checkout_is_found_and_leaves_no_trace(
    entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMMUNEBENCH_ENTRIES", raising=False)
    assert check_entry(entry, run=False) == []
    assert "IMMUNEBENCH_ENTRIES" not in os.environ


CODE: list[tuple[str, str]] = [
    ("import subprocess", "import"),
    ("from os import environ", "import"),
    ("import socket as s", "import"),
    ("import pickle", "import"),
    ("import ctypes", "import"),
    ("import torch.multiprocessing", "import"),
    ("from torch import hub", "call"),
    ("from immunebench.metrics import table", "submodule"),
    ("from immunebench import metrics", "submodule"),
    ("import random", "random"),
    ("exec('a = 1')", "call"),
    ("open('reference.png')", "call"),
    ("__import__('os')", "call"),
    ("getattr(torch, 'lo' + 'ad')", "call"),
    ("torch.load('weights.pt')", "call"),
    ("int.__subclasses__()", "call"),
    ("__builtins__", "call"),
    ("torch.optim.AdamW.step = None", "patch"),
    ("training.enter = None", "patch"),
    ("np.random.rand(3)", "random"),
    ("torch.manual_seed(0)", "random"),
    ("def broken(:", "syntax"),
]


@pytest.mark.parametrize(("line", "code"), CODE)
def test_what_an_entry_must_not_say_is_named_with_its_line(entry: Path, line: str, code: str) -> None:
    file = entry / "more.py"
    file.write_text(f"import numpy as np\nimport torch\n\nfrom immunebench import training\n\n{line}\n")
    (found,) = check_code(entry)
    assert (found.code, found.line, found.severity) == (code, 6, "error") and found.hint
    assert found.file.endswith("more.py")


def test_files_that_are_not_hashed_linked_or_compiled_are_named(entry: Path, tmp_path: Path) -> None:
    (entry / "notes.md").write_text("code = 1")
    (entry / ".hidden.py").write_text("")
    (entry / "weights.bin").write_bytes(b"1")
    (entry / "link.py").symlink_to(tmp_path / "elsewhere.py")
    os.link(entry / "cite.bib", tmp_path / "same.bib")
    os.mkfifo(entry / "pipe.py")
    found = {Path(one.file).name: one.code for one in check_files(entry)}
    expected = {"notes.md", "weights.bin", "link.py", "cite.bib", "pipe.py"}
    assert expected <= set(found)
    assert {name for name, code in found.items() if code == "link"} == {"link.py", "cite.bib"}


def test_a_broken_manifest_is_a_finding_with_its_field(entry: Path) -> None:
    file = entry / "defense.toml"
    file.write_text(file.read_text().replace("version = 2", 'version = "one"'))
    (found,) = check_entry(entry, run=False)
    assert found.code == "manifest" and "version" in found.message and found.file.endswith("defense.toml")
