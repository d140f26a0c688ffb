"""Bundles: an entry, its records and what it released, in one plain tar, for methods whose code is closed.

A bundle is read as what it is: a stranger's bytes. Its table of contents is checked before anything is unpacked, and
its files by their headers before anything is decoded.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from immunebench.bases import base_folder
from immunebench.bases.weights import sha256
from immunebench.board.loading.load import load_results
from immunebench.catalog.loading import default_catalog
from immunebench.core.errors import UsageError, printable
from immunebench.declared import schema
from immunebench.declared.manifest import DefenseManifest
from immunebench.declared.schema import DefenseName, Id, Model, Sha256, usage_error
from immunebench.records.attestation import payload_digest
from immunebench.records.files import read_records
from immunebench.submission.code import check_code
from immunebench.submission.findings import Finding, errors, finding, of_error, of_problem
from immunebench.submission.folder import check_citation, check_files

TABLE = "bundle.json"
MIB = 2**20
#: Bounds of a bundle: files, bytes of one, bytes of all, and of a table, a picture's side and a header.
MOST_FILES, MOST_BYTES, MOST_TOTAL = 5_000, 256 * MIB, 512 * MIB
MOST_TABLE, MOST_SIDE = 4 * MIB, 2048
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9@+._-]*")
#: What may lie where: a pattern of the whole name, and the most bytes.
_PLACES: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"bundle\.json"), MOST_TABLE),
    (re.compile(r"entry/([A-Za-z0-9_-]+/)*[A-Za-z0-9_-]+\.(py|toml|bib|md)"), 2 * MIB),
    (re.compile(r"results/[a-z0-9-]+/[a-z0-9+-]+@\d+\.jsonl"), 64 * MIB),
    (re.compile(r"results/[a-z0-9-]+/sheets/[A-Za-z0-9@+._-]+\.(png|webp)"), 2 * MIB),
    (re.compile(r"artifacts/[a-z0-9@+.-]+/[a-z_]+/[A-Za-z0-9_-]+\.png"), 16 * MIB),
    (re.compile(r"artifacts/[a-z0-9@+.-]+/[a-z_]+/captions\.json"), 2 * MIB),
    (re.compile(r"artifacts/[a-z0-9@+.-]+/[a-z_]+/[A-Za-z0-9_-]+\.safetensors"), MOST_BYTES),
)


class _File(Model):
    sha256: Sha256
    size: Annotated[int, Field(ge=0, le=MOST_BYTES)]


class Table(Model):
    """``bundle.json``: what the bundle is, and every other file with its SHA-256 and size."""

    schema_version: Literal[1] = 1
    defense: DefenseName
    version: Annotated[int, Field(ge=1)]
    suite: Id
    #: Whether the code stays with its authors; it can then be verified from what it released on.
    closed: bool
    files: dict[str, _File]


@dataclass(frozen=True)
class Bundle:
    """An unpacked bundle.

    Attributes
    ----------
    folder
        Where it was unpacked: ``entry/``, ``results/<suite>/``, ``artifacts/<cell>/<name>/``.
    """

    folder: Path
    table: Table

    @property
    def entry(self) -> Path:
        """The entry's folder."""
        return self.folder / "entry"

    @property
    def records(self) -> Path:
        """The file of records."""
        return self.folder / "results" / self.table.suite / f"{self.table.defense}@{self.table.version}.jsonl"

    def artifact(self, cell: str, name: str) -> Path:
        """Return the folder of what a cell released."""
        return self.folder / "artifacts" / cell_folder(cell) / name


def cell_folder(cell: str) -> str:
    """Return the name of a cell's folder."""
    return cell.replace("/", "--")


