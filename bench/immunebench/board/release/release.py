"""Releases: boards with the digests of their records and of the rules, frozen in ``leaderboard/releases/<id>/``."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from immunebench.board.assembly.scored import NothingToShow, Scored, score_folder
from immunebench.board.release.snapshot import Snapshot, rules_digest, take
from immunebench.board.scores.model import Board, BoardError
from immunebench.board.tables import layout
from immunebench.board.tables.writers import to_csv, to_json, to_latex
from immunebench.core.errors import UsageError
from immunebench.core.version import __version__
from immunebench.declared.schema import M, Model, usage_error

SUMS = "SHA256SUMS"
_SNAPSHOT, _MANIFEST = "snapshot.json", "release.json"
_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]|\.(?!\.))*(?<!\.)")
_LONGEST = 64


class SuiteInRelease(Model):
    """Entry of a suite in the manifest of a release."""

    version: str
    results: str
    missing: tuple[str, ...]


class Manifest(Model):
    """Contents of ``release.json``."""

    schema_version: int = 1
    id: str
    created: str
    package: str
    rules: str
    suites: dict[str, SuiteInRelease]
    missing: tuple[str, ...]


def checked_id(name: str) -> str:
    """Return the id of a release after checking that it is a valid folder name on any system.

    Raises
    ------
    UsageError
        If it has characters other than letters, digits, ``.``, ``_`` and ``-``, or does not begin with a letter or
        digit.
    """
    if len(name) > _LONGEST or not _ID.fullmatch(name):
        raise UsageError("letters, digits, '.', '_', '-' (such as 2026.1) make an id, not", field="ID", value=name)
    return name


def make(
    name: str,
    results: Path,
    leaderboard: Path,
    *,
    created: str | None = None,
    add: Iterable[Path] = (),
    suites: Collection[str] = (),
) -> tuple[Path, Manifest]:
    """Freeze every suite of a folder of results.

    Parameters
    ----------
    name
        Id of the release.
    results
        Folder with one subfolder per suite.
    leaderboard
        Folder with ``rules.md`` and the subfolder ``releases``, to which the release is written.
    created
        ISO 8601 date or time; by default that of the newest record, so that repeating it gives identical bytes.
    add
        Additional files to freeze under their own names, such as a ``README.md`` that describes the release.

    suites
        Only these suites; by default all. The others are named as missing.

    Returns
    -------
    The new folder and its manifest, which lists what is missing: folders without records, and incomplete rows.

    Raises
    ------
    UsageError
        If the id is invalid or exists, the date is invalid, a folder is missing, or the name of an additional file is
        in use.
    BoardError
        If a record is invalid, a control fails its check, or there is nothing to release; the message lists all
        reasons.
    """
    target = leaderboard / "releases" / checked_id(name)
    if target.exists() or target.is_symlink():
        raise UsageError(f"a release is never changed, and {target} exists:", field="ID", value=name)
    rules = rules_digest(leaderboard)
    boards, missing = _score_all(results, suites)
    snapshots = {suite: take(scored, rules) for suite, scored in boards.items()}
    manifest = Manifest(
        id=name,
        created=_date(created or max(snapshot.newest for snapshot in snapshots.values())),
        package=__version__,
        rules=rules,
        suites={
            suite: SuiteInRelease(version=snap.suite_version, results=snap.results, missing=tuple(_missing(snap)))
            for suite, snap in snapshots.items()
        },
        missing=tuple(missing),
    )
    files = {"rules.md": (leaderboard / "rules.md").read_bytes(), _MANIFEST: _json(manifest)}
    for suite, scored in boards.items():
        for file, content in board_files(scored.board, snapshots[suite]).items():
            files[f"{suite}/{file}"] = content
    for path in add:
        if path.name in {SUMS, *(file.split("/")[0] for file in files)}:
            raise UsageError("has the name of another file of the release:", field="--add", value=str(path))
        try:
            files[path.name] = path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror}", file=path) from error
    _write(target, files)
    return target, manifest


def board_files(board: Board, snapshot: Snapshot) -> dict[str, bytes]:
    """Return the files of one suite: Markdown, CSV, JSON, LaTeX and the snapshot; equal boards give identical bytes."""
    return {
        "board.md": layout.markdown(board, snapshot.suite).encode(),
        "board.csv": to_csv(board).encode(),
        "board.json": to_json(board, snapshot.suite).encode(),
        "board.tex": to_latex(board, snapshot.suite).encode(),
        _SNAPSHOT: _json(snapshot),
    }


def read(name: str, leaderboard: Path) -> tuple[Manifest, dict[str, Snapshot], str]:
    """Read a release and check every file against its checksum.

    Returns
    -------
    Its manifest, its boards by suite, and the SHA-256 of its ``SHA256SUMS``.

    Raises
    ------
    UsageError
        If there is no such release; the message suggests the nearest id.
    BoardError
        If a file is missing, was changed, or was added.
    """
    folder = leaderboard / "releases" / checked_id(name)
    if not folder.is_dir():
        raise UsageError("no such release", field="--release", value=name, choices=names(leaderboard))
    sums, digest = _verified(folder)
    manifest = _load(folder / _MANIFEST, Manifest)
    suites = {file.split("/")[0] for file in sums if file.endswith(f"/{_SNAPSHOT}")}
    if manifest.id != name or suites != set(manifest.suites):
        raise BoardError(f"{folder / _MANIFEST} is not of this release")
    return manifest, {suite: _load(folder / suite / _SNAPSHOT, Snapshot) for suite in sorted(suites)}, digest


def names(leaderboard: Path) -> list[str]:
    """Return the ids of the releases in alphabetical order."""
    folder = leaderboard / "releases"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if (path / SUMS).is_file() and _ID.fullmatch(path.name))


def _score_all(results: Path, suites: Collection[str]) -> tuple[dict[str, Scored], list[str]]:
    if not results.is_dir():
        raise UsageError("no such folder", field="--results", value=str(results))
    own = sorted(path for path in results.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = {path.name for path in own}
    for suite in suites:
        if suite not in names:
            raise UsageError(f"no results in {results} of the suite", field="--suite", value=suite, choices=names)
    boards: dict[str, Scored] = {}
    missing, reasons = [], []
    for folder in own:
        if suites and folder.name not in suites:
            missing.append(f"{folder.name}: left out, as others were asked for")
            continue
        if not any(folder.rglob("*.jsonl")):
            missing.append(f"{folder.name}: no records")
            continue
        try:
            scored = score_folder(folder, sheets=True)
            scored.board.require_sound()
            if scored.suite.partition("@")[0] != folder.name:
                missing.append(f"{folder.name}: left out, for it holds records of {scored.suite}")
                continue
            reasons += [f"{folder.name}/{problem}" for problem in scored.problems]
            boards[folder.name] = scored
        except NothingToShow as error:
            reasons += [f"{folder.name}/{problem}" for problem in error.problems]
        except BoardError as error:
            reasons.append(f"{folder.name}: {error}")
    if reasons:
        how = "  to leave a folder out, name the others with --suite"
        raise BoardError("nothing was released:\n" + "\n".join([*(f"  {reason}" for reason in reasons), how]))
    if not boards:
        raise BoardError("nothing was released: " + "; ".join(missing or [f"no results in {results}"]))
    return boards, missing


def _missing(snapshot: Snapshot) -> list[str]:
    incomplete = [f"{row.name}: {reason}" for row in snapshot.rows for reason in row.incomplete]
    return incomplete + [note for note in snapshot.notes if note.startswith("controls not on this board")]


def _date(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("must be a date such as 2026-11-23, not", field="--created", value=text) from None
    return text


def _write(target: Path, files: dict[str, bytes]) -> None:
    lines = (f"{hashlib.sha256(content).hexdigest()}  {file}\n" for file, content in sorted(files.items()))
    everything = {**files, SUMS: "".join(lines).encode()}
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        for file, content in everything.items():
            path = draft / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        # Renaming onto a non-empty folder fails, so a release made at the same time is not overwritten.
        draft.rename(target)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", file=target) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _verified(folder: Path) -> tuple[dict[str, str], str]:
    try:
        content = (folder / SUMS).read_bytes()
    except OSError as error:
        raise BoardError(f"{folder / SUMS} cannot be read: {error.strerror}") from error
    sums = {}
    for line in content.decode("utf-8", "replace").splitlines():
        digest, _, file = line.partition("  ")
        sums[file] = digest
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {SUMS}
    wrong = [f"{file} is missing" for file in sorted(set(sums) - there)]
    wrong += [f"{file} was added" for file in sorted(there - set(sums))]
    for file in sorted(there & set(sums)):
        path = folder / file
        inside = path.resolve().is_relative_to(folder.resolve())
        if not inside or hashlib.sha256(path.read_bytes()).hexdigest() != sums[file]:
            wrong.append(f"{file} was changed")
    if wrong:
        raise BoardError(f"release {folder.name} is not what was frozen: {'; '.join(wrong)}")
    return sums, hashlib.sha256(content).hexdigest()


def _load(path: Path, model: type[M]) -> M:
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BoardError(str(usage_error(path, error, model))) from error


def _json(value: Model) -> bytes:
    return (json.dumps(value.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
