"""Seeded mutations of every kind of file that strangers hand in, for `faults.py`."""

from __future__ import annotations

import io
import json
import random
import signal
import struct
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from immunebench.core.errors import UsageError
from immunebench.core.machine import GIB, process_peak, reset_process_peak

#: Longest that one input may take, in seconds.
LIMIT = 10
ROOT = Path(__file__).resolve().parents[1]
#: What is put into texts: values at which readers of TOML and JSON break.
TOKENS = [
    b"null", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"9" * 4400, b"[" * 3000, b"{" * 3000, b'"\\ud800"',
    b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"\x1b[31m", "\u202e".encode(), b"true", b'""', b"[]", b"{}", b"\n",
    b"\r\n", b'"', b"'''", b"=", b"1979-05-27T07:32:00Z", b"0x" + b"f" * 40, b"..", b"/dev/zero",
    b"18446744073709551616",
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of file: sound examples, how often it is read, and the reader, which may raise `UsageError` alone."""

    name: str
    suffix: str
    share: float
    examples: list[bytes]
    read: Callable[[Path], object]
    mutate: Callable[[bytes, random.Random], bytes]


class Hang(BaseException):
    """An input took longer than the limit; no reader catches it."""


def fuzz(count: int, seed: int) -> int:
    """Read `count` mutated inputs and print a line per kind; return how many did what no input may do."""
    wrong = 0
    kept = Path(tempfile.mkdtemp(prefix="immunebench-fuzz-"))
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds(Path(folder)):
            wrong += _fuzz(kind, round(count * kind.share), random.Random(f"{seed} {kind.name}"), Path(folder), kept)
    if not wrong:
        kept.rmdir()
    return wrong


def _fuzz(kind: Kind, count: int, draw: random.Random, folder: Path, kept: Path) -> int:
    outcomes: Counter[str] = Counter()
    reset_process_peak()
    started, slowest = time.monotonic(), 0.0
    for number in range(count):
        data = kind.mutate(draw.choice(kind.examples), draw)
        file = folder / f"input{kind.suffix}"
        file.write_bytes(data)
        began = time.monotonic()
        outcome = _outcome(kind, file)
        slowest = max(slowest, time.monotonic() - began)
        outcomes[outcome.partition(":")[0]] += 1
        if outcome not in ("accepted", "refused"):
            place = kept / f"{kind.name.replace(' ', '-')}-{number}{kind.suffix}"
            place.write_bytes(data)
            print(f"  {outcome[:300]}\n    {place}")
    peak = process_peak() / GIB
    wrong = count - outcomes["accepted"] - outcomes["refused"] + (peak > 1)
    said = ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))
    rest = f"slowest {slowest:.2f} s, peak {peak:.2f} GiB, {time.monotonic() - started:.0f} s"
    print(f"fuzz: {kind.name:<16} {count:>6} inputs: {said}; {rest}", flush=True)
    return wrong


def _outcome(kind: Kind, file: Path) -> str:
    def late(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return "refused" if kind.read(file) is None else "accepted"
    except UsageError as error:
        line = str(error)
        return "refused" if line.isprintable() and len(line) < 5_000 else f"unprintable: {line!r}"
    except Hang:
        return "hang: longer than the limit"
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def kinds(folder: Path) -> Iterator[Kind]:
    """Yield every kind with its examples from this checkout."""
    from immunebench.bases import base_folder
    from immunebench.declared import schema
    from immunebench.declared.manifest import AttackManifest, DefenseManifest
    from immunebench.declared.models import Models
    from immunebench.declared.own_base import OwnBase
    from immunebench.declared.profile import Profile
    from immunebench.declared.suite import Suite
    from immunebench.declared.task import Task
    from immunebench.pictures.decoding import read_picture
    from immunebench.records.files import BrokenLine, read_lines
    from immunebench.store.manifest import SEAL, artifact_fault, manifest_fault, read_manifest, sealed

    package = ROOT / "bench/immunebench"
    manifests: list[tuple[type[schema.Model], str]] = [
        (DefenseManifest, "defenses/*/defense.toml"), (AttackManifest, "attacks/*/attack.toml"),
        (Task, "tasks/*/*.toml"), (Suite, "bench/immunebench/suites/*.toml"),
        (Profile, "bench/immunebench/profiles/*.toml"),
    ]  # fmt: skip
    for model, pattern in manifests:
        examples = [path.read_bytes() for path in sorted(ROOT.glob(pattern))]
        yield Kind(model.__name__, ".toml", 0.06, examples, _loads(schema.load, model), mutated_text)
    yield Kind(
        "Models", ".toml", 0.02, [(package / "models.toml").read_bytes()], _loads(schema.load, Models), mutated_text
    )
    own = b'id = "my-sd"\ntitle = "T"\nlike = "sd14"\n[checkpoints]\n"a.safetensors" = "' + b"0" * 64 + b'"\n'
    yield Kind("OwnBase", ".toml", 0.02, [own], _loads(schema.load, OwnBase), mutated_text)

    def records(file: Path) -> object:
        sound = []
        for line in read_lines(file):
            try:
                sound.append(line.record())
            except BrokenLine as error:
                if len(error.message) > 100_000:
                    raise
        return sound or None

    lines = [
        line + b"\n"
        for file in sorted((ROOT / "tests/fixtures/world1/mini-lite").glob("*.jsonl"))
        for line in file.read_bytes().splitlines()[:4]
    ]
    yield Kind("records", ".jsonl", 0.2, lines, records, mutated_text)

    yield from _submissions(folder, lines)

    digest = "ab" * 32
    place = folder / "adapt" / "ab" / digest
    place.mkdir(parents=True)
    plain = {
        "stage": "adapt", "digest": digest, "key": {"entry": "lora", "params": {"lr": 0.1}},
        "inputs": {"images": "f" * 64}, "cost": {"seconds": 1.5}, "meta": {}, "files": {}, "versions": {"torch": "2"},
        "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip

    def store_manifest(file: Path) -> object:
        (place / "manifest.json").write_bytes(file.read_bytes())
        artifact_fault(place)
        found = read_manifest(place)
        assert found is None or SEAL not in found or manifest_fault(place, found) is None
        return found

    whole = [json.dumps(value).encode() for value in (sealed(plain), plain)]
    yield Kind("store manifests", ".json", 0.16, whole, store_manifest, mutated_text)
    yield Kind("pictures", ".png", 0.12, pictures(), lambda file: read_picture(file, 64), mutated_picture)
    yield Kind("weights", ".safetensors", 0.14, [weights()], base_folder.header, mutated_weights)
    yield Kind("own checkpoints", ".safetensors", 0.04, [weights()], _checks_own, mutated_weights)


def _submissions(folder: Path, lines: list[bytes]) -> Iterator[Kind]:
    """Yield what a submission consists of: results that are loaded together, marks, external evaluations, bundles."""
    from immunebench.board.loading.external import read_external
    from immunebench.board.loading.load import load_results
    from immunebench.board.loading.marks import MARKS, OFFICIAL, file_digest, read_marks
    from immunebench.catalog.loading import load_catalog
    from immunebench.submission.bundles import check_bundle
    from immunebench.submission.code import check_code

    catalog = load_catalog(ROOT)
    smoke = ROOT / "results" / "mini-smoke"
    place = folder / "results" / "mini-smoke"
    place.mkdir(parents=True)
    for name in ("none@1.jsonl", "noise@1.jsonl"):
        (place / name).write_bytes((smoke / name).read_bytes())
    marks = read_marks(place, ROOT / "leaderboard")

    def held(file: Path) -> object:
        (place / "imma-lora@2.jsonl").write_bytes(file.read_bytes())
        records, problems = load_results(place, catalog=catalog, marks=marks)
        assert all(str(problem).isprintable() for problem in problems)
        return [record for record in records if record.cell.defense == "imma-lora"] or None

    yield Kind("results", ".jsonl", 0.04, [(smoke / "imma-lora@2.jsonl").read_bytes()], held, mutated_text)

    def marked(file: Path) -> object:
        (place / MARKS).write_bytes(file.read_bytes())
        board = folder / "leaderboard"
        board.mkdir(exist_ok=True)
        (board / OFFICIAL).write_bytes(file.read_bytes())
        found = read_marks(place, board)
        assert all(fault.isprintable() for fault in found.faults)
        (place / MARKS).unlink()
        return found.reproduced or found.official or None

    mark = {
        "file": "none@1.jsonl", "sha256": file_digest(smoke / "none@1.jsonl"), "seed": 0, "cells": ["a/b/c/d/0"],
        "exact": True, "tolerance": 0.0, "version": "0.1.0", "created": "2026-01-01T00:00:00+00:00",
        "signature": "0" * 64,
    }  # fmt: skip
    whole = [
        json.dumps({"schema_version": 1, "marks": [mark]}).encode(),
        (ROOT / "leaderboard" / OFFICIAL).read_bytes(),
    ]
    yield Kind("marks", ".json", 0.06, whole, marked, mutated_text)

    def external(file: Path) -> object:
        target = folder / "external" / "doe-2027.toml"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
        sound, broken = read_external(folder)
        for error in broken:
            raise error
        return sound

    text = (ROOT / "docs" / "submitting.md").read_text("utf-8").partition("```toml\nid")[2].partition("```")[0]
    text = f"id{text}".replace("doe-2027-imma", "doe-2027")
    yield Kind("external", ".toml", 0.06, [text.encode()], external, mutated_text)

    def code(file: Path) -> object:
        entry = folder / "entry"
        entry.mkdir(exist_ok=True)
        (entry / "defense.py").write_bytes(file.read_bytes())
        return [one for one in check_code(entry) if one.severity == "error"] and None

    sources = [path.read_bytes() for path in sorted(ROOT.glob("defenses/*/defense.py"))]
    yield Kind("code", ".py", 0.04, sources, lambda file: code(file) or True, mutated_text)

    def bundled(file: Path) -> object:
        found = check_bundle(file)
        assert all(str(one).isprintable() for one in found)
        return None if found else file

    yield Kind("bundles", ".tar", 0.1, [_bundle(folder)], bundled, mutated_bundle)


def _bundle(folder: Path) -> bytes:
    """Return a small sound bundle."""
    from immunebench.submission.bundles import write_bundle

    lines = (ROOT / "results/mini-smoke/imma-lora@2.jsonl").read_text().splitlines()[:1]
    record = json.loads(lines[0]) | {"sheet": None}
    (folder / "records.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "weights.safetensors").write_bytes(weights())
    entry = ROOT / "defenses" / "imma-lora"
    files = {f"entry/{name}": entry / name for name in ("defense.toml", "defense.py", "cite.bib")}
    files["results/mini-smoke/imma-lora@2.jsonl"] = folder / "records.jsonl"
    files["artifacts/a--b/protect_model/weights.safetensors"] = folder / "weights.safetensors"
    table = {"schema_version": 1, "defense": "imma-lora", "version": 2, "suite": "mini-smoke", "closed": False}
    return write_bundle(folder / "sound.tar", table, files).read_bytes()


def mutated_bundle(data: bytes, draw: random.Random) -> bytes:
    """Change a header of a tar with a right checksum: name, size, kind or link; or mutate the bytes."""
    if draw.random() < 0.4:
        return mutated(data, draw)
    found = bytearray(data)
    heads = [at for at in range(0, len(found) - 512, 512) if found[at + 257 : at + 262] == b"ustar"]
    at = draw.choice(heads)
    match draw.randrange(4):
        case 0:
            names = (
                b"../../x",
                b"/etc/x",
                b"entry/../../x",
                b"entry/a.so",
                b"entry/\x1b[2J.py",
                b"entry/defense.py",
                b"",
            )
            name = draw.choice(names)
            found[at : at + 100] = name + b"\0" * (100 - len(name))
        case 1:
            sizes = (b"00000000000", b"77777777777", b"00000000777", b"-0000000001", b"\x80" + b"\xff" * 10)
            found[at + 124 : at + 135] = draw.choice(sizes)
        case 2:
            found[at + 156] = draw.choice(b"0123456789gxLKSDVAM\0")
        case _:
            found[at + 157 : at + 168] = b"/etc/passwd"
            found[at + 156] = draw.choice(b"12")
    found[at + 148 : at + 156] = b" " * 8
    found[at + 148 : at + 156] = b"%06o\0 " % sum(found[at : at + 512])
    return bytes(found)


def _checks_own(file: Path) -> object:
    from immunebench.bases import own

    own.check(file, "sd14", "sd14", None)
    return file


def _loads(load: Callable[..., object], model: type[Any]) -> Callable[[Path], object]:
    return lambda file: load(file, model)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Flip, replace, cut, repeat or move bytes, one to four times."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(found) + 1), draw.choice((1, 1, 4, 32, 400))
        match draw.randrange(6):
            case 0 if found:
                found[at % len(found)] ^= 1 << draw.randrange(8)
            case 1:
                del found[at : at + length]
            case 2:
                found[at:at] = found[at : at + length]
            case 3:
                found[at : at + length] = draw.randbytes(length)
            case 4:
                del found[at:]
            case _:
                source = draw.randrange(len(found) + 1)
                found[at:at] = found[source : source + length]
    return bytes(found)


def mutated_text(data: bytes, draw: random.Random) -> bytes:
    """Put a hostile value in the place of one, or mutate the bytes."""
    if draw.random() < 0.4:
        return mutated(data, draw)
    text = data
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(text) + 1)
        # From the last sign that begins a value to the next that ends one.
        first = max(text.rfind(sign, 0, at) for sign in (b"=", b":", b",", b"[")) + 1
        ends = [end for end in (text.find(sign, first) for sign in (b",", b"\n", b"]", b"}")) if end >= 0]
        last = min(ends, default=len(text)) if draw.random() < 0.8 else first
        text = text[:first] + b" " + draw.choice(TOKENS) + text[last:]
    return text


def mutated_picture(data: bytes, draw: random.Random) -> bytes:
    """Change the size in a PNG's header with a right checksum, or mutate the bytes."""
    if not data.startswith(b"\x89PNG") or draw.random() < 0.6:
        return mutated(data, draw)
    size = struct.pack(">II", *(draw.choice((0, 1, 64, 65_000, 2**31 - 1, 2**32 - 1)) for _ in range(2)))
    kind = bytes((draw.choice((1, 2, 4, 8, 16)), draw.choice((0, 2, 3, 4, 6)), 0, 0, draw.choice((0, 1))))
    header = b"IHDR" + size + kind
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def mutated_weights(data: bytes, draw: random.Random) -> bytes:
    """Change values of a safetensors header, with a right length of it or any, or mutate the bytes."""
    if draw.random() < 0.3:
        return mutated(data, draw)
    (length,) = struct.unpack("<Q", data[:8])
    header = mutated_text(data[8 : 8 + length], draw)
    size = len(header) if draw.random() < 0.8 else draw.choice((0, 7, 2**32, 2**63, 2**64 - 1))
    return struct.pack("<Q", size) + header + data[8 + length :]


def pictures() -> list[bytes]:
    """Return a small picture in every format and several colour modes."""
    from PIL import Image

    made = []
    picture = Image.radial_gradient("L").resize((96, 80))
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        for mode in ("RGB", "L", "P", "RGBA", "LA", "I;16", "CMYK"):
            stream = io.BytesIO()
            try:
                picture.convert(mode).save(stream, form)
            except (OSError, ValueError, KeyError):
                continue
            made.append(stream.getvalue())
    return made


def weights() -> bytes:
    """Return a checkpoint in the original layout with one tensor of each part."""
    import numpy as np
    from safetensors.numpy import save

    block = "model.diffusion_model.input_blocks"
    shapes = {
        f"{block}.0.0.weight": (8, 4, 3, 3), f"{block}.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
        "first_stage_model.quant_conv.weight": (8, 8, 1, 1), "cond_stage_model.transformer.x.weight": (4, 4),
    }  # fmt: skip
    made: bytes = save({name: np.zeros(shape, np.float16) for name, shape in shapes.items()})
    return made