def write_bundle(out: Path, table: Mapping[str, object], files: Mapping[str, Path]) -> Path:
    """Write a bundle: a plain tar with fixed times and owners, so that equal files give equal bytes.

    Raises
    ------
    UsageError
        A file may not be in a bundle, or there are too many or too large ones.
    """
    listed = {name: {"sha256": sha256(path), "size": path.stat().st_size} for name, path in sorted(files.items())}
    text = json.dumps({**table, "files": listed}, indent=1, sort_keys=True).encode() + b"\n"
    _admit({TABLE: len(text), **{name: path.stat().st_size for name, path in files.items()}}, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.part")
    with tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(_member(TABLE, len(text)), io.BytesIO(text))
        for name, path in sorted(files.items()):
            with path.open("rb") as stream:
                tar.addfile(_member(name, path.stat().st_size), stream)
    draft.replace(out)
    return out


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def read_table(file: Path) -> Table:
    """Check a bundle's contents without unpacking them, and return its table.

    Raises
    ------
    UsageError
        It is no plain tar, or holds what a bundle must not: links, devices, names that leave it, names twice, too many
        or too large files, files that its table does not name or names otherwise.
    """
    with _opened(file) as tar:
        members = _members(tar, file)
        _admit({name: member.size for name, member in members.items()}, file)
        if TABLE not in members:
            raise UsageError(f"lacks {TABLE}", file=file)
        table = _table(_bytes(tar, members[TABLE], file), file)
        named, there = set(table.files), set(members) - {TABLE}
        for name in sorted(named ^ there):
            what = "is named in its table and missing" if name in named else "is not named in its table"
            raise UsageError(f"{printable(name)} {what}", file=file)
        for name, listed in table.files.items():
            if listed.size != members[name].size:
                raise UsageError(f"{name} has {members[name].size} bytes, and its table says {listed.size}", file=file)
            digest = hashlib.sha256(_bytes(tar, members[name], file)).hexdigest()
            if digest != listed.sha256:
                raise UsageError(f"{name} has another SHA-256 than its table says", file=file)
        own = f"results/{table.suite}/{table.defense}@{table.version}.jsonl"
        if own not in there or any(n.endswith(".jsonl") and n != own for n in there):
            raise UsageError(f"must hold the records {own} and no others", file=file)
    return table


@contextmanager
def unpacked(file: Path) -> Iterator[Bundle]:
    """Unpack a bundle into a folder that is removed afterwards; see `read_table` for errors."""
    table = read_table(file)
    with tempfile.TemporaryDirectory(prefix="immunebench-bundle-") as place, _opened(file) as tar:
        folder = Path(place)
        for name, member in _members(tar, file).items():
            target = folder.joinpath(*PurePosixPath(name).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as stream:
                stream.write(_bytes(tar, member, file))
        yield Bundle(folder, table)


def check_bundle(file: Path) -> list[Finding]:
    """Check a bundle: its form, the headers of its pictures and weights, its entry, its records, and their hashes."""
    try:
        with unpacked(file) as bundle:
            found = list(_headers(bundle, file))
            found += check_files(bundle.entry)
            found += _manifest(bundle)
            if not errors(found):
                found += check_code(bundle.entry)
                found += check_citation(bundle.entry / "cite.bib")
            folder = bundle.records.parent
            _, problems = load_results(folder, sheets=True, catalog=None)
            found += [of_problem(problem, folder) for problem in problems]
            if not errors(found):
                found += _attested(bundle, file)
            return [_named(one, bundle, file) for one in found]
    except UsageError as error:
        return [of_error("bundle", error, file)]


def _manifest(bundle: Bundle) -> Iterator[Finding]:
    """Check that the entry is the one that the table names; whether its code fits is found when it is run."""
    file = bundle.entry / "defense.toml"
    try:
        manifest = schema.load(file, DefenseManifest)
    except UsageError as error:
        yield of_error("manifest", error, file)
        return
    named = {manifest.id, *manifest.variants}
    if bundle.table.defense not in named or bundle.table.version != manifest.version:
        yield finding(
            "manifest", file, f"is of {manifest.id}@{manifest.version}, and the bundle of {bundle.table.defense}"
        )
    code = (bundle.entry / "defense.py").is_file()
    if code == bundle.table.closed and manifest.artefact is None:
        what = "holds code and says that it is closed" if code else "holds no code and does not say that it is closed"
        yield finding("bundle", bundle.entry, what)


def _named(found: Finding, bundle: Bundle, file: Path) -> Finding:
    """Name a file of an unpacked bundle as one of the bundle."""
    inner = found.file.replace(f"{bundle.folder}/", f"{file.name}: ")
    return Finding(found.code, found.severity, inner, found.line, found.message.replace(f"{bundle.folder}/", ""))


@contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    """Open a plain tar; compressed ones are refused, whose size nobody knows before they are unpacked."""
    try:
        if file.stat().st_size > MOST_TOTAL + 16 * MIB:
            raise UsageError(f"has more than {MOST_TOTAL // MIB} MiB", file=file)
        with tarfile.open(file, "r:") as tar:
            yield tar
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError) as error:
        raise UsageError(f"is no bundle: {printable(str(error)) or type(error).__name__}", file=file) from error


def _members(tar: tarfile.TarFile, file: Path) -> dict[str, tarfile.TarInfo]:
    """Return the files of a tar by name; everything else but plain folders is refused."""
    found: dict[str, tarfile.TarInfo] = {}
    lower: set[str] = set()
    for member in tar:
        name = printable(member.name)
        if len(found) > MOST_FILES:
            raise UsageError(f"holds more than {MOST_FILES} files", file=file)
        if member.isdir():
            _plain_name(member.name.rstrip("/"), file)
            continue
        if not member.isreg() or member.issparse():
            raise UsageError(f"{name} is a link, a device or sparse", file=file)
        _plain_name(member.name, file)
        if member.name.lower() in lower:  # Some file systems ignore case.
            raise UsageError(f"{name} is there twice", file=file)
        lower.add(member.name.lower())
        found[member.name] = member
    return found


def _plain_name(name: str, file: Path) -> None:
    """Refuse names that leave the bundle or that are read otherwise elsewhere."""
    parts = name.split("/")
    if len(name) > 300 or not all(_NAME.fullmatch(part) and not part.endswith(".") for part in parts):
        raise UsageError(f"{printable(name)[:80]!r} is no plain relative name", file=file)


def _admit(sizes: Mapping[str, int], file: Path) -> None:
    if len(sizes) > MOST_FILES:
        raise UsageError(f"holds more than {MOST_FILES} files", file=file)
    if sum(sizes.values()) > MOST_TOTAL:
        raise UsageError(f"holds more than {MOST_TOTAL // MIB} MiB", file=file)
    for name, size in sizes.items():
        most = next((most for pattern, most in _PLACES if pattern.fullmatch(name)), None)
        if most is None:
            raise UsageError(f"{printable(name)} is none of the files that a bundle holds", file=file)
        if size > most:
            raise UsageError(f"{name} has {size} bytes; the most there is {most}", file=file)


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> bytes:
    stream = tar.extractfile(member)
    data = b"" if stream is None else stream.read(member.size)
    if len(data) != member.size:
        raise UsageError(f"ends within {printable(member.name)}", file=file)
    return data


def _table(data: bytes, file: Path) -> Table:
    try:
        return Table.model_validate_json(data)
    except ValidationError as error:
        raise usage_error(file, error, Table) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{TABLE} cannot be read: {error}", file=file) from error


def _headers(bundle: Bundle, file: Path) -> Iterator[Finding]:
    """Look at the headers of pictures and weights; nothing is decoded."""
    for path in sorted(bundle.folder.rglob("*.png")):
        size = png_size(path)
        if size is None or not all(0 < side <= MOST_SIDE for side in size):
            said = "is no PNG" if size is None else f"says that it is {size[0]} x {size[1]}; at most {MOST_SIDE} a side"
            yield finding("bundle", path, said)
    for path in sorted(bundle.folder.rglob("*.safetensors")):
        try:
            tensors = base_folder.header(path)
        except UsageError as error:
            yield of_error("bundle", error, path)
            continue
        if not tensors.formats <= {"F32", "F16", "BF16"}:
            yield finding("bundle", path, f"holds tensors of {', '.join(sorted(map(str, tensors.formats)))}")
        elif tensors.count * 2 > path.stat().st_size:
            yield finding("bundle", path, "its header promises more values than the file has")


def png_size(path: Path) -> tuple[int, int] | None:
    """Return width and height from a PNG's first chunk, None if it has none."""
    with path.open("rb") as stream:
        head = stream.read(33)
    if len(head) < 33 or head[:16] != b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR":
        return None
    width, height = struct.unpack(">II", head[16:24])
    return int(width), int(height)


def _attested(bundle: Bundle, file: Path) -> Iterator[Finding]:
    """Hold the bundled pictures and weights to the hashes that the records carry."""
    for number, record in enumerate(read_records(bundle.records), 1):
        if (record.cell.defense, record.cell.defense_version) != (bundle.table.defense, bundle.table.version):
            yield finding(
                "bundle", bundle.records, f"is of {record.cell.defense}@{record.cell.defense_version}", number
            )
        for name in ("protect_model", "protect_images", "pictures"):
            folder = bundle.artifact(record.cell.key, name)
            if not folder.is_dir():
                continue
            files = {p.name: {"sha256": sha256(p)} for p in sorted(folder.iterdir()) if p.is_file()}
            said = None if record.attestation is None else record.attestation.files.get(name)
            if said != payload_digest(files):
                what = f"attestation.files.{name}: is not the SHA-256 of artifacts/{folder.parent.name}/{name}"
                yield finding("bundle", bundle.records, what, number)
    suites = default_catalog().suites
    if bundle.table.suite not in suites:
        yield finding("bundle", file, f"suite: unknown suite {bundle.table.suite!r}", severity="warning")
